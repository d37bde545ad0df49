// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore
import RaftStorage

extension LogStore {
    /// What the core starts from: the log as it was found, and what the state knows. A state that
    /// is ahead of the log (its checkpoint was durable before the log's last entries were) lets the
    /// log start anew behind it: everything applied is committed, and others have it.
    func recovery(joining state: any StateStore) throws(StorageError) -> RaftRecovery {
        if state.appliedIndex > lastIndex {
            try reset(to: state.appliedIndex, term: state.appliedTerm)
        }
        var recovery = self.recovery
        recovery.appliedIndex = state.appliedIndex
        recovery.lastTime = max(recovery.lastTime, state.time)
        if let known = state.membership {
            recovery.memberships.removeAll { $0.index <= known.index }
            recovery.memberships.insert(known, at: 0)
        }
        return recovery
    }
}

extension World {
    func openLog(_ node: SimNode) throws(StorageError) -> any LogStore {
        fatalError("the log store has not landed")
    }
}
