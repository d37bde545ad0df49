// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimKit

/// Worlds whose nodes keep their state in the real database, too. Both must say the same, always; and
/// what the database holds after a crash is what a node starts from.
extension World {
    // MARK: - Starting

    /// - Returns: whether it is empty in the place of one that was damaged, too.
    func openState(
        _ node: SimNode
    ) throws(StorageError) -> (state: MemoryState, isMadeAnew: Bool) {
        guard let database = node.database else { return (node.checkpoint.reopened(), false) }
        statistics.databases += 1
        let isMadeAnew = try database.open()
        if isMadeAnew {
            statistics.damagedDatabases += 1
            note("n\(node.id) makes its database anew")
        }
        let state = emptyState()
        try database.copy(into: state)
        return (state, isMadeAnew)
    }

    /// As production joins them (`OpenedStorage`).
    func join(
        _ log: any LogStore, _ state: inout MemoryState, _ database: SimDatabase?
    ) throws(StorageError) -> RaftRecovery {
        let applied = state.appliedIndex
        if let database, applied > log.lastIndex {
            // Before the log lets go of what the state may still need.
            try database.checkpoint()
            guard database.durable == applied else {
                throw .disk("the state cannot be made durable")
            }
        }
        let recovery = try log.recovery(joining: &state, orElse: emptyState)
        guard let database else { return recovery }
        if state.appliedIndex < applied {
            try database.rebuild()
        } else if recovery.isTailTrusted {
            try database.state?.removeSetAside()
        }
        return recovery
    }

    // MARK: - Ending

    func endProcesses(of node: SimNode) {
        node.disk.endProcess()
        node.database?.end()
    }

    /// Of a disk that refuses, and of a flipped bit that was not found before.
    func isExpected(_ error: StorageError, on node: SimNode) -> Bool {
        switch error {
        case .disk: true
        case .corrupt: node.database?.isDamaged ?? false
        case .locked, .newerVersion: false
        }
    }

    /// Instead of now, the process may end between two things that its database does to the disk; or
    /// the power fails there.
    /// - Returns: whether it will.
    func lightFuse(_ node: SimNode, cutsPower: Bool) -> Bool {
        guard let database = node.database, fate.chance(1, in: 2) else { return false }
        database.medium.fuse = fate.uniform(0..<60)
        database.medium.fuseCutsPower = cutsPower
        return true
    }

    /// Some database may turn out to be of no use, and its log with it: nothing else may be lost until
    /// that is found.
    var hidesDamage: Bool { nodes.contains { $0.database?.isDamaged == true } }

    // MARK: - Comparing

    func compare(
        _ stored: [CommandResult], with results: [CommandResult], _ batch: [Entry],
        _ shell: RaftShell
    ) throws(Violation) {
        guard let state = shell.node.database?.state else { return }
        for (place, entry) in batch.enumerated() where stored[place] != results[place] {
            throw different(
                shell, "entry \(entry.index) gives \(stored[place]), in memory \(results[place])")
        }
        guard state.meta == shell.state.meta else {
            throw different(
                shell,
                "after entry \(state.appliedIndex) it is \(state.meta), in memory "
                    + "\(shell.state.meta)")
        }
    }

    /// A page that cannot be read stops the daemon, as ever.
    func compare(
        _ found: SimReadAnswer?, with read: SimRead, _ shell: RaftShell
    ) throws(Violation) {
        guard let state = shell.node.database?.state else { return }
        let stored: SimReadAnswer?
        let expiries: [ClusterTime?]
        do throws(StorageError) {
            stored = try read.answer(from: state)
            expiries = [try state.nextSessionExpiry(), try state.nextLeaseExpiry()]
        } catch {
            return try stop(shell, error)
        }
        guard stored == found else {
            throw different(
                shell,
                "\(read) shows \(String(describing: stored)), in memory "
                    + "\(String(describing: found))")
        }
        guard expiries == [shell.state.nextSessionExpiry(), shell.state.nextLeaseExpiry()] else {
            throw different(shell, "sessions or leases end at other times than in memory")
        }
    }

    private func different(_ shell: RaftShell, _ text: String) -> Violation {
        Violation(.safety, "database", "of n\(shell.node.id): \(text)")
    }
}

extension SimNode {
    /// Without the directory, which is another one each time.
    func describe(_ error: StorageError) -> String {
        guard let place = database?.directory else { return "\(error)" }
        let parts = "\(error)".utf8.split(separator: place.utf8)
        return parts.map { String(decoding: $0, as: UTF8.self) }.joined(separator: "state")
    }

    func mendDisks() {
        disk.failure = nil
        database?.disk.failure = nil
    }
}
