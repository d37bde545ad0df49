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
        promise(log.base.index <= handedIndex, "entries were discarded before their time")
        promise(appliedIndex <= handedIndex, "applied before it was handed out")
        promise(handedIndex <= commitIndex, "handed out before it was committed")
        promise(commitIndex <= log.lastIndex, "committed what is not there")
        promise(handedIndex <= ledger.durableIndex, "handed out before it was durable")
        promise(ledger.durableIndex <= log.lastIndex, "durable beyond the end")
        promise(log.lastTerm <= term, "an entry of a term to come")
        promise(agreedIndex <= log.lastIndex, "agreed on what is not there")
        promise(!isHardStateDirty, "a changed hard state was not written")
    }

    private func checkOffice() {
        switch role {
        case .leader:
            promise(leader == node && hardState.votedFor == node, "a leader elected itself")
            promise(isTailTrusted, "a damaged log does not lead")
            promise(heartbeatDeadline != nil, "a leader must beat")
            checkPeers()
        case .candidate:
            promise(hardState.votedFor == node && leader == nil, "a candidate voted for itself")
            promise(electionDeadline != nil, "a campaign must end")
        case .preCandidate:
            promise(leader == nil && electionDeadline != nil, "a campaign must end")
        case .follower, .learner:
            promise(leader != node, "led by itself without office")
            promise(role == roleWithoutOffice, "the role does not fit the membership")
        }
        promise(gathering == nil || role != .leader, "a leader has gathered what there is")
        if role != .leader {
            promise(peers.isEmpty && transfer == nil, "only leaders have peers")
            promise(reads.count == 0, "only leaders hold rounds")
        }
        promise(leader != nil || asks.count == 0, "nobody to ask")
        promise(asks.waiting.isEmpty || !asks.asked.isEmpty, "reads wait for nothing")
    }

    private func checkPeers() {
        var previous: NodeID?
        for peer in peers {
            promise(previous.map { $0 < peer.node } ?? true, "peers must ascend")
            previous = peer.node
            promise(peer.match <= log.lastIndex, "a peer has more than the leader")
            promise(peer.next > peer.match || peer.isRepairing, "sending what is there")
            promise(peer.next <= log.lastIndex.next, "sending what is not there")
            promise(
                peer.inFlight.count <= configuration.appendsInFlightMax, "too many in flight")
            promise(peer.state == .replicate || peer.inFlight.isEmpty, "probes are not counted")
        }
        promise(
            reads.waiting.isEmpty || !reads.asking.isEmpty || commitIndex < termFirstIndex,
            "reads wait for nothing")
    }

    private func checkMemberships() {
        for place in memberships.indices {
            promise(
                place == 0 || memberships[place - 1].index < memberships[place].index,
                "memberships must ascend")
            promise(memberships[place].membership.isWellFormed, "malformed")
        }
    }
}
