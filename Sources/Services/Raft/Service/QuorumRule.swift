// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore

/// Whether a change of voters leaves a cluster that can serve. Judged by the leader, from what it
/// knows of its peers at this moment.
struct QuorumRule {
    /// Reachable, caught up and believed; the leader itself is.
    var sound: Set<NodeID>
    /// Reachable at all: enough for the old set, which only has to agree to the change.
    var reachable: Set<NodeID>

    /// Heard a moment ago, whatever became of it since.
    var recent: Set<NodeID> = []

    #if ASPEN_TEST_BUILD
        /// Parts of the rule that a test build can be told to forget.
        enum PlantedBug: CaseIterable { case oldOnes, newOnes, nextFailure }
        var plantedBug: PlantedBug?

        private func forgets(_ bug: PlantedBug) -> Bool { plantedBug == bug }
    #else
        enum PlantedBug { case oldOnes, newOnes, nextFailure }
        private func forgets(_ bug: PlantedBug) -> Bool { false }
    #endif

    /// Why the change must not be made; nil if it may.
    func objection(from old: [NodeID], to new: [NodeID]) -> String? {
        let up = old.filter { reachable.contains($0) }.count
        guard up >= Self.quorum(old) || forgets(.oldOnes) else {
            return "only \(up) of the \(old.count) voters can be reached, and \(Self.quorum(old)) "
                + "have to agree to the change: bring some back, or see `aspen-cli cluster recover`"
        }
        let good = new.filter { sound.contains($0) }.count
        let missing = new.filter { !sound.contains($0) }
        let names = missing.map { "\($0)" }.joined(separator: ", ")
        guard good >= Self.quorum(new) || forgets(.newOnes) else {
            return "it would lose the quorum: of the new voters only \(good) are up and caught up, "
                + "\(Self.quorum(new)) are needed (missing: node \(names))"
        }
        let (before, after) = (margin(of: old), good - Self.quorum(new))
        // Fewer voters stand fewer failures by nature; with one of them down already, that is one
        // failure more than whoever asked has in mind.
        if after == 0, before > 0, !missing.isEmpty, !forgets(.nextFailure) {
            return
                "afterwards the cluster would stop at the next failure, for node \(names) is not "
                + "up and caught up: bring it back, or take it out of the voters instead"
        }
        return nil
    }

    static func quorum(_ voters: [NodeID]) -> Int { voters.count / 2 + 1 }

    private func margin(of voters: [NodeID]) -> Int {
        voters.filter { sound.contains($0) }.count - Self.quorum(voters)
    }
}
