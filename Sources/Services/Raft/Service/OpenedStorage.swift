// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import Glibc
import Logging
import RaftCore
import RaftStorage

/// The data directory, opened and understood:
///
///     LOCK       one process at a time
///     replica    whose directory this is
///     log/       the segments of the log
///     state/     the database of the applied state
package struct OpenedStorage {
    package var replica: ReplicaID
    package var log: any LogStore
    package var state: any StateStore
    package var recovery: RaftRecovery
    /// Holds the lock while the node lives.
    var disks: [any Disk]

    /// For a node that was never started.
    package func close() {
        log.close()
        state.close()
    }

    /// Everything in memory: another replica at each start.
    package static func inMemory() -> OpenedStorage {
        let (log, state) = (MemoryLog(), MemoryState())
        return OpenedStorage(
            replica: ReplicaID(UInt64.random(in: 1...UInt64.max)), log: log, state: state,
            recovery: log.recovery, disks: [])
    }

    /// - Throws: `AspenError` for settings that do not fit the directory, `StorageError`.
    package static func open(_ settings: RaftSettings, logger: Logger) throws -> OpenedStorage {
        if settings.backend == .inMemory {
            logger.notice("storage is in memory: everything is gone when this process ends")
            return inMemory()
        }
        let directory = absolute(settings.stateDirectory)
        var disks: [any Disk] = []
        func disk(_ name: String) throws -> any Disk {
            let path = name.isEmpty ? directory : directory + "/" + name
            do {
                let disk: any Disk = try PosixDisk(path: path)
                disks.append(disk)
                return disk
            } catch {
                throw AspenError(.storage, "the data directory \(path) cannot be used: \(error)")
            }
        }
        let root = try disk("")
        let replica = try ReplicaFile.open(
            in: root, node: settings.node, newReplica: ReplicaID(UInt64.random(in: 1...UInt64.max)))
        let log = try SegmentedLog(disk: try disk("log"), salt: UInt64.random(in: 1...UInt64.max))
        _ = try disk("state")
        let state = try openState(directory + "/state", logger: logger)
        let recovery = try reconcile(log, state, logger: logger)
        return OpenedStorage(
            replica: replica.replica, log: log, state: state, recovery: recovery, disks: disks)
    }

    private static func absolute(_ path: String) -> String {
        if path.hasPrefix("/") { return path }
        guard let current = getcwd(nil, 0) else { return path }
        defer { free(current) }
        return String(cString: current) + "/" + path
    }

    /// A state that is damaged is no loss: it is made again from the log, or from a peer.
    private static func openState(
        _ directory: String, logger: Logger
    ) throws(StorageError) -> SQLiteState {
        do throws(StorageError) {
            return try SQLiteState(directory: directory)
        } catch .corrupt(let reason) {
            logger.error(
                "the state is damaged and will be made anew", metadata: ["reason": "\(reason)"])
            return try SQLiteState.rebuildEmpty(directory: directory)
        }
    }

    /// One picture of what log and state found.
    static func reconcile(
        _ log: any LogStore, _ state: any StateStore, logger: Logger
    ) throws(StorageError) -> RaftRecovery {
        var recovery = log.recovery
        let applied = state.appliedIndex
        if applied > recovery.lastIndex {
            // A snapshot was put in force and the log not yet reset, or its tail was damaged below
            // what the state has: what is applied is committed, the log goes on behind it.
            logger.warning(
                "the state is ahead of the log, which starts anew behind it",
                metadata: ["applied": "\(applied)", "last": "\(recovery.lastIndex)"])
            try log.reset(to: applied, term: state.appliedTerm)
            recovery.snapshotIndex = applied
            recovery.snapshotTerm = state.appliedTerm
            recovery.lastIndex = applied
            recovery.termStarts = []
            recovery.memberships = []
            if recovery.untrustedBelow <= applied { recovery.isTailTrusted = true }
        }
        recovery.appliedIndex = applied
        recovery.lastTime = max(recovery.lastTime, state.time)
        if let known = state.membership {
            recovery.memberships.removeAll { $0.index <= known.index }
            recovery.memberships.insert(known, at: 0)
        }
        return recovery
    }
}
