// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import RaftCore

/// The first block of a segment: everything that its records build upon, so that each segment can be
/// read without the ones before it, which may be gone. Written once, together with the first
/// records, four times over in sectors of its own.
struct SegmentHeader: Equatable {
    /// Records begin here.
    static let byteCount = 4096
    /// Since 2 there are copies of memberships among the records. Both can be read; records are only
    /// added to segments of this version, which a program that knows no copies refuses to open.
    static let version: UInt32 = 2
    static let oldestVersion: UInt32 = 1
    private static let magic = Array("ASPENLOG".utf8)
    private static let copyOffsets = [0, 1024, 2048, 3072]

    /// Unique in the life of the log, ascending.
    var generation: UInt64
    /// The segment that this one goes on from; zero if it starts the log (new, or after a snapshot
    /// was installed): then no earlier segment counts any more.
    var previousGeneration: UInt64
    /// Where the records of that segment end; all of them were durable before this was written.
    var previousEnd: UInt64
    /// Random, chosen with the log: bytes in a client's value cannot pose as a record.
    var salt: UInt64
    var epoch: UInt32
    /// The CRC of the last record before this segment.
    var chain: UInt32
    /// The last entry before this segment.
    var lastIndex: LogIndex
    var lastTerm: Term
    var lastTime: ClusterTime
    var hardState: HardState
    /// Zero, or the index below which the log is not to be trusted until a leader has filled it.
    var untrustedBelow: LogIndex
    var version = Self.version

    /// What the CRC of every record starts from.
    var seed: UInt32 { UInt32(truncatingIfNeeded: salt ^ (salt >> 32)) }

    var isStart: Bool { previousGeneration == 0 }

    enum Reading: Equatable {
        case header(SegmentHeader)
        case newerVersion(UInt32)
        case none
    }

    func write(to block: UnsafeMutableRawBufferPointer) {
        precondition(block.count == Self.byteCount, "a header fills its block")
        block.initializeMemory(as: UInt8.self, repeating: 0)
        var writer = ByteWriter(capacity: 160)
        writer.raw(Self.magic)
        writer.integer(version)
        writer.integer(epoch)
        writer.integer(generation)
        writer.integer(previousGeneration)
        writer.integer(previousEnd)
        writer.integer(salt)
        writer.integer(UInt64(chain))
        writer.integer(lastIndex.rawValue)
        writer.integer(lastTerm.rawValue)
        writer.integer(lastTime.milliseconds)
        writer.integer(hardState.term.rawValue)
        writer.integer(UInt64(hardState.votedFor == nil ? 0 : 1))
        writer.integer(hardState.votedFor?.rawValue ?? 0)
        writer.integer(untrustedBelow.rawValue)
        writer.integer(CRC32C.of(writer.bytes))
        for offset in Self.copyOffsets {
            UnsafeMutableRawBufferPointer(rebasing: block[offset...]).copyBytes(from: writer.bytes)
        }
    }

    /// Reads the header of the segment `generation` from the first block of its file.
    static func read(_ block: [UInt8], generation: UInt64) -> Reading {
        var newer: UInt32?
        for offset in copyOffsets where offset < block.count {
            do throws(DecodeError) {
                switch try read(ByteReader(block[offset...])) {
                case .header(let header) where header.generation == generation:
                    return .header(header)
                case .newerVersion(let version): newer = version
                default: break
                }
            } catch {}
        }
        return newer.map { .newerVersion($0) } ?? .none
    }

    private static func read(_ source: ByteReader) throws(DecodeError) -> Reading {
        var reader = source
        guard try reader.raw(8, "magic").elementsEqual(magic) else { return .none }
        let version: UInt32 = try reader.integer("version")
        guard version >= oldestVersion else { return .none }
        guard version <= Self.version else { return .newerVersion(version) }
        let start = reader.bytes.startIndex
        let epoch: UInt32 = try reader.integer("epoch")
        let generation: UInt64 = try reader.integer("generation")
        let previousGeneration: UInt64 = try reader.integer("previousGeneration")
        let previousEnd: UInt64 = try reader.integer("previousEnd")
        let salt: UInt64 = try reader.integer("salt")
        let chain: UInt64 = try reader.integer("chain")
        let lastIndex: UInt64 = try reader.integer("lastIndex")
        let lastTerm: UInt64 = try reader.integer("lastTerm")
        let lastTime: UInt64 = try reader.integer("lastTime")
        let term: UInt64 = try reader.integer("term")
        let hasVote: UInt64 = try reader.integer("hasVote")
        let vote: UInt64 = try reader.integer("vote")
        let untrustedBelow: UInt64 = try reader.integer("untrustedBelow")
        let end = reader.position
        let crc: UInt32 = try reader.integer("crc")
        guard crc == CRC32C.of(reader.bytes[start..<end]) else { throw .checksum }
        return .header(
            SegmentHeader(
                generation: generation, previousGeneration: previousGeneration,
                previousEnd: previousEnd, salt: salt, epoch: epoch,
                chain: UInt32(truncatingIfNeeded: chain), lastIndex: LogIndex(lastIndex),
                lastTerm: Term(lastTerm), lastTime: ClusterTime(milliseconds: lastTime),
                hardState: HardState(
                    term: Term(term), votedFor: hasVote == 0 ? nil : NodeID(vote)),
                untrustedBelow: LogIndex(untrustedBelow), version: version))
    }
}

/// The names of the files of a log.
enum SegmentName {
    /// A segment in use, or prepared to be the next.
    static func log(_ generation: UInt64) -> String { "log-" + hex(generation) }
    /// A discarded segment, waiting to be used again.
    static func spare(_ generation: UInt64) -> String { "spare-" + hex(generation) }
    /// Set aside because a damaged place cut it off from the log; removed once peers have filled in.
    static func damaged(_ generation: UInt64) -> String { "damaged-" + hex(generation) }
    /// Being filled with zeros.
    static func unfinished(_ generation: UInt64) -> String { "new-" + hex(generation) }

    static func generation(_ name: String, prefix: String) -> UInt64? {
        guard name.hasPrefix(prefix), name.utf8.count == prefix.utf8.count + 16 else { return nil }
        return UInt64(name.dropFirst(prefix.count), radix: 16)
    }

    private static func hex(_ number: UInt64) -> String {
        let digits = String(number, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
