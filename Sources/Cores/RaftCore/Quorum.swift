// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// Majorities. In a joint membership every decision needs one of each set of voters (Raft §6).

/// One vote or pre-vote.
struct Ballot: Equatable {
    let node: NodeID
    let isGranted: Bool
    /// Granted by a node with a damaged log: counts only if every voter grants (see Repair.swift).
    let isConditional: Bool

    init(_ node: NodeID, _ isGranted: Bool, _ isConditional: Bool) {
        self.node = node
        self.isGranted = isGranted
        self.isConditional = isConditional
    }
}

enum Tally {
    case won
    /// By conditional votes too, which every voter has given.
    case wonByAll
    case lost, open

    var isWon: Bool { self == .won || self == .wonByAll }
}

extension RaftCore {
    /// The greatest value that a quorum of voters has reached.
    ///
    /// - Parameter own: this node's value; counted only where it is a voter.
    mutating func reachedByQuorum(own: UInt64, _ value: (Peer) -> UInt64) -> UInt64 {
        let isAnyone = bugs.learnersCount
        let incoming = reachedByMajority(
            own: isOwnVoteIncoming || bugs.leaverCounts ? own : nil,
            { $0.isIncoming || isAnyone }, value)
        guard isJoint else { return incoming }
        return min(
            incoming,
            reachedByMajority(own: isOwnVoteOutgoing ? own : nil, { $0.isOutgoing }, value))
    }

    private mutating func reachedByMajority(
        own: UInt64?, _ isIn: (Peer) -> Bool, _ value: (Peer) -> UInt64
    ) -> UInt64 {
        scratch.removeAll(keepingCapacity: true)
        if let own { scratch.append(own) }
        for peer in peers where isIn(peer) { scratch.append(value(peer)) }
        guard !scratch.isEmpty else { return 0 }
        scratch.sort(by: >)
        return scratch[scratch.count / 2]
    }

    func tally(in membership: Membership) -> Tally {
        let incoming = tally(among: membership.voters)
        if membership.isJoint {
            let outgoing = tally(among: membership.votersOutgoing)
            if incoming == .won, outgoing == .won { return .won }
            if incoming == .lost || outgoing == .lost { return .lost }
        } else if incoming != .open {
            return incoming
        }
        return isUnanimous(in: membership) ? .wonByAll : .open
    }

    private func tally(among voters: [NodeID]) -> Tally {
        var (granted, refused) = (0, 0)
        for ballot in ballots where voters.contains(ballot.node) {
            if !ballot.isGranted {
                refused += 1
            } else if !ballot.isConditional {
                granted += 1
            }
        }
        if granted > voters.count / 2 { return .won }
        return refused >= voters.count - voters.count / 2 ? .lost : .open
    }

    /// Every voter has granted, of both sets, and of the membership that this node has lost: then
    /// even conditional votes count.
    private func isUnanimous(in membership: Membership) -> Bool {
        if let lost = lostMembership, !hasGrants(ofAll: lost) { return false }
        return hasGrants(ofAll: membership)
    }

    func hasGrants(ofAll membership: Membership) -> Bool {
        func granted(_ voter: NodeID) -> Bool {
            ballots.contains { $0.node == voter && $0.isGranted }
        }
        return membership.voters.allSatisfy(granted)
            && membership.votersOutgoing.allSatisfy(granted)
    }

    /// When a quorum had last been heard, as nanoseconds.
    mutating func quorumHeardAt(now: UInt64) -> UInt64 {
        reachedByQuorum(own: now) { $0.heardAt.nanoseconds }
    }
}
