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
struct ProposalGate {
    static let batchesMax = 2
    static let patience = Duration.milliseconds(2)

    /// The number of the last proposal of each batch on its way, ascending.
    private var underWay: Deque<UInt64> = []
    /// When the first of the gathered ones came.
    private var since: MonotonicInstant?

    /// - Returns: nil if what has been gathered may go now, else when it may at the latest.
    mutating func waits(_ now: MonotonicInstant) -> MonotonicInstant? {
        guard underWay.count >= Self.batchesMax else { return nil }
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
