// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import DequeModule

/// Keeps batches large where batches are what is expensive.
///
/// A node whose loop is quick gives the core each request by itself as it comes in; where processors
/// are short, it is the peers, the nets and the disks behind it that queue then, with one entry in
/// each message and each sync, and nothing ever gathers those entries again: the answers come one by
/// one, and so do the next requests. So, while `batchesMax` batches of this node's own proposals are
/// on their way, further ones are gathered: until one of those is answered, but no longer than
/// `patience`, which is what a longer way to the leader or a lost batch can cost a request.
///
/// A leader has such a gate in front of what it appends, its own and what peers have forwarded: each
/// batch there costs a write and a sync on every node, and a message to and from each peer. Its numbers
/// are indexes of the log, and a batch has landed when it is committed.
struct ProposalGate {
    static let batchesMax = 2
    /// Of a leader: what comes while one batch is made durable is the next one, which also carries the
    /// news that the first is committed.
    static let appendedBatchesMax = 1
    static let patience = Duration.milliseconds(2)
    /// Payload bytes that are not kept waiting.
    static let gatheredBytesMax = 262_144

    private let batchesMax: Int
    /// The number of the last proposal of each batch on its way, ascending.
    private var underWay: Deque<UInt64> = []
    /// When the first of the gathered ones came.
    private var since: MonotonicInstant?

    init(batchesMax: Int = Self.batchesMax) { self.batchesMax = batchesMax }

    var isOpen: Bool { underWay.count < batchesMax }

    /// - Parameter bytes: payload that has been gathered.
    /// - Returns: nil if what has been gathered may go now, else when it may at the latest.
    mutating func waits(_ now: MonotonicInstant, bytes: Int = 0) -> MonotonicInstant? {
        guard !isOpen, bytes < Self.gatheredBytesMax else { return nil }
        let until = (since ?? now) + Self.patience
        if since == nil { since = now }
        return now < until ? until : nil
    }

    /// What was gathered goes to the core; `last` is its last number.
    mutating func passed(_ last: UInt64) {
        since = nil
        underWay.append(last)
    }

    /// A proposal was answered, or will not be. Answers come in the order of the log: with it, all
    /// that was proposed before is done, or lost.
    mutating func landed(_ number: UInt64) {
        while let first = underWay.first, first <= number { underWay.removeFirst() }
    }

    /// Another leader or another term: what is on its way may be lost.
    mutating func reset() { underWay.removeAll() }
}
