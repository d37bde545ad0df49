// SPDX-License-Identifier: GPL-2.0-or-later

/// How often something may happen.
package struct Rate: Equatable, Sendable {
    /// Time after which one more is allowed.
    package let interval: Duration
    /// How many at once after a rest.
    package let burst: Int

    package init(every interval: Duration, burst: Int) {
        precondition(interval > .zero && burst > 0, "a rate lets something through")
        self.interval = interval
        self.burst = burst
    }

    package init(perSecond count: Int64, burst: Int) {
        self.init(every: .nanoseconds(1_000_000_000 / count), burst: burst)
    }
}

/// A token bucket, kept as the time at which it will be full again: one word.
package struct TokenBucket: Sendable {
    private var fullAt = MonotonicInstant.zero

    package init() {}

    /// When `count` tokens are there; now, if they are there already.
    package func availableAt(
        _ rate: Rate, count: Int = 1, now: MonotonicInstant
    ) -> MonotonicInstant {
        max(now, fullAt + rate.interval * (count - rate.burst))
    }

    package func has(_ rate: Rate, count: Int = 1, now: MonotonicInstant) -> Bool {
        availableAt(rate, count: count, now: now) == now
    }

    /// - Returns: false, and nothing taken, when there are fewer.
    package mutating func take(_ rate: Rate, count: Int = 1, now: MonotonicInstant) -> Bool {
        guard has(rate, count: count, now: now) else { return false }
        spend(rate, count: count, now: now)
        return true
    }

    /// Takes them whether they are there or not: what is lacking has to come in first before there are
    /// any again.
    package mutating func spend(_ rate: Rate, count: Int = 1, now: MonotonicInstant) {
        fullAt = max(fullAt, now) + rate.interval * count
    }
}
