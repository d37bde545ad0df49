// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import LinkCore
import Testing

@Suite struct LinkNoticeTests {
    private let notices: [LinkNotice] = [
        .proof(
            mac: Array(repeating: 7, count: LinkNotice.proofByteCount), incarnation: .max - 3,
            raft: .gone),
        .service(1, .serving), .service(200, .unknown),
        .over([LinkName(7)]), .over([LinkName(1), LinkName(2), LinkName(9), LinkName(.max)]),
    ]

    /// However a stream is cut into pieces, the same notices come out.
    @Test(arguments: 1...80) func piecesMakeNotices(size: Int) throws {
        let whole = notices.flatMap { $0.encoded() }
        var (unread, found): ([UInt8], [LinkNotice]) = ([], [])
        for start in stride(from: 0, to: whole.count, by: size) {
            unread += whole[start..<min(start + size, whole.count)]
            found += try LinkNotice.take(from: &unread)
        }
        #expect(found == notices)
        #expect(unread.isEmpty)
    }

    /// The bytes are a promise to other versions.
    @Test func theBytesAreFixed() {
        #expect(LinkNotice.service(1, .gone).encoded() == [3, 0, 2, 1, 2])
        #expect(
            LinkNotice.over([LinkName(5)]).encoded() == [10, 0, 3, 1, 5, 0, 0, 0, 0, 0, 0, 0])
    }

    @Test func laterTypesAreSkippedAndNonsenseIsRefused() throws {
        var later: [UInt8] = [2, 0, 99, 1] + LinkNotice.service(1, .gone).encoded()
        #expect(try LinkNotice.take(from: &later) == [.unknown, .service(1, .gone)])
        var tooLong: [UInt8] = [1, 1]
        #expect(throws: (any Error).self) { try LinkNotice.take(from: &tooLong) }
        #expect(throws: (any Error).self) { try LinkNotice(decoding: [2, 1, 77]) }
        #expect(throws: (any Error).self) { try LinkNotice(decoding: [2, 1, 1, 0]) }
        // None, too many, one twice, and not in order.
        let (one, two): ([UInt8], [UInt8]) = ([1, 0, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0])
        for names in [[0], [5] + one + one + one + one + one, [2] + one + one, [2] + two + one] {
            #expect(throws: (any Error).self) { try LinkNotice(decoding: [3] + names) }
        }
        #expect(try LinkNotice(decoding: [3, 2] + one + two) == .over([LinkName(1), LinkName(2)]))
    }

    @Test func anyBytesAreReadOrRefused() {
        var random = RandomSource(seed: 11)
        for _ in 0..<20_000 {
            var bytes = (0..<random.uniform(0..<60)).map { _ in
                UInt8(truncatingIfNeeded: random.next())
            }
            _ = try? LinkNotice.take(from: &bytes)
        }
    }
}
