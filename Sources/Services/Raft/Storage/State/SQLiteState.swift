// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import CAspenVFS
import KVCore
import RaftCore
import SQLiteKit

/// The state in one SQLite file, `state.db`, in the data directory. Everything in it can be rebuilt
/// from the log behind `checkpoint()`'s answer, so that applying costs no sync.
///
/// One thread at a time applies, reads and checkpoints: commit and checkpoint exclude each other by
/// that (Debian's SQLite 3.40.1 loses committed rows when a writer runs beside a checkpoint loop).
/// Only a snapshot reads beside it, through a connection of its own.
///
/// A transaction of the database stays open over many batches: the page cache is then a write-back
/// buffer, and a page that is touched by many puts is written once instead of once a batch (with
/// 100,000 random keys that is most of the cost of a put). Reads go through the same connection and
/// see all of it. It always ends between two batches, before a checkpoint and before a snapshot.
///
/// After any storage error every further call throws that error: what is on disk is then unknown.
package final class SQLiteState: StateStore {
    /// Pages in the WAL that make applying wait for a snapshot that is being spooled: 256 MiB.
    package static let walPagesMax = 65_536

    package static let fileName = "state.db"
    static let incomingName = "state.db.incoming"
    static let setAsideName = "state.db.set-aside"
    package static let damageName = "state.damaged"

    package struct Options: Sendable {
        /// Memory for pages, in KiB. A transaction whose pages fill it ends there.
        package var cacheKiB = 16_384
        /// The same where that holds what is changed again and again (see `sizeCache`).
        package var cacheKiBMax = 32_000
        /// Pages in the WAL that make a checkpoint due.
        package var checkpointPages = 1000
        /// Entries, and bytes of their payload, that are applied in one transaction of the database.
        package var commitEntries = 16_384
        package var commitBytes = 4_194_304
        /// Cluster time from the first entry of a transaction to its last: what a process that is
        /// killed has to apply again is no more than was applied in so much time.
        package var commitInterval = Duration.seconds(2)
        /// Changes that are swept before they are taken out of the file: see `GarbageCollector`.
        package var garbageCountMin = GarbageCollector.countMin
        /// Who writes to the disk what transactions and checkpoints have changed. With `nothing`, whoever
        /// applies waits for the disk, and all writes of a cluster with it.
        package var deferral: Database.Deferral

        package init(deferral: Database.Deferral = .nothing) { self.deferral = deferral }

        /// The same with smaller transactions, by up to a seventh. All nodes apply the same entries: with
        /// transactions of one size they would all stop for their checkpoints at the same moment, and
        /// the whole cluster with them.
        package func outOfStep() -> Options {
            let share = Double.random(in: 0.85...1)
            var options = self
            options.cacheKiB = Int(Double(cacheKiB) * share)
            options.cacheKiBMax = Int(Double(cacheKiBMax) * share)
            options.commitEntries = max(1, Int(Double(commitEntries) * share))
            options.commitBytes = max(1, Int(Double(commitBytes) * share))
            options.commitInterval = commitInterval * share
            return options
        }
    }

    /// Absolute.
    let directory: String
    let options: Options
    /// Nil once closed, and while a snapshot takes its place.
    private var opened: KVMachine<SQLiteTables>?
    private(set) package var meta: StateMeta
    /// Pages that were in the WAL when a checkpoint was last tried, if it was not emptied then.
    private var pagesAtCheckpoint = 0
    private var isInTransaction = false
    /// What was applied since the transaction began, and when that was.
    private var entriesInTransaction = 0
    private var bytesInTransaction = 0
    private var transactionBegan = ClusterTime.zero
    /// `Database.spilledPageCount` when the transaction began.
    private var spilledBefore = 0
    /// The applied index that the database file is known to hold.
    var durableIndex: LogIndex
    /// What it will hold once that mark has been reached.
    var awaited: (index: LogIndex, mark: UInt64)?
    /// Writing is put off now.
    var isDeferring = false
    /// What of that callers have been told.
    private var reportedIndex = LogIndex.zero
    /// As SQLite was told.
    private var cacheKiB: Int
    private(set) var failure: StorageError?
    /// See `setSpaceTight`.
    private(set) var isSpaceTight = false
    /// Whether what was found at the opening is certain to be on the disk: see `settle`.
    private var isSettled = false
    /// Snapshots that still hold a read transaction.
    private(set) var spools: [SnapshotSpool] = []
    package private(set) var membership: (index: LogIndex, membership: Membership)?
    /// See `KVMachine.sessionTimeoutMilliseconds`.
    package var sessionTimeout = Limits.sessionTimeout {
        didSet { adopt(sessionTimeout) }
    }

    /// Opens the state in `directory`, or makes an empty one.
    /// - Throws: `corrupt` if the file cannot be used: then `rebuildEmpty` and a replay of the log, or
    ///   a snapshot from a peer, is the way on. `newerVersion` if a newer program wrote it. `locked`
    ///   if another process has it open.
    package init(directory: String, options: Options = Options()) throws(StorageError) {
        self.directory = directory
        self.options = options
        if let reason = Self.knownDamage(in: directory) { throw .corrupt(reason) }
        try Self.removeIncoming(in: directory)
        let isNew = !Self.exists(directory + "/" + Self.fileName)
        let machine: KVMachine<SQLiteTables>
        do { machine = try Self.open(directory + "/" + Self.fileName, options) } catch {
            throw Self.explain(error)
        }
        opened = machine
        meta = machine.meta
        cacheKiB = options.cacheKiB
        durableIndex = .zero
        membership = try machine.meta.decodedMembership()
        // What nobody has left needs no settling.
        if isNew { _ = try checkpoint() }
    }

    /// Puts an empty state in the place of one that cannot be used. The caller replays the log, if
    /// that begins with the first entry, or fetches a snapshot. The old files are set aside until
    /// the new state is whole: should nobody have another copy, they are all that is left.
    package static func rebuildEmpty(
        directory: String, options: Options = Options()
    ) throws(StorageError) -> SQLiteState {
        // Until it is done, it is to be begun again: the database alone may be pages of several moments.
        noteDamage("it was being made anew", in: directory)
        // The WAL first, and for certain: over another database it would be poison.
        for suffix in ["-wal", "-journal", ""] {
            let path = directory + "/" + fileName + suffix
            if exists(path) {
                try rename(path, directory + "/" + setAsideName + suffix)
                try syncDirectory(directory)
            }
        }
        try remove(directory + "/" + damageName)
        try syncDirectory(directory)
        return try SQLiteState(directory: directory, options: options)
    }

    private static func open(
        _ path: String, _ options: Options
    ) throws(SQLiteError) -> KVMachine<SQLiteTables> {
        var databaseOptions = Database.Options()
        databaseOptions.cacheKiB = options.cacheKiB
        let database = try Database(path: path, options: databaseOptions)
        try database.checkWALIsWhole()
        let version = try database.integer("PRAGMA user_version") ?? 0
        if version == 0 {
            // New, or made by a process that died while it made it.
            try database.execute("BEGIN IMMEDIATE; \(SQLiteTables.schema) COMMIT")
        } else {
            guard try database.integer("PRAGMA application_id") == SQLiteTables.applicationID else {
                throw SQLiteTables.damaged("the file is some other program's database")
            }
            guard version <= SQLiteTables.schemaVersion else { throw newerSchema(version) }
            if version < SQLiteTables.schemaVersion {
                try SQLiteMigration.run(database, from: version)
            }
        }
        let tables = try SQLiteTables(
            database, garbageCountMin: options.garbageCountMin)
        let meta = try SQLiteTables.storedMeta(database)
        guard meta.activeVersion <= KVVersion.supported else {
            throw newerSchema(Int64(meta.activeVersion))
        }
        // A disk that has forgotten what it synced may show pages of several moments.
        let last = try database.integer("SELECT max(number) FROM changes") ?? 0
        guard last <= Int64(bitPattern: ChangeNumber.last(of: meta.revision).rawValue) else {
            throw SQLiteTables.contradiction("there are changes of the future")
        }
        return KVMachine(tables: tables, meta: meta)
    }

    // MARK: Standing

    package var appliedIndex: LogIndex { meta.appliedIndex }
    package var appliedTerm: Term { meta.appliedTerm }
    package var revision: Revision { meta.revision }
    package var time: ClusterTime { meta.time }
    package var isSweeping: Bool { meta.isSweeping }

    package var byteCount: UInt64 {
        Self.byteCount(of: directory + "/" + Self.fileName)
            + Self.byteCount(of: directory + "/" + Self.fileName + "-wal")
    }

    // MARK: Applying and reading

    package func apply(_ entries: [Entry]) throws(StorageError) -> [CommandResult] {
        guard !entries.isEmpty else { return [] }
        let commands: [CommittedEntry]
        do { commands = try CommittedEntry.translate(entries) } catch {
            failure = error
            throw error
        }
        try waitForSpoolsIfNeeded()
        let results = try storing { machine throws(SQLiteError) in
            if !isInTransaction {
                try machine.tables.beginTransaction()
                transactionBegan = entries[0].time
            }
            isInTransaction = true
            let results = try machine.apply(commands)
            try machine.tables.garbage.collect(
                upTo: machine.meta.swept, machine.meta.figures, isSpaceTight: isSpaceTight)
            return results
        }
        entriesInTransaction += entries.count
        for entry in entries { bytesInTransaction += entry.payload.count }
        if isSpaceTight || entriesInTransaction >= options.commitEntries
            || bytesInTransaction >= options.commitBytes || hasSpilled
            || meta.time.milliseconds >= transactionBegan.milliseconds + commitMilliseconds
        {
            try commit()
        }
        if isSpaceTight { try keepWALShort() }
        if meta.membershipIndex != (membership?.index ?? .zero) {
            membership = try meta.decodedMembership()
        }
        return results
    }

    package func get(_ key: [UInt8], at revision: Revision?) throws(StorageError) -> KeyValue? {
        let outcome = try storing { machine throws(SQLiteError) in
            try machine.get(key, at: revision)
        }
        guard case .value(let entry) = outcome else { return nil }
        return entry
    }

    package func range(_ request: RangeRequest) throws(StorageError) -> RangeOutcome {
        RangeOutcome(
            try storing { machine throws(SQLiteError) in try machine.range(request) })
    }

    package func visit(
        _ request: RangeRequest, _ take: (EntryView) -> Void
    ) throws(StorageError) -> ReadOutcome<RangeEnd> {
        try storing { machine throws(SQLiteError) in try machine.visit(request, take) }
    }

    package func nextSessionExpiry() throws(StorageError) -> ClusterTime? {
        try storing { machine throws(SQLiteError) in try machine.nextSessionExpiry() }
    }

    package var leaseExpiryHint: ClusterTime? { opened?.leaseExpiryHint }

    package func nextLeaseExpiry() throws(StorageError) -> ClusterTime? {
        try storing { machine throws(SQLiteError) in try machine.nextLeaseExpiry() }
    }

    package func get(
        _ keys: [[UInt8]], at revision: Revision?
    ) throws(StorageError) -> ReadOutcome<KeysPage> {
        try storing { machine throws(SQLiteError) in try machine.get(keys, at: revision) }
    }

    package func count(_ request: CountRequest) throws(StorageError) -> ReadOutcome<CountPage> {
        try storing { machine throws(SQLiteError) in try machine.count(request) }
    }

    package func changes(
        _ request: ChangesRequest
    ) throws(StorageError) -> ReadOutcome<ChangesPage> {
        try storing { machine throws(SQLiteError) in try machine.changes(request) }
    }

    package func history(
        of key: [UInt8], before: Revision?, limit: Int
    ) throws(StorageError) -> HistoryPage {
        try storing { machine throws(SQLiteError) in
            try machine.history(of: key, before: before, limit: limit)
        }
    }

    package func lease(_ id: LeaseID) throws(StorageError) -> LeaseRow? {
        try storing { machine throws(SQLiteError) in try machine.lease(id) }
    }

    package func leases(after: LeaseID, limit: Int) throws(StorageError) -> LeasesPage {
        try storing { machine throws(SQLiteError) in
            try machine.leases(after: after, limit: limit)
        }
    }

    package func keys(of lease: LeaseID, limit: Int) throws(StorageError) -> [[UInt8]] {
        try storing { machine throws(SQLiteError) in try machine.keys(of: lease, limit: limit) }
    }

    package func setRecording(_ isOn: Bool) {
        opened?.recording = isOn ? ChangeRecording() : nil
    }

    package func takeRecording() -> ChangeRecording? { opened?.recording?.take() }

    package func contentHash() throws(StorageError) -> UInt64 {
        if let failure { throw failure }
        return meta.contentHash
    }

    package func recomputeContentHash() throws(StorageError) -> UInt64 {
        var meta = meta
        meta.figures = try storing { machine throws(SQLiteError) in
            // Both look at the tables themselves.
            try machine.tables.settle()
            return try SQLiteMigration.figures(machine.tables.database)
        }
        meta.rowHash = try storing { machine throws(SQLiteError) in
            var rows = try SQLiteRows(machine.tables.database, includingVersions: true)
            return try KVMachine<SQLiteTables>.rowHash(of: &rows)
        }
        return meta.contentHash
    }

    // MARK: Checkpoint

    /// The cache is full of changed pages. From here on each would be written to the WAL again
    /// whenever it has changed again, and the checksums of all that lies behind it with the commit.
    private var hasSpilled: Bool {
        (opened?.tables.database.spilledPageCount ?? 0) > spilledBefore
    }

    private var commitMilliseconds: UInt64 {
        UInt64(clamping: options.commitInterval.nanoseconds / 1_000_000)
    }

    private func commit() throws(StorageError) {
        guard isInTransaction else { return }
        try storing { machine throws(SQLiteError) in
            try machine.tables.commitTransaction()
            spilledBefore = machine.tables.database.spilledPageCount
        }
        isInTransaction = false
        entriesInTransaction = 0
        bytesInTransaction = 0
    }

    package func checkpointIfDue() throws(StorageError) -> LogIndex? {
        if let failure { throw failure }
        defer { reportedIndex = durableIndex }
        try noteDurable()
        if isCheckpointDue {
            try beginCheckpoint()
            try storing { machine throws(SQLiteError) in try Self.vacuum(machine.tables.database) }
            try sizeCache()
        }
        // It may be another one that has been carried out by now.
        return durableIndex > reportedIndex ? durableIndex : nil
    }

    /// A put changes a page of `newest`, wherever the keys of users lie. Where that whole tree fits into the cache, a long transaction writes each
    /// of its pages once, not once a put, and the memory is worth it. Where it does not, a longer
    /// transaction writes no less, and its checkpoint holds up writes for longer.
    private func sizeCache() throws(StorageError) {
        let rows = Int(clamping: meta.figures.liveCount)
        let kibibytes = try storing { machine throws(SQLiteError) -> Int in
            let rowBytes = try machine.tables.recentKeyBytes() + SQLiteTables.newestRowBytes
            // Pages of a tree that grows at random places are two thirds full.
            let tree = rows.multipliedReportingOverflow(by: rowBytes * 3 / 2)
            let size = tree.overflow ? Int.max : tree.partialValue / 1024
            guard size <= options.cacheKiBMax * 3 / 4 else { return options.cacheKiB }
            return max(options.cacheKiB, min(size + options.cacheKiB, options.cacheKiBMax))
        }
        try setCache(kibibytes)
    }

    private func setCache(_ kibibytes: Int) throws(StorageError) {
        guard kibibytes != cacheKiB else { return }
        try storing { machine throws(SQLiteError) in
            try machine.tables.database.setCache(kibibytes: kibibytes)
        }
        cacheKiB = kibibytes
    }

    package func rest() throws(StorageError) {
        try commit()
        if isDeferring {
            if isCheckpointDue { try beginCheckpoint() }
            // Nobody asks again before there is something to apply.
            try awaitDeferred()
        }
        try setCache(options.cacheKiB)
        try storing { machine throws(SQLiteError) in machine.tables.rest() }
    }

    /// While a reader or a full disk keeps the WAL from being started over, a checkpoint is due every so
    /// many pages still.
    private var pagesSinceCheckpoint: Int {
        let pages = opened?.tables.database.walFrameCount ?? 0
        return pages < pagesAtCheckpoint ? pages : pages - pagesAtCheckpoint
    }

    package var isCheckpointDue: Bool { pagesSinceCheckpoint >= options.checkpointPages }

    package func setSpaceTight(_ isTight: Bool) throws(StorageError) {
        isSpaceTight = isTight
        guard isTight else { return }
        // What is in memory only is not counted by who looks at the disk.
        try commit()
        try setDeferring(false)
    }

    private func keepWALShort() throws(StorageError) {
        let due = max(1, options.checkpointPages / Self.tightCheckpointParts)
        if pagesSinceCheckpoint >= due { try beginCheckpoint() }
    }

    /// Makes what a process before this one has left durable, names included. Its pages of the WAL
    /// may count as clean although a sync of them has failed (see `SegmentedLog.reopen`).
    ///
    /// Not done at the opening, when callers wait, but before the first checkpoint: nothing builds on
    /// it earlier. What is in the WAL can be applied again from the log, which is durable since it was
    /// opened and is discarded only behind a checkpoint. Should a page of the WAL be dropped from
    /// memory meanwhile and read otherwise from the disk, its checksum tells (CAspenVFS, frames.c).
    private func settle() throws(StorageError) {
        guard !isSettled else { return }
        do throws(StorageError) {
            try Self.rewriteFile(directory + "/" + Self.fileName + "-wal")
            try Self.syncDirectory(directory)
        } catch {
            failure = error
            throw error
        }
        isSettled = true
    }

    package func checkpoint() throws(StorageError) -> LogIndex {
        try beginCheckpoint()
        try awaitDeferred()
        reportedIndex = durableIndex
        return durableIndex
    }

    /// It may be carried out later: see `noteDurable`.
    private func beginCheckpoint() throws(StorageError) {
        try commit()
        try settle()
        // Read before the checkpoint: what is committed after it is not in it.
        let applied = meta.appliedIndex
        let isComplete = try storing { machine throws(SQLiteError) in
            pagesAtCheckpoint = machine.tables.database.walFrameCount
            return try machine.tables.database.checkpoint(.passive)
        }
        guard isComplete else { return }
        try storing { machine throws(SQLiteError) in
            if isDeferring {
                awaited = (applied, machine.tables.database.deferralMark())
            } else {
                durableIndex = applied
            }
            // Nothing of the WAL is needed now. Left there it would be replayed at the next start,
            // and only as far as it is sound: after one flipped bit, old frames over a newer
            // database. A reader who still looks at it puts that off until the next checkpoint.
            if try machine.tables.database.checkpoint(.truncate) { pagesAtCheckpoint = 0 }
        }
        try setDeferring(!isSpaceTight)
    }

    // MARK: Snapshots

    package func makeSnapshot(spoolBytesMax: Int) throws(StorageError) -> any SnapshotReader {
        if let failure { throw failure }
        guard let membership else {
            throw .corrupt("a state without a membership has no snapshot")
        }
        try commit()
        let meta = SnapshotMeta(
            index: meta.appliedIndex, term: meta.appliedTerm, membership: membership.membership,
            time: meta.time)
        let spool = try SnapshotSpool(
            meta: meta, state: self.meta, database: directory + "/" + Self.fileName,
            directory: directory, bytesMax: spoolBytesMax)
        spools.removeAll { !$0.isReadingDatabase }
        spools.append(spool)
        return spool
    }

    package var partialSnapshots: String? { directory }

    package func receiveSnapshot(_ meta: SnapshotMeta) throws(StorageError) -> any SnapshotWriter {
        if let failure { throw failure }
        return try SQLiteSnapshotWriter(into: self, meta: meta)
    }

    /// Puts the finished file `state.db.incoming` in the place of the database.
    ///
    /// The old WAL goes first: over another database it would be poison. Should the machine fail
    /// right after, the old database without its WAL must still be a state that the log continues: so
    /// all of the WAL is copied before. Half of a checkpoint, whether it was cut off by a kill or held
    /// up by a reader, leaves pages of several moments.
    ///
    /// - Parameter began: called when the state as it was is no longer there to go on with.
    func replaceByIncoming(_ began: () -> Void) throws(StorageError) {
        waitForSnapshots()
        let durable = try checkpoint()
        try setDeferring(false)
        guard durable == meta.appliedIndex, !isDeferring else {
            // Nothing has changed yet: on a full disk it is tried again with the next snapshot.
            throw .disk("no space left on the device to make the state to be replaced durable")
        }
        began()
        do throws(StorageError) {
            opened = nil
            let path = directory + "/" + Self.fileName
            try Self.remove(path + "-wal")
            try Self.syncDirectory(directory)
            try Self.rename(directory + "/" + Self.incomingName, path)
            try Self.syncDirectory(directory)
            let machine: KVMachine<SQLiteTables>
            do { machine = try Self.open(path, options) } catch { throw Self.explain(error) }
            opened = machine
            cacheKiB = options.cacheKiB
            spilledBefore = 0
            adopt(sessionTimeout)
            meta = machine.meta
            membership = try meta.decodedMembership()
            pagesAtCheckpoint = 0
            durableIndex = .zero
            _ = try checkpoint()
            try removeSetAside()
        } catch {
            failure = error
            throw error
        }
    }

    /// A snapshot that is being spooled keeps the WAL from being started over. That takes as long as
    /// reading the database once; a WAL that gets too long meanwhile has to wait for it.
    private func waitForSpoolsIfNeeded() throws(StorageError) {
        guard !spools.isEmpty else { return }
        spools.removeAll { !$0.isReadingDatabase }
        for spool in spools {
            let pagesMax = min(Self.walPagesMax, spool.bytesMax / 4096)
            spool.applied(isHurried: pagesAtCheckpoint > pagesMax / 2)
            if pagesAtCheckpoint > pagesMax { spool.waitUntilRead() }
        }
    }

    // MARK: Errors

    func storing<Result>(
        _ body: (inout KVMachine<SQLiteTables>) throws(SQLiteError) -> Result
    ) throws(StorageError) -> Result {
        if let failure { throw failure }
        guard var machine = opened else { preconditionFailure("a closed state is not used") }
        // Not kept here as well while it changes: two owners would mean copies.
        opened = nil
        defer { opened = machine }
        do {
            let result = try body(&machine)
            meta = machine.meta
            return result
        } catch {
            let explained = Self.explain(error)
            failure = explained
            if case .corrupt(let reason) = explained { Self.noteDamage(reason, in: directory) }
            throw explained
        }
    }

    /// Until no snapshot reads the database any more.
    package func waitForSnapshots() {
        for spool in spools { spool.waitUntilRead() }
        spools = []
    }

    private func adopt(_ timeout: Duration) {
        opened?.sessionTimeoutMilliseconds = UInt64(timeout / .milliseconds(1))
    }

    package func close() {
        waitForSnapshots()
        // Whatever fails now is found when it is opened again.
        try? setDeferring(false)
        opened = nil
    }
}
