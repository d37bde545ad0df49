// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// One record of the replicated log.
package struct Entry: Equatable, Sendable {
    package enum Kind: UInt8, Sendable {
        /// Written by a new leader, so that it may commit what came before (Raft §5.4.2).
        case noop = 0
        /// A command of the state machine.
        case command = 1
        /// A `Membership`, in force from the moment it is appended (Raft §6).
        case membership = 2
    }

    package var index: LogIndex
    package var term: Term
    package var kind: Kind
    /// Which node proposed it and under which of that node's numbers; nobody else has a client
    /// waiting for the answer. Nil for entries that the leader wrote by itself.
    package var origin: ProposalID?
    /// Stamped by the leader: last stamp + its monotonic elapsed time. Never decreases in a log.
    package var time: ClusterTime
    /// The command or membership, in its own encoding.
    package var payload: [UInt8]

    package init(
        index: LogIndex, term: Term, kind: Kind, origin: ProposalID?, time: ClusterTime,
        payload: [UInt8]
    ) {
        self.index = index
        self.term = term
        self.kind = kind
        self.origin = origin
        self.time = time
        self.payload = payload
    }
}

/// Names a proposal while somebody waits for it: the proposing node, a number that this process
/// chose at random when it started, and a counter. A restarted process never takes an old answer
/// for its own.
package struct ProposalID: Hashable, Sendable {
    package var node: NodeID
    package var incarnation: UInt64
    package var number: UInt64

    package init(node: NodeID, incarnation: UInt64, number: UInt64) {
        self.node = node
        self.incarnation = incarnation
        self.number = number
    }
}

/// Something to be agreed upon.
package struct Proposal: Equatable, Sendable {
    package var id: ProposalID
    package var payload: [UInt8]

    package init(id: ProposalID, payload: [UInt8]) {
        self.id = id
        self.payload = payload
    }
}

/// Names a read while somebody waits for its ReadIndex; chosen by the shell.
package struct ReadID: Hashable, Sendable {
    package var number: UInt64
    package init(_ number: UInt64) { self.number = number }
}

/// What must be durable before a vote or an acknowledgement may leave.
package struct HardState: Equatable, Sendable {
    package var term: Term
    package var votedFor: NodeID?

    package init(term: Term = .zero, votedFor: NodeID? = nil) {
        self.term = term
        self.votedFor = votedFor
    }
}

/// A number handed out with each write; the shell reports it back when that write, and with it all
/// earlier ones, is durable. Grows by one.
package struct DurabilityTicket: Hashable, Comparable, Sendable {
    package var number: UInt64
    package init(_ number: UInt64) { self.number = number }
    package static func < (left: Self, right: Self) -> Bool { left.number < right.number }
}
