// SPDX-License-Identifier: GPL-2.0-or-later

import Testing

@testable import RaftService

struct BackgroundPaceTests {
    @Test func whereNobodyWaitsItDoesNotRest() {
        var pace = BackgroundPace()
        #expect(pace.rest(after: .init(busy: 1_000, waited: 900)) == 0, "nothing to compare with")
        #expect(pace.rest(after: .init(busy: 5_001_000, waited: 900)) == 0)
    }

    @Test func itRestsInProportionToItsWait() {
        var pace = BackgroundPace()
        _ = pace.rest(after: .init(busy: 0, waited: 0))
        let (busy, waited) = (4_000_000, 1_000_000)
        #expect(
            pace.rest(after: .init(busy: busy, waited: waited))
                == waited * BackgroundPace.waitShare)
    }

    @Test func itsOwnWorkBoundsItsRest() {
        var pace = BackgroundPace()
        _ = pace.rest(after: .init(busy: 0, waited: 0))
        #expect(
            pace.rest(after: .init(busy: 100_000, waited: 90_000_000))
                == 100_000 * BackgroundPace.busyShare)
        #expect(
            pace.rest(after: .init(busy: 900_100_000, waited: 990_000_000))
                == BackgroundPace.restMax)
    }

    @Test func aKernelThatDoesNotCountIsNoReasonToRest() {
        var pace = BackgroundPace()
        _ = pace.rest(after: .init(busy: 0, waited: 0))
        #expect(pace.rest(after: nil) == 0)
        #expect(pace.rest(after: .init(busy: 10, waited: 10)) == 0, "what came between is unknown")
        for text in ["", "1 2", "a b c\n", "1 2 3 4\n"] {
            #expect(SchedulerFigures.parse(text) == nil, "\(text)")
        }
        #expect(
            SchedulerFigures.parse("0 0 0\n") == .init(busy: 0, waited: 0),
            "a thread that has only begun")
        #expect(SchedulerFigures.parse("12 34 5\n") == .init(busy: 12, waited: 34))
    }

    @Test func theKernelCountsWhatThisThreadDoes() throws {
        let figures = SchedulerFigures()
        let before = try #require(figures.read())
        var sum: UInt64 = 0
        var now = before
        // Counted at ticks and switches.
        while now.busy == before.busy {
            for number in 0..<100_000 as Range<UInt64> { sum &+= number &* number }
            now = try #require(figures.read())
        }
        #expect(now.busy > before.busy && now.waited >= before.waited && sum > 0)
    }
}
