// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import Testing

@testable import AspenBench

/// The pure parts of aspen-bench; its commands are in Manual/bench.txt.
@Suite struct BenchTests {
    private func choices(
        _ distribution: KeyDistribution, keys: Int, count: Int, seed: UInt64 = 1, first: Int = 0
    ) -> [Int] {
        var chooser = KeyChooser(distribution, keys: keys, first: first)
        var random = RandomSource(seed: seed)
        return (0..<count).map { _ in chooser.next(&random) }
    }

    @Test(arguments: KeyDistribution.allCases)
    func theSameSeedGivesTheSameKeys(distribution: KeyDistribution) {
        let some = choices(distribution, keys: 1000, count: 500)
        #expect(some == choices(distribution, keys: 1000, count: 500))
        #expect(some.allSatisfy { (0..<1000).contains($0) })
        #expect(choices(distribution, keys: 1, count: 3) == [0, 0, 0])
        if distribution != .sequential {
            #expect(some != choices(distribution, keys: 1000, count: 500, seed: 2))
        }
    }

    @Test func sequentialKeysBeginAgain() {
        #expect(choices(.sequential, keys: 3, count: 5, first: 1) == [1, 2, 0, 1, 2])
    }

    @Test func uniformKeysAreAllChosen() {
        var counts = [Int](repeating: 0, count: 10)
        for key in choices(.uniform, keys: 10, count: 10_000) { counts[key] += 1 }
        #expect(counts.allSatisfy { (850...1150).contains($0) }, "\(counts)")
    }

    /// Against the law itself, summed.
    @Test(arguments: [2, 10, 1000])
    func ranksFollowZipfsLaw(count: Int) {
        func power(_ rank: Int) -> Double { 1 / raised(Double(rank), Zipf.exponent) }
        let whole = (1...count).reduce(0) { $0 + power($1) }
        let zipf = Zipf(count: count)
        var random = RandomSource(seed: 7)
        var counts = [Int](repeating: 0, count: count + 1)
        let drawn = 200_000
        for _ in 0..<drawn { counts[zipf.next(&random)] += 1 }
        #expect(counts[0] == 0)
        for rank in [1, 2, count / 2, count] where rank > 0 {
            let expected = Double(drawn) * power(rank) / whole
            // Five standard deviations.
            let deviation = 5 * expected.squareRoot() + 1
            #expect(abs(Double(counts[rank]) - expected) < deviation, "rank \(rank)")
        }
    }

    private func raised(_ base: Double, _ exponent: Double) -> Double {
        // By squaring the root often enough: the law is checked by other means than it is made by.
        var result = 1.0
        var root = base
        var rest = exponent
        for _ in 0..<52 {
            root = root.squareRoot()
            rest *= 2
            if rest >= 1 {
                result *= root
                rest -= 1
            }
        }
        return result
    }

    @Test func latenciesAreDrawnByTheirBounds() {
        #expect(
            Plot.distribution([(0.15, 1), (0.2, 2), (0.9, 1)]) == """
                  ≤ 0.200 ms  75.000 % \(String(repeating: "#", count: 50))
                  ≤ 0.500 ms   0.000 %
                  ≤ 1.000 ms  25.000 % \(String(repeating: "#", count: 17))

                """)
        #expect(Plot.distribution([]) == "")
        // What is beyond all others still has a line of its own.
        #expect(Plot.distribution([(9999, 1)]).hasPrefix("  ≤ 10000.000 ms  100.000 % #"))
    }

    @Test func theRateIsDrawnOverTime() {
        #expect(
            Plot.overTime([100, 50, 0, 1]) == """
                  0 s  100/s \(String(repeating: "#", count: 50))
                  1 s   50/s \(String(repeating: "#", count: 25))
                  2 s    0/s
                  3 s    1/s #

                """)
        let lines = Plot.overTime([Int](repeating: 7, count: 61)).split(separator: "\n")
        #expect(lines.count == 21)
        #expect(lines.last?.hasPrefix("  60 s  7/s #") == true)
    }

    @Test func onlyWholeSecondsAreCounted() {
        #expect(LoadReport.perSecond([[1, 2, 3], [10]], seconds: 2.9) == [11, 2])
        #expect(LoadReport.perSecond([[1]], seconds: 0.9) == [])
        #expect(LoadReport.perSecond([[1]], seconds: 2) == [1, 0])
    }

    @Test func aStampIsReadBack() {
        #expect(Workload.stamp([1, 2, 0, 0, 0, 0, 0, 0, 9]) == 513)
        #expect(Workload.stamp([1, 2, 3]) == nil)
    }
}
