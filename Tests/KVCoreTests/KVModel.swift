// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore

/// The same semantics written down as simply as possible: the whole store is kept for every
/// revision. No sweeping, no batches, no planning.
struct KVModel {
    typealias Store = [[UInt8]: KeyValue]

    var history: [Store] = [[:]]
    var compacted = 0
    struct Lease: Equatable {
        var ttl: UInt64
        var deadline: UInt64
    }
    var leases: [LeaseID: Lease] = [:]

    var revision: Revision { Revision(UInt64(history.count - 1)) }
    var current: Store { history[history.count - 1] }

    mutating func apply(_ transaction: Transaction) -> CommandResult {
        let before = current
        let holds = transaction.compares.allSatisfy { Self.holds($0, in: before) }
        var store = before
        var results: [OperationResult] = []
        var wrote = false
        let next = Revision(UInt64(history.count))
        for operation in holds ? transaction.success : transaction.failure {
            switch operation {
            case .put(let key, let value, let lease):
                if lease != .none, leases[lease] == nil {
                    return .failed(
                        code: .notFound,
                        message: "lease \(lease) has ended or never was; grant a new one")
                }
                let old = store[key]
                store[key] = KeyValue(
                    key: key, value: value, createRevision: old?.createRevision ?? next,
                    modRevision: next, version: (old?.version ?? 0) + 1, lease: lease)
                results.append(.put(previousVersion: old?.version ?? 0))
                wrote = true
            case .delete(let key):
                let old = store.removeValue(forKey: key)
                results.append(.deleted(count: old == nil ? 0 : 1))
                wrote = wrote || old != nil
            case .deleteRange(let from, let to):
                let keys = store.keys.filter { key in
                    !key.lexicographicallyPrecedes(from)
                        && (to.map { key.lexicographicallyPrecedes($0) } ?? true)
                }
                for key in keys { store.removeValue(forKey: key) }
                results.append(.deleted(count: UInt64(keys.count)))
                wrote = wrote || !keys.isEmpty
            case .get(let key): results.append(.got(store[key]))
            }
        }
        if wrote { history.append(store) }
        return .transaction(succeeded: holds, revision: revision, results: results)
    }

    func keys(of lease: LeaseID) -> [[UInt8]] {
        current.values.filter { $0.lease == lease }.map(\.key)
            .sorted { $0.lexicographicallyPrecedes($1) }
    }

    mutating func end(_ lease: LeaseID) {
        leases[lease] = nil
        let keys = keys(of: lease)
        guard !keys.isEmpty else { return }
        var store = current
        for key in keys { store[key] = nil }
        history.append(store)
    }

    mutating func expireLeases(_ time: UInt64) {
        let due = leases.filter { $0.value.deadline <= time }
            .sorted { ($0.value.deadline, $0.key) < ($1.value.deadline, $1.key) }
        for (lease, _) in due { end(lease) }
    }

    func range(_ request: RangeRequest) -> ReadOutcome<[KeyValue]> {
        let at = request.at ?? revision
        if at > revision { return .future(current: revision) }
        if at.rawValue < compacted { return .compacted(oldest: Revision(UInt64(compacted))) }
        let store = history[Int(at.rawValue)]
        let keys = store.keys.filter { key in
            !key.lexicographicallyPrecedes(request.from)
                && (request.to.map { key.lexicographicallyPrecedes($0) } ?? true)
        }
        return .value(
            keys.sorted { $0.lexicographicallyPrecedes($1) }.compactMap { store[$0] })
    }

    private static func holds(_ compare: Compare, in store: Store) -> Bool {
        let entry = store[compare.key]
        func check<Value: Equatable>(
            _ left: Value, _ right: Value, _ less: (Value, Value) -> Bool
        ) -> Bool {
            switch compare.relation {
            case .equal: left == right
            case .notEqual: left != right
            case .less: less(left, right)
            case .greater: less(right, left)
            }
        }
        switch compare.target {
        case .value(let value):
            guard let entry else { return false }
            return check(entry.value, value) { $0.lexicographicallyPrecedes($1) }
        case .version(let version): return check(entry?.version ?? 0, version, <)
        case .createRevision(let revision):
            return check(entry?.createRevision ?? .zero, revision, <)
        case .modRevision(let revision): return check(entry?.modRevision ?? .zero, revision, <)
        case .exists(let exists):
            return compare.relation == .equal ? (entry != nil) == exists : (entry != nil) != exists
        }
    }
}

/// Draws commands over a small key space, so that keys collide.
struct CommandSource {
    var random: RandomSource
    var keyCount = 24
    /// Some of them may have ended.
    var leases: [LeaseID] = []

    mutating func lease() -> LeaseID {
        guard !leases.isEmpty, random.chance(1, in: 2) else { return .none }
        return leases[random.uniform(0..<leases.count)]
    }

    mutating func bytes(_ count: Range<Int>) -> [UInt8] {
        (0..<random.uniform(count)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    mutating func key() -> [UInt8] {
        let number = random.uniform(0..<keyCount)
        // Some keys are prefixes of others, some contain NUL and 0xff.
        switch number % 4 {
        case 0: return [UInt8(number)]
        case 1: return [UInt8(number - 1), 0]
        case 2: return [UInt8(number - 2), 0xff, 0xff]
        default: return Array("key-\(number)".utf8)
        }
    }

    mutating func value() -> [UInt8] {
        random.chance(1, in: 8) ? [] : bytes(1..<40)
    }

    mutating func compare() -> Compare {
        let relations: [Compare.Relation] = [.equal, .notEqual, .less, .greater]
        let relation = relations[random.uniform(0..<4)]
        switch random.uniform(0..<5) {
        case 0: return Compare(key: key(), target: .value(value()), relation: relation)
        case 1:
            return Compare(
                key: key(), target: .version(random.uniform(0..<4 as Range<UInt64>)),
                relation: relation)
        case 2:
            let revision = Revision(random.uniform(0..<60 as Range<UInt64>))
            return Compare(key: key(), target: .createRevision(revision), relation: relation)
        case 3:
            let revision = Revision(random.uniform(0..<60 as Range<UInt64>))
            return Compare(key: key(), target: .modRevision(revision), relation: relation)
        default:
            return Compare(
                key: key(), target: .exists(random.chance(1, in: 2)),
                relation: random.chance(1, in: 2) ? .equal : .notEqual)
        }
    }

    mutating func bounds() -> (from: [UInt8], to: [UInt8]?) {
        let from = random.chance(1, in: 6) ? [] : key()
        return (from, random.chance(1, in: 6) ? nil : key())
    }

    mutating func operation() -> Operation {
        switch random.uniform(0..<10) {
        case 0..<5: return .put(key: key(), value: value(), lease: lease())
        case 5..<7: return .delete(key: key())
        case 7:
            let (from, to) = bounds()
            return .deleteRange(from: from, to: to)
        default: return .get(key: key())
        }
    }

    mutating func transaction() -> Transaction {
        let compares = (0..<random.uniform(0..<3)).map { _ in compare() }
        let success = (0..<random.uniform(0..<5)).map { _ in operation() }
        let failure = (0..<random.uniform(0..<3)).map { _ in operation() }
        return Transaction(compares: compares, success: success, failure: failure)
    }
}
