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
        case preVoteReply(granted: Bool)
        /// `isTransfer`: the leader asked for this election, or the leader's daemon is known to be
        /// dead; a receiver with a live leader does not refuse it for that reason.
        case vote(lastIndex: LogIndex, lastTerm: Term, isTransfer: Bool)
        case voteReply(granted: Bool)
        /// Entries to follow `previousIndex`. `sequence` grows with each append to this peer.
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
        /// die.
        case heartbeat(
            commit: LogIndex, round: UInt64, time: ClusterTime, successor: NodeID?)
        case heartbeatReply(round: UInt64)
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
        /// One piece of a snapshot; at most `Limits.snapshotChunkBytesMax` bytes.
        case snapshotChunk(SnapshotChunk)
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
    package var lane: Lane {
        switch body {
        case .append, .forward, .snapshotChunk: .bulk
        default: .control
        }
    }
}
