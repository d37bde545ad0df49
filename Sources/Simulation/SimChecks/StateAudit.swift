// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore
import RaftStorage

/// All of a state, row by row, held against the reference at the same index: what there is, what is
/// kept about it (numbers, sums, deadlines), and what one can ask about it.
struct StateAudit {
    let reference: Reference
    let state: MemoryState

    private var changes: [Change] = []
    private var versions: [KeyVersion] = []
    private var sessions: [SessionRow] = []
    private var answers: [AnswerRow] = []
    private var leases: [LeaseRow] = []
    private var attachments: [AttachmentRow] = []
    private var isHashRight = true

    init(_ reference: Reference, _ state: MemoryState) {
        self.reference = reference
        self.state = state
        var rows = state.rows()
        while let row = rows.next() {
            isHashRight = isHashRight && RowHash.of(row) == RowHashAgain.of(row)
            switch row {
            case .change(let change): changes.append(change)
            case .version(let version): versions.append(version)
            case .session(let session): sessions.append(session)
            case .answer(let answer): answers.append(answer)
            case .lease(let lease): leases.append(lease)
            case .attachment(let attachment): attachments.append(attachment)
            }
        }
    }

    /// What is wrong; nil: nothing.
    func fault() throws(StorageError) -> String? {
        guard isHashRight else { return "the hash of a row is not as defined" }
        if let fault = faultInMeta() ?? faultInHistory() ?? faultInLeases() ?? faultInSessions() {
            return fault
        }
        if let fault = faultInAnswers() { return fault }
        return try faultInCopy()
    }

    // MARK: - What there is

    private func faultInMeta() -> String? {
        let meta = state.meta
        guard meta.revision == reference.revision, meta.compacted == reference.compacted,
            meta.time.milliseconds == reference.time, meta.activeVersion == reference.activeVersion
        else { return "revision, compacted revision, time or version" }
        guard meta.sessionCount == UInt64(reference.sessions.count),
            meta.leaseCount == UInt64(reference.leases.count)
        else { return "the number of sessions or leases" }
        var figures = StateFigures()
        var newest: [[UInt8]: ChangeNumber] = [:]
        for change in changes {
            let key = change.header.key
            newest[key] = max(newest[key] ?? .zero, change.header.number)
        }
        for change in changes {
            let bytes = UInt64(2 * change.header.key.count + change.value.count) + 64
            figures.changeCount += 1
            figures.changeBytes += bytes
            guard !change.header.isTombstone, newest[change.header.key] == change.header.number
            else { continue }
            figures.liveCount += 1
            figures.liveBytes += bytes
        }
        return figures == meta.figures ? nil : "figures \(meta.figures), counted \(figures)"
    }

    /// Every change that some readable revision needs, and none that no one needs once history is
    /// swept.
    private func faultInHistory() -> String? {
        let compacted = state.meta.compacted
        var last: [[UInt8]: ChangeNumber] = [:]
        var wanted: [ChangeNumber: (event: ChangeEvent, previous: ChangeNumber)] = [:]
        var needed: Set<ChangeNumber> = []
        for event in reference.events(after: .zero, upTo: reference.revision).joined() {
            let previous = last.updateValue(event.number, forKey: event.entry.key)
            wanted[event.number] = (event, previous ?? .zero)
            if event.number.revision <= compacted {
                if let previous { needed.remove(previous) }
                if event.isRemoval { continue }
            }
            needed.insert(event.number)
        }
        for change in changes {
            let header = change.header
            guard let (event, previous) = wanted[header.number] else {
                return "a change \(header.number.revision) that never was"
            }
            let entry = event.entry
            guard header.key == entry.key, change.value == entry.value,
                header.isTombstone == event.isRemoval, header.version == entry.version,
                header.createRevision == entry.createRevision, header.lease == entry.lease,
                header.previous == previous || isSwept(header.previous, previous)
            else { return "\(header) should be \(event), after \(previous)" }
            if needed.remove(header.number) == nil, !state.meta.isSweeping {
                return "change \(header.number.revision) is of no use to anybody"
            }
        }
        guard needed.isEmpty else { return "\(needed.count) changes are missing" }
        let rows = changes.map { KeyVersion(key: $0.header.key, row: $0.versionRow) }
        let sorted = rows.sorted { $0.row.change < $1.row.change }
        return versions.sorted { $0.row.change < $1.row.change } == sorted
            ? nil : "versions and changes differ"
    }

    /// A removal may have been swept when its key came back: then that had nothing before it.
    private func isSwept(_ found: ChangeNumber, _ previous: ChangeNumber) -> Bool {
        found == .zero && previous.revision <= state.meta.compacted
    }

    private func faultInLeases() -> String? {
        var keys: [LeaseID: [[UInt8]]] = [:]
        for entry in reference.current.values where entry.lease != .none {
            keys[entry.lease, default: []].append(entry.key)
        }
        for lease in leases {
            guard let known = reference.leases[lease.id], known.ttl == lease.ttlMilliseconds,
                known.deadline == lease.deadline.milliseconds
            else { return "lease \(lease.id)" }
            let expected = (keys[lease.id] ?? []).sorted(by: bytesPrecede)
            let found = attachments.filter { $0.lease == lease.id }.map(\.key)
            guard found.sorted(by: bytesPrecede) == expected,
                lease.keyCount == UInt64(expected.count),
                state.keys(of: lease.id, limit: .max) == expected
            else { return "the keys of lease \(lease.id)" }
        }
        guard leases.count == reference.leases.count,
            attachments.count == keys.values.reduce(0, { $0 + $1.count }),
            state.leases(after: .none, limit: 1000).leases.map(\.id)
                == reference.leases.keys.sorted()
        else { return "leases that are not there" }
        let first = reference.leases.values.map(\.deadline).min()
        let copy = state.copy()
        // The hint may be early, and is right once it was asked for.
        if let hint = copy.leaseExpiryHint?.milliseconds, let first, hint > first {
            return "a lease is due before the hint"
        }
        if copy.leaseExpiryHint == nil, first != nil { return "no hint that a lease is due" }
        return copy.nextLeaseExpiry()?.milliseconds == first ? nil : "when the next lease is due"
    }

    private func faultInSessions() -> String? {
        for session in sessions {
            guard let known = reference.sessions[session.id],
                known.lastActive == session.lastActive.milliseconds,
                known.acknowledgedBelow == session.acknowledgedBelow
            else { return "session \(session.id)" }
            let expected = known.answers.filter { $0.key >= known.acknowledgedBelow }
            guard session.answers.map(\.number) == expected.keys.sorted() else {
                return "the answers kept for session \(session.id)"
            }
            for answer in session.answers {
                let bytes =
                    answer.bytes
                    ?? answers.first { $0.session == session.id && $0.number == answer.number }?
                    .bytes
                guard let bytes, bytes.count == answer.byteCount,
                    let result = try? ResultCodec.decode(bytes),
                    let right = expected[answer.number],
                    result.means(right)
                else { return "answer \(answer.number) of session \(session.id)" }
            }
        }
        guard sessions.count == reference.sessions.count,
            UInt64(answers.reduce(0) { $0 + $1.bytes.count }) == state.meta.storedAnswerBytes
        else { return "sessions or answers that are not there" }
        let oldest = reference.sessions.values.map(\.lastActive).min()
        let timeout = UInt64(state.sessionTimeout / .milliseconds(1))
        return state.nextSessionExpiry()?.milliseconds == oldest.map { $0 + timeout + 1 }
            ? nil : "when the next session is due"
    }

    // MARK: - What can be asked

    private func faultInAnswers() -> String? {
        let (now, compacted) = (reference.revision, state.meta.compacted)
        let middle = Revision((compacted.rawValue + now.rawValue) / 2)
        for revision in [nil, compacted, middle] as [Revision?] {
            if let fault = faultInRanges(at: revision) { return fault }
        }
        if compacted > Revision(1) {
            let gone = Revision(compacted.rawValue - 1)
            guard
                state.count(CountRequest(from: [], to: nil, at: gone))
                    == .compacted(oldest: compacted),
                case .compacted = state.get([[1]], at: gone)
            else { return "a compacted revision is read" }
        }
        guard case .future = state.count(CountRequest(from: [], to: nil, at: now.next)) else {
            return "a revision to come is read"
        }
        return faultInChanges() ?? faultInHistories()
    }

    private func faultInHistories() -> String? {
        let (now, compacted) = (reference.revision, state.meta.compacted)
        var keys: Set<[UInt8]> = []
        for change in changes where keys.insert(change.header.key).inserted {
            let key = change.header.key
            for limit in [3, Int.max] {
                let page = state.history(of: key, before: nil, limit: limit)
                let right = reference.history(
                    of: key, upTo: now, compacted: compacted, limit: limit)
                guard page.events == right.events, page.more == right.more else {
                    return "the history of \(String(decoding: key, as: UTF8.self))"
                }
            }
        }
        return nil
    }

    private func faultInRanges(at revision: Revision?) -> String? {
        let shown = revision ?? reference.revision
        let hidden = Array("txn-".utf8)
        let all = reference.range(from: [], to: nil, at: shown)
        let rest = all.filter { !$0.key.starts(with: hidden) }
        for (excluding, expected) in [([], all), (hidden, rest)] as [([UInt8], [KeyValue])] {
            let request = CountRequest(from: [], to: nil, at: revision, excluding: excluding)
            let counted = count(request, shown)
            guard counted == expected.count else {
                return "a count at \(shown): \(counted.map { "\($0)" } ?? "another revision")"
            }
            for descending in [false, true] {
                let limit = max(1, expected.count - 1)
                let request = RangeRequest(
                    from: [], to: nil, limit: limit, at: revision, keysOnly: descending,
                    descending: descending, excluding: excluding)
                let right = reference.page(
                    descending ? expected.reversed() : expected, limit: limit,
                    keysOnly: descending)
                guard case .page(let page) = state.range(request), page.revision == shown,
                    page.more == right.more,
                    page.entries.map(\.key) == right.entries.map(\.key),
                    page.entries.map(\.value)
                        == right.entries.map({ descending ? [] : $0.value })
                else { return "a range at \(shown)" }
            }
        }
        let upper = CountRequest(from: hidden, to: nil, at: revision)
        let above = all.filter { !bytesPrecede($0.key, hidden) }.count
        guard count(upper, shown) == above else { return "a count from a key on" }
        return nil
    }

    /// In as many steps as it takes; nil: some of them at another revision, or without an end.
    private func count(_ request: CountRequest, _ shown: Revision) -> Int? {
        var (request, count) = (request, 0)
        for _ in 0..<1000 {
            guard case .value(let page) = state.count(request), page.revision == shown else {
                return nil
            }
            count += Int(page.count)
            guard let next = page.next else { return count }
            request.from = next
        }
        return nil
    }

    private func faultInChanges() -> String? {
        let (now, compacted) = (reference.revision, state.meta.compacted)
        let expected = reference.events(after: compacted, upTo: now)
        for count in [1, 7, Int.max] {
            var after = ChangeNumber.last(of: compacted)
            if compacted == .zero { after = .zero }
            var found: [ChangeEvent] = []
            let events = Array(expected.joined())
            while true {
                let request = ChangesRequest(
                    after: after, count: count, bytesMax: .max, withPrevious: true)
                guard case .value(let page) = state.changes(request) else {
                    return "the changes after \(after.revision)"
                }
                guard page.events == withPrevious(events[found.count...].prefix(page.events.count))
                else { return "the changes since \(after.revision), or what they replaced" }
                found += page.events
                if !page.more {
                    guard page.revision == now else { return "the end of all changes" }
                    break
                }
                guard page.events.count >= min(count, 1), page.revision > after.revision,
                    page.events.count - count < Limits.transactionOperationsMax
                else { return "a page of changes" }
                after = .last(of: page.revision)
            }
            guard found.count == events.count else { return "the changes since \(compacted)" }
        }
        let end = ChangesRequest(after: .last(of: now), count: 1, bytesMax: 1)
        guard state.changes(end) == .value(ChangesPage(events: [], revision: now, more: false))
        else { return "what comes after the newest change" }
        guard
            case .future = state.changes(
                ChangesRequest(after: .last(of: now.next), count: 1, bytesMax: 1))
        else { return "changes that are to come" }
        return nil
    }

    /// What a page of them shows: what was replaced is left out where it does not fit.
    private func withPrevious(_ events: ArraySlice<ChangeEvent>) -> [ChangeEvent] {
        var bytes = 0
        return events.map { event in
            var event = event
            let own = event.entry.key.count + event.entry.value.count
            let replaced = event.previous
            let fits =
                bytes + own + (replaced?.value.count ?? 0) <= reference.bounds.changePageBytesMax
            if !fits { event.previous = nil }
            bytes += own + (event.previous.map { $0.key.count + $0.value.count } ?? 0)
            return event
        }
    }

    // MARK: - What a snapshot makes of it

    /// A state made of a snapshot is the same in every way, its size included.
    private func faultInCopy() throws(StorageError) -> String? {
        guard state.membership != nil else { return nil }
        let reader = try state.makeSnapshot()
        let copy = MemoryState()
        copy.sessionTimeout = state.sessionTimeout
        let writer = copy.receiveSnapshot(reader.meta)
        while let piece = try reader.next() { try writer.append(piece) }
        try writer.finish()
        guard copy.contentHash() == state.contentHash(), copy.byteCount == state.byteCount,
            copy.meta == state.meta, copy.revision == state.revision
        else {
            return "what a snapshot makes of it is \(copy.byteCount) bytes, not \(state.byteCount)"
        }
        return nil
    }
}
