// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import ProposalCore
import RaftCore
import RaftStorage

/// The person who founds the cluster and changes its membership now and then.
extension World {
    /// Starts every daemon and makes the first node a cluster of one.
    func found() throws(Violation) {
        for node in nodes {
            startNet(node)
            try startRaft(node)
        }
        guard let shell = nodes[0].shell else { preconditionFailure("it has just started") }
        let membership = Membership(
            cluster: ClusterID(UInt128(scenario.seed)), voters: [nodes[0].id],
            members: [nodes[0].member])
        try feed(
            shell,
            .initialize(
                membership, wallTime: ClusterTime(milliseconds: 1_700_000_000_000),
                id: proposalID(shell)))
        for client in clients {
            schedule(
                .act(client: client.index),
                after: workRandom.uniform(.milliseconds(1), scenario.thinkTimeMax))
        }
        beginWatching()
        schedule(.operate, after: .milliseconds(20))
        schedule(.endOfPatience(.founding), after: patience)
    }

    /// How long a cluster without trouble may take to set itself right.
    var patience: Duration {
        scenario.electionTimeoutMax * 30 + scenario.requestTimeout * 20 + scenario.entryInterval
            * 200
    }

    func proposalID(_ shell: RaftShell) -> ProposalID {
        ProposalID(
            node: shell.node.id, incarnation: shell.life, number: shell.table.takeNumber())
    }

    /// The leader of the highest term, if it is running.
    var leader: RaftShell? {
        nodes.compactMap(\.shell).filter { $0.standing.role == .leader }
            .max { $0.standing.term < $1.standing.term }
    }

    func operate() throws(Violation) {
        switch part {
        case .founding:
            schedule(.operate, after: scenario.heartbeatInterval / 2)
            let wanted = nodes[..<scenario.founders].map(\.id)
            guard let leader, let membership = leader.membership, !membership.isJoint else {
                return
            }
            if membership.voters == wanted {
                if leader.state.membership?.membership != membership { return }
                beginTrouble()
            } else {
                try change(leader, voters: wanted, learners: [])
            }
        case .trouble:
            guard let interval = scenario.operatorInterval else { return }
            schedule(.operate, after: fate.uniform(interval / 5, interval * 2))
            guard let leader, let membership = leader.membership else { return }
            try intervene(leader, membership)
        case .losing, .healing, .over: break
        }
    }

    private func intervene(
        _ leader: RaftShell, _ membership: Membership
    ) throws(Violation) {
        if fate.chance(1, in: 3) {
            let voters = membership.voters.filter { $0 != leader.node.id }
            guard !voters.isEmpty else { return }
            let target = voters[fate.uniform(0..<voters.count)]
            note("operator: leadership to n\(target)")
            leader.transferredAt = now
            try feed(leader, .transferLeadership(to: target))
            return
        }
        if scenario.hasMischief, mischiefRandom.chance(1, in: 4) {
            return try changeWrongly(leader, membership)
        }
        var pool = nodes.map(\.id)
        var voters: [NodeID] = []
        let wanted = fate.uniform(max(1, scenario.founders - 2)..<min(pool.count, 5) + 1)
        while voters.count < wanted {
            voters.append(pool.remove(at: fate.uniform(0..<pool.count)))
        }
        var learners = pool.filter { _ in fate.chance(1, in: 2) }
        if scenario.waitsForLearners {
            let behind = voters.filter { !isFit($0, leader, membership) }
            voters.removeAll { behind.contains($0) }
            learners += behind
            guard !voters.isEmpty else { return }
        }
        upgradeNewcomers(voters + learners, membership)
        try change(leader, voters: voters.sorted(), learners: learners.sorted())
    }

    func change(
        _ leader: RaftShell, voters: [NodeID], learners: [NodeID]
    ) throws(Violation) {
        note("operator: voters \(voters), learners \(learners)")
        let members = nodes.map(\.member).filter {
            voters.contains($0.node) || learners.contains($0.node)
        }
        let isOwed =
            isFreeToChange(leader)
            && members.allSatisfy { leader.membership?.member($0.node)?.replica == $0.replica }
        let (before, refusals) = (leader.core.lastIndex, leader.refusals)
        try feed(
            leader,
            .changeMembership(
                voters: voters, learners: learners, members: members, id: proposalID(leader)))
        if leader.core.lastIndex == before, leader.refusals == refusals { throw untold(leader) }
        if isOwed, leader.core.lastIndex == before {
            throw Violation(
                .safety, "sensible changes are made",
                "n\(leader.node.id) refuses voters \(voters), learners \(learners)")
        }
    }
}
