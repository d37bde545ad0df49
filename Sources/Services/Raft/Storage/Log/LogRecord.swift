// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import RaftCore

/// What a record of the log says. Every record also carries the index of the last entry once it is
/// in force, so that any of them tells how far the log once went.
enum RecordKind: UInt8 {
    /// An entry.
    case entry = 1
    /// Every entry after `index` is void; `term` is that of the entry at `index`. A conflict is
    /// settled by adding this, never by writing over entries: a torn overwrite would destroy an
    /// entry that the truncation was to keep.
    case truncation = 2
    /// `term` is the node's term; the body says whom it voted for. Written twice, with a `filler`
    /// between the copies: no vote is forgotten because one block of the disk went bad.
    case hardState = 3
    /// The log was opened: a new epoch begins, which no record left over from before can continue.
    case opening = 4
    /// Written a block behind the last record after a sync, itself unsynced and written over by what
    /// follows: if it is there, everything below its `syncedTo` was durable.
    case mark = 5
    /// The log is trusted again after damage (`LogWrite.endsRepair`).
    case repaired = 6
    /// Takes up room.
    case filler = 7
    /// The newest membership once more: see `KeptMembership`. Written a block behind the entry, and
    /// first of all in each segment.
    case membership = 8
}

/// The head of every record; little-endian, each record on a multiple of 8 bytes:
///
///      0 u32 CRC32C of all that follows, body included (seeded with the log's salt)
///      4 u32 the CRC of the record before: records form a chain
///      8 u32 bytes of body
///     12 u8  kind           13 u8 flags (entry kind; bit 7: has an origin)   14 u16 magic
///     16 u64 generation of the segment
///     24 u32 epoch: how often the log had been opened
///     28 u32 syncedTo: everything below this offset in this segment was durable before the record
///            was written. Records after a hole betray by it whether the hole is a torn tail
///     32 u64 index          40 u64 term          48 the body
struct RecordHead: Equatable {
    static let byteCount = 48
    static let alignment = 8
    static let magic: UInt16 = 0x4c41

    var kind: RecordKind
    var flags: UInt8 = 0
    var generation: UInt64
    var epoch: UInt32
    var syncedTo: UInt32
    var index: LogIndex
    var term: Term
    var previous: UInt32
    var bodyByteCount: Int
    var crc: UInt32 = 0

    /// With the padding that follows the body.
    var paddedByteCount: Int { Self.padded(bodyByteCount) }

    static func padded(_ bodyByteCount: Int) -> Int {
        (byteCount + bodyByteCount + alignment - 1) & ~(alignment - 1)
    }

    /// Writes the head to `target`, behind which the body already stands, and returns the CRC.
    func seal(into target: UnsafeMutableRawBufferPointer, salt: UInt32) -> UInt32 {
        func store<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
            target.storeBytes(of: value.littleEndian, toByteOffset: offset, as: Value.self)
        }
        store(previous, at: 4)
        store(UInt32(bodyByteCount), at: 8)
        store(kind.rawValue, at: 12)
        store(flags, at: 13)
        store(Self.magic, at: 14)
        store(generation, at: 16)
        store(epoch, at: 24)
        store(syncedTo, at: 28)
        store(index.rawValue, at: 32)
        store(term.rawValue, at: 40)
        var crc = CRC32C(seed: salt)
        crc.update(UnsafeRawBufferPointer(rebasing: target[4..<Self.byteCount + bodyByteCount]))
        store(crc.value, at: 0)
        return crc.value
    }

    /// - Returns: nil unless a whole record with a matching CRC stands at `offset`. Whether it
    ///   belongs there (generation, chain, epoch) is the caller's to judge.
    static func read(
        _ bytes: UnsafeRawBufferPointer, at offset: Int, salt: UInt32
    ) -> RecordHead? {
        guard offset >= 0, offset + byteCount <= bytes.count else { return nil }
        func load<Value: FixedWidthInteger>(_ position: Int, _ type: Value.Type) -> Value {
            Value(littleEndian: bytes.loadUnaligned(fromByteOffset: offset + position, as: type))
        }
        guard load(14, UInt16.self) == magic, let kind = RecordKind(rawValue: load(12, UInt8.self))
        else { return nil }
        let bodyByteCount = Int(load(8, UInt32.self))
        guard bodyByteCount <= bytes.count - offset - byteCount else { return nil }
        var crc = CRC32C(seed: salt)
        crc.update(
            UnsafeRawBufferPointer(
                rebasing: bytes[offset + 4..<offset + byteCount + bodyByteCount]))
        guard crc.value == load(0, UInt32.self) else { return nil }
        return RecordHead(
            kind: kind, flags: load(13, UInt8.self), generation: load(16, UInt64.self),
            epoch: load(24, UInt32.self), syncedTo: load(28, UInt32.self),
            index: LogIndex(load(32, UInt64.self)), term: Term(load(40, UInt64.self)),
            previous: load(4, UInt32.self), bodyByteCount: bodyByteCount, crc: crc.value)
    }
}

/// The body of an entry: time (u64); with an origin: node, incarnation, number (u64 each); payload.
enum EntryBody {
    private static let originFlag: UInt8 = 0x80

    static func byteCount(_ entry: Entry) -> Int {
        8 + (entry.origin == nil ? 0 : 24) + entry.payload.count
    }

    static func flags(_ entry: Entry) -> UInt8 {
        entry.kind.rawValue | (entry.origin == nil ? 0 : originFlag)
    }

    static func kind(_ head: RecordHead) -> Entry.Kind? {
        Entry.Kind(rawValue: head.flags & ~originFlag)
    }

    /// - Precondition: at least eight bytes.
    static func time(_ body: UnsafeRawBufferPointer) -> ClusterTime {
        ClusterTime(
            milliseconds: UInt64(littleEndian: body.loadUnaligned(as: UInt64.self)))
    }

    static func write(_ entry: Entry, to target: UnsafeMutableRawBufferPointer) {
        func store(_ value: UInt64, at offset: Int) {
            target.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt64.self)
        }
        store(entry.time.milliseconds, at: 0)
        var offset = 8
        if let origin = entry.origin {
            store(origin.node.rawValue, at: 8)
            store(origin.incarnation, at: 16)
            store(origin.number, at: 24)
            offset = 32
        }
        entry.payload.withUnsafeBytes {
            UnsafeMutableRawBufferPointer(rebasing: target[offset...]).copyMemory(from: $0)
        }
    }

    /// - Returns: nil if the body is too short for what the flags promise.
    static func read(_ head: RecordHead, _ body: UnsafeRawBufferPointer) -> Entry? {
        let hasOrigin = head.flags & originFlag != 0
        let fixed = hasOrigin ? 32 : 8
        guard body.count >= fixed, let kind = kind(head)
        else { return nil }
        func load(_ offset: Int) -> UInt64 {
            UInt64(littleEndian: body.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
        }
        let origin =
            hasOrigin
            ? ProposalID(node: NodeID(load(8)), incarnation: load(16), number: load(24)) : nil
        return Entry(
            index: head.index, term: head.term, kind: kind, origin: origin,
            time: ClusterTime(milliseconds: load(0)), payload: Array(body[fixed...]))
    }
}

/// The body of a hard state: whether there is a vote, and for whom (u64 each).
enum HardStateBody {
    static let byteCount = 16

    static func write(_ vote: NodeID?, to target: UnsafeMutableRawBufferPointer) {
        let words = (vote == nil ? UInt64(0) : 1, vote?.rawValue ?? 0)
        target.storeBytes(of: words.0.littleEndian, as: UInt64.self)
        target.storeBytes(of: words.1.littleEndian, toByteOffset: 8, as: UInt64.self)
    }

    static func read(_ head: RecordHead, _ body: UnsafeRawBufferPointer) -> HardState? {
        guard body.count == byteCount else { return nil }
        let flag = UInt64(littleEndian: body.loadUnaligned(as: UInt64.self))
        let vote = UInt64(littleEndian: body.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
        return HardState(term: head.term, votedFor: flag == 0 ? nil : NodeID(vote))
    }
}

/// Bytes on their way to the disk: grown when needed, reused for every batch.
final class RecordBuffer {
    private var memory: UnsafeMutableRawBufferPointer
    private(set) var count = 0

    init(capacity: Int) {
        memory = .allocate(byteCount: capacity, alignment: RecordHead.alignment)
    }

    deinit { memory.deallocate() }

    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: memory[..<count]) }

    /// The next `byteCount` bytes, not yet initialised; valid until the next call.
    func extend(by byteCount: Int) -> UnsafeMutableRawBufferPointer {
        if count + byteCount > memory.count {
            let larger = UnsafeMutableRawBufferPointer.allocate(
                byteCount: max(count + byteCount, 2 * memory.count), alignment: RecordHead.alignment
            )
            larger.copyMemory(from: bytes)
            memory.deallocate()
            memory = larger
        }
        defer { count += byteCount }
        return UnsafeMutableRawBufferPointer(rebasing: memory[count..<count + byteCount])
    }

    func removeAll() { count = 0 }
}
