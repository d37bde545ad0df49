// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// How a cluster begins, and how it changes (Raft §6: joint consensus). A membership is in force
// from the moment it is appended, and falls back to the one before when its entry is cut off.
//
// A change of learners or addresses is one entry. A change of voters is two: the joint one, and the
// final one that whoever leads appends as soon as the joint one is committed. The final entry
// carries the origin of the request. If leadership changes in between, the new leader finishes the
// change, but nobody is told by its entry: the proposer's request times out.

/// What the administrator asked for.
struct MembershipWish {
    var voters: [NodeID]
    var learners: [NodeID]
    var members: [Membership.Member]
}

extension RaftCore {
    /// The entry that holds the membership in force.
    package var membershipIndex: LogIndex { memberships.last?.index ?? .zero }

    // MARK: In and out of force

    mutating func adopt(_ membership: Membership, at index: LogIndex, _ turn: inout Turn) {
        require(index > membershipIndex || memberships.isEmpty, "memberships follow one another")
        memberships.append((index, membership))
        membershipCameIntoForce(membership, &turn)
    }

    mutating func dropMemberships(after index: LogIndex, _ turn: inout Turn) {
        guard let last = memberships.last, last.index > index else { return }
        while let last = memberships.last, last.index > index { memberships.removeLast() }
        membershipCameIntoForce(
            memberships.last?.membership ?? Membership(cluster: last.membership.cluster), &turn)
    }

    private mutating func membershipCameIntoForce(
        _ membership: Membership, _ turn: inout Turn
    ) {
        turn.emit(.membership(membership))
        switch role {
        case .leader: rebuildPeers(&turn)
        case .follower, .learner:
            role = roleWithoutOffice
            if canCampaign, electionDeadline == nil { restartElectionTimer(&turn) }
        case .preCandidate, .candidate: if !canCampaign { role = roleWithoutOffice }
        }
    }

    /// Only the newest committed one can still be fallen back on.
    mutating func forgetOldMemberships() {
        guard memberships.count > 1 else { return }
        while memberships.count > 1, memberships[1].index <= min(handedIndex, commitIndex) {
            memberships.removeFirst()
        }
        if role == .follower || role == .learner { role = roleWithoutOffice }
    }

    /// Brings the list of peers in line with the membership in force, keeping what is known of
    /// those that stay. Who leaves is still sent what it takes to know that it has left.
    mutating func rebuildPeers(_ turn: inout Turn) {
        guard let membership else { return }
        isJoint = membership.isJoint
        isOwnVoteIncoming = membership.voters.contains(node)
        isOwnVoteOutgoing = membership.votersOutgoing.contains(node)
        var rebuilt: [Peer] = []
        for member in membership.members where member.node != node {
            let known = peers.first { $0.node == member.node && $0.replica == member.replica }
            var peer =
                known
                ?? Peer(
                    node: member.node, replica: member.replica, next: log.lastIndex.next,
                    now: turn.now)
            peer.isIncoming = membership.voters.contains(member.node)
            peer.isOutgoing = membership.votersOutgoing.contains(member.node)
            peer.isLeaving = false
            rebuilt.append(peer)
        }
        for var peer in peers where membership.member(peer.node) == nil {
            peer.isIncoming = false
            peer.isOutgoing = false
            peer.isLeaving = true
            rebuilt.append(peer)
        }
        rebuilt.sort { $0.node < $1.node }
        peers = rebuilt
    }

    /// At the pace of heartbeats, so that the last commit index has had time to go out.
    mutating func dropLeavers(_ turn: inout Turn) {
        let end = membershipIndex
        guard commitIndex >= end else { return }
        let patience = configuration.electionTimeoutMin
        peers.removeAll { peer in
            peer.isLeaving && (peer.sentCommit >= end || turn.now - peer.heardAt >= patience)
        }
    }

    // MARK: A new cluster

    /// The first entry makes this node the only voter, so its own durable vote elects it; if more
    /// voters are wished for, they join through an ordinary change right after.
    mutating func initialize(
        _ wish: Membership, wallTime: ClusterTime, id: ProposalID, _ turn: inout Turn
    ) {
        func refuse(_ reason: String) { turn.emit(.proposalFailed(id, .refused(reason))) }
        guard memberships.isEmpty, log.lastIndex == .zero, leader == nil, isTailTrusted else {
            return refuse("this node belongs to a cluster already")
        }
        guard let own = wish.member(node), wish.voters.contains(node) else {
            return refuse("a new cluster must have this node as a voter")
        }
        let later = MembershipWish(
            voters: wish.voters, learners: wish.learners, members: wish.members)
        if let reason = fault(in: later, known: []) { return refuse(reason) }
        let isAll = wish.voters == [node] && wish.learners.isEmpty
        let first = Membership(cluster: wish.cluster, voters: [node], members: [own])
        hardState = HardState(term: term.next, votedFor: node)
        isHardStateDirty = true
        lastTime = wallTime
        let entry = Entry(
            index: log.lastIndex.next, term: term, kind: .membership, origin: isAll ? id : nil,
            time: wallTime, payload: first.payload)
        log.append(entry, settled: .zero)
        role = .candidate
        ballots.removeAll()
        candidacy = write(entries: [entry], &turn)
        adopt(first, at: entry.index, &turn)
        restartElectionTimer(&turn)
        if !isAll { foundingWish = (later, id) }
    }

    // MARK: Changes

    mutating func changeMembership(
        _ wish: MembershipWish, _ id: ProposalID, _ turn: inout Turn
    ) {
        func refuse(_ reason: String) { turn.emit(.proposalFailed(id, .refused(reason))) }
        guard role == .leader, transfer == nil, let current = membership else {
            turn.emit(.proposalFailed(id, .noLeader))
            return
        }
        guard commitIndex >= termFirstIndex else {
            return refuse("the leader has only just been elected: try again")
        }
        let isSettled = !current.isJoint && membershipIndex <= commitIndex
        guard isSettled || bugs.overlapChanges, foundingWish == nil else {
            return refuse("another membership change is in progress")
        }
        var wish = wish
        wish.voters.sort()
        wish.learners.sort()
        if let reason = fault(in: wish, known: current.members) { return refuse(reason) }
        if let reason = swappedVoter(in: wish, current) { return refuse(reason) }
        enter(wish, from: current, origin: id, &turn)
    }

    private mutating func enter(
        _ wish: MembershipWish, from current: Membership, origin: ProposalID, _ turn: inout Turn
    ) {
        var next = Membership(
            cluster: current.cluster, voters: wish.voters, learners: wish.learners)
        let isJoint = wish.voters != current.voters && !bugs.skipJointConsensus
        if isJoint { next.votersOutgoing = current.voters }
        let named = Set(next.voters + next.votersOutgoing + next.learners)
        var members = wish.members.filter { named.contains($0.node) }
        for member in current.members where named.contains(member.node) {
            if !members.contains(where: { $0.node == member.node }) { members.append(member) }
        }
        next.members = members.sorted { $0.node < $1.node }
        changeOrigin = isJoint ? origin : nil
        appendMembership(next, origin: isJoint ? nil : origin, &turn)
    }

    private mutating func appendMembership(
        _ membership: Membership, origin: ProposalID?, _ turn: inout Turn
    ) {
        appendAsLeader(
            [
                Entry(
                    index: log.lastIndex.next, term: term, kind: .membership, origin: origin,
                    time: stamp(turn.now), payload: membership.payload)
            ], &turn)
    }

    /// Called by a leader after each commit: goes on with what waited for it.
    mutating func membershipCommitted(_ turn: inout Turn) {
        guard role == .leader, let membership, commitIndex >= membershipIndex,
            commitIndex >= termFirstIndex
        else { return }
        if membership.isJoint {
            var final = membership
            final.votersOutgoing = []
            final.members.removeAll { member in
                !final.voters.contains(member.node) && !final.learners.contains(member.node)
            }
            let origin = changeOrigin
            changeOrigin = nil
            appendMembership(final, origin: origin, &turn)
        } else if let founding = foundingWish {
            foundingWish = nil
            enter(founding.wish, from: membership, origin: founding.id, &turn)
        } else if !membership.voters.contains(node) {
            retire(&turn)
        }
    }

    /// A leader that has voted itself out hands over and goes.
    private mutating func retire(_ turn: inout Turn) {
        var best: Peer?
        for peer in peers where peer.isIncoming && peer.isLinked && !peer.isRegressed {
            if let best, best.match >= peer.match { continue }
            best = peer
        }
        if let best { send(.timeoutNow, to: best.node, &turn) }
        stepDown(&turn)
    }

    // MARK: Rules

    private func fault(in wish: MembershipWish, known: [Membership.Member]) -> String? {
        if wish.voters.isEmpty { return "a cluster needs at least one voter" }
        if wish.voters.count > Limits.votersMax {
            return "a cluster has at most \(Limits.votersMax) voters"
        }
        if wish.learners.count > Limits.learnersMax {
            return "a cluster has at most \(Limits.learnersMax) learners"
        }
        let all = (wish.voters + wish.learners).sorted()
        for (one, other) in zip(all, all.dropFirst()) where one == other {
            return "node \(one) is named twice"
        }
        let named = wish.members.map(\.node).sorted()
        for (one, other) in zip(named, named.dropFirst()) where one == other {
            return "node \(one) is described twice"
        }
        for member in wish.members where !member.isWithinLimits {
            return "node \(member.node) has more or longer addresses than allowed"
        }
        for node in all {
            let isKnown =
                wish.members.contains { $0.node == node } || known.contains { $0.node == node }
            if !isKnown { return "node \(node) is not known: add it as a learner first" }
        }
        return nil
    }

    /// A voter may not be exchanged for another data directory under the same name: the new one
    /// has forgotten what the old one voted and acknowledged.
    private func swappedVoter(in wish: MembershipWish, _ current: Membership) -> String? {
        for member in wish.members where current.voters.contains(member.node) {
            guard let known = current.member(member.node), known.replica != member.replica else {
                continue
            }
            return "node \(member.node) is another replica than the voter of that name: "
                + "remove it first, then add it as a learner"
        }
        return nil
    }
}
