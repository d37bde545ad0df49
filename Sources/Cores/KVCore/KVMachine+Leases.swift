// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

// Leases: keys attached to one go with it, all in one revision. Time is cluster time, which only
// entries carry: a lease ends when an entry says so, on every replica alike, and never before its
// deadline. One that is due, but that no entry has ended yet, can still be kept alive.

extension KVMachine {
    mutating func grantLease(
        _ wanted: LeaseID, ttlMilliseconds: UInt64
    ) throws(Tables.Failure) -> CommandResult {
        if let refusal = LeaseRow.refusal(id: wanted, ttlMilliseconds: ttlMilliseconds) {
            return .failed(code: refusal.code, message: refusal.message)
        }
        guard meta.leaseCount < bounds.leasesMax else {
            return .failed(
                code: .resourceExhausted,
                message: "there are \(bounds.leasesMax) leases, as many as are allowed; revoke some"
            )
        }
        var id = wanted
        if id == .none {
            id = LeaseID(meta.appliedIndex.rawValue)
            // A client may have taken that number; nobody can have taken this one.
            if try tables.lease(id) != nil {
                id = LeaseID(KVLimits.leaseIDChosenFrom + meta.appliedIndex.rawValue)
            }
        } else if try tables.lease(id) != nil {
            return .failed(
                code: .preconditionFailed,
                message: "lease \(id) exists already; choose another number or let the cluster"
                    + " choose")
        }
        let lease = LeaseRow(
            id: id, ttlMilliseconds: ttlMilliseconds,
            deadline: ClusterTime(milliseconds: meta.time.milliseconds + ttlMilliseconds))
        try tables.store(lease)
        meta.rowHash &+= RowHash.of(lease)
        meta.leaseCount += 1
        leaseExpiryHint = min(leaseExpiryHint ?? lease.deadline, lease.deadline)
        return .leaseGranted(id, ttlMilliseconds: ttlMilliseconds)
    }

    mutating func keepLeaseAlive(_ id: LeaseID) throws(Tables.Failure) -> CommandResult {
        guard let lease = try tables.lease(id) else {
            guard has(.keepExpiredLease) else { return noLease(id).result }
            return try grantLease(id, ttlMilliseconds: Limits.leaseTTLMillisecondsMin)
        }
        var kept = lease
        kept.deadline = ClusterTime(
            milliseconds: meta.time.milliseconds + lease.ttlMilliseconds)
        try replace(lease, by: kept)
        return .leaseKept(ttlMilliseconds: lease.ttlMilliseconds)
    }

    mutating func revokeLease(_ id: LeaseID) throws(Tables.Failure) -> CommandResult {
        guard let lease = try tables.lease(id) else { return noLease(id).result }
        try end(lease)
        return .leaseRevoked(revision: meta.revision, deleted: lease.keyCount)
    }

    mutating func expireLeases() throws(Tables.Failure) -> CommandResult {
        var room = UInt64(bounds.leaseKeysExpiredPerEntry)
        let time = has(.leaseByLocalClock) ? max(meta.time, localTime) : meta.time
        let due = try tables.leases(dueBy: time, count: bounds.leasesExpiredPerEntry)
        for (place, lease) in due.enumerated() {
            guard place == 0 || lease.keyCount <= room else { break }
            try end(lease)
            room -= min(room, lease.keyCount)
        }
        return .done
    }

    /// When the first lease will be due for `expireLeases` if nobody keeps it alive; nil without
    /// leases.
    package mutating func nextLeaseExpiry() throws(Tables.Failure) -> ClusterTime? {
        leaseExpiryHint = meta.leaseCount == 0 ? nil : try tables.earliestDeadline()
        return leaseExpiryHint
    }

    /// All keys of the lease go in one revision, and the lease with them.
    private mutating func end(_ lease: LeaseRow) throws(Tables.Failure) {
        if lease.keyCount > 0 {
            var plan = Plan(succeeded: true)
            var keys = try tables.keys(of: lease.id, after: nil, count: bounds.leaseKeysMax + 1)
            precondition(keys.count == lease.keyCount, "a lease knows how many keys it has")
            if has(.leaseLeavesKey) { keys = keys.dropLast() }
            for key in keys {
                let standing = try self.standing(of: key, after: plan)
                precondition(standing.lease == lease.id, "a key and its lease name each other")
                write(key, nil, over: standing, to: &plan, isAlone: true)
            }
            // The keys are not counted: the row that has their number goes as it stands.
            _ = try carryOut(plan)
        }
        try tables.removeLease(lease.id)
        meta.rowHash &-= RowHash.of(lease)
        meta.leaseCount -= 1
        if meta.leaseCount == 0 { leaseExpiryHint = nil }
    }

    // MARK: Rows

    func noLease(_ id: LeaseID) -> Refusal {
        Refusal(.notFound, "lease \(id) has ended or never was; grant a new one")
    }

    private mutating func replace(
        _ lease: LeaseRow, by new: LeaseRow
    ) throws(Tables.Failure) {
        try tables.store(new)
        meta.rowHash &-= RowHash.of(lease)
        meta.rowHash &+= RowHash.of(new)
    }

    mutating func attach(_ key: [UInt8], to lease: LeaseID) throws(Tables.Failure) {
        let attachment = AttachmentRow(lease: lease, key: key)
        try tables.insert(attachment)
        meta.rowHash &+= RowHash.of(attachment)
    }

    mutating func detach(_ key: [UInt8], from lease: LeaseID) throws(Tables.Failure) {
        let attachment = AttachmentRow(lease: lease, key: key)
        try tables.remove(attachment)
        meta.rowHash &-= RowHash.of(attachment)
    }

    mutating func addKeys(_ gained: Int, to id: LeaseID) throws(Tables.Failure) {
        guard let lease = try tables.lease(id) else {
            preconditionFailure("a lease with keys exists")
        }
        var changed = lease
        changed.keyCount = UInt64(Int(lease.keyCount) + gained)
        try replace(lease, by: changed)
    }
}

extension LeaseRow {
    /// The rules that need no state: see `Transaction.validate`.
    package static func refusal(id: LeaseID, ttlMilliseconds: UInt64) -> Refusal? {
        guard ttlMilliseconds >= Limits.leaseTTLMillisecondsMin,
            ttlMilliseconds <= Limits.leaseTTLMillisecondsMax
        else {
            return Refusal(
                .invalidArgument,
                "a lease lives \(Limits.leaseTTLMillisecondsMin) to"
                    + " \(Limits.leaseTTLMillisecondsMax) milliseconds, not \(ttlMilliseconds)")
        }
        guard id.rawValue < KVLimits.leaseIDChosenFrom else {
            return Refusal(
                .invalidArgument,
                "a lease number is less than \(KVLimits.leaseIDChosenFrom); zero lets the cluster"
                    + " choose")
        }
        return nil
    }
}

extension Refusal {
    var result: CommandResult { .failed(code: code, message: message) }
}
