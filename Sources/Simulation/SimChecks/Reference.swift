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
        /// Of those answers, encoded.
        var sizes: [UInt64: Int] = [:]
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
    let bounds: KVBounds

    init(sessionTimeout: Duration, bounds: KVBounds) {
        self.bounds = bounds
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

    /// As much of these, in order, as one page has, and whether that leaves some out.
    func page(
        _ all: [KeyValue], limit: Int, keysOnly: Bool = false
    ) -> (entries: [KeyValue], more: Bool) {
        var (count, bytes) = (0, 0)
        for entry in all.prefix(limit) {
            bytes += entry.key.count + (keysOnly ? 0 : entry.value.count)
            if count > 0, bytes > bounds.scanPageBytesMax { break }
            count += 1
        }
        return (Array(all.prefix(count)), count < all.count)
    }

    /// What became of a key: everything above the compacted revision, newest first, and what was there at
    /// it; as much as one page has.
    func history(
        of key: [UInt8], upTo end: Revision, compacted: Revision, limit: Int
    ) -> (events: [ChangeEvent], more: Bool) {
        var all: [ChangeEvent] = []
        for event in events(after: .zero, upTo: end).joined().reversed()
        where event.entry.key == key {
            let isKept = event.number.revision > compacted
            if !isKept, event.isRemoval { break }
            all.append(event)
            if !isKept { break }
        }
        // What the last one replaced is gone.
        if !all.isEmpty { all[all.count - 1].previous = nil }
        let most = min(limit, bounds.historyCountMax)
        var (count, bytes) = (0, 0)
        for event in all {
            // A revision is never split.
            let isFull = count >= most || bytes > bounds.scanPageBytesMax
            if isFull, event.number.revision != all[count - 1].number.revision { break }
            bytes += event.entry.key.count + event.entry.value.count
            count += 1
        }
        return (Array(all.prefix(count)), count < all.count)
    }

    /// What happened after `start` and up to `end`, in order.
    func events(after start: Revision, upTo end: Revision) -> ArraySlice<[ChangeEvent]> {
        let first = min(Int(start.rawValue), events.count)
        return events[first..<max(first, min(Int(end.rawValue), events.count))]
    }

    // MARK: - Applying

    /// - Parameter answerBytes: what the answer that was given takes, encoded: a refusal is in words.
    mutating func apply(_ entry: Entry, answerBytes: Int) {
        precondition(entry.index == applied.next, "in order")
        time = max(time, entry.time.milliseconds)
        var result = CommandResult.done
        if entry.kind == .command {
            if let command = try? CommandCodec.decode(entry.payload) {
                result = apply(command, at: entry.index, answerBytes)
            } else {
                result = .failed(code: .invalidArgument, message: "")
            }
        }
        results.append(result)
        revisions.append(revision)
    }

    private mutating func apply(
        _ command: Command, at index: LogIndex, _ answerBytes: Int
    ) -> CommandResult {
        guard Self.version(of: command) <= activeVersion else {
            return .failed(code: .unsupportedVersion, message: "")
        }
        guard let request = command.sessionRequest else {
            return carryOut(command, at: index, .max)
        }
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
        let result = carryOut(command, at: index, room(in: request.session))
        sessions[request.session]?.answers[request.number] = result
        sessions[request.session]?.sizes[request.number] = answerBytes
        return result
    }

    /// Bytes that the next answer of a session may have.
    private func room(in session: SessionID) -> Int {
        func kept(_ session: Session) -> [Int] {
            session.sizes.filter { $0.key >= session.acknowledgedBelow }.map(\.value)
        }
        let here = sessions[session].map(kept)?.reduce(0, +) ?? 0
        let large = sessions.values.flatMap(kept).filter { $0 > bounds.inlineAnswerBytesMax }
        return max(
            min(
                bounds.sessionAnswersBytesMax - here,
                bounds.storedAnswersBytesMax - large.reduce(0, +)),
            bounds.inlineAnswerBytesMax)
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

    private mutating func carryOut(
        _ command: Command, at index: LogIndex, _ room: Int
    ) -> CommandResult {
        switch command {
        case .openSession:
            guard sessions.count < bounds.sessionsMax else {
                return .failed(code: .resourceExhausted, message: "")
            }
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
        case .transaction(let transaction, _): return carryOut(transaction, room)
        case .grantLease(let wanted, let ttl, _):
            guard (1000...86_400_000).contains(ttl), wanted.rawValue < 1 << 62 else {
                return .failed(code: .invalidArgument, message: "")
            }
            guard leases.count < bounds.leasesMax else {
                return .failed(code: .resourceExhausted, message: "")
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
            expireLeases()
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

    private mutating func expireLeases() {
        let due = leases.filter { $0.value.deadline <= time }
            .sorted { ($0.value.deadline, $0.key) < ($1.value.deadline, $1.key) }
        var room = bounds.leaseKeysExpiredPerEntry
        for (place, (id, _)) in due.prefix(bounds.leasesExpiredPerEntry).enumerated() {
            let count = current.values.count { $0.lease == id }
            if place > 0, count > room { break }
            end(id)
            room -= min(room, count)
        }
    }

    // MARK: - Transactions

    private mutating func carryOut(_ transaction: Transaction, _ room: Int) -> CommandResult {
        guard Self.isSound(transaction) else {
            return .failed(code: .invalidArgument, message: "")
        }
        let succeeds = transaction.compares.allSatisfy { holds($0) }
        let before = current
        var draft = Draft()
        for operation in succeeds ? transaction.success : transaction.failure {
            if let code = carryOut(operation, &draft) {
                current = before
                return .failed(code: code, message: "")
            }
        }
        guard isWithinLeases(before), draft.answerBytes <= room else {
            current = before
            return .failed(code: .resourceExhausted, message: "")
        }
        close(draft.changed)
        return .transaction(succeeded: succeeds, revision: revision, results: draft.made)
    }

    /// A transaction, half done.
    private struct Draft {
        var made: [OperationResult] = []
        var changed: [ChangeEvent] = []
        var removedByRange = 0
        var readBytes = 0

        /// What is set aside for the answer: no answer takes more.
        var answerBytes: Int {
            var count = 16 + readBytes
            for result in made {
                guard case .got(let entry?) = result else {
                    count += 9
                    continue
                }
                count += 34
                if entry.lease != .none { count += 8 }
            }
            return count
        }
    }

    /// - Returns: why it is refused, and the whole transaction with it.
    private mutating func carryOut(
        _ operation: Operation, _ draft: inout Draft
    ) -> AspenErrorCode? {
        switch operation {
        case .put(let key, let value, let lease):
            if lease != .none, leases[lease] == nil { return .notFound }
            draft.made.append(.put(previousVersion: current[key]?.version ?? 0))
            put(key, value, lease, &draft.changed)
        case .delete(let key):
            draft.made.append(.deleted(count: current[key] == nil ? 0 : 1))
            remove(key, &draft.changed)
        case .deleteRange(let from, let to):
            let range = KeyRange(from: from, to: to)
            let keys = current.keys.filter(range.contains).sorted(by: bytesPrecede)
            draft.removedByRange += keys.count
            if draft.removedByRange > bounds.transactionDeletesMax { return .resourceExhausted }
            draft.made.append(.deleted(count: UInt64(keys.count)))
            for key in keys { remove(key, &draft.changed) }
        case .get(let key):
            let entry = current[key]
            draft.readBytes += entry.map { $0.key.count + $0.value.count } ?? 0
            if entry != nil, draft.readBytes > bounds.answerBytesMax { return .resourceExhausted }
            draft.made.append(.got(entry))
        }
        return nil
    }

    /// No lease that has gained keys has too many.
    private func isWithinLeases(_ before: [[UInt8]: KeyValue]) -> Bool {
        var counts: [LeaseID: Int] = [:]
        for entry in current.values where entry.lease != .none {
            counts[entry.lease, default: 0] += 1
        }
        return counts.allSatisfy { lease, count in
            count <= bounds.leaseKeysMax || before.values.count { $0.lease == lease } >= count
        }
    }

    private static func isSound(_ transaction: Transaction) -> Bool {
        let lists = [transaction.success, transaction.failure]
        guard transaction.compares.count <= 100, lists.allSatisfy({ $0.count <= 100 }) else {
            return false
        }
        func isKey(_ key: [UInt8]) -> Bool { (1...1024).contains(key.count) }
        func isValue(_ value: [UInt8]) -> Bool { value.count <= 1 << 20 }
        let areCompares = transaction.compares.allSatisfy { compare in
            switch compare.target {
            case .value(let value): isKey(compare.key) && isValue(value)
            case .exists:
                isKey(compare.key)
                    && (compare.relation == .equal || compare.relation == .notEqual)
            default: isKey(compare.key)
            }
        }
        return areCompares
            && lists.joined().allSatisfy { operation in
                switch operation {
                case .put(let key, let value, _): isKey(key) && isValue(value)
                case .delete(let key), .get(let key): isKey(key)
                case .deleteRange(let from, let to):
                    from.count <= 1025 && (to?.count ?? 0) <= 1025
                }
            }
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
