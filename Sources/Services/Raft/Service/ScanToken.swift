// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// Where the next page of a scan begins. Opaque to clients; it pins the revision, so that all pages
/// show one moment. Not secret and not authenticated: whoever forges one reads what the request
/// could have read anyway.
struct ScanToken: Equatable, Sendable {
    static let version: UInt8 = 1

    var revision: Revision
    var lastKey: [UInt8]

    /// Bound to the prefix: a token of another scan is refused.
    func encoded(prefix: [UInt8]) -> [UInt8] {
        var writer = ByteWriter(capacity: 32 + lastKey.count)
        writer.byte(Self.version)
        writer.integer(revision.rawValue)
        writer.blob(lastKey)
        writer.integer(CRC32C.of(prefix))
        writer.integer(CRC32C.of(writer.bytes))
        return writer.bytes
    }

    init(revision: Revision, lastKey: [UInt8]) {
        self.revision = revision
        self.lastKey = lastKey
    }

    init(decoding bytes: [UInt8], prefix: [UInt8]) throws(DecodeError) {
        guard bytes.count > 4 else { throw .truncated(field: "continuation") }
        var trailer = ByteReader(bytes.suffix(4))
        let checksum: UInt32 = try trailer.integer("checksum")
        guard checksum == CRC32C.of(bytes.dropLast(4)) else { throw .checksum }
        var reader = ByteReader(bytes.dropLast(4))
        guard try reader.byte("version") == Self.version else { throw .unknown(field: "version") }
        revision = Revision(try reader.integer("revision"))
        lastKey = try reader.blob("lastKey", max: Limits.keyBytesMax)
        guard try reader.integer("prefix", as: UInt32.self) == CRC32C.of(prefix),
            lastKey.starts(with: prefix)
        else { throw .outOfRange(field: "prefix") }
        guard revision.rawValue > 0 else { throw .outOfRange(field: "revision") }
        try reader.end()
    }

    /// The first key behind all that begin with `prefix`; nil when there is none.
    static func end(of prefix: [UInt8]) -> [UInt8]? {
        var end = prefix
        while let last = end.last {
            if last < 255 {
                end[end.count - 1] = last + 1
                return end
            }
            end.removeLast()
        }
        return nil
    }
}
