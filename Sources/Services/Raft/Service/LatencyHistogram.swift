// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine

/// How many durations there were of each size, in buckets an eighth of a power of two wide, as
/// HdrHistogram has them: a quantile read from it is at most an eighth too long. Constant in size
/// (1.7 KiB), whatever is counted.
struct LatencyHistogram {
    /// Buckets of one power of two, and the bits that number them.
    private static let perPower = 8
    private static let bits = 3
    /// The last one is for all that is longer than some eight minutes.
    private static let bucketCount = perPower * 27

    private var buckets = [UInt64](repeating: 0, count: bucketCount)
    private(set) var count: UInt64 = 0
    /// Of all, in nanoseconds.
    private(set) var sum: UInt64 = 0
    private(set) var longest = Duration.zero

    mutating func add(_ duration: Duration) {
        let nanoseconds = UInt64(max(0, duration.nanoseconds))
        buckets[Self.bucket(nanoseconds / 1000)] += 1
        count += 1
        sum &+= nanoseconds
        longest = max(longest, duration)
    }

    mutating func add(_ other: Self) {
        for place in buckets.indices { buckets[place] += other.buckets[place] }
        count += other.count
        sum &+= other.sum
        longest = max(longest, other.longest)
    }

    /// The duration that `fraction` (0 to 1) of all do not exceed, rounded up to the end of its bucket
    /// but never beyond the longest; zero when there is none.
    func quantile(_ fraction: Double) -> Duration {
        let wanted = (Double(count) * fraction).rounded(.up)
        var seen: UInt64 = 0
        for (place, here) in buckets.enumerated() where here > 0 {
            seen += here
            if Double(seen) >= wanted {
                let isLast = place == Self.bucketCount - 1
                return isLast ? longest : min(longest, .microseconds(Int64(Self.end(of: place))))
            }
        }
        return longest
    }

    private static func bucket(_ microseconds: UInt64) -> Int {
        guard microseconds >= perPower else { return Int(microseconds) }
        let power = UInt64.bitWidth - 1 - microseconds.leadingZeroBitCount
        let step = Int(microseconds >> (power - bits)) - perPower
        return min(bucketCount - 1, (power - bits + 1) * perPower + step)
    }

    /// The first duration in microseconds that is too long for the bucket.
    private static func end(of bucket: Int) -> UInt64 {
        guard bucket >= perPower else { return UInt64(bucket) + 1 }
        let shift = bucket / perPower - 1
        return UInt64(bucket % perPower + perPower + 1) << shift
    }
}
