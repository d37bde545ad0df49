// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Limits of the state machine besides those of `Limits`. They decide results, so that they are as
/// much a part of the replicated protocol as the commands: changing one needs a new state-machine
/// version.
package enum KVLimits {
    /// Largest encoded command, in bytes: leaves room for the frame around it below
    /// `Limits.rpcMessageBytesMax`.
    package static let commandBytesMax = 8_388_608
    /// Keys that all `deleteRange`s of one transaction may remove together.
    package static let transactionDeletesMax = Limits.batchCountMax
    /// Most changes one transaction can make; below 2^`ChangeNumber.placeBits`.
    package static let transactionChangesMax =
        Limits.transactionOperationsMax + transactionDeletesMax
    /// Keys attached to one lease: they go in one revision.
    package static let leaseKeysMax = 1000
    /// The least number that a lease may not have that a client numbers itself: from here on are
    /// those that the cluster chooses when the index of the entry is taken.
    package static let leaseIDChosenFrom: UInt64 = 1 << 62
    /// Leases that one entry ends, and keys that it removes with them (at least one lease).
    package static let leasesExpiredPerEntry = 200
    package static let leaseKeysExpiredPerEntry = 2000
    /// Most bytes of keys and values that the gets of one transaction may return together.
    package static let answerBytesMax = Limits.scanPageBytesMax
    /// Largest range bound: one more than a key, so that "just after this key" can be said.
    package static let boundBytesMax = Limits.keyBytesMax + 1
    /// Answers up to this size are stored in the row of their session, and always taken: the window
    /// bounds how many there are. Every answer without a value in it is smaller.
    package static let inlineAnswerBytesMax = 1024
    /// Most bytes of answers stored for one session.
    package static let sessionAnswersBytesMax = 8_388_608
    /// Most bytes of large answers stored for all sessions together.
    package static let storedAnswersBytesMax = 268_435_456
    /// Rows of dead history that each entry sweeps away: more than a put can add, so that sweeping
    /// always overtakes writing, and few enough that nobody waits for it.
    package static let sweptPerEntry = 4
    /// The same for a `compact` entry.
    package static let sweptPerCompact = 1000
    /// Largest stored membership, in bytes.
    package static let membershipBytesMax = 1_048_576
    /// Most bytes of changes in a page of them, previous values included, when that page holds one
    /// revision only; more previous values are left out.
    package static let changePageBytesMax = 16_777_216
    /// Most keys in a page of the history of one key.
    package static let historyCountMax = 1000
    /// Rows that one count looks at before it must be asked to go on.
    package static let countRowsMax = 50_000
    /// Sessions kept in memory between batches.
    package static let sessionCacheMax = 1024
}

/// Those limits that the simulator lowers, so that runs of some hundred entries reach them. Programs leave
/// each at the value that is documented. Most decide results: all replicas of a cluster have the same.
package struct KVBounds: Equatable, Sendable {
    package var sessionsMax = Limits.sessionsMax
    package var leasesMax = Limits.leasesMax
    package var scanPageBytesMax = Limits.scanPageBytesMax
    package var transactionDeletesMax = KVLimits.transactionDeletesMax
    package var leaseKeysMax = KVLimits.leaseKeysMax
    package var leasesExpiredPerEntry = KVLimits.leasesExpiredPerEntry
    package var leaseKeysExpiredPerEntry = KVLimits.leaseKeysExpiredPerEntry
    package var answerBytesMax = KVLimits.answerBytesMax
    /// At least what an answer to one put takes.
    package var inlineAnswerBytesMax = KVLimits.inlineAnswerBytesMax
    package var sessionAnswersBytesMax = KVLimits.sessionAnswersBytesMax
    package var storedAnswersBytesMax = KVLimits.storedAnswersBytesMax
    package var sweptPerEntry = KVLimits.sweptPerEntry
    package var sweptPerCompact = KVLimits.sweptPerCompact
    package var changePageBytesMax = KVLimits.changePageBytesMax
    package var historyCountMax = KVLimits.historyCountMax
    package var countRowsMax = KVLimits.countRowsMax
    package var sessionCacheMax = KVLimits.sessionCacheMax
    package var recordingBytesMax = ChangeRecording.bytesMax
    /// Rows that are asked for at once while changes are read.
    package var headersAtOnce = 256
    /// The same while they are swept.
    package var sweptReadAhead = 32
    /// Elements in one piece of a `SortedMap`; at least two.
    package var chunkCountMax = 256

    package init() {}

    /// What state machines and maps get that are made now: read once by each, when it is made.
    @TaskLocal package static var current = KVBounds()
}

/// Versions of the state machine. An entry carries the version that is needed to understand it.
package enum KVVersion {
    package static let first: UInt8 = 1
    /// Leases; the figures in `StateMeta` are part of the hash.
    package static let leases: UInt8 = 2
    /// The newest that this program knows.
    package static let supported: UInt8 = 2
}
