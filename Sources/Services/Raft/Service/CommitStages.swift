// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore

/// What a write goes through at its leader, in this order.
enum CommitStage: Int, CaseIterable {
    /// For the end of the turn, and for the batch before it to be with the followers.
    case queue
    /// For the thread of the log.
    case handOver
    case logWrite
    case sync
    /// From the leader's own sync until a majority has it; nothing if others were quicker.
    case quorum
    /// For the state, and in it.
    case apply
    /// Encoding, and writing to the sockets.
    case answer

    var name: String {
        switch self {
        case .queue: "queue"
        case .handOver: "hand-over"
        case .logWrite: "log write"
        case .sync: "fdatasync"
        case .quorum: "network and quorum"
        case .apply: "apply"
        case .answer: "answer"
        }
    }
}

/// When the log had what.
struct LogTimes: Sendable, Equatable {
    /// The thread began to write.
    var began: MonotonicInstant
    var written: MonotonicInstant
    var synced: MonotonicInstant
}

/// Where the time of a commit goes. One batch at a time is followed from its proposal to its answers;
/// as batches queue behind one another, a stall shows in the one that is followed. Each is counted
/// by stages, and the worst of each minute above `threshold` becomes an event. Only a leader's own
/// batches count.
struct CommitStages {
    /// A commit that takes longer is slow.
    static let threshold = Duration.milliseconds(100)
    static let interval = Duration.seconds(60)

    private struct Sample {
        var ticket: DurabilityTicket
        var last: LogIndex
        var proposed: MonotonicInstant
        var written: MonotonicInstant
        var log: LogTimes?
        var committed: MonotonicInstant?
        var applied: MonotonicInstant?

        /// By stages; those that went on beside one another count from the end of the one before.
        func durations(answered: MonotonicInstant) -> [Duration] {
            let applied = applied ?? answered
            // Others may have had it first.
            let log = log ?? LogTimes(began: written, written: written, synced: written)
            let committed = max(committed ?? applied, log.synced)
            let times = [
                proposed, written, log.began, log.written, log.synced, committed, applied, answered,
            ]
            return zip(times, times.dropFirst()).map { max(.zero, $1 - $0) }
        }
    }

    private var sample: Sample?
    private var proposedAt: MonotonicInstant?
    private var worst: (total: Duration, text: String)?
    private var minuteBegan = MonotonicInstant(nanoseconds: 0)

    /// Of this minute, and of the one before.
    private var recent = Stages()
    private var before = Stages()
    private var recentBegan = MonotonicInstant(nanoseconds: 0)
    /// Since the start.
    private(set) var totals = [(count: UInt64, nanoseconds: UInt64)](
        repeating: (0, 0), count: CommitStage.allCases.count)

    /// One histogram a stage.
    private struct Stages {
        var histograms = [LatencyHistogram](
            repeating: LatencyHistogram(), count: CommitStage.allCases.count)
    }

    /// What was counted in this minute and in the one before, by stage.
    mutating func counted(_ now: MonotonicInstant) -> [LatencyHistogram] {
        turn(now)
        return zip(before.histograms, recent.histograms).map { old, new in
            var sum = old
            sum.add(new)
            return sum
        }
    }

    private mutating func turn(_ now: MonotonicInstant) {
        let age = now - recentBegan
        guard age >= Self.interval else { return }
        before = age >= Self.interval * 2 ? Stages() : recent
        recent = Stages()
        recentBegan = now
    }

    mutating func proposed(_ now: MonotonicInstant) { if proposedAt == nil { proposedAt = now } }

    mutating func wrote(_ write: LogWrite, isLeader: Bool, _ now: MonotonicInstant) {
        let proposed = proposedAt ?? now
        proposedAt = nil
        guard isLeader, sample == nil, let last = write.entries.last else { return }
        sample = Sample(ticket: write.ticket, last: last.index, proposed: proposed, written: now)
    }

    mutating func durable(_ ticket: DurabilityTicket, _ times: LogTimes) {
        guard let current = sample, current.log == nil, ticket >= current.ticket else { return }
        sample?.log = times
    }

    mutating func committed(upTo index: LogIndex, _ now: MonotonicInstant) {
        guard let current = sample, current.committed == nil, index >= current.last else { return }
        sample?.committed = now
    }

    /// Office lost: nobody knows what became of it.
    mutating func drop() { sample = nil }

    /// - Returns: whether the batch that is followed is among what was applied: say `answered` then.
    mutating func applied(_ index: LogIndex, _ now: MonotonicInstant) -> Bool {
        guard let current = sample, current.applied == nil, index >= current.last else {
            return false
        }
        sample?.applied = now
        return true
    }

    /// - Returns: what to record, at most once a minute.
    mutating func answered(_ now: MonotonicInstant) -> String? {
        if let current = sample, current.applied != nil {
            sample = nil
            let durations = current.durations(answered: now)
            turn(now)
            for (place, duration) in durations.enumerated() {
                recent.histograms[place].add(duration)
                totals[place].count += 1
                totals[place].nanoseconds &+= UInt64(max(0, duration.nanoseconds))
            }
            let total = now - current.proposed
            if total > Self.threshold, total > worst?.total ?? .zero {
                let parts = zip(CommitStage.allCases, durations).map { stage, duration in
                    "\(stage.name) \(duration.milliseconds) ms"
                }
                worst = (
                    total,
                    "commit took \(total.milliseconds) ms at index \(current.last): "
                        + parts.joined(separator: ", ")
                )
            }
        }
        guard let worst, now - minuteBegan >= Self.interval else { return nil }
        minuteBegan = now
        self.worst = nil
        return worst.text
    }
}
