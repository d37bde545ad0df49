// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore

/// What the records read so far add up to.
struct LogReplay {
    let salt: UInt64
    let seed: UInt32
    var map: LogMap
    var hardState: HardState
    var lastTime: ClusterTime
    var chain: UInt32
    var epoch: UInt32
    var untrustedBelow: LogIndex
    /// Up to where the last segment had been synced, as its records know.
    private(set) var syncedTo = 0
    var memberships: [(index: LogIndex, payload: [UInt8])] = []
    var newestMembership: KeptMembership?
    /// A planted bug: generation and chain are not looked at (`PlantedBug.acceptRecycledRecord`).
    var acceptsRecycled = false

    /// What holds before the first record of the first segment.
    init(_ header: SegmentHeader) {
        salt = header.salt
        seed = header.seed
        map = LogMap(base: header.lastIndex, term: header.lastTerm)
        hardState = header.hardState
        lastTime = header.lastTime
        chain = header.chain
        epoch = header.epoch
        untrustedBelow = header.untrustedBelow
    }

    /// Goes over into the next segment: its header says what a reopening has changed.
    mutating func enter(_ header: SegmentHeader) {
        precondition(header.chain == chain, "the caller has compared the chain")
        hardState = header.hardState
        epoch = header.epoch
        untrustedBelow = header.untrustedBelow
    }

    /// Takes in the records of a segment, as far as they form a chain, and sets its `end`.
    mutating func replay(_ segment: LogSegment, _ bytes: UnsafeRawBufferPointer) {
        map.add(segment)
        syncedTo = 0
        var offset = SegmentHeader.byteCount
        while offset < bytes.count, let head = next(bytes, &offset, segment) {
            let body = UnsafeRawBufferPointer(
                rebasing: bytes[(offset + RecordHead.byteCount)...].prefix(head.bodyByteCount))
            guard take(head, body, at: offset) else { break }
            chain = head.crc
            epoch = head.epoch
            syncedTo = max(syncedTo, Int(head.syncedTo))
            offset += head.paddedByteCount
        }
        segment.end = offset
    }

    private func next(
        _ bytes: UnsafeRawBufferPointer, _ offset: inout Int, _ segment: LogSegment
    ) -> RecordHead? {
        if let head = RecordHead.read(bytes, at: offset, salt: seed),
            head.generation == segment.generation, head.previous == chain, head.kind != .mark,
            head.kind == .opening ? head.epoch > epoch : head.epoch == epoch
        {
            return head
        }
        #if ASPEN_TEST_BUILD
            if acceptsRecycled { return nextRecycled(bytes, &offset) }
        #endif
        return nil
    }

    /// - Returns: false if the record contradicts what came before it.
    private mutating func take(
        _ head: RecordHead, _ body: UnsafeRawBufferPointer, at offset: Int
    ) -> Bool {
        switch head.kind {
        case .entry:
            guard head.index == map.lastIndex.next, head.term >= map.lastTerm, body.count >= 8
            else { return false }
            if EntryBody.kind(head) == .membership {
                guard let entry = EntryBody.read(head, body) else { return false }
                memberships.append((head.index, entry.payload))
                keep(KeptMembership(entry))
            }
            map.append(head.index, term: head.term, at: offset)
            lastTime = max(lastTime, EntryBody.time(body))
        case .truncation:
            guard head.index <= map.lastIndex else { return false }
            map.truncate(after: head.index, term: head.term)
            while let last = memberships.last, last.index > head.index { memberships.removeLast() }
        case .hardState:
            guard let state = HardStateBody.read(head, body) else { return false }
            hardState = state
        case .opening:
            guard body.count == 8 else { return false }
            untrustedBelow = LogIndex(UInt64(littleEndian: body.loadUnaligned(as: UInt64.self)))
        case .repaired: untrustedBelow = .zero
        case .filler: break
        case .membership:
            guard let copy = KeptMembership(body) else { return false }
            keep(copy)
        case .mark: return false
        }
        return true
    }

    private mutating func keep(_ membership: KeptMembership?) {
        guard let membership, membership.isNewer(than: newestMembership) else { return }
        newestMembership = membership
    }

    #if ASPEN_TEST_BUILD
        /// How a reader without generation and chain would go on: any whole record will do.
        private func nextRecycled(
            _ bytes: UnsafeRawBufferPointer, _ offset: inout Int
        ) -> RecordHead? {
            var place = offset
            while place < bytes.count {
                if var head = RecordHead.read(bytes, at: place, salt: seed), head.kind == .entry {
                    head.index = map.lastIndex.next
                    head.term = max(head.term, map.lastTerm)
                    head.epoch = epoch
                    offset = place
                    return head
                }
                place += RecordHead.alignment
            }
            return nil
        }
    #endif
}

/// What records behind the end of the chain give away.
struct LogEvidence {
    /// Some record of the segment's generation is there.
    var isUsed = false
    /// A record was written when bytes beyond the place where the chain ends were already durable.
    var provesLoss = false
    /// The segment had been synced up to here.
    var syncedTo = 0
    /// How far the log went.
    var lastIndex = LogIndex.zero
    /// The newest term of an entry.
    var lastTerm = Term.zero
    var epoch: UInt32 = 0
    var hardState = HardState()
    var newestMembership: KeptMembership?

    /// Looks at every place where a record may begin.
    ///
    /// - Parameter epoch: older records are leftovers of a tail that was given up.
    init(
        _ content: SegmentContent, behind hole: Int, generation: UInt64, epoch: UInt32,
        seed: UInt32
    ) {
        content.withBytes {
            Self.scan(
                $0, until: content.writtenEnd, behind: hole, generation: generation, epoch: epoch,
                seed: seed
            ) { head, body in
                isUsed = true
                provesLoss = provesLoss || Int(head.syncedTo) > hole
                lastIndex = max(lastIndex, head.index)
                self.epoch = max(self.epoch, head.epoch)
                add(head, body)
            }
        }
    }

    /// Every whole record of that generation.
    static func scan(
        _ bytes: UnsafeRawBufferPointer, until end: Int, behind hole: Int, generation: UInt64,
        epoch: UInt32, seed: UInt32, _ take: (RecordHead, UnsafeRawBufferPointer) -> Void
    ) {
        var offset = max(hole, SegmentHeader.byteCount)
        while offset < end, offset + RecordHead.byteCount <= bytes.count {
            let found = UInt64(
                littleEndian: bytes.loadUnaligned(fromByteOffset: offset + 16, as: UInt64.self))
            guard found == generation,
                let head = RecordHead.read(bytes, at: offset, salt: seed), head.epoch >= epoch
            else {
                offset += RecordHead.alignment
                continue
            }
            let start = offset + RecordHead.byteCount
            take(head, UnsafeRawBufferPointer(rebasing: bytes[start..<start + head.bodyByteCount]))
            offset += head.paddedByteCount
        }
    }

    init() {}

    private mutating func add(_ head: RecordHead, _ body: UnsafeRawBufferPointer) {
        syncedTo = max(syncedTo, Int(head.syncedTo))
        if head.kind == .entry { lastTerm = max(lastTerm, head.term) }
        switch head.kind {
        case .hardState: add(HardStateBody.read(head, body) ?? HardState())
        case .membership: add(KeptMembership(body))
        case .entry where EntryBody.kind(head) == .membership:
            add(EntryBody.read(head, body).map { KeptMembership($0) })
        default: break
        }
    }

    private mutating func add(_ membership: KeptMembership?) {
        guard let membership, membership.isNewer(than: newestMembership) else { return }
        newestMembership = membership
    }

    mutating func add(_ state: HardState) {
        if state.term > hardState.term { hardState = state }
        if state.term == hardState.term, hardState.votedFor == nil { hardState = state }
    }

    mutating func add(_ other: LogEvidence) {
        isUsed = isUsed || other.isUsed
        provesLoss = provesLoss || other.provesLoss
        lastIndex = max(lastIndex, other.lastIndex)
        lastTerm = max(lastTerm, other.lastTerm)
        epoch = max(epoch, other.epoch)
        add(other.hardState)
        add(other.newestMembership)
    }

    mutating func add(_ header: SegmentHeader) {
        lastIndex = max(lastIndex, header.lastIndex, header.untrustedBelow)
        lastTerm = max(lastTerm, header.lastTerm)
        epoch = max(epoch, header.epoch)
        add(header.hardState)
    }
}

extension LogReplay {
    /// The log ends before a damaged place: notes what is known to have been behind it.
    mutating func accept(_ damage: LogEvidence) {
        untrustedBelow = max(untrustedBelow, damage.lastIndex, map.lastIndex.next)
        keep(damage.newestMembership)
    }

    /// Takes a hard state that stands behind the end of the log. It may be one that was promised and
    /// then cut off by damage; if it was never promised, keeping to it does no harm.
    ///
    /// - Returns: whether it is newer than what the log itself says.
    mutating func adopt(_ state: HardState) -> Bool {
        var states = LogEvidence()
        states.add(hardState)
        states.add(state)
        defer { hardState = states.hardState }
        return states.hardState != hardState
    }

    /// - Throws: `.corrupt` if a membership cannot be decoded although its checksum holds.
    func recovery() throws(StorageError) -> RaftRecovery {
        // Entries of a term that the hard state does not know yet: nothing was promised in it.
        let state = map.lastTerm > hardState.term ? HardState(term: map.lastTerm) : hardState
        var decoded: [(index: LogIndex, membership: Membership)] = []
        for (index, payload) in memberships {
            guard let membership = Membership(payload: payload) else {
                throw .corrupt("entry \(index) is a membership that cannot be read")
            }
            decoded.append((index, membership))
        }
        let isTrusted = untrustedBelow == .zero
        return RaftRecovery(
            hardState: state, memberships: decoded, snapshotIndex: map.base,
            snapshotTerm: map.baseTerm, lastIndex: map.lastIndex, termStarts: map.termStarts,
            lastTime: lastTime, isTailTrusted: isTrusted,
            untrustedBelow: isTrusted ? .zero : max(untrustedBelow, map.lastIndex),
            newestMembership: isTrusted ? nil : try newestMembership?.decoded())
    }
}

extension SegmentHeader {
    /// What a log begins from.
    static func first(salt: UInt64) -> SegmentHeader {
        SegmentHeader(
            generation: 0, previousGeneration: 0, previousEnd: 0, salt: salt, epoch: 0, chain: 0,
            lastIndex: .zero, lastTerm: .zero, lastTime: .zero, hardState: HardState(),
            untrustedBelow: .zero)
    }
}
