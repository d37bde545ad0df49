// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine

/// How old the state of a node can be at most, for reads that may be stale within a bound.
///
/// When a linearizable read is answered, the state shows everything that was acknowledged before
/// that read came. So for a while after it, other reads need not ask anybody.
package struct ReadFreshness: Sendable {
    /// Everything acknowledged before this is in the state.
    private var asOf: MonotonicInstant?
    #if ASPEN_TEST_BUILD
        package var ignoresBound = false
    #endif

    package init() {}

    /// What a linearizable read that came at `began` has to show is applied.
    package mutating func confirm(since began: MonotonicInstant) {
        asOf = max(asOf ?? began, began)
    }

    /// False until the state has once shown everything that was committed.
    package var hasBeenCurrent: Bool { asOf != nil }

    /// Whether the state shows everything that was acknowledged `bound` ago.
    package func holds(within bound: Duration, now: MonotonicInstant) -> Bool {
        #if ASPEN_TEST_BUILD
            if ignoresBound { return true }
        #endif
        guard let asOf else { return false }
        return now - asOf <= bound
    }
}
