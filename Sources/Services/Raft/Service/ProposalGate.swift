// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import DequeModule

/// Keeps batches large where batches are what is expensive.
///
/// A node whose loop is quick gives the core each request by itself as it comes in; where processors
/// are short, it is the peers, the nets and the disks behind it that queue then, with one entry in
/// each message and each sync, and nothing ever gathers those entries again: the answers come one by
/// one, and so do the next requests. So, while a batch of this node's own proposals is on its way,
/// further ones are gathered: until it is answered, but no longer than `patience`, which is what a
/// longer way to the leader or a lost batch can cost a request.
///
/// A leader has such a gate in front of what it appends, its own and what peers have forwarded: each
/// batch there costs a write and a sync on every node, and a message to and from each peer. Its
/// numbers are indexes of the log, and a batch has landed when it is committed; the next one then
/// also carries the news of that.
///
/// **A gate lingers**, for clients that ask again when they have been answered. Those of one batch
/// are answered together and come back together, a moment too late for the next batch if that goes
/// at once: it would carry only who came while the first was under way, and so clients would fall
/// into two groups for good, with two batches where one would do. So, when a batch has landed, what
/// has been gathered waits until nearly as many have come anew as were answered, or `lingerMax` is
/// over.
///
/// Who does not wait for answers comes as often at any time, and nothing is gained by waiting for
/// him. Whether it pays is therefore judged by each batch behind a linger: while it is under way,
/// others must come less than half as quickly as its own did. If not, a number of batches go without
/// a linger that doubles up to `pauseMax`. (PostgreSQL's `commit_delay` is the same thought, for a
/// fixed time.)
struct ProposalGate {
    static let patience = Duration.milliseconds(2)
    /// Payload bytes that are not kept waiting.
    static let gatheredBytesMax = 262_144
    static let lingerMax = Duration.milliseconds(4)
    /// Behind a batch of more proposals nobody lingers: little is left of what it costs that does
    /// not grow with them.
    static let lingeringBatchMax = 96
    /// Batches without a linger after one that did not pay.
    static let pauseMax = 128
    /// Of few requests none may come for a while by chance.
    static let paidMin = 4

    private struct Batch {
        /// The number of its last proposal.
        let last: UInt64
        let count: Int
        let began: MonotonicInstant
        /// How long its proposals were gathered, if there was a linger before it.
        let gatheredFor: Duration?
    }

    private struct Linger {
        /// Proposals that are enough, with those that had come before.
        let wanted: Int
        let until: MonotonicInstant
    }

    /// Ascending. More than one when patience has ended.
    private var underWay: Deque<Batch> = []
    /// When the first of the gathered ones came.
    private var since: MonotonicInstant?
    /// When the last batch went.
    private var passedAt: MonotonicInstant?
    private var linger: Linger?
    /// How many batches went without a linger when it did not pay the last time, until it has paid
    /// `paidMin` times on end.
    private var pause = 0
    private var paid = 0
    /// Batches that are still to go without.
    private var pausing = 0

    /// No batch is on its way: what has been gathered goes, if not for a linger.
    var isOpen: Bool { underWay.isEmpty }

    /// - Parameters:
    ///   - count: this node's proposals that have been gathered.
    ///   - bytes: payload that has been gathered.
    /// - Returns: nil if what has been gathered may go now, else when it may at the latest.
    mutating func waits(_ now: MonotonicInstant, count: Int, bytes: Int) -> MonotonicInstant? {
        guard bytes < Self.gatheredBytesMax else { return nil }
        guard isOpen else {
            let until = (since ?? now) + Self.patience
            if since == nil { since = now }
            return now < until ? until : nil
        }
        guard let linger, count < linger.wanted, now < linger.until else { return nil }
        return linger.until
    }

    /// What was gathered goes to the core; `last` is its last number, `count` this node's part of it.
    mutating func passed(_ last: UInt64, count: Int, _ now: MonotonicInstant) {
        let gatheredFor = linger == nil ? nil : passedAt.map { now - $0 }
        underWay.append(Batch(last: last, count: count, began: now, gatheredFor: gatheredFor))
        since = nil
        linger = nil
        passedAt = now
    }

    /// A proposal was answered, or will not be. Answers come in the order of the log: with it, all
    /// that was proposed before is done, or lost.
    ///
    /// - Parameter gathered: this node's proposals that have come since.
    mutating func landed(_ number: UInt64, gathered: Int, _ now: MonotonicInstant) {
        var landed: Batch?
        while let first = underWay.first, first.last <= number {
            landed = first
            underWay.removeFirst()
        }
        guard let landed, isOpen else { return }
        if let gatheredFor = landed.gatheredFor {
            judge(landed, gatheredFor, came: gathered, within: now - landed.began)
        }
        guard landed.count > 0, landed.count <= Self.lingeringBatchMax else { return }
        guard pausing == 0 else { return pausing -= 1 }
        // Nine of ten, rounded up: one that has gone for good shall not be waited for.
        linger = Linger(wanted: gathered + (landed.count * 9 + 9) / 10, until: now + Self.lingerMax)
    }

    /// Compares how quickly proposals came while the batch was under way with how quickly its own
    /// had come.
    private mutating func judge(
        _ batch: Batch, _ gatheredFor: Duration, came: Int, within took: Duration
    ) {
        if 2 * Int64(came) * gatheredFor.nanoseconds < Int64(batch.count) * took.nanoseconds {
            paid += 1
            if paid >= Self.paidMin { pause = 0 }
        } else {
            paid = 0
            pause = min(max(1, 2 * pause), Self.pauseMax)
            pausing = pause
        }
    }

    /// Another leader or another term: what is on its way may be lost.
    mutating func reset() {
        underWay.removeAll()
        linger = nil
    }
}
