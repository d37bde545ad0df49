// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenMachine
import Glibc

/// How the keys of the key space are chosen.
enum KeyDistribution: String, CaseIterable, ExpressibleByArgument, Sendable {
    /// Each as often as any other.
    case uniform
    /// One after the other, from the first again after the last.
    case sequential
    /// The k-th most wanted key in proportion to 1 / k^0.99 (as YCSB has it: Cooper and others, 2010).
    case zipf
}

/// Chooses numbers of keys; with the same source of randomness, the same ones.
struct KeyChooser {
    private let count: UInt64
    private let distribution: KeyDistribution
    private let zipf: Zipf
    private var position: UInt64

    /// - Parameters:
    ///   - first: where `sequential` begins.
    init(_ distribution: KeyDistribution, keys: Int, first: Int = 0) {
        precondition(keys > 0, "an empty key space has no member")
        count = UInt64(keys)
        self.distribution = distribution
        zipf = Zipf(count: keys)
        position = UInt64(first) % count
    }

    /// - Returns: the number of a key, from 0.
    mutating func next(_ random: inout RandomSource) -> Int {
        switch distribution {
        case .uniform: return Int(random.uniform(0..<count))
        case .sequential:
            defer { position = position + 1 == count ? 0 : position + 1 }
            return Int(position)
        case .zipf:
            // Keys that many want are not neighbours: then they would share pages, which flatters.
            return Int(Self.scattered(UInt64(zipf.next(&random))) % count)
        }
    }

    /// SplitMix64's mixing (Steele and others, 2014).
    private static func scattered(_ rank: UInt64) -> UInt64 {
        var z = rank &* 0x9e37_79b9_7f4a_7c15
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

/// Ranks by Zipf's law, by rejection-inversion (Hörmann and Derflinger, "Rejection-inversion to generate
/// variates from monotone discrete distributions", 1996): no table, however many there are.
struct Zipf {
    static let exponent = 0.99

    private let count: Double
    private let integralOfFirst: Double
    private let integralOfLast: Double
    private let shortcut: Double

    init(count: Int) {
        self.count = Double(count)
        integralOfFirst = Self.integral(1.5) - 1
        integralOfLast = Self.integral(self.count + 0.5)
        shortcut = 2 - Self.inverse(Self.integral(2.5) - Self.weight(2))
    }

    /// - Returns: a rank from 1.
    func next(_ random: inout RandomSource) -> Int {
        while true {
            let unit = Double(random.next() >> 11) * 0x1p-53
            let area = integralOfLast + unit * (integralOfFirst - integralOfLast)
            let point = Self.inverse(area)
            let rank = min(max((point + 0.5).rounded(.down), 1), count)
            if rank - point <= shortcut
                || area >= Self.integral(rank + 0.5) - Self.weight(rank)
            {
                return Int(rank)
            }
        }
    }

    private static func weight(_ x: Double) -> Double { exp(-exponent * log(x)) }

    /// Of `weight`.
    private static func integral(_ x: Double) -> Double {
        let logarithm = log(x)
        return expm1((1 - exponent) * logarithm) / (1 - exponent)
    }

    private static func inverse(_ area: Double) -> Double {
        let scaled = max(area * (1 - exponent), -1)
        return exp(log1p(scaled) / (1 - exponent))
    }
}
