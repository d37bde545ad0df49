// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// A backup as bytes: a header that says what it shows, the state as a stream (the same as in
/// snapshots between nodes), and a trailer by which a file that was cut short or changed is known.
///
///     "aspenbk1", header length u32, header, CRC-32C u32 of all before
///     the state's stream
///     its length u64, CRC-32C u32 of all before, "aspenbke"
///
/// Integers are little-endian. The header: format u32 (1), cluster id (length u32, 32 hexadecimal
/// digits), revision u64, applied index u64, its term u64, wall time in milliseconds since 1970 u64.
package struct BackupHeader: Equatable, Sendable {
    package static let format: UInt32 = 1
    static let magic = Array("aspenbk1".utf8)
    static let endMagic = Array("aspenbke".utf8)
    static let headerBytesMax = 4096
    static let trailerBytes = 20

    package var cluster: String
    package var revision: Revision
    package var index: LogIndex
    package var term: Term
    package var wallMilliseconds: UInt64

    package init(
        cluster: String, revision: Revision, index: LogIndex, term: Term, wallMilliseconds: UInt64
    ) {
        self.cluster = cluster
        self.revision = revision
        self.index = index
        self.term = term
        self.wallMilliseconds = wallMilliseconds
    }

    package func encoded() -> [UInt8] {
        var header = ByteWriter(capacity: 128)
        header.integer(Self.format)
        header.string(cluster)
        header.integer(revision.rawValue)
        header.integer(index.rawValue)
        header.integer(term.rawValue)
        header.integer(wallMilliseconds)
        var writer = ByteWriter(capacity: 160)
        writer.raw(Self.magic)
        writer.blob(header.bytes)
        writer.integer(CRC32C.of(writer.bytes))
        return writer.bytes
    }
}

/// Puts a backup together around the pieces of a state's stream.
package struct BackupWriter {
    private var crc = CRC32C()
    private var bodyBytes: UInt64 = 0

    package init() {}

    package mutating func begin(_ header: BackupHeader) -> [UInt8] {
        let bytes = header.encoded()
        crc.update(bytes)
        return bytes
    }

    package mutating func add(_ piece: [UInt8]) {
        crc.update(piece)
        bodyBytes += UInt64(piece.count)
    }

    package mutating func end() -> [UInt8] {
        var writer = ByteWriter(capacity: BackupHeader.trailerBytes)
        writer.integer(bodyBytes)
        crc.update(writer.bytes)
        writer.integer(crc.value)
        writer.raw(BackupHeader.endMagic)
        return writer.bytes
    }
}

/// Looks at a backup as it comes, in pieces of any size. Total: any bytes give an answer or an error.
package struct BackupChecker {
    package private(set) var header: BackupHeader?
    /// Where the state's stream begins.
    package private(set) var bodyOffset: UInt64 = 0
    package private(set) var byteCount: UInt64 = 0
    private var head: [UInt8] = []
    /// The last bytes so far: perhaps the trailer.
    private var tail: [UInt8] = []
    private var crc = CRC32C()

    package init() {}

    /// - Throws: `corrupt` for what is no backup, `unsupportedVersion` for a newer one.
    package mutating func append(_ bytes: [UInt8]) throws(AspenError) {
        byteCount += UInt64(bytes.count)
        tail += bytes
        if tail.count > BackupHeader.trailerBytes {
            let settled = tail.count - BackupHeader.trailerBytes
            crc.update(tail[..<settled])
            if header == nil { head += tail[..<settled] }
            tail.removeFirst(settled)
        }
        if header == nil {
            do { try readHeader() } catch let error as AspenError { throw error } catch {
                throw Self.damaged("its header cannot be read")
            }
        }
    }

    private mutating func readHeader() throws {
        let count = min(head.count, BackupHeader.magic.count)
        guard head.prefix(count).elementsEqual(BackupHeader.magic.prefix(count)) else {
            throw AspenError(.corrupt, "this is no backup of Aspen")
        }
        guard head.count >= 12 else { return }
        var reader = ByteReader(head[8...])
        let length: UInt32 = try reader.integer("backup.length")
        guard length <= BackupHeader.headerBytesMax else {
            throw Self.damaged("its header is too long")
        }
        let end = 12 + Int(length)
        guard head.count >= end + 4 else { return }
        reader = ByteReader(head[12..<end + 4])
        let format: UInt32 = try reader.integer("backup.format")
        guard format <= BackupHeader.format else {
            throw AspenError(
                .unsupportedVersion,
                "the backup was made by a newer program (format \(format)): use that to restore it")
        }
        let cluster = try reader.string("backup.cluster", max: 64)
        let found = BackupHeader(
            cluster: cluster, revision: Revision(try reader.integer("backup.revision")),
            index: LogIndex(try reader.integer("backup.index")),
            term: Term(try reader.integer("backup.term")),
            wallMilliseconds: try reader.integer("backup.wall"))
        let expected: UInt32 = try reader.integer("backup.crc")
        guard expected == CRC32C.of(head[..<end]) else {
            throw Self.damaged("its header fails its checksum")
        }
        header = found
        bodyOffset = UInt64(end + 4)
        head = []
    }

    /// Call after the last piece.
    package mutating func finish() throws(AspenError) -> BackupHeader {
        guard let header, tail.count == BackupHeader.trailerBytes,
            tail.suffix(8).elementsEqual(BackupHeader.endMagic)
        else { throw Self.damaged("it is cut short") }
        crc.update(tail[..<8])
        let length = tail[..<8].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        let expected = tail[8..<12].reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        guard expected == crc.value else { throw Self.damaged("it fails its checksum") }
        guard length == bodyBytes else { throw Self.damaged("it has another length than it says") }
        return header
    }

    /// Of the state's stream; right after `finish`.
    package var bodyBytes: UInt64 {
        byteCount - min(byteCount, bodyOffset + UInt64(BackupHeader.trailerBytes))
    }

    private static func damaged(_ reason: String) -> AspenError {
        AspenError(.corrupt, "the backup is damaged: \(reason)")
    }
}
