// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore

/// The key-value store once more, written down as simply as possible and sharing no code with the
/// state machine: what each committed entry must answer, what each revision holds, what happened in
/// it. It forgets nothing, so that any read and any watch can be held against it.
struct Reference {
    struct Session {
        var lastActive: UInt64
        var acknowledgedBelow: UInt64 = 0
        var answers: [UInt64: CommandResult] = [:]
    }

    struct Lease {
        var ttl: UInt64
        var deadline: UInt64
    }

    private(set) var revision = Revision.zero
    private(set) var compacted = Revision.zero
    private(set) var time: UInt64 = 0
    private(set) var activeVersion = KVVersion.first
    private(set) var sessions: [SessionID: Session] = [:]
    private(set) var leases: [LeaseID: Lease] = [:]
    private(set) var current: [[UInt8]: KeyValue] = [:]
    /// By index from 1.
    private var results: [CommandResult] = []
    private var revisions: [Revision] = []
    /// By revision from 1.
    private var events: [[ChangeEvent]] = []
    /// What each key became, and when; nil: it went.
    private var versions: [[UInt8]: [(revision: Revision, value: KeyValue?)]] = [:]
    private let sessionTimeout: UInt64

    init(sessionTimeout: Duration) {
        self.sessionTimeout = UInt64(sessionTimeout / .milliseconds(1))
    }

    var applied: LogIndex { LogIndex(UInt64(results.count)) }

    func result(at index: LogIndex) -> CommandResult { results[Int(index.rawValue) - 1] }

    /// The store's revision when `index` was applied.
    func revision(at index: LogIndex) -> Revision {
        guard index > .zero, !revisions.isEmpty else { return .zero }
        return revisions[min(Int(index.rawValue), revisions.count) - 1]
    }

    // MARK: - Looking

    func value(of key: [UInt8], at revision: Revision) -> KeyValue? {
        versions[key]?.last { $0.revision <= revision }?.value
    }

    func range(from: [UInt8], to: [UInt8]?, at revision: Revision) -> [KeyValue] {
        let range = KeyRange(from: from, to: to)
        return versions.keys.filter(range.contains).sorted(by: bytesPrecede)
            .compactMap { value(of: $0, at: revision) }
    }

    /// What happened after `start` and up to `end`, in order.
    func events(after start: Revision, upTo end: Revision) -> ArraySlice<[ChangeEvent]> {
        let first = min(Int(start.rawValue), events.count)
        return events[first..<max(first, min(Int(end.rawValue), events.count))]
    }

    // MARK: - Applying

    mutating func apply(_ entry: Entry) {
        precondition(entry.index == applied.next, "in order")
        time = max(time, entry.time.milliseconds)
        var result = CommandResult.done
        if entry.kind == .command {
            if let command = try? CommandCodec.decode(entry.payload) {
                result = apply(command, at: entry.index)
            } else {
                result = .failed(code: .invalidArgument, message: "")
            }
        }
        results.append(result)
        revisions.append(revision)
    }

    private mutating func apply(_ command: Command, at index: LogIndex) -> CommandResult {
        guard Self.version(of: command) <= activeVersion else {
            return .failed(code: .unsupportedVersion, message: "")
        }
        guard let request = command.sessionRequest else { return carryOut(command, at: index) }
        guard sessions[request.session] != nil else {
            return .failed(code: .sessionExpired, message: "")
        }
        sessions[request.session]?.lastActive = time
        guard request.acknowledgedBelow <= request.number else {
            return .failed(code: .invalidArgument, message: "")
        }
        let below = max(
            sessions[request.session]?.acknowledgedBelow ?? 0, request.acknowledgedBelow)
        sessions[request.session]?.acknowledgedBelow = below
        guard request.number >= below else {
            return .failed(code: .invalidArgument, message: "")
        }
        guard request.number - below < Limits.sessionWindowMax else {
            return .failed(code: .resourceExhausted, message: "")
        }
        if let known = sessions[request.session]?.answers[request.number] { return known }
        let result = carryOut(command, at: index)
        sessions[request.session]?.answers[request.number] = result
        return result
    }

    /// Leases came with the second version; all else was there from the beginning.
    private static func version(of command: Command) -> UInt8 {
        switch command {
        case .grantLease, .revokeLease, .keepLeaseAlive, .expireLeases: return 2
        case .transaction(let transaction, _):
            for case .put(_, _, let lease) in transaction.success + transaction.failure
            where lease != .none {
                return 2
            }
            return 1
        default: return 1
        }
    }

    private mutating func carryOut(_ command: Command, at index: LogIndex) -> CommandResult {
        switch command {
        case .openSession:
            let id = SessionID(index.rawValue)
            sessions[id] = Session(lastActive: time)
            return .sessionOpened(id)
        case .keepSessionAlive(let id):
            guard sessions[id] != nil else { return .failed(code: .sessionExpired, message: "") }
            sessions[id]?.lastActive = time
            return .done
        case .closeSession(let id):
            return sessions.removeValue(forKey: id) == nil
                ? .failed(code: .sessionExpired, message: "") : .done
        case .expireSessions:
            guard time > sessionTimeout else { return .done }
            sessions = sessions.filter { $0.value.lastActive >= time - sessionTimeout }
            return .done
        case .transaction(let transaction, _): return carryOut(transaction)
        case .grantLease(let wanted, let ttl, _):
            if let refusal = LeaseRow.refusal(id: wanted, ttlMilliseconds: ttl) {
                return .failed(code: refusal.code, message: "")
            }
            var id = wanted == .none ? LeaseID(index.rawValue) : wanted
            if wanted == .none, leases[id] != nil { id = LeaseID(1 << 62 + index.rawValue) }
            guard leases[id] == nil else { return .failed(code: .preconditionFailed, message: "") }
            leases[id] = Lease(ttl: ttl, deadline: time + ttl)
            return .leaseGranted(id, ttlMilliseconds: ttl)
        case .revokeLease(let id, _):
            guard leases[id] != nil else { return .failed(code: .notFound, message: "") }
            let deleted = end(id)
            return .leaseRevoked(revision: revision, deleted: UInt64(deleted))
        case .keepLeaseAlive(let id):
            guard let lease = leases[id] else { return .failed(code: .notFound, message: "") }
            leases[id]?.deadline = time + lease.ttl
            return .leaseKept(ttlMilliseconds: lease.ttl)
        case .expireLeases:
            let due = leases.filter { $0.value.deadline <= time }
                .sorted { ($0.value.deadline, $0.key) < ($1.value.deadline, $1.key) }
            for (id, _) in due { end(id) }
            return .done
        case .compact(let wanted):
            guard wanted <= revision else { return .failed(code: .invalidArgument, message: "") }
            compacted = max(compacted, wanted)
            return .done
        case .activateVersion(let version):
            activeVersion = max(activeVersion, UInt8(clamping: version))
            return .done
        }
    }

    // MARK: - Transactions

    private mutating func carryOut(_ transaction: Transaction) -> CommandResult {
        if let refusal = transaction.validate() { return .failed(code: refusal.code, message: "") }
        let succeeds = transaction.compares.allSatisfy { holds($0) }
        let operations = succeeds ? transaction.success : transaction.failure
        for case .put(_, _, let lease) in operations where lease != .none && leases[lease] == nil {
            return .failed(code: .notFound, message: "")
        }
        var made: [OperationResult] = []
        var changed: [ChangeEvent] = []
        for operation in operations {
            switch operation {
            case .put(let key, let value, let lease):
                made.append(.put(previousVersion: current[key]?.version ?? 0))
                put(key, value, lease, &changed)
            case .delete(let key):
                made.append(.deleted(count: current[key] == nil ? 0 : 1))
                remove(key, &changed)
            case .deleteRange(let from, let to):
                let range = KeyRange(from: from, to: to)
                let keys = current.keys.filter(range.contains).sorted(by: bytesPrecede)
                made.append(.deleted(count: UInt64(keys.count)))
                for key in keys { remove(key, &changed) }
            case .get(let key): made.append(.got(current[key]))
            }
        }
        close(changed)
        return .transaction(succeeded: succeeds, revision: revision, results: made)
    }

    private mutating func put(
        _ key: [UInt8], _ value: [UInt8], _ lease: LeaseID, _ changed: inout [ChangeEvent]
    ) {
        let old = current[key]
        let entry = KeyValue(
            key: key, value: value, createRevision: old?.createRevision ?? revision.next,
            modRevision: revision.next, version: (old?.version ?? 0) + 1, lease: lease)
        current[key] = entry
        changed.append(
            ChangeEvent(
                number: ChangeNumber(revision.next, place: changed.count), entry: entry,
                isRemoval: false, previous: old))
    }

    private mutating func remove(_ key: [UInt8], _ changed: inout [ChangeEvent]) {
        guard let old = current.removeValue(forKey: key) else { return }
        let entry = KeyValue(
            key: key, value: [], createRevision: .zero, modRevision: revision.next, version: 0)
        changed.append(
            ChangeEvent(
                number: ChangeNumber(revision.next, place: changed.count), entry: entry,
                isRemoval: true, previous: old))
    }

    /// All of it under one new revision, if there is anything.
    private mutating func close(_ changed: [ChangeEvent]) {
        guard !changed.isEmpty else { return }
        revision = revision.next
        events.append(changed)
        for event in changed {
            versions[event.entry.key, default: []].append(
                (revision, event.isRemoval ? nil : event.entry))
        }
    }

    /// - Returns: how many keys went with it.
    @discardableResult
    private mutating func end(_ lease: LeaseID) -> Int {
        leases[lease] = nil
        let keys = current.values.filter { $0.lease == lease }.map(\.key).sorted(by: bytesPrecede)
        var changed: [ChangeEvent] = []
        for key in keys { remove(key, &changed) }
        close(changed)
        return keys.count
    }

    private func holds(_ compare: Compare) -> Bool {
        let entry = current[compare.key]
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
        case .value(let value): return entry.map { check($0.value, value, bytesPrecede) } ?? false
        case .version(let version): return check(entry?.version ?? 0, version, <)
        case .createRevision(let revision):
            return check(entry?.createRevision ?? .zero, revision, <)
        case .modRevision(let revision): return check(entry?.modRevision ?? .zero, revision, <)
        case .exists(let exists):
            return ((entry != nil) == exists) == (compare.relation == .equal)
        }
    }
}

extension CommandResult {
    /// The words of a refusal are for people.
    func means(_ other: CommandResult) -> Bool {
        if case .failed(let code, _) = self, case .failed(let otherCode, _) = other {
            return code == otherCode
        }
        return self == other
    }
}
