// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenWire
import FoundationEssentials
import SwiftProtobuf
import Testing

/// What writes and reads pages of keys by hand, beside swift-protobuf.
@Suite struct ScanPageTests {
    private typealias Response = Aspen_Client_V1_ClientResponse
    private typealias Page = Aspen_Client_V1_ScanKeysResponse
    private typealias Entry = Aspen_Client_V1_KeyValue

    /// As many bits as not, so that all lengths of a number come up.
    private static func number(_ random: inout RandomSource) -> UInt64 {
        random.next() >> random.uniform(0..<64 as Range<UInt64>)
            & (random.chance(1, in: 8) ? 0 : .max)
    }

    private static func bytes(_ random: inout RandomSource, upTo count: Int) -> Data {
        let count = random.chance(1, in: 6) ? 0 : random.uniform(0..<count)
        return Data((0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) })
    }

    private static func page(_ random: inout RandomSource) -> Page {
        .with { page in
            for _ in 0..<random.uniform(0..<12) {
                page.entries.append(
                    .with {
                        $0.key = bytes(&random, upTo: 200)
                        $0.value = bytes(&random, upTo: random.chance(1, in: 9) ? 20_000 : 300)
                        $0.createRevision = number(&random)
                        $0.modRevision = number(&random)
                        $0.version = number(&random)
                        $0.lease = number(&random)
                    })
            }
            page.continuation = bytes(&random, upTo: 400)
            page.revision = number(&random)
        }
    }

    private static func write(_ entry: Entry, to bytes: inout [UInt8]) {
        let start = bytes.count
        let key = [UInt8](entry.key)
        let value = [UInt8](entry.value)
        key.withUnsafeBytes { key in
            value.withUnsafeBytes { value in
                let written = ScanPageEntry(
                    key: key, value: value, createRevision: entry.createRevision,
                    modRevision: entry.modRevision, version: entry.version, lease: entry.lease)
                bytes.append(contentsOf: repeatElement(0, count: written.bytesMax))
                let count = bytes.withUnsafeMutableBytes {
                    written.write(to: UnsafeMutableRawBufferPointer(rebasing: $0[start...]))
                }
                bytes.removeLast(written.bytesMax - count)
                if !key.isEmpty {
                    let place = start + written.keyOffset
                    #expect(bytes[place..<place + key.count].elementsEqual(key))
                }
            }
        }
    }

    @Test(arguments: 0..<20 as Range<UInt64>) func pagesAreWrittenAsSwiftProtobufDoes(
        seed: UInt64
    ) throws {
        var random = RandomSource(seed: seed)
        for _ in 0..<50 {
            let page = Self.page(&random)
            var body: [UInt8] = []
            for entry in page.entries { Self.write(entry, to: &body) }
            body += ScanPageFrame.tail(
                continuation: [UInt8](page.continuation), revision: page.revision)
            let bytes = ScanPageFrame.head(bodyBytes: body.count) + body
            let response = Response.with { $0.scanKeys = page }
            #expect(try bytes == response.serializedBytes())
            let read = try Response(answer: Data(bytes))
            #expect(read == response)
            // Slices of a page are like any other bytes.
            for (entry, expected) in zip(read.scanKeys.entries, page.entries) {
                #expect([UInt8](entry.key) == [UInt8](expected.key))
                #expect([UInt8](entry.value) == [UInt8](expected.value))
            }
            #expect(try read.serializedBytes() == bytes)
        }
    }

    @Test(arguments: 0..<20 as Range<UInt64>) func anythingIsReadAsSwiftProtobufDoes(
        seed: UInt64
    ) throws {
        var random = RandomSource(seed: 1000 + seed)
        for _ in 0..<200 {
            var bytes: [UInt8] = try Response.with {
                $0.scanKeys = Self.page(&random)
                if random.chance(1, in: 4) { $0.scanKeys.count = Self.number(&random) }
                if random.chance(1, in: 9) { $0.error.message = "no" }
            }.serializedBytes()
            switch random.uniform(0..<6) {
            case 0: bytes.removeLast(random.uniform(0..<bytes.count + 1))
            case 1: bytes += bytes
            case 2: bytes += Self.bytes(&random, upTo: 20)
            case 3: bytes = [UInt8](Self.bytes(&random, upTo: 60))
            default:
                for _ in 0..<random.uniform(0..<4) where !bytes.isEmpty {
                    // Most of a page are keys and values: the beginning is where it hurts.
                    let end = random.chance(1, in: 2) ? min(bytes.count, 24) : bytes.count
                    bytes[random.uniform(0..<end)] = UInt8(truncatingIfNeeded: random.next())
                }
            }
            let expected = try? Response(serializedBytes: bytes)
            let found = try? Response(answer: Data(bytes))
            #expect(found == expected)
            // Of the middle of other bytes, too.
            let middle = Data([1, 2, 3] + bytes + [4])[3..<3 + bytes.count]
            #expect((try? Response(answer: middle)) == expected)
        }
    }

    @Test func everyCutOfAPageIsSeen() throws {
        var random = RandomSource(seed: 7)
        var page = Self.page(&random)
        page.entries = Array(page.entries.prefix(3))
        page.revision = 5
        let bytes: [UInt8] = try Response.with { $0.scanKeys = page }.serializedBytes()
        for count in 0..<bytes.count {
            let cut = Array(bytes.prefix(count))
            #expect(
                (try? Response(answer: Data(cut))) == (try? Response(serializedBytes: cut)))
        }
    }

    @Test func unusualEncodingsAreUnderstood() throws {
        let entry: [UInt8] = [0x0a, 3, 0x0a, 1, 65]
        let bodies: [[UInt8]] = [
            [], entry, [0x18, 0x81, 0x00], [0x18] + [UInt8](repeating: 0xff, count: 9) + [1],
            [0x8a, 0x00] + entry.dropFirst(), [0x18, 1, 0x18, 2], [0x20, 9], [0x2a, 1, 0],
            [0x0a, 0], [0x0a, 2, 0x38, 1], [0x1d, 1, 2, 3, 4], [0x12, 1, 7, 0x12, 1, 8],
        ]
        for body in bodies {
            let bytes = [0xaa, 1, UInt8(body.count)] + body
            #expect(
                (try? Response(answer: Data(bytes))) == (try? Response(serializedBytes: bytes)))
        }
    }
}
