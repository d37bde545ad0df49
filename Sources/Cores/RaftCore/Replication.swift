// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// The leader's side of replication (Raft §5.3) with etcd's flow control: a peer is probed until its
// log is known to agree somewhere, then appends are sent without waiting.

extension RaftCore {
    // MARK: Out

    /// Sends as much as the peer may be sent now.
    mutating func sendAppends(to peer: Int, _ turn: inout Turn) {
        while peers[peer].isLinked, !peers[peer].isRegressed {
            let next = peers[peer].next
            switch peers[peer].state {
            case .snapshot: return
            case .probe:
                guard !peers[peer].isPaused else { return }
                guard let previous = log.term(at: next.previous) else {
                    sendSnapshot(to: peer, &turn)
                    return
                }
                let entries = log.cached(from: next, bytesMax: configuration.appendBytesMax) ?? []
                peers[peer].isPaused = true
                transmit(entries, after: Position(next.previous, previous), to: peer, &turn)
                return
            case .replicate:
                guard next <= log.lastIndex, peers[peer].fetching == nil,
                    peers[peer].inFlight.count < configuration.appendsInFlightMax
                        || bugs.unboundedFlight
                else { return }
                guard let previous = log.term(at: next.previous) else {
                    sendSnapshot(to: peer, &turn)
                    return
                }
                guard
                    let entries = log.cached(from: next, bytesMax: configuration.appendBytesMax)
                else {
                    fetch(for: peer, from: next, &turn)
                    return
                }
                pipeline(entries, after: Position(next.previous, previous), to: peer, &turn)
            }
        }
    }

    private mutating func transmit(
        _ entries: [Entry], after previous: Position, to peer: Int, _ turn: inout Turn
    ) {
        // An idle pipe has not been stalling: the clock of its progress starts with this append.
        if peers[peer].inFlight.isEmpty { peers[peer].movedAt = turn.now }
        peers[peer].sentCommit = commitIndex
        send(
            .append(
                previousIndex: previous.index, previousTerm: previous.term, commit: commitIndex,
                entries: entries), to: peers[peer].node, &turn)
    }

    private mutating func pipeline(
        _ entries: [Entry], after previous: Position, to peer: Int, _ turn: inout Turn
    ) {
        guard let last = entries.last else { preconditionFailure("nothing to send") }
        transmit(entries, after: previous, to: peer, &turn)
        peers[peer].inFlight.append(last.index)
        peers[peer].next = last.index.next
    }

    private mutating func fetch(for peer: Int, from: LogIndex, _ turn: inout Turn) {
        peers[peer].fetching = from
        turn.emit(
            .fetch(
                for: peers[peer].node, from: from, upTo: log.cacheFirst.previous,
                bytesMax: configuration.appendBytesMax))
    }

    mutating func fetched(
        for node: NodeID, _ from: LogIndex, _ entries: [Entry], _ turn: inout Turn
    ) {
        guard role == .leader, let peer = peerIndex(node), peers[peer].fetching == from else {
            return
        }
        peers[peer].fetching = nil
        guard peers[peer].state == .replicate, peers[peer].next == from, peers[peer].isLinked else {
            // An answer has moved it on meanwhile: nothing else may be coming that would go on.
            sendAppends(to: peer, &turn)
            return
        }
        guard let previous = log.term(at: from.previous) else {
            sendSnapshot(to: peer, &turn)
            return
        }
        var index = from
        for entry in entries {
            // The log may have been cut and grown again between question and answer.
            guard entry.index == index, log.term(at: index) == entry.term else { return }
            index = index.next
        }
        // Nothing there although the log should reach back: asked again with the next heartbeat.
        guard !entries.isEmpty else {
            peers[peer].probe(from: from)
            peers[peer].isPaused = true
            peers[peer].movedAt = turn.now
            return
        }
        pipeline(entries, after: Position(from.previous, previous), to: peer, &turn)
        sendAppends(to: peer, &turn)
    }

    /// News of a commit, where no append is about to carry it: somebody's client waits for it.
    mutating func tellCommit(to peer: Int, _ turn: inout Turn) {
        let known = min(commitIndex, peers[peer].match)
        guard known > peers[peer].sentCommit, peers[peer].isLinked else { return }
        sendHeartbeat(to: peer, round: 0, &turn)
    }

    // MARK: Heartbeats

    mutating func heartbeatTick(_ turn: inout Turn) {
        let heard = quorumHeardAt(now: turn.now.nanoseconds)
        let patience = UInt64(configuration.electionTimeoutMax.nanoseconds)
        if turn.now.nanoseconds - min(heard, turn.now.nanoseconds) >= patience {
            stepDown(&turn)
            return
        }
        heartbeatDeadline = turn.now + configuration.heartbeatInterval
        dropLeavers(&turn)
        nameSuccessor(turn)
        broadcastHeartbeat(&turn)
        for peer in peers.indices { resendIfStalled(to: peer, &turn) }
        pursueTransfer(&turn)
    }

    /// Begins a new round; also repeats the question of a round under way.
    mutating func broadcastHeartbeat(_ turn: inout Turn) {
        reads.round += 1
        for peer in peers.indices { sendHeartbeat(to: peer, round: reads.round, &turn) }
    }

    mutating func sendHeartbeat(to peer: Int, round: UInt64, _ turn: inout Turn) {
        let known = min(commitIndex, peers[peer].match)
        peers[peer].sentCommit = max(peers[peer].sentCommit, known)
        if round > peers[peer].askedRound {
            peers[peer].askedRound = round
            peers[peer].askedAt = turn.now
        }
        send(
            .heartbeat(
                commit: known, round: round, time: stamp(turn.now),
                successor: namedSuccessor), to: peers[peer].node, &turn)
    }

    /// The voter with the most of our log, the lowest id among equals; who is named already stays
    /// so as long as it has all that is committed.
    private mutating func nameSuccessor(_ turn: Turn) {
        var best: (node: NodeID, match: LogIndex)?
        for peer in peers where peer.isIncoming && peer.isLinked && !peer.isRegressed {
            guard !peer.isRepairing, turn.now - peer.heardAt < configuration.electionTimeoutMin
            else { continue }
            if peer.node == namedSuccessor, peer.match >= commitIndex { return }
            if let best, best.match >= peer.match { continue }
            best = (peer.node, peer.match)
        }
        namedSuccessor = best?.node
    }

    /// Appends whose answer is overdue are taken for lost.
    private mutating func resendIfStalled(to peer: Int, _ turn: inout Turn) {
        let silence = turn.now - peers[peer].movedAt
        switch peers[peer].state {
        case .snapshot: break
        case .probe:
            guard peers[peer].isPaused, silence >= configuration.heartbeatInterval else { return }
            peers[peer].isPaused = false
            sendAppends(to: peer, &turn)
        case .replicate:
            guard !peers[peer].inFlight.isEmpty, silence >= configuration.heartbeatInterval * 2
            else { return }
            peers[peer].forgetFlight()
            sendAppends(to: peer, &turn)
        }
    }

    // MARK: In

    /// Any answer shows that the peer lives and that the link is up.
    mutating func heard(_ peer: Int, _ turn: inout Turn) {
        peers[peer].heardAt = turn.now
        peers[peer].hasAnswered = true
        guard !peers[peer].isLinked else { return }
        peers[peer].isLinked = true
        restartReplication(to: peer, &turn)
    }

    mutating func restartReplication(to peer: Int, _ turn: inout Turn) {
        guard peers[peer].state != .snapshot else { return }
        peers[peer].forgetFlight()
        sendAppends(to: peer, &turn)
    }

    mutating func receiveAccepted(_ peer: Int, match: LogIndex, _ turn: inout Turn) {
        // More than was ever sent: not an answer of this log.
        guard match <= log.lastIndex else { return }
        let isProgress = match > peers[peer].match
        if match >= peers[peer].match {
            // All that it ever acknowledged is there (again).
            peers[peer].isRepairing = false
            peers[peer].next = max(peers[peer].next, match.next)
        }
        if isProgress {
            peers[peer].match = match
            peers[peer].matchRound = reads.round
            peers[peer].movedAt = turn.now
            peers[peer].pursuit.reached(match, end: log.lastIndex, now: turn.now)
        }
        peers[peer].landed(upTo: match)
        switch peers[peer].state {
        case .probe: if match >= peers[peer].next.previous { peers[peer].replicate() }
        case .snapshot: if match >= log.base.index { peers[peer].replicate() }
        case .replicate: break
        }
        let node = peers[peer].node
        if isProgress { commitWhatQuorumHolds(&turn) }
        // Committing may have ended this leadership, or this peer's membership.
        guard role == .leader, let peer = peerIndex(node) else { return }
        sendAppends(to: peer, &turn)
        tellCommit(to: peer, &turn)
        pursueTransfer(&turn)
    }

    mutating func receiveRejected(
        _ peer: Int, rejected: LogIndex, hint: Position, _ turn: inout Turn
    ) {
        switch peers[peer].state {
        case .snapshot: return
        case .probe: guard rejected == peers[peer].next.previous else { return }
        case .replicate: break
        }
        // Either an old answer, or the peer has lost what it acknowledged: then its next answer to
        // a heartbeat shows it. Trying again at once would only turn in a circle.
        guard rejected > peers[peer].match else { return }
        let agreed = log.agreement(atMost: min(hint.index, rejected.previous), term: hint.term)
        peers[peer].probe(from: max(agreed.index, peers[peer].match).next)
        sendAppends(to: peer, &turn)
    }

    mutating func receiveHeartbeatReply(
        _ peer: Int, round: UInt64, lastIndex: LogIndex, _ turn: inout Turn
    ) {
        // A round above the newest one is no answer to this leadership.
        guard round <= reads.round else { return }
        peers[peer].answered(round: round, at: turn.now)
        // The question left after `match` had been acknowledged, so the answer must include it.
        if round > peers[peer].matchRound, lastIndex < peers[peer].match, !peers[peer].isRegressed {
            peers[peer].isRegressed = true
            turn.emit(
                .regressed(
                    peers[peer].node, acknowledged: peers[peer].match, found: lastIndex))
        }
        if peers[peer].state == .probe, peers[peer].isPaused,
            turn.now - peers[peer].movedAt >= configuration.heartbeatInterval / 2
        {
            peers[peer].isPaused = false
            sendAppends(to: peer, &turn)
        }
        confirmRound(&turn)
    }

    // MARK: Snapshots

    private mutating func sendSnapshot(to peer: Int, _ turn: inout Turn) {
        peers[peer].probe(from: peers[peer].next)
        peers[peer].state = .snapshot
        turn.emit(.sendSnapshot(to: peers[peer].node))
    }

    mutating func snapshotSent(
        to node: NodeID, index: LogIndex, succeeded: Bool, _ turn: inout Turn
    ) {
        guard role == .leader, let peer = peerIndex(node), peers[peer].state == .snapshot else {
            return
        }
        // A peer that refused may have more than we thought: the next probe, with the next
        // heartbeat, starts from our end, and its rejection tells what is needed, if not this.
        let reached = succeeded ? min(max(index, peers[peer].match), log.lastIndex) : log.lastIndex
        peers[peer].probe(from: reached.next)
        peers[peer].movedAt = turn.now
        peers[peer].isPaused = !succeeded
        sendAppends(to: peer, &turn)
    }
}
