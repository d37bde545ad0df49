// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import RaftCore

/// How a log lays itself out on the disk.
package struct LogConfiguration: Sendable {
    /// Size of a segment, at least 16 KiB. A larger record gets a segment of its own.
    package var segmentBytes = 4 << 20
    /// Most discarded segments kept for use again; more are removed.
    package var sparesMax = 2
    /// Most bytes of records held in memory until the next sync.
    package var bufferBytesMax = 4 << 20
    /// Bugs to switch on; honoured in test builds only.
    package var plantedBugs: Set<PlantedBug> = []

    package init() {}
}

/// The log in segments of prepared blocks (DESIGN §6).
///
/// A batch is encoded into one buffer, written by one call over blocks that already exist, and made
/// durable by one fdatasync; no file grows, no name changes. When a segment is full the log goes over
/// into the one prepared before: that costs a second fdatasync. Hard states and truncations are
/// records among the entries, so that the same sync covers them.
///
/// Call `prepareNextIfNeeded` (or run `preparation()` elsewhere) when there is nothing else to do:
/// otherwise the log has to prepare its next segment in the middle of a write.
package final class SegmentedLog: LogStore {
    package private(set) var recovery: RaftRecovery
    let disk: any Disk
    let configuration: LogConfiguration

    private let salt: UInt64
    let seed: UInt32
    var map: LogMap
    private var hardState: HardState
    private var lastTime: ClusterTime
    private var chain: UInt32
    private var epoch: UInt32
    private(set) var untrustedBelow: LogIndex
    private var newestMembership: KeptMembership?

    /// Records from `bufferStart` to the end of the current segment that are not yet written.
    private let buffer = RecordBuffer(capacity: 64 << 10)
    private var bufferStart = SegmentHeader.byteCount
    /// The current segment is durable below this.
    private var syncedTo = SegmentHeader.byteCount
    private var isSynced = true

    var nextGeneration: UInt64
    /// Ready to be gone over into.
    var prepared: LogSegment?
    /// Somebody is running a preparation.
    var isPreparing = false
    /// Generations of the discarded segments kept for use again.
    var spares: [UInt64] = []
    /// Set aside after damage; removed once the log is trusted again.
    var setAside: [UInt64] = []
    /// Once set, nothing works any more.
    var failure: StorageError?

    /// Opens the log in `disk`, or begins one.
    ///
    /// - Parameter salt: random; used when a log begins, read from the disk afterwards.
    /// - Throws: `.corrupt` if nothing can be told from what is there, `.newerVersion`, `.disk`. A
    ///   damaged log that can be repaired by peers is not an error: see `recovery.isTailTrusted`.
    package init(
        disk: any Disk, configuration: LogConfiguration = LogConfiguration(), salt: UInt64
    ) throws(StorageError) {
        precondition(configuration.segmentBytes >= 16 << 10, "segments hold at least 16 KiB")
        var acceptsRecycled = false
        #if ASPEN_TEST_BUILD
            acceptsRecycled = configuration.plantedBugs.contains(.acceptRecycledRecord)
        #endif
        let found = try LogRecovery(disk: disk, acceptsRecycled: acceptsRecycled).run()
        self.disk = disk
        self.configuration = configuration
        let fresh = SegmentHeader.first(salt: salt)
        var replay = found.replay ?? LogReplay(fresh)
        var isDamageSeen = true
        #if ASPEN_TEST_BUILD
            isDamageSeen = !configuration.plantedBugs.contains(.acceptTornTail)
        #endif
        if isDamageSeen, let damage = found.damage { replay.accept(damage) }
        let isStateNew = replay.adopt(found.laterState)
        (self.salt, seed, map) = (replay.salt, replay.seed, replay.map)
        (hardState, lastTime) = (replay.hardState, replay.lastTime)
        (chain, untrustedBelow) = (replay.chain, replay.untrustedBelow)
        newestMembership = replay.newestMembership
        epoch = max(found.epochMax, replay.epoch) + 1
        nextGeneration = found.generationMax + 1
        setAside = found.setAside
        recovery = try replay.recovery()
        try clean(unused: found.unused)
        let needsNewSegment = found.damage != nil || found.isOfOlderVersion
        try reopen(inNewSegment: needsNewSegment, syncedTo: needsNewSegment ? 0 : found.syncedTo)
        if isStateNew { try append(hardState) }
        try sync()
        try putAside()
    }

    package var firstIndex: LogIndex { map.base.next }
    package var lastIndex: LogIndex { map.lastIndex }

    private var current: LogSegment {
        guard let last = map.segments.last else { preconditionFailure("a log has a segment") }
        return last
    }

    // MARK: - Writing

    package func write(_ write: LogWrite) throws(StorageError) {
        if let failure { throw failure }
        if let cut = write.truncateAfter, cut < map.lastIndex { try truncate(after: cut) }
        let membershipBefore = newestMembership
        for entry in write.entries {
            if entry.kind == .membership { newestMembership = KeptMembership(entry) }
            try append(
                .entry, flags: EntryBody.flags(entry), index: entry.index, term: entry.term,
                bodyByteCount: EntryBody.byteCount(entry)
            ) { EntryBody.write(entry, to: $0) }
            map.append(entry.index, term: entry.term, at: lastOffset)
            lastTime = max(lastTime, entry.time)
        }
        if newestMembership != membershipBefore, let copy = newestMembership {
            try appendFiller()
            try append(copy)
        }
        if let state = write.hardState {
            precondition(state.term >= hardState.term, "terms do not go back")
            hardState = state
            if !losesHardState(write) { try append(state) }
        }
        if write.endsRepair {
            untrustedBelow = .zero
            try append(.repaired, index: map.lastIndex, term: map.lastTerm, bodyByteCount: 0) { _ in
            }
        }
    }

    /// False unless this is a test build.
    private func losesHardState(_ write: LogWrite) -> Bool {
        #if ASPEN_TEST_BUILD
            configuration.plantedBugs.contains(.loseHardState) && write.entries.isEmpty
        #else
            false
        #endif
    }

    private func append(_ state: HardState) throws(StorageError) {
        for copy in 0..<2 {
            try append(
                .hardState, index: map.lastIndex, term: state.term,
                bodyByteCount: HardStateBody.byteCount
            ) { HardStateBody.write(state.votedFor, to: $0) }
            if copy == 0 { try appendFiller() }
        }
    }

    /// Takes the next record into another block.
    private func appendFiller() throws(StorageError) {
        let byteCount = Self.blockByteCount - RecordHead.byteCount
        try append(
            .filler, index: map.lastIndex, term: map.lastTerm, bodyByteCount: byteCount
        ) { $0.initializeMemory(as: UInt8.self, repeating: 0) }
    }

    private func append(_ copy: KeptMembership) throws(StorageError) {
        try append(
            .membership, index: map.lastIndex, term: map.lastTerm, bodyByteCount: copy.byteCount
        ) { copy.write(to: $0) }
    }

    private func truncate(after index: LogIndex) throws(StorageError) {
        guard let term = map.term(at: index) else {
            preconditionFailure("entry \(index) has been discarded: it cannot be in conflict")
        }
        try append(.truncation, index: index, term: term, bodyByteCount: 0) { _ in }
        map.truncate(after: index, term: term)
    }

    package func sync() throws(StorageError) {
        if let failure { throw failure }
        try flush()
        guard !isSynced else { return }
        let segment = current
        try attempt { () throws(DiskError) in try segment.file.sync() }
        isSynced = true
        syncedTo = segment.end
        try writeMark()
    }

    /// Where the record appended last begins.
    private var lastOffset = 0

    private func append(
        _ kind: RecordKind, flags: UInt8 = 0, index: LogIndex, term: Term, bodyByteCount: Int,
        fill: (UnsafeMutableRawBufferPointer) -> Void
    ) throws(StorageError) {
        let byteCount = RecordHead.padded(bodyByteCount)
        try makeRoom(byteCount)
        let segment = current
        let region = buffer.extend(by: byteCount)
        region.storeBytes(
            of: 0, toByteOffset: byteCount - RecordHead.alignment, as: UInt64.self)
        fill(
            UnsafeMutableRawBufferPointer(
                rebasing: region[RecordHead.byteCount..<RecordHead.byteCount + bodyByteCount]))
        let head = head(
            kind, flags: flags, index: index, term: term, bodyByteCount: bodyByteCount)
        chain = head.seal(into: region, salt: seed)
        lastOffset = segment.end
        segment.end += byteCount
    }

    private func head(
        _ kind: RecordKind, flags: UInt8, index: LogIndex, term: Term, bodyByteCount: Int
    ) -> RecordHead {
        RecordHead(
            kind: kind, flags: flags, generation: current.generation, epoch: epoch,
            syncedTo: UInt32(syncedTo), index: index, term: term, previous: chain,
            bodyByteCount: bodyByteCount)
    }

    private func makeRoom(_ byteCount: Int) throws(StorageError) {
        let segment = current
        if segment.end + byteCount + Self.markRoom > segment.byteCount {
            if segment.end > SegmentHeader.byteCount {
                try beginSegment(after: segment)
            }
            current.byteCount = max(
                current.byteCount, current.end + byteCount + Self.markRoom)
        } else if buffer.count > 0, buffer.count + byteCount > configuration.bufferBytesMax {
            try flush()
        }
    }

    /// Hands what is buffered to the disk; not durable yet.
    private func flush() throws(StorageError) {
        guard buffer.count > 0 else { return }
        let (segment, start) = (current, UInt64(bufferStart))
        try attempt { () throws(DiskError) in
            try segment.file.write(raw: buffer.bytes, at: start)
        }
        bufferStart += buffer.count
        buffer.removeAll()
        isSynced = false
    }

    /// What goes bad together on a disk.
    private static let blockByteCount = 4096

    /// Kept free at the end of a segment for the mark behind the last record, and the block between them.
    private static let markRoom = blockByteCount + RecordHead.byteCount

    /// Says that everything before it is durable. It costs no sync: it only has to be there when
    /// the log is found damaged later (see `LogRecovery`).
    private func writeMark() throws(StorageError) {
        let segment = current
        let place =
            min(
                segment.end + Self.blockByteCount, segment.byteCount - RecordHead.byteCount)
            & ~(RecordHead.alignment - 1)
        guard place >= segment.end else { return }
        let region = buffer.extend(by: RecordHead.byteCount)
        defer { buffer.removeAll() }
        let head = head(.mark, flags: 0, index: map.lastIndex, term: map.lastTerm, bodyByteCount: 0)
        _ = head.seal(into: region, salt: seed)
        try attempt { () throws(DiskError) in
            try segment.file.write(raw: buffer.bytes, at: UInt64(place))
        }
    }

    // MARK: - Segments

    /// Goes over into the next segment. The one before is made durable first: a header promises it.
    ///
    /// - Parameter previous: nil if nothing of the log so far counts any more.
    func beginSegment(after previous: LogSegment?) throws(StorageError) {
        if previous != nil {
            try flush()
            if !isSynced, let previous {
                try attempt { () throws(DiskError) in try previous.file.sync() }
            }
        } else {
            buffer.removeAll()
        }
        if prepared == nil { try failing { () throws(StorageError) in try prepareNext() } }
        guard let segment = prepared else { preconditionFailure("a segment was prepared") }
        prepared = nil
        precondition(
            segment.generation > previous?.generation ?? 0 && segment.generation < nextGeneration,
            "generations ascend")
        map.add(segment)
        bufferStart = 0
        // Nothing is durable here yet, not even the header.
        syncedTo = 0
        let header = SegmentHeader(
            generation: segment.generation, previousGeneration: previous?.generation ?? 0,
            previousEnd: UInt64(previous?.end ?? 0), salt: salt, epoch: epoch, chain: chain,
            lastIndex: map.lastIndex, lastTerm: map.lastTerm, lastTime: lastTime,
            hardState: hardState, untrustedBelow: untrustedBelow)
        header.write(to: buffer.extend(by: SegmentHeader.byteCount))
        if let newestMembership { try append(newestMembership) }
    }

    /// Begins a new epoch at the end of the log: no record behind it, left over from a torn batch,
    /// can continue what is written from now on. What is behind a damaged place is not written over.
    /// The caller syncs.
    ///
    /// What a killed process has written since its last sync may not have reached the disk. Nor may
    /// what a failed sync was about: its pages read back as written and count as clean (Rebello and
    /// others, 2020), so that only writing them again makes the next sync mean something. Both lie
    /// behind `synced`: a record that says so was made after a sync that had succeeded.
    ///
    /// The record that opens the epoch says that all of it is durable, so what was written again is
    /// synced before: should power fail once more, and take the mark behind the last sync, what the node
    /// has told since it started is still known to have been there.
    private func reopen(inNewSegment: Bool, syncedTo synced: Int) throws(StorageError) {
        guard let segment = map.segments.last else { return try beginSegment(after: nil) }
        let start = min(synced, segment.end)
        try attempt { () throws(DiskError) in
            let written = try segment.file.read(at: UInt64(start), count: segment.end - start)
            if !written.isEmpty { try segment.file.write(written, at: UInt64(start)) }
        }
        bufferStart = segment.end
        syncedTo = start
        isSynced = false
        if inNewSegment
            || segment.end + RecordHead.padded(8) + Self.markRoom > segment.byteCount
        {
            return try beginSegment(after: segment)
        }
        if start < segment.end {
            try attempt { () throws(DiskError) in try segment.file.sync() }
            syncedTo = segment.end
        }
        let untrusted = untrustedBelow.rawValue.littleEndian
        try append(.opening, index: map.lastIndex, term: map.lastTerm, bodyByteCount: 8) {
            $0.storeBytes(of: untrusted, as: UInt64.self)
        }
    }

    /// A tail that is not trusted stays so, unless what the log starts behind covers all that it may
    /// have lost.
    package func reset(to index: LogIndex, term: Term) throws(StorageError) {
        if let failure { throw failure }
        let old = map.segments
        map = LogMap(base: index, term: term)
        if index >= untrustedBelow { untrustedBelow = .zero }
        try beginSegment(after: nil)
        try sync()
        guard untrustedBelow != .zero else {
            for segment in old { try recycle(segment) }
            return
        }
        for segment in old {
            segment.file.close()
            setAside.append(segment.generation)
        }
        try putAside()
    }

    /// Brings the log and the state that was opened beside it together, before the node starts.
    /// `recovery` then describes the log as it is.
    ///
    /// A leader may have applied what others had made durable and its own log had not; a damaged log
    /// may end anywhere. If the state is ahead (`isOvertaken`), the log starts anew behind it: the caller
    /// must have made the state durable. If entries are missing between the two, the whole replica is to be
    /// filled again by a leader: the log becomes empty, and is not trusted.
    ///
    /// - Returns: false if the caller has to empty the state.
    /// - Throws: `.corrupt` if the state comes from another log than this one.
    package func align(applied: LogIndex, term: Term) throws(StorageError) -> Bool {
        if isOvertaken(by: applied, term) {
            try reset(to: applied, term: term)
        } else if applied < map.base {
            untrustedBelow = max(untrustedBelow, map.lastIndex)
            try reset(to: .zero, term: .zero)
        } else if let known = map.term(at: applied), known != term {
            throw .corrupt(
                "the state has applied \(applied) of term \(term), the log says \(known)")
        } else {
            return true
        }
        recovery.snapshotIndex = map.base
        recovery.snapshotTerm = map.baseTerm
        recovery.lastIndex = map.lastIndex
        recovery.termStarts = []
        recovery.memberships = []
        recovery.isTailTrusted = untrustedBelow == .zero
        recovery.newestMembership =
            recovery.isTailTrusted ? nil : try newestMembership?.decoded()
        recovery.untrustedBelow =
            recovery.isTailTrusted ? .zero : max(untrustedBelow, map.lastIndex)
        return map.base == applied
    }

    /// The state has applied more than is left of the log. Also where a damaged log has an entry of another
    /// term there: one that had been cut off again, and the record that did so is lost.
    package func isOvertaken(by applied: LogIndex, _ term: Term) -> Bool {
        if applied > map.lastIndex { return true }
        guard untrustedBelow != .zero, let known = map.term(at: applied) else { return false }
        return known != term
    }

    // MARK: - Reading

    /// Entries as they were written; each one's checksum is verified. Empty if `from` has been
    /// discarded or not been written; `upTo` may lie beyond the end.
    package func read(
        from: LogIndex, upTo: LogIndex, bytesMax: Int
    ) throws(StorageError) -> [Entry] {
        if let failure { throw failure }
        guard from > map.base, from <= upTo, from <= map.lastIndex else { return [] }
        try flush()
        var entries: [Entry] = []
        var (index, byteCount) = (from, 0)
        let last = min(upTo, map.lastIndex)
        while index <= last {
            let segment = map.segment(of: index)
            let end = min(last, segment.lastEntry ?? last)
            let isFull = try read(
                index, through: end, in: segment, bytesMax: bytesMax, &byteCount, &entries)
            if isFull { break }
            index = end.next
        }
        return entries
    }

    /// Where the record of an entry begins: for those who break logs to see what comes of it.
    package func place(of index: LogIndex) -> (file: String, offset: Int)? {
        guard index > map.base, index <= map.lastIndex else { return nil }
        let segment = map.segment(of: index)
        return (SegmentName.log(segment.generation), segment.offset(of: index))
    }

    /// The membership that is kept apart was cut off again by a leader; damage to what came instead
    /// would bring it back to mind. For the same people.
    package var remembersLostMembership: Bool {
        guard let kept = newestMembership, kept.index > map.base else { return false }
        return map.term(at: kept.index) != kept.term
    }

    package func close() {
        for segment in map.segments { segment.file.close() }
        prepared?.file.close()
        failure = .disk("the log is closed")
    }

    // MARK: - Errors

    /// After a failed write or sync nobody knows what the disk holds: nothing works any more.
    func attempt<Result>(
        _ body: () throws(DiskError) -> Result
    ) throws(StorageError) -> Result {
        try failing { () throws(StorageError) in try onDisk(body) }
    }

    func failing<Result>(
        _ body: () throws(StorageError) -> Result
    ) throws(StorageError) -> Result {
        do throws(StorageError) {
            return try body()
        } catch {
            failure = error
            throw error
        }
    }
}
