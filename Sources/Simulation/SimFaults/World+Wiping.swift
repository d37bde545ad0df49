// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimKit

/// A node that lost its disk, on its way back into the membership.
struct Replacement {
    var node: Int
    /// It is to become a voter again, not only a learner.
    var wasVoter: Bool
}

/// A disk that is lost with everything on it, and the administrator who sets that right: what comes
/// back is another replica under the old id, to be removed and added again.
extension World {
    /// Does nothing where the loss of this disk could be more than the fault model allows.
    func wipe(_ node: SimNode) {
        guard replacement == nil, let wasVoter = canSpare(node) else { return }
        statistics.wipes += 1
        note("n\(node.id) loses its disk")
        killRaft(node, restartAfter: fate.uniform(.milliseconds(5), scenario.downtimeMax))
        observer.wiped(node.index, node.member.replica)
        node.disk.wipe()
        node.database?.wipe()
        node.checkpoint = emptyState()
        node.program = KVVersion.supported
        node.member.replica = ReplicaID(node.member.replica.rawValue + 1)
        replacement = Replacement(node: node.index, wasVoter: wasVoter)
        planReplacement()
    }

    /// Does nothing where this log could be the only one that has what it loses.
    func rot(_ node: SimNode) {
        guard replacement == nil, canSpare(node) != nil else { return }
        if let database = node.database, fate.chance(1, in: 2) { return rot(node, database) }
        guard let names = try? node.disk.list().filter({ $0.hasPrefix("log-") }), !names.isEmpty
        else { return }
        let name = names[fate.uniform(0..<names.count)]
        let used = node.disk.usedBytes(of: name)
        // Without any header a replica is lost, which is another kind of trouble.
        guard used > Self.segmentHeaderBytes else { return }
        let offset = fate.uniform(Self.segmentHeaderBytes..<used)
        killRaft(node, restartAfter: fate.uniform(.milliseconds(5), scenario.downtimeMax))
        // Bits flip on the disk: where the mark behind the last batch is, too, by then. Should power fail
        // before that, nothing tells that batch from a torn one (see `LogRecovery`).
        node.disk.writeBack(name)
        note("n\(node.id) a bit of \(name) flips at \(offset)")
        _ = node.disk.flipBit(name, at: offset, bit: UInt8(fate.uniform(0..<8)))
    }

    private static let segmentHeaderBytes = 4096

    /// Whoever survives a majority needs its state.
    private func rot(_ node: SimNode, _ database: SimDatabase) {
        guard !scenario.losesMajority else { return }
        killRaft(node, restartAfter: fate.uniform(.milliseconds(5), scenario.downtimeMax))
        let damage = database.rot { fate.uniform(0..<$0) }
        if let damage { note("n\(node.id) \(damage)") }
    }

    /// One voter of three or more, while everyone runs under the same settled membership: then no
    /// newer one is on its way anywhere, and a majority of the voters' data stays intact.
    ///
    /// - Returns: whether it is a voter; nil if it may not be lost now.
    private func canSpare(_ node: SimNode) -> Bool? {
        guard let leader, let membership = leader.membership, !membership.isJoint,
            membership.member(node.id) != nil, !hidesDamage
        else { return nil }
        for member in membership.members {
            guard let position = position(member.node), let shell = nodes[position].shell,
                shell.membership == membership, shell.state.membership?.membership == membership,
                shell.standing.term == leader.standing.term, shell.core.isTailTrusted,
                member.replica == nodes[position].member.replica
            else { return nil }
        }
        let isVoter = membership.isVoter(node.id)
        return isVoter && membership.voters.count < 3 ? nil : isVoter
    }

    private func planReplacement() {
        schedule(.replace, after: fate.uniform(.milliseconds(1), scenario.heartbeatInterval))
    }

    /// One step of the administrator: remove the old replica, add the new one, make it a voter.
    func replace() throws(Violation) {
        guard let replacement else { return }
        guard let leader, let membership = leader.membership, !membership.isJoint else {
            return planReplacement()
        }
        let member = nodes[replacement.node].member
        let voters = membership.voters.filter { $0 != member.node }
        let learners = membership.learners.filter { $0 != member.node }
        switch membership.member(member.node)?.replica {
        case nil: try change(leader, voters: voters, learners: learners + [member.node])
        case member.replica:
            if replacement.wasVoter, !membership.isVoter(member.node) {
                try change(leader, voters: (voters + [member.node]).sorted(), learners: learners)
            } else if leader.state.membership?.membership == membership {
                note("n\(member.node) has been replaced")
                self.replacement = nil
                return
            }
        default: try change(leader, voters: voters, learners: learners)
        }
        planReplacement()
    }

    // MARK: - Who says what to whom

    /// A stream begins with the replica ids of both ends. See `Message.isAnswer`.
    func isForeign(_ peer: Int, to shell: RaftShell) -> Bool {
        guard let known = shell.replicas[peer], !scenario.planted.contains(.believeOtherReplica)
        else { return false }
        return known != nodes[peer].member.replica
    }

    /// The membership in force names these replicas. Who is spoken to from now on is asked anew.
    func learnReplicas(_ membership: Membership, _ shell: RaftShell) {
        for member in membership.members where member.node != shell.node.id {
            guard let peer = position(member.node), shell.replicas[peer] != member.replica else {
                continue
            }
            shell.replicas[peer] = member.replica
            schedule(
                .replicaLearned(node: shell.index, life: shell.life, peer: peer),
                after: .microseconds(20))
        }
    }
}
