// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

extension RaftCore {
    /// What must hold between any two steps. Nothing is checked while a planted bug is active: then
    /// the checks around the core are under test.
    package func checkInvariants() {
        if bugs.any { return }
        log.checkInvariants()
        checkIndexes()
        checkOffice()
        checkMemberships()
    }

    private func checkIndexes() {
        precondition(log.base.index <= handedIndex, "entries were discarded before their time")
        precondition(appliedIndex <= handedIndex, "applied before it was handed out")
        precondition(handedIndex <= commitIndex, "handed out before it was committed")
        precondition(commitIndex <= log.lastIndex, "committed what is not there")
        precondition(handedIndex <= ledger.durableIndex, "handed out before it was durable")
        precondition(ledger.durableIndex <= log.lastIndex, "durable beyond the end")
        precondition(log.lastTerm <= term, "an entry of a term to come")
        precondition(agreedIndex <= log.lastIndex, "agreed on what is not there")
        precondition(!isHardStateDirty, "a changed hard state was not written")
    }

    private func checkOffice() {
        switch role {
        case .leader:
            precondition(leader == node && hardState.votedFor == node, "a leader elected itself")
            precondition(isTailTrusted, "a damaged log does not lead")
            precondition(heartbeatDeadline != nil, "a leader must beat")
            checkPeers()
        case .candidate:
            precondition(hardState.votedFor == node && leader == nil, "a candidate voted for itself")
            precondition(electionDeadline != nil, "a campaign must end")
        case .preCandidate:
            precondition(leader == nil && electionDeadline != nil, "a campaign must end")
        case .follower, .learner:
            precondition(leader != node, "led by itself without office")
            precondition(role == roleWithoutOffice, "the role does not fit the membership")
        }
        if role != .leader {
            precondition(peers.isEmpty && transfer == nil, "only leaders have peers")
            precondition(reads.count == 0, "only leaders hold rounds")
        }
        precondition(leader != nil || asks.count == 0, "nobody to ask")
        precondition(asks.waiting.isEmpty || !asks.asked.isEmpty, "reads wait for nothing")
    }

    private func checkPeers() {
        var previous: NodeID?
        for peer in peers {
            precondition(previous.map { $0 < peer.node } ?? true, "peers must ascend")
            previous = peer.node
            precondition(peer.match <= log.lastIndex, "a peer has more than the leader")
            precondition(peer.next > peer.match || peer.isRepairing, "sending what is there")
            precondition(peer.next <= log.lastIndex.next, "sending what is not there")
            precondition(
                peer.inFlight.count <= configuration.appendsInFlightMax, "too many in flight")
            precondition(peer.state == .replicate || peer.inFlight.isEmpty, "probes are not counted")
        }
        precondition(
            reads.waiting.isEmpty || !reads.asking.isEmpty || commitIndex < termFirstIndex,
            "reads wait for nothing")
    }

    private func checkMemberships() {
        for (one, other) in zip(memberships, memberships.dropFirst()) {
            precondition(one.index < other.index, "memberships must ascend")
        }
        for (_, membership) in memberships { precondition(membership.isWellFormed, "malformed") }
    }
}
