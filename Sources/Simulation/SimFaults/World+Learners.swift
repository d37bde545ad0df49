// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import SimKit

/// Learners that become voters when their leader says that they follow well, and what that is worth.
extension World {
    /// A voter already, or a learner that has caught up.
    func isFit(_ node: NodeID, _ leader: RaftShell, _ membership: Membership) -> Bool {
        if membership.isVoter(node) { return true }
        let peers = leader.core.peers(now: leader.clock.reading(at: now))
        return peers.first { $0.node == node }?.isCaughtUp ?? false
    }

    /// Two rounds are over within two heartbeats: what the log had before them, the peer has.
    func checkLearners(_ shell: RaftShell) throws(Violation) {
        guard scenario.waitsForLearners, shell.standing.role == .leader else { return }
        let clock = shell.clock.reading(at: now)
        let rounds = scenario.heartbeatInterval * 2
        let end = shell.core.end()
        while shell.ends.count > 1, clock - shell.ends[1].at >= rounds { shell.ends.removeFirst() }
        if let first = shell.ends.first, clock - first.at >= rounds {
            for peer in shell.core.peers(now: clock) where peer.isCaughtUp {
                let lag = end.rawValue - min(peer.match, end).rawValue
                guard lag > scenario.learnerLagMax, peer.match < first.index else { continue }
                throw Violation(
                    .safety, "who has caught up follows",
                    "n\(shell.node.id) says so of n\(peer.node), which has \(peer.match) of \(end)")
            }
        }
        shell.ends.append((clock, end))
    }

    // MARK: - Disks that stand still

    /// Just when somebody leads: what was voted is durable, and the first entry is not.
    func stallDisks() {
        guard scenario.stalledLeaderPercent > 0, part == .trouble,
            nodeRandom.chance(scenario.stalledLeaderPercent, in: 100)
        else { return }
        let until = now + scenario.electionTimeoutMax * nodeRandom.uniform(1..<3)
        note("all disks stand still until \(until)")
        for node in nodes { node.diskStalledUntil = until }
    }
}
