// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import Testing

@testable import RaftService

@Suite struct CommitStagesTests {
    private var stages = CommitStages()

    private func at(_ microseconds: UInt64) -> MonotonicInstant {
        MonotonicInstant(nanoseconds: 1_000_000_000_000 + microseconds * 1000)
    }

    private func write(_ index: UInt64) -> LogWrite {
        LogWrite(
            ticket: DurabilityTicket(index),
            entries: [
                Entry(
                    index: LogIndex(index), term: Term(1), kind: .command,
                    origin: ProposalID(node: NodeID(1), incarnation: 1, number: index),
                    time: ClusterTime(milliseconds: 1), payload: [1])
            ])
    }

    /// One batch, each stage as long as `microseconds` says, from `begin` on.
    private mutating func follow(
        _ index: UInt64, from begin: UInt64, _ microseconds: [UInt64]
    ) -> String? {
        var now = begin
        let ends = microseconds.map { length in
            now += length
            return at(now)
        }
        stages.proposed(at(begin))
        stages.wrote(write(index), isLeader: true, ends[0])
        stages.durable(
            DurabilityTicket(index), LogTimes(began: ends[1], written: ends[2], synced: ends[3]))
        stages.committed(upTo: LogIndex(index), ends[4])
        let isFollowed = stages.applied(LogIndex(index), ends[5])
        #expect(isFollowed)
        return stages.answered(ends[6])
    }

    /// Sums in microseconds, by stage.
    private mutating func sums(_ now: UInt64) -> [UInt64] {
        stages.counted(at(now)).map { $0.sum / 1000 }
    }

    @Test mutating func eachStageIsTold() {
        let slow = follow(1, from: 0, [1, 2, 3, 4, 5, 6, 7])
        #expect(slow == nil)
        let counted = sums(100)
        #expect(counted == [1, 2, 3, 4, 5, 6, 7])
        #expect(stages.totals.map(\.nanoseconds) == (1...7).map { $0 * 1000 })
    }

    @Test mutating func othersMayHaveItFirst() {
        stages.proposed(at(0))
        stages.wrote(write(1), isLeader: true, at(10))
        stages.committed(upTo: LogIndex(1), at(15))
        stages.durable(
            DurabilityTicket(1), LogTimes(began: at(11), written: at(12), synced: at(20)))
        let isFollowed = stages.applied(LogIndex(1), at(50))
        #expect(isFollowed)
        let slow = stages.answered(at(60))
        #expect(slow == nil)
        let counted = sums(100)
        #expect(counted == [10, 1, 1, 8, 0, 30, 10])
    }

    /// A second batch while one is followed, one of another leader, one whose office was lost: none.
    @Test mutating func onlyTheOneThatIsFollowedCounts() {
        stages.proposed(at(0))
        stages.wrote(write(1), isLeader: false, at(1))
        var isFollowed = stages.applied(LogIndex(1), at(2))
        #expect(!isFollowed)
        stages.proposed(at(3))
        stages.wrote(write(2), isLeader: true, at(4))
        stages.proposed(at(5))
        stages.wrote(write(3), isLeader: true, at(6))
        isFollowed = stages.applied(LogIndex(2), at(10))
        #expect(isFollowed)
        isFollowed = stages.applied(LogIndex(3), at(11))
        #expect(!isFollowed, "it was applied already, and is to be answered")
        _ = stages.answered(at(12))
        stages.proposed(at(13))
        stages.wrote(write(4), isLeader: true, at(14))
        stages.drop()
        isFollowed = stages.applied(LogIndex(4), at(15))
        #expect(!isFollowed)
        let counts = stages.counted(at(20)).map(\.count)
        #expect(counts == [UInt64](repeating: 1, count: 7))
    }

    @Test mutating func theWorstOfAMinuteIsRecorded() throws {
        let first = follow(1, from: 0, [0, 0, 0, 120_000, 0, 0, 0])
        #expect(
            first == "commit took 120 ms at index 1: queue 0 ms, hand-over 0 ms, log write 0 ms, "
                + "fdatasync 120 ms, network and quorum 0 ms, apply 0 ms, answer 0 ms")
        let second = follow(2, from: 200_000, [0, 0, 0, 0, 300_000, 0, 0])
        #expect(second == nil, "not yet a minute")
        _ = follow(3, from: 600_000, [0, 0, 0, 0, 200_000, 0, 0])
        let third = follow(4, from: 61_000_000, [1, 1, 1, 1, 1, 1, 1])
        #expect(try #require(third).hasPrefix("commit took 300 ms at index 2"))
    }

    @Test mutating func whatIsOlderThanTwoMinutesIsForgotten() {
        _ = follow(1, from: 0, [1, 1, 1, 1, 1, 1, 1])
        _ = follow(2, from: 61_000_000, [2, 2, 2, 2, 2, 2, 2])
        var counted = sums(62_000_000)
        #expect(counted == [UInt64](repeating: 3, count: 7))
        counted = sums(122_000_000)
        #expect(counted == [UInt64](repeating: 2, count: 7))
        counted = sums(400_000_000)
        #expect(counted == [UInt64](repeating: 0, count: 7))
        #expect(stages.totals.map(\.count) == [UInt64](repeating: 2, count: 7))
    }
}

@Suite struct LatencyHistogramTests {
    /// Beside all of them sorted.
    @Test(arguments: [0.0, 0.25, 0.5, 0.9, 0.99, 1.0])
    func quantilesAreAnEighthTooLongAtMost(fraction: Double) {
        var random = XorShift(state: 88_172_645_463_325_252)
        var histogram = LatencyHistogram()
        var all: [Int64] = []
        for _ in 0..<10_000 {
            // Evenly over all sizes from 1 ns to 16 s.
            let nanoseconds = Int64(random.next() >> 30) >> Int64(random.next() % 34)
            all.append(nanoseconds)
            histogram.add(.nanoseconds(nanoseconds))
        }
        all.sort()
        let exact = all[max(0, Int((Double(all.count) * fraction).rounded(.up)) - 1)]
        let told = histogram.quantile(fraction).nanoseconds
        #expect(told >= exact)
        #expect(told <= exact + exact / 8 + 1000, "one microsecond is the smallest bucket")
        #expect(histogram.count == 10_000)
        #expect(histogram.longest == .nanoseconds(all[all.count - 1]))
        #expect(histogram.sum == UInt64(all.reduce(0, +)))
    }

    @Test func extremes() {
        var histogram = LatencyHistogram()
        #expect(histogram.quantile(0.5) == .zero, "none")
        histogram.add(.nanoseconds(-5))
        #expect(histogram.quantile(0.5) == .zero, "a clock that went back")
        histogram.add(.seconds(1_000_000))
        #expect(histogram.quantile(1) == .seconds(1_000_000), "longer than any bucket")
        var other = LatencyHistogram()
        other.add(.milliseconds(1))
        histogram.add(other)
        #expect(histogram.count == 3)
    }
}

private struct XorShift {
    var state: UInt64

    /// Marsaglia, "Xorshift RNGs" (2003).
    mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state
    }
}
