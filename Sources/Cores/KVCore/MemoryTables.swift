// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// The tables in memory. A value: a copy is a consistent view that costs nothing until one of the
/// two changes.
package struct MemoryTables: StateTables, Sendable {
    private struct VersionKey: Sendable {
        var key: [UInt8]
        var change: ChangeNumber

        /// Keys ascending, within a key the newest first.
        static func precedes(_ left: VersionKey, _ right: VersionKey) -> Bool {
            if bytesPrecede(left.key, right.key) { return true }
            return left.change > right.change && left.key == right.key
        }
    }

    private struct AnswerKey: Sendable {
        var session: SessionID
        var number: UInt64

        static func precedes(_ left: AnswerKey, _ right: AnswerKey) -> Bool {
            (left.session, left.number) < (right.session, right.number)
        }
    }

    private struct DeadlineKey: Sendable {
        var deadline: ClusterTime
        var lease: LeaseID

        static func precedes(_ left: DeadlineKey, _ right: DeadlineKey) -> Bool {
            (left.deadline, left.lease) < (right.deadline, right.lease)
        }
    }

    private struct AttachmentKey: Sendable {
        var lease: LeaseID
        var key: [UInt8]

        static func precedes(_ left: AttachmentKey, _ right: AttachmentKey) -> Bool {
            if left.lease != right.lease { return left.lease < right.lease }
            return bytesPrecede(left.key, right.key)
        }
    }

    private var versions = SortedMap<VersionKey, VersionRow>(by: VersionKey.precedes)
    private var changes = SortedMap<ChangeNumber, Change>(by: <)
    private var sessions = SortedMap<SessionID, SessionRow>(by: <)
    private var answers = SortedMap<AnswerKey, [UInt8]>(by: AnswerKey.precedes)
    private var leases = SortedMap<LeaseID, LeaseRow>(by: <)
    private var deadlines = SortedMap<DeadlineKey, Void>(by: DeadlineKey.precedes)
    private var attachments = SortedMap<AttachmentKey, Void>(by: AttachmentKey.precedes)
    package private(set) var meta = StateMeta()
    /// Bytes of keys, values and answers, with a flat rate for what holds them.
    package private(set) var byteCount: UInt64 = 0

    package init() {}

    // MARK: Versions and changes

    package func version(of key: [UInt8], upTo limit: ChangeNumber) -> VersionRow? {
        guard let position = versions.lowerBound(VersionKey(key: key, change: limit)),
            versions.key(at: position).key == key
        else { return nil }
        return versions.value(at: position)
    }

    package func versions(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, count: Int, descending: Bool
    ) -> [KeyVersion] {
        if descending { return versionsDown(from: from, to: to, upTo: limit, count: count) }
        var found: [KeyVersion] = []
        var cursor = versions.lowerBound(VersionKey(key: from, change: .max))
        while let position = cursor, found.count < count {
            let place = versions.key(at: position)
            if let to, !bytesPrecede(place.key, to) { break }
            if place.change > limit {
                cursor = versions.lowerBound(VersionKey(key: place.key, change: limit))
                continue
            }
            let row = versions.value(at: position)
            if !row.isTombstone { found.append(KeyVersion(key: place.key, row: row)) }
            // On to the next key: mostly the neighbour, else over all the old versions at once.
            cursor = versions.after(position)
            if let next = cursor, versions.key(at: next).key == place.key {
                cursor = versions.lowerBound(VersionKey(key: place.key, change: .zero))
            }
        }
        return found
    }

    package func visit(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, count: Int, descending: Bool,
        want: (Int, VersionRow) -> VisitWish, take: (EntryView) -> Void
    ) {
        let found = versions(
            from: from, to: to, upTo: limit, count: count, descending: descending)
        for version in found {
            let wish = want(version.key.count, version.row)
            if wish == .stop { return }
            if wish == .nothing { continue }
            let value = wish == .value ? self.value(of: version.row.change) : []
            version.key.withUnsafeBytes { key in
                value.withUnsafeBytes { take(EntryView(key: key, row: version.row, value: $0)) }
            }
        }
    }

    private func versionsDown(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, count: Int
    ) -> [KeyVersion] {
        var found: [KeyVersion] = []
        var cursor =
            to.map { versions.last(before: VersionKey(key: $0, change: .max)) }
            ?? versions.last
        while let position = cursor, found.count < count {
            let key = versions.key(at: position).key
            if bytesPrecede(key, from) { break }
            if let row = version(of: key, upTo: limit), !row.isTombstone {
                found.append(KeyVersion(key: key, row: row))
            }
            cursor = versions.last(before: VersionKey(key: key, change: .max))
        }
        return found
    }

    package func countVersions(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, rowsMax: Int
    ) -> (count: Int, next: [UInt8]?) {
        let found = versions(
            from: from, to: to, upTo: limit, count: rowsMax, descending: false)
        guard found.count == rowsMax, let last = found.last else { return (found.count, nil) }
        return (found.count, last.key + [0])
    }

    package func history(
        of key: [UInt8], upTo limit: ChangeNumber, count: Int
    ) -> [VersionRow] {
        var found: [VersionRow] = []
        var cursor = versions.lowerBound(VersionKey(key: key, change: limit))
        while let position = cursor, found.count < count, versions.key(at: position).key == key {
            found.append(versions.value(at: position))
            cursor = versions.after(position)
        }
        return found
    }

    package func row(of change: ChangeNumber) -> VersionRow? { changes[change]?.versionRow }

    package func value(of change: ChangeNumber) -> [UInt8] {
        guard let change = changes[change] else {
            preconditionFailure("the versions name only changes that exist")
        }
        return change.value
    }

    package func changes(
        after: ChangeNumber, upTo: ChangeNumber, count: Int
    ) -> [ChangeHeader] {
        var found: [ChangeHeader] = []
        var cursor = changes.lowerBound(ChangeNumber(after.rawValue + 1))
        while let position = cursor, found.count < count {
            guard changes.key(at: position) <= upTo else { break }
            found.append(changes.value(at: position).header)
            cursor = changes.after(position)
        }
        return found
    }

    /// What each has replaced need not be kept: it is at hand.
    package func sweepable(
        after: ChangeNumber, upTo: ChangeNumber, count: Int
    ) -> [SweptChange] {
        changes(after: after, upTo: upTo, count: count).map { header in
            SweptChange(
                number: header.number, previous: header.previous,
                isTombstone: header.isTombstone, keyBytes: header.key.count,
                replaced: changes[header.previous].flatMap {
                    $0.header.isTombstone
                        ? nil : .init(hash: RowHash.ofRows($0), valueBytes: $0.value.count)
                })
        }
    }

    package mutating func insert(_ change: Change, hash: UInt64) {
        let header = change.header
        let previous = changes.set(header.number, change)
        precondition(previous == nil, "a change number is used once")
        versions.set(VersionKey(key: header.key, change: header.number), change.versionRow)
        byteCount += Self.cost(of: change)
    }

    package mutating func remove(_ number: ChangeNumber) -> Change? {
        guard let change = changes.remove(number) else { return nil }
        versions.remove(VersionKey(key: change.header.key, change: number))
        byteCount -= Self.cost(of: change)
        return change
    }

    package mutating func remove(_ number: ChangeNumber, keyBytes: Int, valueBytes: Int) {
        let change = remove(number)
        precondition(change?.value.count == valueBytes, "nobody knows of what is not there")
    }

    private static func cost(of change: Change) -> UInt64 {
        UInt64(200 + change.header.key.count + change.value.count)
    }

    // MARK: Sessions

    package func session(_ id: SessionID) -> SessionRow? { sessions[id] }

    package func sessions(lastActiveBefore time: ClusterTime) -> [SessionID] {
        var found: [SessionID] = []
        var cursor = sessions.first
        while let position = cursor {
            let session = sessions.value(at: position)
            if session.lastActive < time { found.append(session.id) }
            cursor = sessions.after(position)
        }
        return found
    }

    package func oldestSessionActivity() -> ClusterTime? {
        var oldest: ClusterTime?
        var cursor = sessions.first
        while let position = cursor {
            let time = sessions.value(at: position).lastActive
            oldest = min(oldest ?? time, time)
            cursor = sessions.after(position)
        }
        return oldest
    }

    package mutating func store(_ session: SessionRow) { sessions.set(session.id, session) }
    package mutating func removeSession(_ id: SessionID) { sessions.remove(id) }

    package func answer(of session: SessionID, number: UInt64) -> [UInt8]? {
        answers[AnswerKey(session: session, number: number)]
    }

    package mutating func store(_ answer: AnswerRow) {
        answers.set(AnswerKey(session: answer.session, number: answer.number), answer.bytes)
        byteCount += UInt64(answer.bytes.count)
    }

    package mutating func removeAnswer(of session: SessionID, number: UInt64) {
        let removed = answers.remove(AnswerKey(session: session, number: number))
        byteCount -= UInt64(removed?.count ?? 0)
    }

    package mutating func store(_ meta: StateMeta) { self.meta = meta }

    package static func contradiction(_ what: String) -> Never { preconditionFailure(what) }

    // MARK: Leases

    package func lease(_ id: LeaseID) -> LeaseRow? { leases[id] }

    package func leases(after: LeaseID, count: Int) -> [LeaseRow] {
        var found: [LeaseRow] = []
        var cursor = leases.lowerBound(LeaseID(after.rawValue + 1))
        while let position = cursor, found.count < count {
            found.append(leases.value(at: position))
            cursor = leases.after(position)
        }
        return found
    }

    package func leases(dueBy time: ClusterTime, count: Int) -> [LeaseRow] {
        var found: [LeaseRow] = []
        var cursor = deadlines.first
        while let position = cursor, found.count < count {
            let place = deadlines.key(at: position)
            guard place.deadline <= time, let lease = leases[place.lease] else { break }
            found.append(lease)
            cursor = deadlines.after(position)
        }
        return found
    }

    package func earliestDeadline() -> ClusterTime? {
        deadlines.first.map { deadlines.key(at: $0).deadline }
    }

    package mutating func store(_ lease: LeaseRow) {
        if let old = leases.set(lease.id, lease) {
            deadlines.remove(DeadlineKey(deadline: old.deadline, lease: old.id))
        }
        deadlines.set(DeadlineKey(deadline: lease.deadline, lease: lease.id), ())
    }

    package mutating func removeLease(_ id: LeaseID) {
        guard let old = leases.remove(id) else { return }
        deadlines.remove(DeadlineKey(deadline: old.deadline, lease: id))
    }

    package func keys(of lease: LeaseID, after: [UInt8]?, count: Int) -> [[UInt8]] {
        var found: [[UInt8]] = []
        let start = after.map { $0 + [0] } ?? []
        var cursor = attachments.lowerBound(AttachmentKey(lease: lease, key: start))
        while let position = cursor, found.count < count {
            let place = attachments.key(at: position)
            guard place.lease == lease else { break }
            found.append(place.key)
            cursor = attachments.after(position)
        }
        return found
    }

    package mutating func insert(_ attachment: AttachmentRow) {
        attachments.set(AttachmentKey(lease: attachment.lease, key: attachment.key), ())
        byteCount += Self.cost(of: attachment)
    }

    package mutating func remove(_ attachment: AttachmentRow) {
        let before = attachments.count
        attachments.remove(AttachmentKey(lease: attachment.lease, key: attachment.key))
        precondition(attachments.count == before - 1, "only a key that is attached is detached")
        byteCount -= Self.cost(of: attachment)
    }

    private static func cost(of attachment: AttachmentRow) -> UInt64 {
        UInt64(32 + attachment.key.count)
    }

    // MARK: Rows

    /// Reads a copy of the tables, row by row.
    package struct Rows: RowSource {
        private let tables: MemoryTables
        private var version: SortedMap<VersionKey, VersionRow>.Position?
        private var change: SortedMap<ChangeNumber, Change>.Position?
        private var session: SortedMap<SessionID, SessionRow>.Position?
        private var answer: SortedMap<AnswerKey, [UInt8]>.Position?
        private var lease: SortedMap<LeaseID, LeaseRow>.Position?
        private var attachment: SortedMap<AttachmentKey, Void>.Position?

        fileprivate init(_ tables: MemoryTables) {
            self.tables = tables
            version = tables.versions.first
            change = tables.changes.first
            session = tables.sessions.first
            answer = tables.answers.first
            lease = tables.leases.first
            attachment = tables.attachments.first
        }

        package mutating func next() -> StateRow? {
            if let position = change {
                change = tables.changes.after(position)
                return .change(tables.changes.value(at: position))
            }
            if let position = version {
                version = tables.versions.after(position)
                return .version(
                    KeyVersion(
                        key: tables.versions.key(at: position).key,
                        row: tables.versions.value(at: position)))
            }
            if let position = session {
                session = tables.sessions.after(position)
                return .session(tables.sessions.value(at: position))
            }
            if let position = answer {
                answer = tables.answers.after(position)
                let key = tables.answers.key(at: position)
                return .answer(
                    AnswerRow(
                        session: key.session, number: key.number,
                        bytes: tables.answers.value(at: position)))
            }
            if let position = lease {
                lease = tables.leases.after(position)
                return .lease(tables.leases.value(at: position))
            }
            if let position = attachment {
                attachment = tables.attachments.after(position)
                let place = tables.attachments.key(at: position)
                return .attachment(AttachmentRow(lease: place.lease, key: place.key))
            }
            return nil
        }
    }

    package func rows() -> Rows { Rows(self) }
}
