// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine

/// One machine's monotonic clock: it starts anywhere and runs a little fast or slow.
package struct SimClock: Sendable {
    /// What the clock shows at virtual time zero, in nanoseconds.
    package let offset: UInt64
    /// Parts per million by which it is fast (slow when negative).
    package let driftPPM: Int64

    package init(offset: UInt64 = 0, driftPPM: Int64 = 0) {
        precondition(abs(driftPPM) < 1_000_000, "a clock never stands still or runs backwards")
        self.offset = offset
        self.driftPPM = driftPPM
    }

    /// What the clock shows at virtual time `time`.
    package func reading(at time: MonotonicInstant) -> MonotonicInstant {
        let elapsed = Int64(time.nanoseconds)
        // Rounded down, whichever the sign.
        let rest = elapsed % 1_000_000 * driftPPM
        let restDown = rest >= 0 ? rest / 1_000_000 : -((999_999 - rest) / 1_000_000)
        let drift = elapsed / 1_000_000 * driftPPM + restDown
        return MonotonicInstant(nanoseconds: offset + UInt64(elapsed + drift))
    }

    /// The first virtual time, no earlier than `now`, at which the clock shows `reading` or more.
    package func time(showing reading: MonotonicInstant, from now: MonotonicInstant)
        -> MonotonicInstant
    {
        guard reading > self.reading(at: now) else { return now }
        let local = reading.nanoseconds - offset
        let scaled = UInt64(1_000_000 + driftPPM)
        var estimate = local / scaled * 1_000_000 + local % scaled * 1_000_000 / scaled
        // Both ways round down; walk the last few nanoseconds.
        estimate = max(estimate - min(estimate, 2), now.nanoseconds)
        while self.reading(at: MonotonicInstant(nanoseconds: estimate)) < reading { estimate += 1 }
        return MonotonicInstant(nanoseconds: estimate)
    }
}
