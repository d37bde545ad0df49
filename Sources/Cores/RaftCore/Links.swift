// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// What the net says about links and daemons, and the deliberate change of leaders.
//
// A lost link is no reason to campaign: nets restart in milliseconds, and the election timers run
// on anyway. A leader whose link to a peer is back speaks at once instead of at its next heartbeat,
// so an interruption of less than a second (heartbeat 500 ms, election timeout from 1500 ms) passes
// without anybody's timer running out. "The daemon is gone" is different: it is said by the net
// that lives beside the daemon, about a process that no longer exists.

/// Leadership on its way to another node.
struct Transfer {
    let target: NodeID
    let deadline: MonotonicInstant
}

extension RaftCore {
    mutating func serviceGone(_ peer: NodeID, _ turn: inout Turn) {
        if role == .leader {
            linkLost(peer, &turn)
            return
        }
        // Where no leader is known, it may have been the one that was about to lead.
        guard leader == nil || peer == leader else { return }
        let isNamed = leader != nil && successor == node
        setLeader(nil, &turn)
        guard canCampaign else { return }
        hurry(&turn)
        if isNamed { takeOver(&turn) }
    }

    /// Nobody leads: this node need not wait for a whole election timeout. After SERVICE_GONE the
    /// successor has the field for itself at first; then anybody may try, by pre-vote, which changes
    /// nothing where there is a leader after all.
    mutating func hurry(_ turn: inout Turn) {
        guard canCampaign, role != .leader else { return }
        hurriedTries = Self.hurriedTriesMax
        let (least, most) = (configuration.takeoverDelayMin, configuration.takeoverDelayMax)
        // A campaign under way is given the time for its answers.
        let delay =
            role == .follower
            ? turn.random.uniform(least, most) : turn.random.uniform(most, most * 2)
        electionDeadline = min(electionDeadline ?? turn.now + delay, turn.now + delay)
    }

    mutating func linkLost(_ peer: NodeID, _ turn: inout Turn) {
        guard role == .leader, let peer = peerIndex(peer) else { return }
        peers[peer].isLinked = false
        guard peers[peer].state != .snapshot else { return }
        peers[peer].forgetFlight()
    }

    mutating func linkRestored(_ peer: NodeID, _ turn: inout Turn) {
        switch role {
        case .leader:
            guard let peer = peerIndex(peer) else { return }
            peers[peer].isLinked = true
            sendHeartbeat(to: peer, round: reads.round, &turn)
            restartReplication(to: peer, &turn)
        case .preCandidate, .candidate: repeatVoteRequest(to: peer, &turn)
        case .follower, .learner:
            // Just started: had this peer a leader, it would be heard at once, or the pre-vote be
            // refused.
            if leader == nil { hurry(&turn) }
            if peer == leader { repeatAsk(&turn) }
        }
    }

    mutating func ownNetRestored(_ turn: inout Turn) {
        isOwnNetLost = false
        if role == .leader {
            broadcastHeartbeat(&turn)
        } else if canCampaign {
            // Nobody could be heard: the leader gets a whole timeout to show itself.
            restartElectionTimer(&turn)
        }
    }

    // MARK: Transfer (thesis §3.10)

    /// Leadership is on its way to another node; proposals fail meanwhile.
    package var isTransferring: Bool { transfer != nil }

    mutating func transferLeadership(to target: NodeID, _ turn: inout Turn) {
        guard role == .leader, transfer == nil, let peer = peerIndex(target),
            peers[peer].isIncoming, !peers[peer].isRegressed
        else { return }
        transfer = Transfer(
            target: target, deadline: turn.now + configuration.electionTimeoutMin)
        sendAppends(to: peer, &turn)
        pursueTransfer(&turn)
    }

    /// Said again with every heartbeat until the target has taken over or time is up.
    mutating func pursueTransfer(_ turn: inout Turn) {
        guard let transfer, let peer = peerIndex(transfer.target),
            peers[peer].match == log.lastIndex
        else { return }
        send(.timeoutNow, to: transfer.target, &turn)
    }
}
