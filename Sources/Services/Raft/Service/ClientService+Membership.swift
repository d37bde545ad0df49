// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import NIOCore
import RaftCore

// Who votes and who leads: promotion, leaving, transfer. All of it is carried out by the leader.

extension ClientService {
    /// How often a leader that hands over looks whether it has succeeded.
    static let transferPollInterval = TimeAmount.milliseconds(5)
    private static let transferPatience = Duration.seconds(1)

    // MARK: - The rule of safe change

    func quorumRule() -> QuorumRule {
        let own = options.raft.node
        var rule = QuorumRule(sound: [own], reachable: [own])
        let now = RaftNode.now
        for peer in node.core.peerStatus(now: now) {
            if now - peer.heardAt < Self.changePatience { rule.recent.insert(peer.node) }
            guard links.isReachable(peer.node) else { continue }
            rule.reachable.insert(peer.node)
            if peer.isCaughtUp { rule.sound.insert(peer.node) }
        }
        return rule
    }

    /// - Throws: `preconditionFailed`, saying what would go wrong.
    func refuseLossOfQuorum(
        from membership: Membership, to voters: [NodeID]
    ) throws(AspenError) {
        let rule = quorumRule()
        guard let reason = rule.objection(from: membership.voters, to: voters) else { return }
        // Who is down is down; who is new, up and behind, or was heard a moment ago may be back soon.
        let isHopeful = voters.contains {
            !rule.sound.contains($0)
                && (rule.reachable.contains($0) || rule.recent.contains($0)
                    || !membership.isVoter($0))
        }
        throw AspenError(
            .preconditionFailed,
            "the change is refused: \(reason). --force makes it all the same: if the voters that are "
                + "missing do not come back, the cluster then stops for good",
            retry: isHopeful ? .safe : .never)
    }

    // MARK: - Promotion

    func promoteLearner(_ body: Aspen_Client_V1_PromoteLearnerRequest, _ origin: RequestOrigin) {
        let (learner, replaced) = (NodeID(body.nodeID), NodeID(body.replace))
        guard body.nodeID != 0, body.nodeID != body.replace else {
            return origin.fail(
                AspenError(.invalidArgument, "name one learner, and another node to replace"))
        }
        change(.promoteLearner, origin) { [self] (membership) throws(AspenError) in
            guard membership.member(learner) != nil else {
                throw AspenError(
                    .preconditionFailed,
                    "node \(learner) is no member: `aspen-cli cluster add-learner --node-id "
                        + "\(learner)` first")
            }
            let isReplacing = body.replace != 0 && membership.voters.contains(replaced)
            if membership.voters.contains(learner), !isReplacing { return nil }
            if body.replace != 0, !isReplacing {
                throw AspenError(
                    .preconditionFailed, "node \(replaced) is no voter: it has no place to take")
            }
            var voters = membership.voters.filter { !isReplacing || $0 != replaced }
            if !voters.contains(learner) { voters.append(learner) }
            voters.sort()
            if !body.force {
                try refuseIfBehind(learner)
                try refuseLossOfQuorum(from: membership, to: voters)
            }
            return (voters, membership.learners.filter { $0 != learner }, [])
        }
    }

    private func refuseIfBehind(_ learner: NodeID) throws(AspenError) {
        let peers = node.core.peerStatus(now: RaftNode.now)
        guard let peer = peers.first(where: { $0.node == learner }) else { return }
        if peer.isCaughtUp, links.isReachable(learner) { return }
        let end = node.core.lastIndex.rawValue
        let lag = end - min(peer.match.rawValue, end)
        let state: String
        if !links.isReachable(learner) {
            state = "node \(learner) cannot be reached"
        } else if peer.state == .snapshot {
            state = "node \(learner) is being sent a snapshot"
        } else if peer.isRegressed {
            state = "node \(learner) has lost entries: remove it, empty its directory, add it again"
        } else {
            state =
                "node \(learner) is \(lag) entries behind, \(Limits.learnerLagThreshold) at most "
                + "are allowed"
        }
        throw AspenError(
            .preconditionFailed,
            "the learner has not caught up: \(state). Wait (`aspen-cli cluster members`), or use "
                + "--force: until it has caught up it is a voter that can agree to nothing")
    }

    // MARK: - Leaving

    func leaveCluster(_ body: Aspen_Client_V1_LeaveClusterRequest, _ origin: RequestOrigin) {
        let leaver = NodeID(body.nodeID)
        guard body.nodeID != 0 else {
            return origin.fail(AspenError(.invalidArgument, "a node id is 1 or more"))
        }
        change(.leaveCluster, origin) { [self] (membership) throws(AspenError) in
            guard membership.member(leaver) != nil else { return nil }
            let voters = membership.voters.filter { $0 != leaver }
            if voters.isEmpty {
                throw AspenError(
                    .preconditionFailed,
                    "node \(leaver) is the only voter: a cluster cannot lose its last one. To give "
                        + "the cluster up, stop the node and empty its data directory")
            }
            if !body.force, voters != membership.voters {
                try refuseLossOfQuorum(from: membership, to: voters)
            }
            return (voters, membership.learners.filter { $0 != leaver }, [])
        }
    }

    // MARK: - Leadership

    /// A leader that has only just taken over has not heard of everybody yet: it is asked again for a while
    /// before it refuses.
    func transferLeadership(
        _ body: Aspen_Client_V1_TransferLeadershipRequest, _ origin: RequestOrigin
    ) {
        transferLeadership(body, origin, until: RaftNode.now + Self.transferPatience)
    }

    private func transferLeadership(
        _ body: Aspen_Client_V1_TransferLeadershipRequest, _ origin: RequestOrigin,
        until end: MonotonicInstant
    ) {
        guard let membership = node.membership else { return origin.fail(outsideCluster) }
        guard body.nodeID != options.raft.node.rawValue else {
            return answerTransfer(to: options.raft.node, origin)
        }
        let voters = node.core.peerStatus(now: RaftNode.now).filter {
            membership.voters.contains($0.node) && links.isReachable($0.node) && !$0.isRegressed
        }
        let target: RaftPeerStatus?
        if body.nodeID == 0 {
            target = voters.max { left, right in
                (left.match, right.node) < (right.match, left.node)
            }
        } else {
            target = voters.first { $0.node.rawValue == body.nodeID }
        }
        let mayCome = body.nodeID == 0 || membership.voters.contains(NodeID(body.nodeID))
        if target?.isCaughtUp != true, mayCome, isLeader, RaftNode.now < min(end, origin.deadline) {
            let box = NIOLoopBound((self, body, origin), eventLoop: node.loop)
            node.loop.scheduleTask(in: Self.transferPollInterval) {
                let (service, body, origin) = box.value
                service.transferLeadership(body, origin, until: end)
            }
            return
        }
        guard let target else { return origin.fail(noTarget(body.nodeID, membership)) }
        guard target.isCaughtUp else {
            return origin.fail(
                AspenError(
                    .preconditionFailed,
                    "node \(target.node) has not caught up: leading it would make everybody wait"))
        }
        node.step(.transferLeadership(to: target.node))
        awaitTransfer(to: target.node, from: node.standing.term, origin)
    }

    private func noTarget(_ wanted: UInt64, _ membership: Membership) -> AspenError {
        guard wanted != 0 else {
            return AspenError(
                .preconditionFailed,
                "there is no other voter that can be reached: nobody could take over")
        }
        let id = NodeID(wanted)
        let reason =
            membership.voters.contains(id)
            ? "node \(id) cannot be reached, or has lost entries"
            : "node \(id) is no voter: promote it first"
        return AspenError(.preconditionFailed, "leadership stays where it is: \(reason)")
    }

    /// The core gives a transfer up after `electionTimeoutMin`; until then there may be no leader.
    private func awaitTransfer(to target: NodeID, from term: Term, _ origin: RequestOrigin) {
        let standing = node.standing
        if standing.term > term, let leader = standing.leader {
            return answerTransfer(to: leader, origin)
        }
        guard RaftNode.now < origin.deadline, !node.isStopped else {
            return origin.fail(
                AspenError(.deadlineExceeded, "no new leader is known yet", retry: .safe))
        }
        if standing.term == term, standing.role == .leader, !node.core.isTransferring {
            return origin.fail(
                AspenError(
                    .unavailable,
                    "node \(target) did not take over in time; this node still leads",
                    retry: .never))
        }
        let box = NIOLoopBound((self, origin), eventLoop: node.loop)
        node.loop.scheduleTask(in: Self.transferPollInterval) {
            box.value.0.awaitTransfer(to: target, from: term, box.value.1)
        }
    }

    private func answerTransfer(to leader: NodeID, _ origin: RequestOrigin) {
        var body = Aspen_Client_V1_TransferLeadershipResponse()
        body.leaderID = leader.rawValue
        body.term = node.standing.term.rawValue
        origin.reply(WireResponse(.transferLeadership(body)))
    }
}
