// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// What a transaction will do, worked out before anything is touched: a transaction that fails half
/// way leaves nothing behind, without asking the tables to undo anything.
struct Plan {
    struct Write {
        var key: [UInt8]
        var value: [UInt8]
        var createRevision: Revision
        /// Zero: a removal.
        var version: UInt64
        var previous: ChangeNumber
        var lease: LeaseID
        /// Size of the value that this replaces; nil: there was no such key.
        var replacedBytes: Int?
        var replacedLease: LeaseID

        var isRelease: Bool { replacedLease != .none && replacedLease != lease }
        var isAttachment: Bool { lease != .none && replacedLease != lease }
    }

    var succeeded: Bool
    /// In the order in which they take effect; later ones may touch the same key again.
    var writes: [Write] = []
    /// The last of `writes` for each key; only looked up, never iterated.
    var lastWrite: [[UInt8]: Int] = [:]
    var results: [OperationResult] = []
    /// Bytes of keys and values in `results`.
    var resultBytes = 0
    var deletes = 0
    /// How the number of keys of each lease changes that is concerned, by first occurrence.
    var leases: [(lease: LeaseID, gained: Int)] = []

    init(succeeded: Bool) { self.succeeded = succeeded }

    /// Not less than the encoded result.
    var answerBytes: Int {
        results.reduce(16 + resultBytes) { sum, result in
            if case .got(.some(let entry)) = result {
                sum + (entry.lease == .none ? 34 : 42)
            } else {
                sum + 9
            }
        }
    }

    mutating func countLeases() {
        leases = []
        for write in writes where write.isRelease || write.isAttachment {
            if write.isRelease { count(-1, write.replacedLease) }
            if write.isAttachment { count(1, write.lease) }
        }
    }

    private mutating func count(_ gained: Int, _ lease: LeaseID) {
        if let place = leases.firstIndex(where: { $0.lease == lease }) {
            leases[place].gained += gained
        } else {
            leases.append((lease, gained))
        }
    }
}

extension KVMachine {
    /// The newest version of a key as the next operation of a transaction sees it.
    struct Standing {
        /// The change that made it, tombstones included; zero if there is none.
        var change: ChangeNumber
        var createRevision: Revision
        /// Zero: there is no such key.
        var version: UInt64
        var valueBytes: Int
        var lease: LeaseID
        static var absent: Standing {
            Standing(
                change: .zero, createRevision: .zero, version: 0, valueBytes: 0, lease: .none)
        }
    }

    func plan(_ transaction: Transaction) throws(Tables.Failure) -> Result<Plan, Refusal> {
        if let refusal = transaction.validate() { return .failure(refusal) }
        var holds = true
        for compare in transaction.compares where holds { holds = try self.holds(compare) }
        var plan = Plan(succeeded: holds)
        let operations = holds ? transaction.success : transaction.failure
        // With a single operation nobody looks at what was planned before.
        let isAlone = operations.count == 1
        for operation in operations {
            let refusal: Refusal?
            switch operation {
            case .put(let key, let value, let lease):
                if lease != .none, try tables.lease(lease) == nil {
                    if has(.refusedHalfDone) { return .success(plan) }
                    return .failure(noLease(lease))
                }
                refusal = nil
                let standing = try self.standing(of: key, after: plan)
                write(key, value, lease, over: standing, to: &plan, isAlone: isAlone)
                plan.results.append(.put(previousVersion: standing.version))
            case .delete(let key):
                refusal = nil
                let standing = try self.standing(of: key, after: plan)
                if standing.version > 0 {
                    write(key, nil, over: standing, to: &plan, isAlone: isAlone)
                }
                plan.results.append(.deleted(count: standing.version > 0 ? 1 : 0))
            case .deleteRange(let from, let to):
                refusal = try planDeleteRange(from: from, to: to, into: &plan, isAlone: isAlone)
            case .get(let key): refusal = try planGet(key, into: &plan)
            }
            if let refusal { return .failure(refusal) }
        }
        plan.countLeases()
        for (lease, gained) in plan.leases where gained > 0 {
            let keyCount = try tables.lease(lease)?.keyCount ?? 0
            guard keyCount + UInt64(gained) <= bounds.leaseKeysMax else {
                return .failure(
                    Refusal(
                        .resourceExhausted,
                        "lease \(lease) would have more than \(bounds.leaseKeysMax) keys; attach"
                            + " them to several leases"))
            }
        }
        return .success(plan)
    }

    /// Makes the planned changes, all under one new revision.
    mutating func carryOut(_ plan: Plan) throws(Tables.Failure) -> CommandResult {
        if !plan.writes.isEmpty { meta.revision = meta.revision.next }
        for (place, write) in plan.writes.enumerated() {
            let header = ChangeHeader(
                number: ChangeNumber(meta.revision, place: place), key: write.key,
                createRevision: write.createRevision, version: write.version,
                previous: write.previous, lease: write.lease)
            try insert(Change(header: header, value: write.value), replaced: write.replacedBytes)
            if write.isRelease { try detach(write.key, from: write.replacedLease) }
            if write.isAttachment { try attach(write.key, to: write.lease) }
        }
        for (lease, gained) in plan.leases where gained != 0 {
            try addKeys(gained, to: lease)
        }
        return .transaction(
            succeeded: plan.succeeded, revision: meta.revision, results: plan.results)
    }

    // MARK: Operations

    func standing(
        of key: [UInt8], after plan: Plan
    ) throws(Tables.Failure) -> Standing {
        if !plan.lastWrite.isEmpty, let place = plan.lastWrite[key] {
            let write = plan.writes[place]
            return Standing(
                change: ChangeNumber(meta.revision.next, place: place),
                createRevision: write.createRevision, version: write.version,
                valueBytes: write.value.count, lease: write.lease)
        }
        guard let row = try tables.version(of: key, upTo: .max) else { return .absent }
        return Standing(
            change: row.change, createRevision: row.createRevision, version: row.version,
            valueBytes: row.valueBytes, lease: row.lease)
    }

    func write(
        _ key: [UInt8], _ value: [UInt8]?, _ lease: LeaseID = .none, over standing: Standing,
        to plan: inout Plan,
        isAlone: Bool
    ) {
        let isNew = standing.version == 0
        plan.writes.append(
            Plan.Write(
                key: key, value: value ?? [],
                createRevision: value == nil
                    ? .zero : isNew ? meta.revision.next : standing.createRevision,
                version: value == nil ? 0 : standing.version + 1,
                previous: standing.change, lease: lease,
                replacedBytes: isNew ? nil : standing.valueBytes,
                replacedLease: standing.lease))
        if !isAlone { plan.lastWrite[key] = plan.writes.count - 1 }
    }

    private func planGet(
        _ key: [UInt8], into plan: inout Plan
    ) throws(Tables.Failure) -> Refusal? {
        let standing = try self.standing(of: key, after: plan)
        guard standing.version > 0 else {
            plan.results.append(.got(nil))
            return nil
        }
        let value: [UInt8]
        if standing.change.revision > meta.revision {
            // Written by this transaction itself.
            value = plan.writes[plan.lastWrite[key] ?? 0].value
        } else {
            value = try tables.value(of: standing.change)
        }
        plan.resultBytes += key.count + value.count
        guard plan.resultBytes <= bounds.answerBytesMax else {
            return Refusal(
                .resourceExhausted,
                "the gets of one transaction return at most \(bounds.answerBytesMax) bytes")
        }
        plan.results.append(
            .got(
                KeyValue(
                    key: key, value: value, createRevision: standing.createRevision,
                    modRevision: standing.change.revision, version: standing.version,
                    lease: standing.lease)))
        return nil
    }

    private func planDeleteRange(
        from: [UInt8], to: [UInt8]?, into plan: inout Plan, isAlone: Bool
    ) throws(Tables.Failure) -> Refusal? {
        let room = bounds.transactionDeletesMax - plan.deletes
        // Rows that this transaction has overwritten do not count as they stand in the tables.
        var targets = try tables.versions(
            from: from, to: to, upTo: .max, count: room + 1 + plan.writes.count, descending: false
        ).filter { plan.lastWrite[$0.key] == nil }.map(\.key)
        for (place, write) in plan.writes.enumerated()
        where write.version > 0 && plan.lastWrite[write.key] == place {
            if bytesPrecede(write.key, from) { continue }
            if let to, !bytesPrecede(write.key, to) { continue }
            targets.append(write.key)
        }
        guard targets.count <= room else {
            return Refusal(
                .resourceExhausted,
                "a transaction removes at most \(bounds.transactionDeletesMax) keys by range;"
                    + " remove them in smaller ranges")
        }
        targets.sort(by: bytesPrecede)
        for key in targets {
            let standing = try self.standing(of: key, after: plan)
            write(key, nil, over: standing, to: &plan, isAlone: isAlone)
        }
        plan.deletes += targets.count
        plan.results.append(.deleted(count: UInt64(targets.count)))
        return nil
    }

    // MARK: Compares

    private func holds(_ compare: Compare) throws(Tables.Failure) -> Bool {
        let row = try tables.version(of: compare.key, upTo: .max)
        let live = row.flatMap { $0.isTombstone ? nil : $0 }
        if has(.ignoreCompare), compare.isByNumber { return true }
        switch compare.target {
        case .value(let value):
            // As in etcd: an absent key has no value that could be equal, unequal, less or greater.
            guard let live else { return false }
            return compare.relation.holds(
                try tables.value(of: live.change), value, by: bytesPrecede)
        case .version(let version): return compare.relation.holds(live?.version ?? 0, version)
        case .createRevision(let revision):
            return compare.relation.holds(live?.createRevision ?? .zero, revision)
        case .modRevision(let revision):
            return compare.relation.holds(live?.change.revision ?? .zero, revision)
        case .exists(let exists):
            return ((live != nil) == exists) == (compare.relation == .equal)
        }
    }
}

extension Compare {
    fileprivate var isByNumber: Bool {
        switch target {
        case .version, .createRevision, .modRevision: true
        case .value, .exists: false
        }
    }
}

extension Compare.Relation {
    fileprivate func holds<Value: Comparable>(_ left: Value, _ right: Value) -> Bool {
        holds(left, right, by: <)
    }

    fileprivate func holds<Value: Equatable>(
        _ left: Value, _ right: Value, by precedes: (Value, Value) -> Bool
    ) -> Bool {
        switch self {
        case .equal: left == right
        case .notEqual: left != right
        case .less: precedes(left, right)
        case .greater: precedes(right, left)
        }
    }
}
