// SPDX-License-Identifier: GPL-2.0-or-later

/// Sizes and times of one node's watches.
package struct WatchConfiguration: Sendable {
    /// Bytes of newest changes kept, `ChangeRecording.bytes` of each change.
    package var ringBytesMax = 8_388_608
    /// A page of the state ends with the revision that reaches one of these.
    package var pageChangesMax = 256
    package var pageBytesMax = 262_144
    /// A message with more than one revision has at most about this many bytes.
    package var updateBytesMax = 1_000_000
    /// Above it the previous values of a revision are left out, all of them: the message would be
    /// too large for a frame. Without them no revision is: see `KVLimits.commandBytesMax`.
    package var previousBytesMax = 9_000_000
    /// Under load changes are gathered for so long before they are told.
    package var dispatchInterval = Duration.milliseconds(2)
    /// Silence after which a watch that wants it is told how far it is.
    package var progressInterval = Duration.seconds(5)
    /// A node that knows no leader for so long sends its watchers elsewhere.
    package var leaderlessMax = Duration.seconds(10)
    /// Honoured in test builds only.
    package var plantedBug: WatchPlantedBug?

    package init() {}

    /// False unless this is a test build.
    @inline(__always)
    func has(_ bug: WatchPlantedBug) -> Bool {
        #if ASPEN_TEST_BUILD
            plantedBug == bug
        #else
            false
        #endif
    }
}

/// Faults that the watches of a test build can be told to have, so that the checks can be checked.
package enum WatchPlantedBug: String, Sendable, CaseIterable {
    /// What is compacted away is passed over in silence.
    case skipCompacted = "watch-skips-compacted"
    /// A watch that goes on from a revision is told the one before it once more.
    case repeatAtResume = "watch-repeats-at-resume"
    /// The newest changes are told before the page with the older ones has been read.
    case ringBeforePage = "watch-newest-before-older"
    /// What a connection did not take counts as told.
    case dropWhenBlocked = "watch-drops-when-blocked"
    /// A snapshot takes the place of entries, and those who follow go on as if nothing were missing.
    case ignoreSnapshot = "watch-ignores-snapshot"
    /// A page of the state ends in the middle of a revision, and the rest is never told.
    case splitRevision = "watch-splits-revision"
}
