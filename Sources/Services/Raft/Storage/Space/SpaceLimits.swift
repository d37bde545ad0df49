// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk

/// What a node takes of its file system and when it is short of space, in bytes. Everything scales
/// down with a small file system, and is the same on all from 2 GiB on. Reserve, log and WAL take less than
/// 80 MB, also at full speed (five segments, and a WAL with one transaction that filled the cache): history
/// has the rest of the 128 MB that a node may take beside four times its live data.
package struct SpaceLimits: Equatable, Sendable {
    /// Kept back in a file of its own (see `SpaceReserve`): an eighth of the file system. What
    /// deletes, compaction, elections and a restart live on when others have filled it up.
    package var reserveBytes = reserveBytesMax
    /// Size of a log segment: a 32nd of the file system, so that the reserve is four of them or more.
    package var segmentBytes = segmentBytesMax
    /// The WAL of the state that makes a checkpoint due: a 64th.
    package var walBytes = walBytesMax
    /// Entries appended and not committed: a 32nd.
    package var uncommittedBytes = uncommittedBytesMax

    /// With less room than that, and as much again for the WAL, no snapshot is begun: a piece that can be
    /// sent and one being made would not fit.
    package static let spoolBytesMin = 2 << 20
    package static let reserveBytesMax = 32 << 20
    package static let segmentBytesMax = 4 << 20
    package static let walBytesMax = 4_096_000
    package static let uncommittedBytesMax = 64_000_000

    package init() {}

    package init(capacity: Int) {
        func share(_ part: Int, _ range: ClosedRange<Int>) -> Int {
            // Whole blocks.
            min(max(capacity / part & ~4095, range.lowerBound), range.upperBound)
        }
        reserveBytes = share(8, 1 << 20...Self.reserveBytesMax)
        segmentBytes = share(32, 256 << 10...Self.segmentBytesMax)
        walBytes = share(64, 256 << 10...Self.walBytesMax)
        uncommittedBytes = share(32, 2 << 20...Self.uncommittedBytesMax)
    }

}

/// How much room a node has.
package enum SpaceLevel: UInt8, Comparable, Sendable, CaseIterable {
    /// Enough.
    case ample = 0
    /// The log is cut as far as it can be, history is compacted, free pages are given back.
    case tight
    /// The same, and what grows is refused.
    case short
    /// The reserve is going too: nothing is appended that clients or the leader send.
    case exhausted

    package static func < (left: SpaceLevel, right: SpaceLevel) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// Turns bytes of room into a level, with hysteresis: a level is left when there is a quarter of it
/// (at least) more room than what led into it.
package struct SpaceGauge: Sendable {
    package let limits: SpaceLimits
    package private(set) var level = SpaceLevel.ample

    package init(_ limits: SpaceLimits) { self.limits = limits }

    /// In halves of the reserve: below `low` the level begins, from `high` on it ends.
    private static let marks: [(level: SpaceLevel, low: Int, high: Int)] = [
        (.exhausted, 1, 2), (.short, 4, 5), (.tight, 6, 8),
    ]

    /// - Parameters:
    ///   - room: free bytes and the reserve, less what is already on its way to the disk.
    ///   - isLogStuck: there was no room for the next log segment.
    package mutating func update(room: Int, isLogStuck: Bool) {
        let half = limits.reserveBytes / 2
        if isLogStuck {
            level = .exhausted
            return
        }
        for mark in Self.marks {
            let bound = level >= mark.level ? mark.high : mark.low
            if room < bound * half {
                level = mark.level
                return
            }
        }
        level = .ample
    }
}

extension LogConfiguration {
    package func scaled(to limits: SpaceLimits) -> LogConfiguration {
        var scaled = self
        scaled.segmentBytes = min(segmentBytes, limits.segmentBytes)
        return scaled
    }
}

extension SQLiteState.Options {
    package func scaled(to limits: SpaceLimits) -> SQLiteState.Options {
        guard limits.walBytes < SpaceLimits.walBytesMax else { return self }
        var scaled = self
        scaled.checkpointPages = min(checkpointPages, limits.walBytes / 4096)
        scaled.commitBytes = min(commitBytes, limits.walBytes)
        // As large as the cache is, the WAL becomes.
        scaled.cacheKiBMax = cacheKiB
        return scaled
    }
}
