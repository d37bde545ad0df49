// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DequeModule

/// How entries go to a peer (the three states of etcd's progress).
package enum ReplicationState: String, Sendable {
    /// Where its log agrees with ours is not known: one append at a time.
    case probe
    /// Appends are sent without waiting for the answers.
    case replicate
    /// It needs entries that the log no longer has; nothing is appended meanwhile.
    case snapshot
}

/// What a leader knows about another node.
struct Peer {
    let node: NodeID
    /// Whose acknowledgements these are; another replica under the same id starts from nothing.
    let replica: ReplicaID
    /// Of the voters of the membership in force.
    var isIncoming = false
    /// Of the outgoing voters of a joint membership.
    var isOutgoing = false
    /// No longer in the membership; is still told of its end.
    var isLeaving = false

    /// The last entry it has acknowledged under this leadership.
    var match = LogIndex.zero
    /// The next entry to send.
    var next: LogIndex
    var state = ReplicationState.probe
    /// Probing, and the answer is still out.
    var isPaused = false
    /// The last entries of the appends on their way.
    var inFlight: Deque<LogIndex> = []
    /// When the last append left or the last progress was made.
    var movedAt: MonotonicInstant
    var heardAt: MonotonicInstant
    /// It has answered under this leadership; before, `heardAt` is when that began.
    var hasAnswered = false
    /// The newest commit index sent to it.
    var sentCommit = LogIndex.zero
    /// The newest round it has answered.
    var round: UInt64 = 0
    /// The newest round that it was asked, and when.
    var askedRound: UInt64 = 0
    var askedAt = MonotonicInstant.zero
    /// What its answers to rounds take, smoothed.
    var answerDelay = Duration.zero
    /// The newest round that had begun when `match` was acknowledged.
    var matchRound: UInt64 = 0
    /// The first entry of a `fetch` under way.
    var fetching: LogIndex?
    var isLinked = true
    /// It has lost entries that it acknowledged: it is no longer believed.
    var isRegressed = false
    /// It has said that its log is damaged (see Repair.swift).
    var isRepairing = false
    var pursuit = Pursuit()

    init(node: NodeID, replica: ReplicaID, next: LogIndex, now: MonotonicInstant) {
        self.node = node
        self.replica = replica
        self.next = next
        movedAt = now
        heardAt = now
    }

    var isVoter: Bool { isIncoming || isOutgoing }
    var countedMatch: UInt64 { isRegressed ? 0 : match.rawValue }

    mutating func probe(from index: LogIndex) {
        state = .probe
        next = index
        isPaused = false
        fetching = nil
        inFlight.removeAll(keepingCapacity: true)
        sentCommit = .zero
    }

    /// What was on its way is taken for lost.
    mutating func forgetFlight() { probe(from: state == .replicate ? match.next : next) }

    mutating func replicate() {
        state = .replicate
        isPaused = false
        next = max(next, match.next)
    }

    mutating func answered(round answered: UInt64, at now: MonotonicInstant) {
        if answered >= askedRound, round < askedRound {
            answerDelay = (answerDelay * 3 + (now - askedAt)) / 4
        }
        round = max(round, answered)
    }

    mutating func landed(upTo index: LogIndex) {
        while let first = inFlight.first, first <= index { inFlight.removeFirst() }
    }
}

/// How far another node is, for `cluster status`; only a leader knows.
package struct RaftPeerStatus: Equatable, Sendable {
    package var node: NodeID
    package var match: LogIndex
    package var next: LogIndex
    package var state: ReplicationState
    /// When anything of this term was last heard from it.
    package var heardAt: MonotonicInstant
    /// It has answered under this leadership, and within the least election timeout: what a leader
    /// needs of a quorum to go on leading.
    package var isAnswering: Bool
    package var isVoter: Bool
    package var isRegressed: Bool
    package var isRepairing: Bool
    /// Behind by no more than `Limits.learnerLagThreshold` entries, or following at the pace at
    /// which entries come: see `Pursuit`.
    package var isCaughtUp: Bool
}

extension RaftCore {
    // MARK: For the shell to look at

    package var standing: RaftStanding { RaftStanding(role: role, term: term, leader: leader) }
    package var term: Term { hardState.term }
    package var firstIndex: LogIndex { log.firstIndex }
    package var lastIndex: LogIndex { log.lastIndex }
    package var lastTerm: Term { log.lastTerm }
    package var durableIndex: LogIndex { ledger.durableIndex }
    /// The membership in force (the newest in the log); nil before `initialize` or the first append.
    package var membership: Membership? { memberships.last?.membership }
    /// False while the end of the log is damaged and not yet repaired.
    package var isTailTrusted: Bool { untrustedBelow == nil }
    package var isLeader: Bool { role == .leader }
    /// Most appends on their way to any one peer; at most `RaftConfiguration.appendsInFlightMax`.
    package var appendsInFlight: Int { peers.reduce(0) { max($0, $1.inFlight.count) } }

    /// Has a leader, and has applied what is known to be committed but for
    /// `Limits.learnerLagThreshold` entries.
    package var isReady: Bool {
        guard leader != nil, isTailTrusted else { return false }
        if role == .leader, commitIndex < termFirstIndex { return false }
        return appliedIndex.rawValue + UInt64(Limits.learnerLagThreshold) >= commitIndex.rawValue
    }

    /// Ascending by node id; empty unless leading.
    package func peerStatus(now: MonotonicInstant) -> [RaftPeerStatus] {
        guard role == .leader else { return [] }
        return peers.map {
            RaftPeerStatus(
                node: $0.node, match: $0.match, next: $0.next, state: $0.state,
                heardAt: $0.heardAt,
                isAnswering: $0.hasAnswered
                    && now - $0.heardAt < configuration.electionTimeoutMin, isVoter: $0.isVoter,
                isRegressed: $0.isRegressed,
                isRepairing: $0.isRepairing, isCaughtUp: hasCaughtUp($0, now: now))
        }
    }

    /// The term of an entry, or nil if it is not in the log.
    package func term(at index: LogIndex) -> Term? { log.term(at: index) }

    func peerIndex(_ node: NodeID) -> Int? { peers.firstIndex { $0.node == node } }
}
