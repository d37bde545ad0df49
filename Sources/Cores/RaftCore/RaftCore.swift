// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// The consensus of one node: Raft (Ongaro and Ousterhout 2014; thesis 2014) with pre-vote,
/// CheckQuorum, ReadIndex and joint consensus, as a machine without hands.
///
/// What the shell does before the core sees anything:
/// - it refuses streams from endpoints that the membership does not name;
/// - it keeps `snapshotChunk` and `snapshotReply` to itself: it streams them after `sendSnapshot`,
///   asks `takesSnapshot` before it puts one in force, and tells the core only the outcome
///   (`snapshotInstalled`, `snapshotSent`). The core ignores both messages;
/// - it delivers the messages of one lane in order and at most once while a stream lives. Losses,
///   delays and reorder are survived anyway; duplicated `forward`s are recognised.
///
/// A proposal that was forwarded and whose leader is then lost is not answered: nobody knows its
/// fate. The shell times it out, or proposes it again under the client's session.
package struct RaftCore: Machine {
    package typealias Input = RaftInput
    package typealias Effect = RaftEffect

    package let configuration: RaftConfiguration
    package internal(set) var deadline: MonotonicInstant?
    let bugs: ActiveBugs

    // MARK: What is on disk, or on its way there

    var hardState: HardState
    /// Changed since the last write.
    var isHardStateDirty = false
    var log: RaftLog
    var ledger: WriteLedger
    /// Ascending by index; the last one is in force, the first one is the newest known committed.
    var memberships: [(index: LogIndex, membership: Membership)]
    /// The newest stamp seen in log, state or heartbeat.
    var lastTime: ClusterTime
    /// Not nil: the end of the log was damaged, and this is the index up to which entries may have
    /// been acknowledged. See Repair.swift.
    var untrustedBelow: LogIndex?
    /// With `untrustedBelow`: the newest membership entry that is known to have been in the log. See
    /// rule 5 in Repair.swift.
    var newestMembership: NewestMembership?
    /// With `untrustedBelow`: what this disk holds besides the log. See rule 6 in Repair.swift.
    var salvage = Salvage([])
    /// Names this process in its requests for repair.
    let repairNonce: UInt64

    // MARK: What every node knows

    package internal(set) var commitIndex: LogIndex
    /// Handed to the shell in `commit` or `commitFromLog`.
    var handedIndex: LogIndex
    package internal(set) var appliedIndex: LogIndex
    var role = RaftRole.follower
    var leader: NodeID?
    var announced: RaftStanding?
    var isOwnNetLost = false

    // MARK: Following

    /// When the leader of this term was last heard.
    var leaderHeardAt: MonotonicInstant?
    /// How far this log is known to agree with that of the leader of this term.
    var agreedIndex = LogIndex.zero
    /// Whom the leader named to campaign first.
    var successor: NodeID?
    /// When to campaign, or (for those who may not) to give the leader up.
    var electionDeadline: MonotonicInstant?
    /// Drawn anew each time it has run out.
    var electionTimeout: Duration

    // MARK: Campaigning

    var ballots: [Ballot] = []
    /// The write of our own vote; it counts once durable.
    var candidacy: DurabilityTicket?
    var isTransferCampaign = false
    /// Between an election by conditional votes and office.
    var gathering: Gathering?
    /// How many more campaigns may follow quickly upon one another (after SERVICE_GONE).
    var hurriedTries = 0

    // MARK: Leading

    /// Everyone else in the membership, ascending.
    var peers: [Peer] = []
    var isJoint = false
    var isOwnVoteIncoming = false
    var isOwnVoteOutgoing = false
    var heartbeatDeadline: MonotonicInstant?
    /// The first entry of this leadership.
    var termFirstIndex = LogIndex.zero
    /// Payload bytes of entries not yet committed.
    var uncommittedBytes = 0
    var timeBase = ClusterTime.zero
    var timeAnchor = MonotonicInstant.zero
    var transfer: Transfer?
    /// Whom the heartbeats name; the same for all peers for at least a heartbeat interval, so that
    /// no two of them take themselves for it.
    var namedSuccessor: NodeID?
    /// Carries the answer of a membership change from its joint entry to its final one.
    var changeOrigin: ProposalID?
    /// What `initialize` asked for beyond a single voter.
    var foundingWish: (wish: MembershipWish, id: ProposalID)?
    var forwards: ForwardLedger
    var scratch: [UInt64] = []

    // MARK: Reading

    var reads = ReadQueue()
    var asks: AskQueue

    package init(
        configuration: RaftConfiguration, recovery: RaftRecovery, now: MonotonicInstant,
        random: inout RandomSource
    ) {
        promise(recovery.snapshotIndex <= recovery.lastIndex, "the log ends before it starts")
        promise(
            recovery.snapshotIndex <= recovery.appliedIndex,
            "entries are missing between the state and the log: rebuild from a peer")
        promise(
            recovery.appliedIndex <= recovery.lastIndex,
            "the state is ahead of the log: start the log anew behind it")
        self.configuration = configuration
        bugs = ActiveBugs(configuration.plantedBugs)
        hardState = recovery.hardState
        log = RaftLog(recovery: recovery, cacheBytesMax: configuration.cacheBytesMax)
        // A snapshot put in force resets the log before the term that it brought is durable. Nothing
        // was promised in that term yet; the first step writes it, and promises wait for that.
        if log.lastTerm > hardState.term {
            hardState = HardState(term: log.lastTerm, votedFor: nil)
            isHardStateDirty = true
        }
        ledger = WriteLedger(durableIndex: recovery.lastIndex)
        memberships = recovery.memberships
        lastTime = recovery.lastTime
        untrustedBelow = recovery.isTailTrusted ? nil : recovery.untrustedBelow
        newestMembership =
            recovery.isTailTrusted || bugs.forgetNewestMembership ? nil : recovery.newestMembership
        if untrustedBelow != nil, !bugs.forgetSalvage {
            salvage = Salvage(recovery.salvage)
            // The same of the term of an entry behind the damage.
            let newest = recovery.salvage.map(\.term).max() ?? .zero
            if newest > hardState.term {
                hardState = HardState(term: newest, votedFor: nil)
                isHardStateDirty = true
            }
        }
        repairNonce = random.next()
        commitIndex = recovery.appliedIndex
        handedIndex = recovery.appliedIndex
        appliedIndex = recovery.appliedIndex
        electionTimeout = random.uniform(
            configuration.electionTimeoutMin, configuration.electionTimeoutMax)
        asks = AskQueue(firstNumber: random.next() >> 1)
        forwards = ForwardLedger(bits: configuration.forwardWindow)
        role = roleWithoutOffice
        // A live leader makes itself known as soon as the link is up, and whoever has one refuses
        // pre-votes; so the first attempt need not wait for a whole election timeout, and a cluster
        // that starts cold has its leader within a second.
        if canCampaign {
            electionDeadline =
                now
                + random.uniform(
                    configuration.heartbeatInterval, configuration.heartbeatInterval * 2)
        }
        deadline = nextDeadline
    }

    package mutating func step(
        _ input: consuming RaftInput, now: MonotonicInstant, random: inout RandomSource,
        into effects: inout [RaftEffect]
    ) {
        var turn = Turn(now: now, random: random)
        swap(&turn.effects, &effects)
        take(input, &turn)
        if isHardStateDirty { write(&turn) }
        announce(&turn)
        deadline = nextDeadline
        random = turn.random
        swap(&turn.effects, &effects)
    }

    private mutating func take(_ input: consuming RaftInput, _ turn: inout Turn) {
        switch consume input {
        case .timeout: timeout(&turn)
        case .received(let message): receive(message, &turn)
        case .propose(let proposals): propose(proposals, &turn)
        case .read(let id): read(id, &turn)
        case .durable(let ticket): becameDurable(ticket, &turn)
        case .applied(let index): becameApplied(index)
        case .fetched(let peer, let from, let entries): fetched(for: peer, from, entries, &turn)
        case .initialize(let membership, let wallTime, let id):
            initialize(membership, wallTime: wallTime, id: id, &turn)
        case .recover(let cluster, let id): recover(cluster, id, &turn)
        case .changeMembership(let voters, let learners, let members, let id):
            changeMembership(
                MembershipWish(voters: voters, learners: learners, members: members), id, &turn)
        case .transferLeadership(let target): transferLeadership(to: target, &turn)
        case .serviceGone(let peer): serviceGone(peer, &turn)
        case .linkLost(let peer): linkLost(peer, &turn)
        case .linkRestored(let peer): linkRestored(peer, &turn)
        case .ownNetLost: isOwnNetLost = true
        case .ownNetRestored: ownNetRestored(&turn)
        case .logDiscarded(let index, let term): logDiscarded(upTo: index, term: term)
        case .snapshotInstalled(let meta): snapshotInstalled(meta, &turn)
        case .snapshotSent(let peer, let index, let succeeded):
            snapshotSent(to: peer, index: index, succeeded: succeeded, &turn)
        }
    }

    // MARK: Time

    private var nextDeadline: MonotonicInstant? {
        var next = role == .leader ? heartbeatDeadline : electionDeadline
        func consider(_ instant: MonotonicInstant?) {
            guard let instant else { return }
            if let current = next, current <= instant { return }
            next = instant
        }
        consider(transfer?.deadline)
        consider(reads.deadline)
        consider(asks.deadline)
        return next
    }

    private mutating func timeout(_ turn: inout Turn) {
        expireReads(&turn)
        if let running = transfer, running.deadline <= turn.now { transfer = nil }
        if role == .leader {
            if let due = heartbeatDeadline, due <= turn.now { heartbeatTick(&turn) }
        } else if let due = electionDeadline, due <= turn.now {
            electionTimedOut(&turn)
        }
    }

    // MARK: Messages in

    private mutating func receive(_ message: Message, _ turn: inout Turn) {
        guard message.to == node, message.from != node else { return }
        if message.term > term {
            guard meetNewerTerm(message, &turn) else { return }
        } else if message.term < term {
            guard isWelcomeThoughStale(message, &turn) else { return }
        }
        let from = message.from
        switch message.body {
        case .preVote(let lastIndex, let lastTerm):
            answerPreVote(message, lastIndex: lastIndex, lastTerm: lastTerm, &turn)
        case .preVoteReply(let granted, let isConditional):
            guard !granted || message.term == term.next else { return }
            count(Ballot(from, granted, isConditional), as: .preCandidate, &turn)
        case .vote(let lastIndex, let lastTerm, _):
            answerVote(from, lastIndex: lastIndex, lastTerm: lastTerm, &turn)
        case .voteReply(let granted, let isConditional):
            count(Ballot(from, granted, isConditional), as: .candidate, &turn)
        case .append(let previousIndex, let previousTerm, let commit, let entries):
            receiveAppend(
                from, Position(previousIndex, previousTerm), commit: commit, entries, &turn)
        case .heartbeat(let commit, let round, let time, let successor):
            receiveHeartbeat(
                from, commit: commit, round: round, time: time, successor: successor, &turn)
        case .readIndex(let number): receiveReadIndex(from, number: number, &turn)
        case .readIndexReply(let number, let index):
            receiveReadIndexReply(from, number: number, index: index, &turn)
        case .forward(let proposals): receiveForward(from, proposals, &turn)
        case .forwardRejected(let ids):
            for id in ids where id.node == node { turn.emit(.proposalFailed(id, .noLeader)) }
        case .timeoutNow: if leader == from { takeOver(&turn) }
        case .repaired(let nonce): receiveRepaired(from, nonce: nonce, &turn)
        case .salvageRequest(let index, let term):
            answerSalvageRequest(from, after: Position(index, term), &turn)
        case .salvageReply(let index, let term, let entries, let isLast):
            receiveSalvage(from, after: Position(index, term), entries, isLast: isLast, &turn)
        case .snapshotChunk, .snapshotReply: break
        case .appendAccepted, .appendRejected, .heartbeatReply, .repairing:
            receiveFromPeer(message, &turn)
        }
    }

    /// The answers that only a leader's peers give.
    private mutating func receiveFromPeer(_ message: Message, _ turn: inout Turn) {
        guard role == .leader, let peer = peerIndex(message.from) else { return }
        heard(peer, &turn)
        switch message.body {
        case .appendAccepted(let match): receiveAccepted(peer, match: match, &turn)
        case .appendRejected(let rejected, let hintIndex, let hintTerm, _):
            receiveRejected(
                peer, rejected: rejected, hint: Position(hintIndex, hintTerm), &turn)
        case .heartbeatReply(let round, let lastIndex):
            receiveHeartbeatReply(peer, round: round, lastIndex: lastIndex, &turn)
        case .repairing(let nonce, let from, let isAgreed, let below):
            receiveRepairing(
                peer, RepairRequest(nonce: nonce, from: from, isAgreed: isAgreed, below: below),
                &turn)
        default: preconditionFailure("not an answer to a leader")
        }
    }
}
