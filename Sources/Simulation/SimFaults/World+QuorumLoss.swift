// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import RaftStorage
import SimKit

/// A majority of the voters that is lost for good in the midst of everything, and the person who makes
/// the node that has most the cluster: see the page on recovery.
extension World {
    /// - Returns: false where more might be lost than the fault model allows, or too little.
    func loseMajority() -> Bool {
        guard scenario.losesMajority, replacement == nil, let leader,
            let membership = leader.membership, !membership.isJoint, membership.voters.count > 2,
            leader.state.membership?.membership == membership
        else { return false }
        // What is committed is on one of these at least, and on whichever of them has most.
        let others = membership.voters.filter { $0 != leader.node.id }
            .compactMap { position($0) }.compactMap { nodes[$0].shell }
        guard others.count == membership.voters.count - 1,
            others.allSatisfy({ $0.core.isTailTrusted && $0.membership == membership }),
            let survivor = others.max(by: { !$0.core.hasAtLeast($1.core) })
        else { return false }
        note("all but n\(survivor.node.id) are lost for good")
        part = .losing
        endTroubles()
        for node in nodes where node !== survivor.node {
            node.isLost = true
            killNode(node, restartAfter: .zero)
        }
        schedule(.recoverQuorum(node: survivor.node.index), after: scenario.electionTimeoutMax * 2)
        schedule(.endOfPatience(.losing), after: patience)
        return true
    }

    func recoverQuorum(_ node: SimNode) throws(Violation) {
        guard part == .losing else { return }
        schedule(.recoverQuorum(node: node.index), after: scenario.electionTimeoutMax)
        let cluster = ClusterID(UInt128(scenario.seed) + (1 << 64))
        guard let shell = node.shell, shell.standing.leader == nil,
            shell.membership?.cluster != cluster
        else { return }
        note("operator: n\(node.id) is the cluster")
        try feed(shell, .recover(cluster: cluster, id: proposalID(shell)))
    }

    /// The one that is left leads, and has applied that it is alone.
    func isRecovered() -> Bool {
        guard let leader, let membership = leader.state.membership?.membership else { return false }
        return membership.voters == [leader.node.id] && membership == leader.membership
    }
}
