// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import KVCore
import NIOCore
import RaftStorage

/// A page of keys as the message that answers a scan, written as it is read.
struct ScanPage: Sendable {
    private static let bytesMin = 2048
    /// Memory that is asked for because the entries so far let expect it.
    private static let expectedBytesMax = 1_000_000

    /// `ScanKeysResponse`, its entries only.
    private(set) var body: ByteBuffer
    private(set) var more = false
    private(set) var revision = Revision.zero
    private var lastKey = 0..<0

    private let countMax: Int
    private var count = 0

    private init(countMax: Int) {
        body = ByteBuffer()
        self.countMax = countMax
    }

    static func read(
        _ request: RangeRequest, from store: any StateStore
    ) throws(StorageError) -> ReadOutcome<ScanPage> {
        var page = ScanPage(countMax: min(max(request.limit, 1), Limits.batchCountMax))
        switch try store.visit(request, { page.append($0) }) {
        case .value(let end):
            page.more = end.more
            page.revision = end.revision
            return .value(page)
        case .compacted(let oldest): return .compacted(oldest: oldest)
        case .future(let current): return .future(current: current)
        }
    }

    private mutating func append(_ entry: EntryView) {
        let entry = ScanPageEntry(
            key: entry.key, value: entry.value,
            createRevision: entry.row.createRevision.rawValue,
            modRevision: entry.row.change.revision.rawValue, version: entry.row.version,
            lease: entry.row.lease.rawValue)
        let room = entry.bytesMax
        if body.writableBytes < room { grow(for: room) }
        let keyStart = body.writerIndex + entry.keyOffset
        lastKey = keyStart..<keyStart + entry.key.count
        body.writeWithUnsafeMutableBytes(minimumWritableBytes: room) { entry.write(to: $0) }
        count += 1
    }

    /// What is written is copied, and new memory costs as much again: to what a full page will take, if
    /// all entries are like those before.
    private mutating func grow(for room: Int) {
        let written = body.readableBytes
        let expected =
            count == 0 ? Self.bytesMin : written / count * countMax + written / 8 + room
        body.reserveCapacity(
            max(
                written + room, min(expected, Self.expectedBytesMax),
                min(2 * written, Limits.scanPageBytesMax)))
    }

    /// What comes before the entries and after them in the whole message.
    func ends(_ scope: ScanToken.Scope) -> (head: [UInt8], tail: [UInt8]) {
        var continuation: [UInt8] = []
        if more, let key = body.getBytes(at: lastKey.lowerBound, length: lastKey.count) {
            continuation = ScanToken(revision: revision, lastKey: key).encoded(scope: scope)
        }
        let tail = ScanPageFrame.tail(continuation: continuation, revision: revision.rawValue)
        return (ScanPageFrame.head(bodyBytes: body.readableBytes + tail.count), tail)
    }
}
