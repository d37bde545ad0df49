// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore

/// Where the time of a commit goes. One batch at a time is followed from its proposal to its being
/// applied; as batches queue behind one another, a stall shows in the one that is followed. The
/// worst of each minute above `threshold` becomes an event. Only a leader's own batches count.
struct CommitStages {
    /// A commit that takes longer is slow.
    static let threshold = Duration.milliseconds(100)
    static let interval = Duration.seconds(60)

    private struct Sample {
        var ticket: DurabilityTicket
        var last: LogIndex
        var proposed: MonotonicInstant
        var written: MonotonicInstant
        var durable: MonotonicInstant?
        var committed: MonotonicInstant?
    }

    private var sample: Sample?
    private var proposedAt: MonotonicInstant?
    private var worst: (total: Duration, text: String)?
    private var minuteBegan = MonotonicInstant(nanoseconds: 0)

    mutating func proposed(_ now: MonotonicInstant) { if proposedAt == nil { proposedAt = now } }

    mutating func wrote(_ write: LogWrite, isLeader: Bool, _ now: MonotonicInstant) {
        let proposed = proposedAt ?? now
        proposedAt = nil
        guard isLeader, sample == nil, let last = write.entries.last else { return }
        sample = Sample(ticket: write.ticket, last: last.index, proposed: proposed, written: now)
    }

    mutating func durable(_ ticket: DurabilityTicket, _ now: MonotonicInstant) {
        guard let current = sample, current.durable == nil, ticket >= current.ticket else { return }
        sample?.durable = now
    }

    mutating func committed(upTo index: LogIndex, _ now: MonotonicInstant) {
        guard let current = sample, current.committed == nil, index >= current.last else { return }
        sample?.committed = now
    }

    /// Office lost: nobody knows what became of it.
    mutating func drop() { sample = nil }

    /// - Returns: what to record, at most once a minute.
    mutating func applied(_ index: LogIndex, _ now: MonotonicInstant) -> String? {
        if let current = sample, index >= current.last {
            sample = nil
            let durable = current.durable ?? now
            let committed = current.committed ?? now
            let total = now - current.proposed
            if total > Self.threshold, total > worst?.total ?? .zero {
                let quorum = committed > durable ? committed - durable : .zero
                worst = (
                    total,
                    "commit took \(total.milliseconds) ms at index \(current.last): queue "
                        + "\((current.written - current.proposed).milliseconds) ms, log write and "
                        + "sync \((durable - current.written).milliseconds) ms, network and quorum "
                        + "\(quorum.milliseconds) ms, apply \((now - committed).milliseconds) ms"
                )
            }
        }
        guard let worst, now - minuteBegan >= Self.interval else { return nil }
        minuteBegan = now
        self.worst = nil
        return worst.text
    }
}
