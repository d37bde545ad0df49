// SPDX-License-Identifier: GPL-2.0-or-later

/// xoshiro256** (Blackman and Vigna, 2018), seeded through SplitMix64: small, fast, and the same on
/// every machine. Not for secrets.
package struct RandomSource: RandomNumberGenerator, Sendable {
    private var state: (UInt64, UInt64, UInt64, UInt64)

    package init(seed: UInt64) {
        var mix = seed
        func word() -> UInt64 {
            mix &+= 0x9e37_79b9_7f4a_7c15
            var z = mix
            z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
            z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
            return z ^ (z >> 31)
        }
        state = (word(), word(), word(), word())
    }

    package mutating func next() -> UInt64 {
        func rotate(_ value: UInt64, _ count: UInt64) -> UInt64 {
            (value << count) | (value >> (64 - count))
        }
        let result = rotate(state.1 &* 5, 7) &* 9
        let shifted = state.1 << 17
        state.2 ^= state.0
        state.3 ^= state.1
        state.1 ^= state.2
        state.0 ^= state.3
        state.2 ^= shifted
        state.3 = rotate(state.3, 45)
        return result
    }

    /// Uniform in `range` by multiplication and rejection (Lemire, 2019); the same on every machine.
    package mutating func uniform(_ range: Range<UInt64>) -> UInt64 {
        let width = range.upperBound - range.lowerBound
        precondition(width > 0, "an empty range has no member")
        while true {
            let (high, low) = next().multipliedFullWidth(by: width)
            if low >= width || low >= (0 &- width) % width { return range.lowerBound + high }
        }
    }

    package mutating func uniform(_ range: Range<Int>) -> Int {
        Int(uniform(0..<UInt64(range.upperBound - range.lowerBound))) + range.lowerBound
    }

    /// Uniform between the two, the upper one excluded.
    package mutating func uniform(_ low: Duration, _ high: Duration) -> Duration {
        let (from, to) = (low.nanoseconds, high.nanoseconds)
        guard to > from else { return low }
        return .nanoseconds(from + Int64(uniform(0..<UInt64(to - from))))
    }

    /// True in `numerator` of `denominator` cases.
    package mutating func chance(_ numerator: UInt64, in denominator: UInt64) -> Bool {
        uniform(0..<denominator) < numerator
    }

    /// A stream of its own, so that drawing here never shifts what is drawn there.
    package mutating func split() -> RandomSource { RandomSource(seed: next()) }
}
