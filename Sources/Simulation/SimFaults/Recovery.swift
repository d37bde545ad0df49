// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore
import RaftStorage

extension LogStore {
    /// What the core starts from: the log as it was found, and what the state knows. A state that
    /// is ahead of the log (its checkpoint was durable before the log's last entries were) lets the
    /// log start anew behind it: everything applied is committed, and others have it. Where entries
    /// are missing between the two, both become empty and a leader has to fill them.
    func recovery(
        joining state: inout MemoryState, orElse empty: () -> MemoryState
    ) throws(StorageError) -> RaftRecovery {
        if try !align(applied: state.appliedIndex, term: state.appliedTerm) {
            state = empty()
        }
        var recovery = self.recovery
        recovery.salvage = try salvage(
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

extension World {
    func openLog(_ node: SimNode) throws(StorageError) -> any LogStore {
        var configuration = LogConfiguration()
        configuration.segmentBytes = scenario.segmentBytes
        configuration.plantedBugs = scenario.planted
        return try SegmentedLog(
            disk: node.disk, configuration: configuration, salt: bootRandom.next())
    }
}
