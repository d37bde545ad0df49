// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// What Raft nodes say to each other. Every message carries the sender's term.
package struct Message: Equatable, Sendable {
    package var from: NodeID
    package var to: NodeID
    package var term: Term
    package var body: Body

    package init(from: NodeID, to: NodeID, term: Term, body: Body) {
        self.from = from
        self.to = to
        self.term = term
        self.body = body
    }

    package enum Body: Equatable, Sendable {
        /// Would you vote for me? Changes nothing at the receiver (Raft thesis §9.6). `term` is the
        /// term that the candidate would campaign in.
        case preVote(lastIndex: LogIndex, lastTerm: Term)
        /// `isConditional`: this node's log is damaged; the vote counts only if every voter grants.
        /// A grant carries the term asked for.
        case preVoteReply(granted: Bool, isConditional: Bool = false)
        /// `isTransfer`: the leader asked for this election, or the leader's daemon is known to be
        /// dead; a receiver with a live leader does not refuse it for that reason.
        case vote(lastIndex: LogIndex, lastTerm: Term, isTransfer: Bool)
        case voteReply(granted: Bool, isConditional: Bool = false)
        /// Entries to follow `previousIndex`.
        case append(
            previousIndex: LogIndex, previousTerm: Term, commit: LogIndex, entries: [Entry])
        /// `match`: the last entry now durable here that agrees with the leader's log.
        case appendAccepted(match: LogIndex)
        /// `rejected`: the previousIndex that did not match; `hintIndex`/`hintTerm`: the last index
        /// at which the logs may agree, and the term there. `lastIndex`: where this log ends.
        case appendRejected(
            rejected: LogIndex, hintIndex: LogIndex, hintTerm: Term, lastIndex: LogIndex)
        /// Keeps leadership, carries the commit index (never above what that peer acknowledged),
        /// opens a ReadIndex round and names who shall campaign first should this leader's daemon
        /// die. Round 0 wants no answer: it only carries news of a commit.
        case heartbeat(
            commit: LogIndex, round: UInt64, time: ClusterTime, successor: NodeID?)
        /// `lastIndex`: up to where this node answers for what it acknowledged.
        case heartbeatReply(round: UInt64, lastIndex: LogIndex)
        /// A follower's readers ask for an index.
        case readIndex(number: UInt64)
        /// Nil: not the leader, or no entry of its own term committed yet; ask again.
        case readIndexReply(number: UInt64, index: LogIndex?)
        /// A follower's clients' proposals, passed on.
        case forward(proposals: [Proposal])
        /// These were not appended; nobody will.
        case forwardRejected(numbers: [ProposalID])
        /// Campaign now, without pre-vote (leadership transfer, Raft thesis §3.10).
        case timeoutNow
        /// In place of any answer to an append while the sender's log is damaged: go on at `from`.
        /// `isAgreed`: all before `from` is durable and agrees with the leader's log; `below`: up to
        /// where entries may have been lost; `nonce` names the asking process.
        case repairing(nonce: UInt64, from: LogIndex, isAgreed: Bool, below: LogIndex)
        /// Nothing that you may have acknowledged is missing any more.
        case repaired(nonce: UInt64)
        /// A candidate that every voter has granted, and this one on condition: what does it still
        /// hold, after this place (by index, then by term)?
        case salvageRequest(afterIndex: LogIndex, afterTerm: Term)
        /// Some of it, in that order; with `isLast` the rest.
        case salvageReply(
            afterIndex: LogIndex, afterTerm: Term, entries: [Entry], isLast: Bool)
        /// One piece of a snapshot; at most `Limits.snapshotChunkBytesMax` bytes. Indirect, so that all
        /// other messages are half as large.
        indirect case snapshotChunk(SnapshotChunk)
        /// Up to which byte the snapshot has been taken in; `installed` once it is in force.
        case snapshotReply(id: UInt64, received: UInt64, installed: Bool, refused: Bool)
    }
}

/// What a snapshot stands for.
package struct SnapshotMeta: Equatable, Sendable {
    package var index: LogIndex
    package var term: Term
    package var membership: Membership
    package var time: ClusterTime

    package init(index: LogIndex, term: Term, membership: Membership, time: ClusterTime) {
        self.index = index
        self.term = term
        self.membership = membership
        self.time = time
    }
}

package struct SnapshotChunk: Equatable, Sendable {
    /// Names this transfer.
    package var id: UInt64
    package var meta: SnapshotMeta
    package var offset: UInt64
    package var bytes: [UInt8]
    /// Set on the last chunk.
    package var isLast: Bool

    package init(id: UInt64, meta: SnapshotMeta, offset: UInt64, bytes: [UInt8], isLast: Bool) {
        self.id = id
        self.meta = meta
        self.offset = offset
        self.bytes = bytes
        self.isLast = isLast
    }
}

/// Which of a peer's two streams a message takes: votes and heartbeats never wait behind bulk data.
package enum Lane: UInt8, Sendable, CaseIterable {
    case control = 0
    case bulk = 1
}

extension Message {
    /// What a node says because it was asked; all else is said of its own accord.
    ///
    /// Between two nodes one of which knows the other as another replica (its disk was lost, or the
    /// one who knows it is far behind), the one who knows takes requests and gives answers, no more:
    /// nothing the other one promises is counted as the promise of the replica that is known. It may
    /// lead, in a membership that the one behind has yet to hear of from nobody else (thesis §4.1:
    /// requests are served whatever the own configuration says).
    package var isAnswer: Bool {
        switch body {
        case .preVoteReply, .voteReply, .appendAccepted, .appendRejected, .heartbeatReply,
            .readIndexReply, .forwardRejected, .repairing, .snapshotReply, .salvageReply:
            true
        case .preVote, .vote, .append, .heartbeat, .readIndex, .forward, .timeoutNow, .repaired,
            .salvageRequest, .snapshotChunk:
            false
        }
    }

    package var lane: Lane {
        switch body {
        case .append, .forward, .snapshotChunk, .salvageReply: .bulk
        default: .control
        }
    }
}
