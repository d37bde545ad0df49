// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import KVCore
import NIOCore
import RaftStorage

/// A page of keys as the message that answers a scan, written as it is read.
struct ScanPage: Sendable {
    /// What follows the entries goes into the same memory.
    private static let tailBytes = 1200
    private static let bytesMin = 2048
    /// By how much the memory grows: what is written is copied each time.
    private static let growth = 4

    /// `ScanKeysResponse`, its entries only.
    private(set) var body: ByteBuffer
    private(set) var more = false
    private(set) var revision = Revision.zero
    private var lastKey = 0..<0

    private init() { body = ByteBuffer() }

    static func read(
        _ request: RangeRequest, from store: any StateStore
    ) throws(StorageError) -> ReadOutcome<ScanPage> {
        var page = ScanPage()
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
        let room = entry.bytesMax + Self.tailBytes
        if body.writableBytes < room {
            body.reserveCapacity(
                max(Self.bytesMin, body.capacity * Self.growth, body.readableBytes + room))
        }
        let keyStart = body.writerIndex + entry.keyOffset
        lastKey = keyStart..<keyStart + entry.key.count
        body.writeWithUnsafeMutableBytes(minimumWritableBytes: room) { entry.write(to: $0) }
    }

    /// The whole message, in two pieces: what comes before the body, and the body.
    func finished(_ scope: ScanToken.Scope) -> (head: [UInt8], body: ByteBuffer) {
        var continuation: [UInt8] = []
        if more, let key = body.getBytes(at: lastKey.lowerBound, length: lastKey.count) {
            continuation = ScanToken(revision: revision, lastKey: key).encoded(scope: scope)
        }
        var body = body
        body.writeBytes(
            ScanPageFrame.tail(continuation: continuation, revision: revision.rawValue))
        return (ScanPageFrame.head(bodyBytes: body.readableBytes), body)
    }
}
