// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore

/// The state in memory: for the `inmemory` backend, where it is gone with the process, and for the
/// simulator, which keeps `copy()`s to play a disk.
package final class MemoryState: StateStore {
    /// Entries between two checkpoints of `checkpointIfDue`.
    package static let checkpointInterval: UInt64 = 1000

    private var machine: KVMachine<MemoryTables>
    private var checkpointed: LogIndex
    package private(set) var membership: (index: LogIndex, membership: Membership)?

    package convenience init() {
        self.init(machine: KVMachine(tables: MemoryTables(), meta: StateMeta()))
    }

    private init(machine: KVMachine<MemoryTables>) {
        self.machine = machine
        checkpointed = machine.meta.appliedIndex
        membership = nil
    }

    package var appliedIndex: LogIndex { machine.meta.appliedIndex }
    package var appliedTerm: Term { machine.meta.appliedTerm }
    package var revision: Revision { machine.meta.revision }
    package var time: ClusterTime { machine.meta.time }
    package var byteCount: UInt64 { machine.tables.byteCount }
    package var meta: StateMeta { machine.meta }
    package var isSweeping: Bool { machine.meta.isSweeping }

    /// Stays with the state, whatever takes its place.
    package var plantedBug: KVPlantedBug? {
        get { machine.plantedBug }
        set { machine.plantedBug = newValue }
    }
    /// See `KVMachine.sessionTimeoutMilliseconds`.
    package var sessionTimeout: Duration {
        get { .milliseconds(Int64(machine.sessionTimeoutMilliseconds)) }
        set { machine.sessionTimeoutMilliseconds = UInt64(newValue / .milliseconds(1)) }
    }
    package var localTime: ClusterTime {
        get { machine.localTime }
        set { machine.localTime = newValue }
    }

    package func apply(_ entries: [Entry]) throws(StorageError) -> [CommandResult] {
        let results = machine.apply(try CommittedEntry.translate(entries))
        if machine.meta.membershipIndex != (membership?.index ?? .zero) {
            membership = try machine.meta.decodedMembership()
        }
        return results
    }

    /// Every row of a copy.
    package func rows() -> MemoryTables.Rows { machine.tables.rows() }

    package func get(_ key: [UInt8], at revision: Revision?) -> KeyValue? {
        guard case .value(let entry) = machine.get(key, at: revision) else { return nil }
        return entry
    }

    package func range(_ request: RangeRequest) -> RangeOutcome {
        RangeOutcome(machine.range(request))
    }

    package func visit(
        _ request: RangeRequest, _ take: (EntryView) -> Void
    ) -> ReadOutcome<RangeEnd> {
        machine.visit(request, take)
    }

    package func nextSessionExpiry() -> ClusterTime? { machine.nextSessionExpiry() }
    package var leaseExpiryHint: ClusterTime? { machine.leaseExpiryHint }
    package func nextLeaseExpiry() -> ClusterTime? { machine.nextLeaseExpiry() }

    package func get(_ keys: [[UInt8]], at revision: Revision?) -> ReadOutcome<KeysPage> {
        machine.get(keys, at: revision)
    }

    package func count(_ request: CountRequest) -> ReadOutcome<CountPage> {
        machine.count(request)
    }

    package func changes(_ request: ChangesRequest) -> ReadOutcome<ChangesPage> {
        machine.changes(request)
    }

    package func history(of key: [UInt8], before: Revision?, limit: Int) -> HistoryPage {
        machine.history(of: key, before: before, limit: limit)
    }

    package func lease(_ id: LeaseID) -> LeaseRow? { machine.lease(id) }

    package func leases(after: LeaseID, limit: Int) -> LeasesPage {
        machine.leases(after: after, limit: limit)
    }

    package func keys(of lease: LeaseID, limit: Int) -> [[UInt8]] {
        machine.keys(of: lease, limit: limit)
    }

    package func setRecording(_ isOn: Bool) { machine.recording = isOn ? ChangeRecording() : nil }
    package func takeRecording() -> ChangeRecording? { machine.recording?.take() }

    package func checkpointIfDue() -> LogIndex? {
        guard appliedIndex.rawValue >= checkpointed.rawValue + Self.checkpointInterval else {
            return nil
        }
        return checkpoint()
    }

    package func checkpoint() -> LogIndex {
        checkpointed = appliedIndex
        return appliedIndex
    }

    package func contentHash() -> UInt64 { machine.meta.contentHash }

    package func recomputeContentHash() -> UInt64 {
        var meta = machine.meta
        var rows = machine.tables.rows()
        meta.rowHash = KVMachine<MemoryTables>.rowHash(of: &rows)
        return meta.contentHash
    }

    /// An independent state with the same content; costs nothing until one of the two changes.
    package func copy() -> MemoryState {
        let copy = MemoryState(machine: machine)
        copy.membership = membership
        return copy
    }

    /// What a process finds that starts with this state as its disk has it.
    package func reopened() -> MemoryState {
        let copy = copy()
        copy.machine.recording = nil
        #if ASPEN_TEST_BUILD
            if plantedBug == .revisionGoesBack { copy.machine.loseLastRevision() }
        #endif
        return copy
    }

    package func makeSnapshot(spoolBytesMax: Int) throws(StorageError) -> any SnapshotReader {
        guard let membership else {
            throw .corrupt("a state without a membership has no snapshot")
        }
        var machine = machine
        #if ASPEN_TEST_BUILD
            if plantedBug == .snapshotWithoutLeases { machine.forgetLeases() }
            if plantedBug == .snapshotWithoutSessions { machine.forgetSessions() }
        #endif
        let meta = machine.meta
        return MemorySnapshotReader(
            meta: SnapshotMeta(
                index: meta.appliedIndex, term: meta.appliedTerm,
                membership: membership.membership, time: meta.time),
            stream: StateStreamWriter(meta: meta, rows: machine.tables.rows()))
    }

    package func receiveSnapshot(_ meta: SnapshotMeta) -> any SnapshotWriter {
        MemorySnapshotWriter(into: self, meta: meta)
    }

    fileprivate func replace(
        by machine: KVMachine<MemoryTables>,
        membership: (index: LogIndex, membership: Membership)?
    ) {
        let (planted, timeout) = (plantedBug, sessionTimeout)
        self.machine = machine
        plantedBug = planted
        sessionTimeout = timeout
        self.membership = membership
        checkpointed = machine.meta.appliedIndex
    }

    package func close() {}
}

private final class MemorySnapshotReader: SnapshotReader {
    let meta: SnapshotMeta
    private var stream: StateStreamWriter<MemoryTables.Rows>

    init(meta: SnapshotMeta, stream: StateStreamWriter<MemoryTables.Rows>) {
        self.meta = meta
        self.stream = stream
    }

    func next() throws(StorageError) -> [UInt8]? {
        stream.next(bytesMax: Limits.snapshotChunkBytesMax)
    }

    func close() {}
}

private final class MemorySnapshotWriter: SnapshotWriter {
    private let state: MemoryState
    private let meta: SnapshotMeta
    private var intake = SnapshotIntake(tables: MemoryTables())

    init(into state: MemoryState, meta: SnapshotMeta) {
        self.state = state
        self.meta = meta
    }

    func append(_ bytes: [UInt8]) throws(StorageError) {
        try intake.append(bytes) { _ in preconditionFailure("memory does not fail") }
    }

    func finish() throws(StorageError) {
        let (tables, stateMeta) = try intake.finish(expecting: meta) { _ in
            preconditionFailure("memory does not fail")
        }
        state.replace(
            by: KVMachine(tables: tables, meta: stateMeta),
            membership: try stateMeta.decodedMembership())
    }

    func abandon() {}
}
