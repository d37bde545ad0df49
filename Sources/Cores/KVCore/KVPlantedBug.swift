// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Faults that the state machine of a test build can be told to have, so that the checks can be
/// checked.
package enum KVPlantedBug: String, Sendable, CaseIterable {
    /// A replica looks at its own clock where the time of the entry counts.
    case leaseByLocalClock = "lease-by-local-clock"
    /// A snapshot has every table but those of leases.
    case snapshotWithoutLeases = "snapshot-without-leases"
    /// The last key of a lease that ends stays.
    case leaseLeavesKey = "lease-leaves-key"
    /// Sweeping takes with it what can still be read at the compacted revision.
    case sweepTooFar = "sweep-too-far"
    /// A request that comes again is carried out again.
    case applyRetryTwice = "apply-retry-twice"
    /// A request under a session that has ended is carried out without one.
    case executeExpiredSession = "execute-expired-session"
    /// A snapshot has every table but those of sessions.
    case snapshotWithoutSessions = "snapshot-without-sessions"
    /// Compares by version and revision hold whatever there is.
    case ignoreCompare = "ignore-compare"
    /// A page that has no room for all says that it is the last.
    case rangeClaimsEnd = "range-claims-end"
    /// A read at a past revision finds what is there now.
    case pastReadSeesNow = "past-read-sees-now"
    /// What a restart finds has the revision before its last one.
    case revisionGoesBack = "revision-goes-back-at-restart"
    /// A lease that has ended begins anew when it is kept alive.
    case keepExpiredLease = "keep-alive-revives-lease"
    /// A later page of a range begins behind its first key.
    case pageDropsKey = "page-drops-key"
    /// Of several keys read together, all but the first are those of the revision before.
    case batchReadMixes = "batch-read-mixes-revisions"
    /// A transaction that is refused at one operation carries out those before it.
    case refusedHalfDone = "refused-transaction-half-done"
    /// The history of a key leaves out that it went.
    case historyWithoutRemovals = "history-without-removals"
    /// A backup has the rows of one moment and the description of another.
    case backupMixesMoments = "backup-mixes-moments"
    /// What is restored from a backup has every table but those of leases.
    case restoreWithoutLeases = "restore-without-leases"
    /// Sessions of the cluster that was backed up go on in the one restored.
    case restoreKeepsSessions = "restore-keeps-sessions"
}

extension KVMachine {
    /// False unless this is a test build.
    @inline(__always)
    func has(_ bug: KVPlantedBug) -> Bool {
        #if ASPEN_TEST_BUILD
            plantedBug == bug
        #else
            false
        #endif
    }
}

#if ASPEN_TEST_BUILD
    extension KVMachine where Tables == MemoryTables {
        /// What remains if somebody forgets two tables and nobody notices.
        package mutating func forgetLeases() {
            for lease in tables.leases(after: .none, count: .max) {
                for key in tables.keys(of: lease.id, after: nil, count: .max) {
                    detach(key, from: lease.id)
                }
                tables.removeLease(lease.id)
                meta.rowHash &-= RowHash.of(lease)
            }
            meta.leaseCount = 0
        }

        /// The same for sessions.
        package mutating func forgetSessions() {
            for id in tables.sessions(lastActiveBefore: ClusterTime(milliseconds: .max)) {
                guard let session = tables.session(id) else { continue }
                for answer in session.answers where answer.bytes == nil {
                    guard let bytes = tables.answer(of: id, number: answer.number) else { continue }
                    let row = AnswerRow(session: id, number: answer.number, bytes: bytes)
                    meta.rowHash &-= RowHash.of(row)
                    tables.removeAnswer(of: id, number: answer.number)
                }
                meta.rowHash &-= RowHash.of(session)
                tables.removeSession(id)
            }
            meta.sessionCount = 0
            meta.storedAnswerBytes = 0
        }

        /// What remains if the revision is written one batch late.
        package mutating func loseLastRevision() {
            if meta.revision > .zero { meta.revision = Revision(meta.revision.rawValue - 1) }
        }
    }
#endif
