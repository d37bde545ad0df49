// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// When history goes, with no command given: a number of revisions is kept, and no more than some
/// bytes of what only a reader of the past can see, but always a little, so that a watch that was
/// cut off finds what it missed. Pure: the leader asks it now and then and proposes the answer.
package struct CompactionPolicy: Equatable, Sendable {
    /// Revisions kept.
    package var revisionsKept: UInt64 = 100_000
    /// Bytes of history (see `StateFigures.historyBytes`) from which on fewer are kept.
    package var historyBytesMax: UInt64 = 25_165_824
    /// Kept even if they are larger than that.
    package var revisionsKeptMin: UInt64 = 1000
    /// Changes that go at a time while little is written: so few that the entry which lets them go
    /// has swept them, and writes, which sweep too, find nothing to sweep.
    package static let step: UInt64 = 500
    /// Revisions that go at a time at most: two seconds of writing at full speed, so that one who was
    /// held up for that long still overtakes it. They are swept little by little, with what is written.
    package static let stepMax: UInt64 = 32_000

    package init() {}

    /// What to propose as `Command.compact`; nil: nothing. It is the revision that was compacted to
    /// already while sweeping is behind: each such entry sweeps `KVLimits.sweptPerCompact` rows.
    package func decision(_ meta: StateMeta) -> Revision? {
        if meta.isSweeping { return meta.compacted }
        let target = max(byCount(meta), byBytes(meta))
        return target > meta.compacted ? target : nil
    }

    /// What is far behind is caught up with little by little: what is swept lies all over the database,
    /// and sweeping too much at once would hold up writing. But it always overtakes writing.
    /// - Parameters:
    ///   - written: revisions since this was asked for the last time.
    ///   - changesPerRevision: how many changes a revision of history has, on average.
    package static func step(
        from compacted: Revision, towards target: Revision, written: UInt64,
        changesPerRevision: UInt64
    ) -> Revision {
        let few = max(1, step / max(1, changesPerRevision))
        return min(target, Revision(compacted.rawValue + max(few, min(2 * written, stepMax))))
    }

    /// A step, or a tenth, more than is kept may gather: what is compacted one revision at a time
    /// costs an entry each.
    private func byCount(_ meta: StateMeta) -> Revision {
        let kept = max(revisionsKept, revisionsKeptMin)
        let span = meta.revision.rawValue - meta.compacted.rawValue
        guard span > kept + max(1, min(kept / 10, Self.step)) else { return .zero }
        return Revision(meta.revision.rawValue - kept)
    }

    /// As if bytes were spread evenly over revisions; asked again when that is swept.
    private func byBytes(_ meta: StateMeta) -> Revision {
        let bytes = meta.figures.historyBytes
        guard bytes > historyBytesMax else { return .zero }
        let span = meta.revision.rawValue - meta.compacted.rawValue
        // Down to three quarters, so that it is not asked again at once.
        let share = Double(historyBytesMax) * 0.75 / Double(bytes)
        let kept = max(UInt64(Double(span) * share), revisionsKeptMin)
        guard span > kept else { return .zero }
        return Revision(meta.revision.rawValue - kept)
    }
}
