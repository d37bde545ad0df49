// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import KVCore

/// Where the next page of a scan begins. Opaque to clients; it pins the revision, so that all pages
/// show one moment. Not secret and not authenticated: whoever forges one reads what the request
/// could have read anyway.
struct ScanToken: Equatable, Sendable {
    static let version: UInt8 = 2

    /// What was scanned, and in which direction: a token of another scan is refused.
    struct Scope: Equatable, Sendable {
        var from: [UInt8]
        var to: [UInt8]?
        var isDescending: Bool

        fileprivate var checksum: UInt32 {
            var writer = ByteWriter(capacity: 16 + from.count + (to?.count ?? 0))
            writer.byte(isDescending ? 1 : 0)
            writer.blob(from)
            writer.byte(to == nil ? 0 : 1)
            writer.blob(to ?? [])
            return CRC32C.of(writer.bytes)
        }

        fileprivate func contains(_ key: [UInt8]) -> Bool {
            KeyRange(from: from, to: to).contains(key)
        }
    }

    var revision: Revision
    var lastKey: [UInt8]

    func encoded(scope: Scope) -> [UInt8] {
        var writer = ByteWriter(capacity: 32 + lastKey.count)
        writer.byte(Self.version)
        writer.integer(revision.rawValue)
        writer.blob(lastKey)
        writer.integer(scope.checksum)
        writer.integer(CRC32C.of(writer.bytes))
        return writer.bytes
    }

    init(revision: Revision, lastKey: [UInt8]) {
        self.revision = revision
        self.lastKey = lastKey
    }

    init(decoding bytes: [UInt8], scope: Scope) throws(DecodeError) {
        guard bytes.count > 4 else { throw .truncated(field: "continuation") }
        var trailer = ByteReader(bytes.suffix(4))
        let checksum: UInt32 = try trailer.integer("checksum")
        guard checksum == CRC32C.of(bytes.dropLast(4)) else { throw .checksum }
        var reader = ByteReader(bytes.dropLast(4))
        guard try reader.byte("version") == Self.version else { throw .unknown(field: "version") }
        revision = Revision(try reader.integer("revision"))
        lastKey = try reader.blob("lastKey", max: Limits.keyBytesMax)
        guard try reader.integer("scope", as: UInt32.self) == scope.checksum,
            scope.contains(lastKey)
        else { throw .outOfRange(field: "scope") }
        guard revision.rawValue > 0 else { throw .outOfRange(field: "revision") }
        try reader.end()
    }
}
