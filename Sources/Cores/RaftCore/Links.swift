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
        guard peer == leader else { return }
        let isNamed = successor == node
        setLeader(nil, &turn)
        guard canCampaign else { return }
        hurriedTries = 3
        if isNamed {
            takeOver(&turn)
        } else {
            // The successor has the field for itself at first; then anybody may try, by pre-vote.
            electionDeadline =
                turn.now
                + turn.random.uniform(
                    configuration.takeoverDelayMin, configuration.takeoverDelayMax)
        }
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
        case .follower, .learner: if peer == leader { repeatAsk(&turn) }
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
