// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore

/// Why storage cannot go on. After any of these the daemon stops (DESIGN §6): an answer that might
/// be wrong is never given.
package enum StorageError: Error, Equatable, Sendable {
    /// The disk refused (full, read-only, broken).
    case disk(String)
    /// Bytes fail their checksum and cannot be repaired here.
    case corrupt(String)
    /// Another process holds the data directory.
    case locked(String)
    /// The data was written by a newer program.
    case newerVersion(String)
}

/// The replicated log on disk: segments of preallocated, zeroed, recycled blocks. Used from one
/// thread at a time.
package protocol LogStore: AnyObject {
    /// What was found when the store was opened, but for the fields that only the state knows
    /// (`appliedIndex`, memberships of the state).
    var recovery: RaftRecovery { get }
    var firstIndex: LogIndex { get }
    var lastIndex: LogIndex { get }

    /// Writes; durable only after `sync`. Several writes may share one sync.
    func write(_ write: LogWrite) throws(StorageError)
    /// One fdatasync of the segment written to (two when a write crossed into the next).
    func sync() throws(StorageError)
    /// Entries `from...upTo`, fewer if `bytesMax` of payload are reached (at least one).
    func read(from: LogIndex, upTo: LogIndex, bytesMax: Int) throws(StorageError) -> [Entry]
    /// With a tail that is not to be trusted: whole entries above `applied` that are still on the
    /// disk, in the log and behind damage, in any order, some perhaps twice; as many as make `bytesMax`
    /// of payload. See `RaftRecovery.salvage`.
    func salvage(above applied: LogIndex, bytesMax: Int) throws(StorageError) -> [Entry]
    /// Gives back segments that hold only entries up to `index`; none while the tail is not trusted.
    func discard(upTo index: LogIndex, term: Term) throws(StorageError)
    /// Replaces the whole log by nothing, starting after `index` (a snapshot was installed).
    func reset(to index: LogIndex, term: Term) throws(StorageError)
    /// Gets ready what later writes will need, if anything. Takes tens of milliseconds now and then:
    /// call it when nobody waits. An error leaves the store usable; try again later.
    func prepareNextIfNeeded() throws(StorageError)
    /// The same in two halves, for those who cannot wait: run what this returns on any thread, then
    /// hand the result to `adopt`, or the preparation back to `preparationFailed`, where the store
    /// is used. Nil if there is nothing to prepare; cheap enough to ask after every batch.
    func preparation() -> SegmentPreparation?
    func adopt(_ made: PreparedSegment)
    func preparationFailed(_ preparation: SegmentPreparation)
    /// Brings log and state together before the node starts: see `SegmentedLog.align`.
    func align(applied: LogIndex, term: Term) throws(StorageError) -> Bool
    /// `align` lets the log start anew behind the state, which must be durable first.
    func isOvertaken(by applied: LogIndex, _ term: Term) -> Bool
    func close()
}

extension LogStore {
    package func salvage(
        above applied: LogIndex, bytesMax: Int
    ) throws(StorageError) -> [Entry] { [] }
    package func prepareNextIfNeeded() throws(StorageError) {}
    package func preparation() -> SegmentPreparation? { nil }
    package func adopt(_ made: PreparedSegment) {}
    package func preparationFailed(_ preparation: SegmentPreparation) {}
    package func align(applied: LogIndex, term: Term) throws(StorageError) -> Bool {
        applied == .zero
    }
    package func isOvertaken(by applied: LogIndex, _ term: Term) -> Bool { applied > lastIndex }
}

/// The applied state: key-value history, sessions, membership, revision, cluster time. Used from one
/// thread at a time.
package protocol StateStore: AnyObject {
    var appliedIndex: LogIndex { get }
    var appliedTerm: Term { get }
    var revision: Revision { get }
    var time: ClusterTime { get }
    /// Everything the state machine knows besides rows: active version, compaction, figures, number
    /// of leases.
    var meta: StateMeta { get }
    /// The last membership applied, and the index of its entry.
    var membership: (index: LogIndex, membership: Membership)? { get }
    /// Bytes on disk (or in memory), for the status table.
    var byteCount: UInt64 { get }

    /// Applies entries in order, as one transaction: all or none. One result an entry.
    func apply(_ entries: [Entry]) throws(StorageError) -> [CommandResult]
    /// How many of these entries, from the first on, may be given to `apply` now: all of them, or, while
    /// space is tight, as many as one small transaction takes that has its room for certain. None: the
    /// disk is full; ask again later.
    func fitting(_ entries: [Entry]) -> Int
    /// While space is tight, every `apply` is committed at once, and checkpoints come early.
    func setSpaceTight(_ isTight: Bool) throws(StorageError)
    /// Nil also when `revision` is compacted or in the future: `lookUp` tells these apart.
    func get(_ key: [UInt8], at revision: Revision?) throws(StorageError) -> KeyValue?
    /// - Throws: nothing for an unknown revision: see `RangeOutcome`.
    func range(_ request: RangeRequest) throws(StorageError) -> RangeOutcome
    /// The same page, handed out entry by entry, where they lie.
    func visit(
        _ request: RangeRequest, _ take: (EntryView) -> Void
    ) throws(StorageError) -> ReadOutcome<RangeEnd>
    /// When the longest silent session is due for `Command.expireSessions`; nil without sessions. The
    /// leader proposes that command when its cluster time passes this, so that an idle cluster
    /// writes nothing.
    func nextSessionExpiry() throws(StorageError) -> ClusterTime?
    /// No lease is due before this; nil: there is none. Costs nothing; follows what is applied.
    var leaseExpiryHint: ClusterTime? { get }
    /// When the first lease is due for `Command.expireLeases` if nobody keeps it alive; nil without
    /// leases.
    func nextLeaseExpiry() throws(StorageError) -> ClusterTime?

    /// Several keys at one revision.
    func get(
        _ keys: [[UInt8]], at revision: Revision?
    ) throws(StorageError) -> ReadOutcome<KeysPage>
    func count(_ request: CountRequest) throws(StorageError) -> ReadOutcome<CountPage>
    /// Changes of all keys in order: what watches live on. `compacted(oldest:)` names the oldest
    /// revision from which on all changes are there.
    func changes(_ request: ChangesRequest) throws(StorageError) -> ReadOutcome<ChangesPage>
    /// Changes of one key below revision `before` (nil: from the newest), newest first; revisions
    /// are never split.
    func history(
        of key: [UInt8], before: Revision?, limit: Int
    ) throws(StorageError) -> HistoryPage
    func lease(_ id: LeaseID) throws(StorageError) -> LeaseRow?
    /// Leases above `after`, by number.
    func leases(after: LeaseID, limit: Int) throws(StorageError) -> LeasesPage
    /// Keys attached to a lease, in order.
    func keys(of lease: LeaseID, limit: Int) throws(StorageError) -> [[UInt8]]
    /// From now on what is applied is collected, or not.
    func setRecording(_ isOn: Bool)
    /// What was applied since the last call, or since recording was switched on; nil while it is
    /// off, and when a snapshot has taken the place of entries.
    func takeRecording() -> ChangeRecording?
    /// There is enough in the WAL for `checkpointIfDue`: entries of a few bytes can write many pages.
    var isCheckpointDue: Bool { get }
    /// Copies the WAL into the database if there is enough of it. Returns the applied index that is
    /// durable in the database afterwards: the log may be discarded up to there and no further.
    func checkpointIfDue() throws(StorageError) -> LogIndex?
    /// The same, at once.
    func checkpoint() throws(StorageError) -> LogIndex
    /// A checkpoint, after which free pages go back to the file system, up to some thousands.
    /// - Returns: what `checkpoint` does, and whether there are more free pages.
    func trim() throws(StorageError) -> (durable: LogIndex, hasMore: Bool)
    /// Gives back the memory that a busy time took.
    func rest() throws(StorageError)
    /// History below the compacted revision is still there: further entries sweep it away.
    var isSweeping: Bool { get }
    /// An order-independent hash over every table, kept incrementally; equal on replicas at equal
    /// applied index.
    func contentHash() throws(StorageError) -> UInt64
    /// Recomputes the same hash from the rows.
    func recomputeContentHash() throws(StorageError) -> UInt64

    /// A consistent reader over everything, independent of later writes; bounded in time by its
    /// user. Chunks of at most `Limits.snapshotChunkBytesMax`.
    /// - Parameter spoolBytesMax: bytes of the disk that what is not read yet may take up, and as much
    ///   again what is written meanwhile. A reader who is too slow for that hears that there is no space.
    func makeSnapshot(spoolBytesMax: Int) throws(StorageError) -> any SnapshotReader
    /// Collects chunks beside the state; `finish` replaces the state by them.
    func receiveSnapshot(_ meta: SnapshotMeta) throws(StorageError) -> any SnapshotWriter
    /// Where what has come of a snapshot may outlive the process; nil: nowhere.
    var partialSnapshots: String? { get }
    func close()
}

extension StateStore {
    package var partialSnapshots: String? { nil }
    package var isCheckpointDue: Bool { false }
    package func makeSnapshot() throws(StorageError) -> any SnapshotReader {
        try makeSnapshot(spoolBytesMax: .max)
    }
    package func fitting(_ entries: [Entry]) -> Int { entries.count }
    package func setSpaceTight(_ isTight: Bool) throws(StorageError) {}
    package func rest() throws(StorageError) {}
    package func trim() throws(StorageError) -> (durable: LogIndex, hasMore: Bool) {
        (try checkpoint(), false)
    }
    /// One key at a revision (nil: now), as a page of at most one entry.
    package func lookUp(
        _ key: [UInt8], at revision: Revision?
    ) throws(StorageError) -> RangeOutcome {
        try range(RangeRequest(from: key, to: key + [0], limit: 1, at: revision))
    }
}

package enum RangeOutcome: Equatable, Sendable {
    case page(RangePage)
    case compacted(oldest: Revision)
    case future(current: Revision)
}

package protocol SnapshotReader: AnyObject {
    var meta: SnapshotMeta { get }
    /// Whether `next` would answer without waiting for whoever reads the rows. May be asked on any
    /// thread.
    var isReady: Bool { get }
    /// The next piece, or nil at the end. The stream ends with its own checksum.
    func next() throws(StorageError) -> [UInt8]?
    func close()
}

extension SnapshotReader {
    package var isReady: Bool { true }
}

package protocol SnapshotWriter: AnyObject {
    func append(_ bytes: [UInt8]) throws(StorageError)
    /// Checks the checksum, then puts the snapshot in force, atomically.
    func finish() throws(StorageError)
    func abandon()
}
