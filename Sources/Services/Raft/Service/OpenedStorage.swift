// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import Glibc
import Logging
import RaftCore
import RaftStorage
import ServiceKit

/// The data directory, opened and understood:
///
///     LOCK       one process at a time
///     reserve    blocks for when the disk is full
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
    var recording: StateRecording?
    /// Nil in memory.
    var space: StorageSpace?

    /// For a node that was never started.
    package func close() {
        log.close()
        state.close()
        space?.close()
    }

    /// Everything in memory: another replica at each start.
    package static func inMemory() -> OpenedStorage {
        let (log, state) = (MemoryLog(), MemoryState())
        return OpenedStorage(
            replica: ReplicaID(UInt64.random(in: 1...UInt64.max)), log: log, state: state,
            recovery: log.recovery, disks: [])
    }

    /// - Parameter recorder: is told, in one order, what log and state write and sync as long as the
    ///   storage is open: from that a test builds what a power cut would have left. Files are named
    ///   as if the data directory were `place`, so that several nodes can share a recorder.
    /// - Throws: `AspenError` for settings that do not fit the directory, `StorageError`.
    package static func open(
        _ settings: RaftSettings, logger: Logger, recorder: WriteRecorder? = nil,
        as place: String = ""
    ) throws -> OpenedStorage {
        if settings.backend == .inMemory {
            logger.notice("storage is in memory: everything is gone when this process ends")
            return inMemory()
        }
        let directory = absolute(settings.stateDirectory)
        var disks: [any Disk] = []
        func recorded(_ name: String) -> String {
            place.isEmpty || name.isEmpty ? place + name : place + "/" + name
        }
        func disk(
            _ name: String, relief: @escaping @Sendable () -> Bool = { false }
        ) throws -> any Disk {
            let path = name.isEmpty ? directory : directory + "/" + name
            do {
                let disk: any Disk = try PosixDisk(path: path, relief: relief)
                disks.append(disk)
                guard let recorder else { return disk }
                return RecordingDisk(disk, recorder: recorder, directory: recorded(name))
            } catch {
                throw AspenError(.storage, "the data directory \(path) cannot be used: \(error)")
            }
        }
        let root = try disk("")
        // Not by way of a recorder: what is in the reserve is nobody's data.
        let space = StorageSpace(disk: disks[0], probe: settings.diskSpace)
        let replica = try ReplicaFile.open(
            in: root, node: settings.node, newReplica: ReplicaID(UInt64.random(in: 1...UInt64.max)))
        if replica.isMended {
            logger.notice(
                "repaired: a bit of the file 'replica' had flipped",
                metadata: ["event": "\(JournalEvent.repaired)"])
        }
        let log = try SegmentedLog(
            disk: try disk("log", relief: { space.relieve() }),
            configuration: settings.log.scaled(to: space.limits),
            salt: UInt64.random(in: 1...UInt64.max))
        let isDamaged = !log.recovery.isTailTrusted
        if isDamaged {
            logger.error(
                "the log is damaged: what may have been acknowledged is missing at its end",
                metadata: [
                    "last": "\(log.lastIndex)", "missing-up-to": "\(log.recovery.untrustedBelow)",
                    "event": "\(JournalEvent.damageFound)",
                ])
        }
        _ = try disk("state")
        space.relieve(statesIn: directory + "/state/")
        let recording = recorder.map {
            StateRecording(directory: directory + "/state", recorder: $0, as: recorded("state"))
        }
        let state = try openState(
            directory + "/state", beside: log,
            settings.state.scaled(to: space.limits).outOfStep(), logger: logger)
        // Elsewhere that waits until it is due. Here the room that the WAL takes comes back by it.
        if space.isTight { _ = try state.checkpoint() }
        if isDamaged, log.recovery.isTailTrusted {
            logger.notice(
                "repaired: the state holds all that the log may have lost",
                metadata: ["event": "\(JournalEvent.repaired)"])
        } else if isDamaged {
            var metadata: Logger.Metadata = [:]
            if let newest = log.recovery.newestMembership, newest.index > log.lastIndex {
                metadata["membership-lost"] = "\(newest.index)"
                metadata["voters"] = "\(newest.membership.voters)"
            }
            logger.warning(
                "this node neither votes nor acknowledges until its peers have filled its log",
                metadata: metadata)
        }
        return OpenedStorage(
            replica: replica.file.replica, log: log, state: state,
            recovery: try merge(log, state), disks: disks, recording: recording, space: space)
    }

    private static func absolute(_ path: String) -> String {
        if path.hasPrefix("/") { return path }
        guard let current = getcwd(nil, 0) else { return path }
        defer { free(current) }
        return String(cString: current) + "/" + path
    }

    /// A state that is damaged, gone, or behind what the log still has is made anew: from the log if
    /// that reaches back far enough, else by a leader. It is never a reason not to start.
    private static func openState(
        _ directory: String, beside log: any LogStore, _ options: SQLiteState.Options,
        logger: Logger
    ) throws(StorageError) -> SQLiteState {
        var state: SQLiteState
        var isMadeAnew = false
        do throws(StorageError) {
            state = try SQLiteState(directory: directory, options: options)
        } catch .corrupt(let reason) {
            logger.error(
                "the state is damaged and will be made anew",
                metadata: ["reason": "\(reason)", "event": "\(JournalEvent.damageFound)"])
            state = try SQLiteState.rebuildEmpty(directory: directory, options: options)
            isMadeAnew = true
        }
        let (applied, first) = (state.appliedIndex, log.firstIndex)
        if log.isOvertaken(by: applied, state.appliedTerm) {
            logger.warning(
                "the state is ahead of the log, which starts anew behind it",
                metadata: ["applied": "\(applied)", "last": "\(log.lastIndex)"])
            // Before the log lets go of what the state may still need.
            guard try state.checkpoint() == applied else {
                throw .disk("the state cannot be made durable")
            }
        }
        if try log.align(applied: applied, term: state.appliedTerm) {
            if log.recovery.isTailTrusted { try state.removeSetAside() }
            if isMadeAnew {
                logger.notice(
                    "repaired: the state is made again from the log, which has all of it",
                    metadata: ["event": "\(JournalEvent.repaired)"])
            }
        } else {
            logger.error(
                "the state is lost and the log begins later: this node waits for a leader to fill it",
                metadata: ["applied": "\(applied)", "first": "\(first)"])
            if applied > .zero {
                state.close()
                state = try SQLiteState.rebuildEmpty(directory: directory, options: options)
            }
        }
        return state
    }

    /// One picture of what log and state found.
    private static func merge(
        _ log: any LogStore, _ state: any StateStore
    ) throws(StorageError) -> RaftRecovery {
        var recovery = log.recovery
        recovery.salvage = try log.salvage(
            above: state.appliedIndex, bytesMax: Limits.salvageBytesMax)
        recovery.appliedIndex = state.appliedIndex
        recovery.lastTime = max(recovery.lastTime, state.time)
        if let known = state.membership {
            recovery.memberships.removeAll { $0.index <= known.index }
            recovery.memberships.insert(known, at: 0)
        }
        return recovery
    }
}
