// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// Terms, elections and how a leader comes into and goes out of office (Raft §5.2, thesis §3.10,
// §4.2.3, §6.2, §9.6).
//
// Who may force an election while a leader lives? Only a candidate whose vote request says
// `isTransfer`: the leader itself named it (`timeoutNow`), or the leader named it as successor and
// the net beside the leader says that its daemon is dead. Safety never depends on it: a vote is
// still one per term, durable, and only for a log as up to date as the voter's. The worst that a
// false alarm can do is one change of term, to a node that the leader itself held to be the most up
// to date. Everyone else asks for pre-votes first, which voters with a live leader refuse.

extension RaftCore {
    /// A voter whose net works. One with a damaged log may try too: see Repair.swift.
    var canCampaign: Bool { isElectable && !isOwnNetLost }

    /// A voter, or one on its way out while that is not yet known to be committed: until then it
    /// may be the only one whose log is good enough to lead (thesis §4.2.2).
    private var isElectable: Bool {
        memberships.contains { _, membership in
            guard membership.isVoter(node) else { return false }
            guard let own = configuration.replica, let named = membership.member(node) else {
                return true
            }
            return named.replica == own
        }
    }

    /// The role of a node that neither leads nor campaigns.
    var roleWithoutOffice: RaftRole { isElectable ? .follower : .learner }

    /// A node with a live leader helps nobody to depose it. A leader that hears from no quorum
    /// resigns by itself (CheckQuorum), so until then it may take itself for alive.
    ///
    /// - Parameter candidate: who asks. A leader that asks to be elected in a later term leads no
    ///   more: its daemon was started again, and nobody was there to say so.
    func hasLiveLeader(besides candidate: NodeID, now: MonotonicInstant) -> Bool {
        if role == .leader { return true }
        guard leader != nil, leader != candidate, let heard = leaderHeardAt else { return false }
        return now - heard < configuration.electionTimeoutMin
    }

    // MARK: Terms

    /// - Returns: whether the message is to be looked at any further.
    mutating func meetNewerTerm(_ message: Message, _ turn: inout Turn) -> Bool {
        switch message.body {
        case .preVote, .preVoteReply(granted: true, isConditional: _):
            // The term there is the one that the candidate would campaign in.
            return true
        case .vote(_, _, let isTransfer):
            if !isTransfer, hasLiveLeader(besides: message.from, now: turn.now) { return false }
            becomeFollower(of: nil, in: message.term, &turn)
        case .append, .heartbeat:
            becomeFollower(of: message.from, in: message.term, &turn)
        default:
            becomeFollower(of: nil, in: message.term, &turn)
        }
        return true
    }

    /// A message of an older term. Whoever believes to lead, or asks for votes, is told our term;
    /// reads of clients are welcome whatever their messenger knew. Proposals are not: none that was
    /// given to the leader of one term is appended in a later one, even by the same leader. So
    /// whoever applies an entry of a later term knows which of its proposals are lost.
    ///
    /// - Returns: whether the message is to be looked at any further.
    mutating func isWelcomeThoughStale(_ message: Message, _ turn: inout Turn) -> Bool {
        switch message.body {
        case .append(let previousIndex, _, _, _):
            send(
                .appendRejected(
                    rejected: previousIndex, hintIndex: log.lastIndex, hintTerm: log.lastTerm,
                    lastIndex: log.lastIndex), to: message.from, &turn)
        case .heartbeat(_, let round, _, _):
            send(
                .heartbeatReply(round: round, lastIndex: accountableIndex), to: message.from, &turn)
        case .preVote: send(.preVoteReply(granted: false), to: message.from, &turn)
        case .vote, .salvageRequest:
            send(.voteReply(granted: false), to: message.from, &turn)
        case .forward(let proposals): refuse(proposals, from: message.from, &turn)
        case .readIndex, .forwardRejected: return true
        default: break
        }
        return false
    }

    mutating func becomeFollower(of newLeader: NodeID?, in newTerm: Term, _ turn: inout Turn) {
        require(newTerm >= term, "terms never go back")
        if newTerm > term {
            hardState = HardState(term: newTerm, votedFor: nil)
            // Within a term there is one leader: what was found to agree with its log stays so, even
            // if it is out of sight for a while.
            agreedIndex = .zero
            isHardStateDirty = true
            // Even the same leader, elected anew, may have another log by now.
            setLeader(nil, &turn)
            // Drawn anew: who has lost elections would keep the times that made it lose, and the next
            // one would wait for those.
            if role != .leader { drawElectionTimeout(&turn) }
        }
        if role == .leader { leaveOffice(&turn) }
        role = roleWithoutOffice
        ballots.removeAll(keepingCapacity: true)
        candidacy = nil
        gathering = nil
        setLeader(newLeader, &turn)
        if electionDeadline == nil { restartElectionTimer(&turn) }
    }

    mutating func setLeader(_ newLeader: NodeID?, _ turn: inout Turn) {
        guard newLeader != leader else { return }
        leader = newLeader
        leaderHeardAt = newLeader == nil ? nil : turn.now
        successor = nil
        failAsks(&turn)
    }

    private mutating func leaveOffice(_ turn: inout Turn) {
        failReads(&turn)
        peers.removeAll(keepingCapacity: true)
        heartbeatDeadline = nil
        transfer = nil
        changeOrigin = nil
        foundingWish = nil
        uncommittedBytes = 0
        drawElectionTimeout(&turn)
        restartElectionTimer(&turn)
    }

    /// In office without a quorum, or no longer a voter: there is no leader in this term any more.
    mutating func stepDown(_ turn: inout Turn) { becomeFollower(of: nil, in: term, &turn) }

    // MARK: Timers

    mutating func restartElectionTimer(_ turn: inout Turn) {
        electionDeadline = turn.now + electionTimeout
    }

    /// How often a campaign is tried again soon, the second half of it at half the pace.
    static let hurriedTriesMax = 6

    /// While a campaign runs, or a vote has just been given. After SERVICE_GONE a split vote is tried
    /// again soon, a few times: nobody is disturbed, for nobody has a leader.
    mutating func armCampaignTimer(_ turn: inout Turn) {
        guard hurriedTries > 0 else { return restartElectionTimer(&turn) }
        let pace = hurriedTries > Self.hurriedTriesMax / 2 ? 1 : 2
        let delay = configuration.takeoverDelayMax * pace
        electionDeadline = turn.now + turn.random.uniform(delay, delay * 2)
    }

    mutating func drawElectionTimeout(_ turn: inout Turn) {
        electionTimeout = turn.random.uniform(
            configuration.electionTimeoutMin, configuration.electionTimeoutMax)
    }

    mutating func electionTimedOut(_ turn: inout Turn) {
        drawElectionTimeout(&turn)
        hurriedTries = max(0, hurriedTries - 1)
        setLeader(nil, &turn)
        if canCampaign {
            startPreVote(&turn)
        } else if bugs.removedNodeDisrupts, let membership, membership.member(node) == nil {
            campaign(isTransfer: true, &turn)
        } else {
            role = roleWithoutOffice
            gathering = nil
            electionDeadline = nil
        }
    }

    // MARK: Campaigns

    mutating func startPreVote(_ turn: inout Turn) {
        guard let membership else { preconditionFailure("nobody to ask") }
        role = .preCandidate
        gathering = nil
        setLeader(nil, &turn)
        armCampaignTimer(&turn)
        ballots = [Ballot(node, true, !isTailTrusted)]
        for voter in electorate(of: membership) { requestVote(from: voter, &turn) }
        if tally(in: membership).isWon { campaign(isTransfer: false, &turn) }
    }

    /// The leader has named this node: campaign at once.
    mutating func takeOver(_ turn: inout Turn) {
        guard canCampaign, role != .leader else { return }
        // Conditional votes need everybody's consent, so ask first.
        if isTailTrusted { campaign(isTransfer: true, &turn) } else { startPreVote(&turn) }
    }

    mutating func campaign(isTransfer: Bool, _ turn: inout Turn) {
        guard let membership else { preconditionFailure("nobody to ask") }
        require(role != .leader, "a leader does not campaign")
        role = .candidate
        gathering = nil
        setLeader(nil, &turn)
        hardState = HardState(term: term.next, votedFor: node)
        agreedIndex = .zero
        isHardStateDirty = true
        ballots.removeAll(keepingCapacity: true)
        isTransferCampaign = isTransfer
        armCampaignTimer(&turn)
        // Nothing may be asked in this term before the term is durable: a candidate that forgot it
        // could ask again with a shorter log and be helped by answers to the first request.
        candidacy = write(&turn)
        for voter in electorate(of: membership) { requestVote(from: voter, &turn) }
    }

    private func electorate(of membership: Membership) -> [NodeID] {
        var voters = membership.voters
        for voter in membership.votersOutgoing where !voters.contains(voter) {
            voters.append(voter)
        }
        if let lost = lostMembership {
            for voter in lost.voters + lost.votersOutgoing where !voters.contains(voter) {
                voters.append(voter)
            }
        }
        voters.removeAll { $0 == node }
        return voters
    }

    func requestVote(from voter: NodeID, _ turn: inout Turn) {
        let end = log.end
        if role == .preCandidate {
            let question = Message.Body.preVote(lastIndex: end.index, lastTerm: end.term)
            turn.emit(
                .send(Message(from: node, to: voter, term: term.next, body: question), after: nil))
        } else {
            send(
                .vote(lastIndex: end.index, lastTerm: end.term, isTransfer: isTransferCampaign),
                to: voter, after: ledger.hardStateTicket, &turn)
        }
    }

    /// A link came up in the middle of a campaign: what was asked through the old one is lost.
    mutating func repeatVoteRequest(to voter: NodeID, _ turn: inout Turn) {
        guard let membership,
            membership.isVoter(voter) || lostMembership?.isVoter(voter) == true,
            !ballots.contains(where: { $0.node == voter })
        else { return repeatSalvageRequest(to: voter, &turn) }
        requestVote(from: voter, &turn)
    }

    /// Our own vote counts once it is durable.
    mutating func candidacyBecameDurable(_ turn: inout Turn) {
        guard role == .candidate, let ticket = candidacy, ledger.isDurable(ticket) else { return }
        candidacy = nil
        ballots.append(Ballot(node, true, !isTailTrusted))
        if bugs.transferWithoutVotes, isTransferCampaign { return becomeLeader(&turn) }
        decide(&turn)
    }

    mutating func count(_ ballot: Ballot, as expected: RaftRole, _ turn: inout Turn) {
        guard role == expected, gathering == nil,
            !ballots.contains(where: { $0.node == ballot.node })
        else { return }
        ballots.append(ballot)
        decide(&turn)
    }

    private mutating func decide(_ turn: inout Turn) {
        guard let membership else { preconditionFailure("a campaign without voters") }
        switch tally(in: membership) {
        case .open: break
        case .lost:
            role = roleWithoutOffice
            ballots.removeAll(keepingCapacity: true)
            candidacy = nil
        case .won where role == .preCandidate, .wonByAll where role == .preCandidate:
            campaign(isTransfer: false, &turn)
        // Others may have elected us before our own vote is durable; wait for it all the same: a
        // leader that forgets its term could be elected in it twice.
        case .won where candidacy == nil: becomeLeader(&turn)
        case .wonByAll where candidacy == nil: gatherSalvage(&turn)
        case .won, .wonByAll: break
        }
    }

    // MARK: Answers

    mutating func answerPreVote(
        _ message: Message, lastIndex: LogIndex, lastTerm: Term, _ turn: inout Turn
    ) {
        let isVacant =
            message.term > term && !hasLiveLeader(besides: message.from, now: turn.now)
        let candidate = Position(lastIndex, lastTerm)
        let isGood = candidate.isAtLeastAsUpToDate(as: log.end)
        if isVacant { noteVacancy(message.from, isCandidateGood: isGood, &turn) }
        let isGranted = isVacant && isGood && reachesNewestMembership(candidate)
        // A refusal goes back under the candidate's own term, else it would be taken for stale.
        let answerTerm =
            isGranted ? message.term : max(term, Term(max(message.term.rawValue, 1) - 1))
        let answer = Message.Body.preVoteReply(
            granted: isGranted,
            isConditional: isGranted && !isTailTrusted && !bugs.damagedNodeVotes)
        turn.emit(
            .send(
                Message(from: node, to: message.from, term: answerTerm, body: answer), after: nil))
    }

    /// Somebody asks to be elected, and this node knows of no leader that lives. A candidate whose
    /// log is behind ours cannot have our vote, but we may have its: no need to wait for the time to
    /// run out.
    private mutating func noteVacancy(
        _ candidate: NodeID, isCandidateGood: Bool, _ turn: inout Turn
    ) {
        if leader == candidate {
            setLeader(nil, &turn)
            hurry(&turn)
            // The field is the candidate's for now.
            if isCandidateGood { armCampaignTimer(&turn) }
        } else if leader == nil, !isCandidateGood {
            hurry(&turn)
        }
    }

    mutating func answerVote(
        _ candidate: NodeID, lastIndex: LogIndex, lastTerm: Term, _ turn: inout Turn
    ) {
        let isFree =
            hardState.votedFor == candidate
            || ((hardState.votedFor == nil || bugs.voteTwice) && leader == nil)
        let isGood = Position(lastIndex, lastTerm).isAtLeastAsUpToDate(as: log.end)
        guard isFree, role != .leader, isGood,
            reachesNewestMembership(Position(lastIndex, lastTerm))
        else {
            if leader == nil, !isGood { hurry(&turn) }
            send(.voteReply(granted: false), to: candidate, &turn)
            return
        }
        if hardState.votedFor != candidate {
            require(hardState.votedFor == nil, "one vote a term")
            hardState.votedFor = candidate
            isHardStateDirty = true
        }
        if role != .candidate { role = roleWithoutOffice }
        armCampaignTimer(&turn)
        if isHardStateDirty { write(&turn) }
        send(
            .voteReply(
                granted: true, isConditional: !isTailTrusted && !bugs.damagedNodeVotes),
            to: candidate,
            after: ledger.hardStateTicket, &turn)
    }

    // MARK: Office

    mutating func becomeLeader(_ turn: inout Turn) {
        require(role == .candidate, "only a candidate is elected")
        require(ledger.hardStateTicket == nil, "a leader's own vote is durable")
        role = .leader
        // Who has just voted lives; until matches are known nobody is better.
        namedSuccessor = ballots.filter { $0.isGranted && $0.node != node }.map(\.node).min()
        ballots.removeAll(keepingCapacity: true)
        gathering = nil
        setLeader(node, &turn)
        electionDeadline = nil
        hurriedTries = 0
        timeBase = lastTime
        timeAnchor = turn.now
        uncommittedBytes = 0
        if !isTailTrusted { finishRepairAsLeader(&turn) }
        rebuildPeers(&turn)
        termFirstIndex = log.lastIndex.next
        let first = Entry(
            index: termFirstIndex, term: term, kind: .noop, origin: nil, time: stamp(turn.now),
            payload: Entry.firstPayload(after: log.lastTerm))
        // Who commits old entries by counting sees no need for one of its own.
        appendAsLeader(bugs.commitOldTermByCounting ? [] : [first], &turn)
        broadcastHeartbeat(&turn)
        heartbeatDeadline = turn.now + configuration.heartbeatInterval
    }
}
