// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore

/// How fast a leader lets history go that is due: what is removed lies all over the database, and most
/// of what that costs comes later, when pages are written to the WAL and from there to their places.
/// Only what is left of the disk is taken: while there are writes, half as much again as they add is
/// removed (so that removing overtakes writing, however fast that is), or more where little is written.
struct CompactionPace {
    /// Two entries are at least this far apart, and for so many times as long as the first took to be
    /// applied.
    static let intervalMin = Duration.milliseconds(10)
    static let rest = 3
    /// Changes removed in a second however little is written.
    static let removedPerSecondMin = 1000.0
    /// Changes removed for each that is added.
    static let removedPerAdded = 1.5

    /// What the state was at some moment.
    struct Look {
        var at: MonotonicInstant
        var revision: Revision
        /// Changes kept.
        var changeCount: UInt64
    }

    /// An entry has been proposed and is not through.
    private(set) var isUnderWay = false
    private(set) var next = MonotonicInstant.zero
    private var proposed: Look?
    private var applied: Look?
    /// The revision of the store when the mark was moved last.
    private var moved: Revision?

    /// - Parameters:
    ///   - compacted: up to where history has gone.
    ///   - changesPerRevision: of history, on average.
    /// - Returns: what to propose.
    mutating func propose(
        from compacted: Revision, towards target: Revision, changesPerRevision: UInt64, _ now: Look
    ) -> Revision {
        let written = moved.map { now.revision.rawValue - $0.rawValue } ?? 0
        let step = CompactionPolicy.step(
            from: compacted, towards: target, written: written,
            changesPerRevision: changesPerRevision)
        if step > compacted { moved = now.revision }
        isUnderWay = true
        proposed = now
        return step
    }

    /// What was proposed last has been applied, or is lost.
    mutating func finished(_ now: Look) {
        isUnderWay = false
        guard let proposed else { return }
        let before = applied ?? proposed
        applied = now
        var pause = max(Self.intervalMin, (now.at - proposed.at) * Self.rest)
        let seconds = Double((now.at - before.at).nanoseconds) / 1e9
        let written = Double(now.revision.rawValue - before.revision.rawValue)
        if written > 0, seconds > 0 {
            let added = now.revision.rawValue - proposed.revision.rawValue
            let removed = Double(proposed.changeCount + added) - Double(now.changeCount)
            let perSecond = max(
                Self.removedPerAdded * written / seconds, Self.removedPerSecondMin)
            pause = max(pause, .nanoseconds(Int64(max(0, removed) / perSecond * 1e9)))
        }
        next = now.at + pause
    }
}
