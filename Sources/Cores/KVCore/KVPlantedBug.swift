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
    }
#endif
