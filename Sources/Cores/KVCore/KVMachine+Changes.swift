// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

// What happened, in order: for watches, for the history of a key.

extension KVMachine {
    /// Changes in order, whole revisions only. `compacted(oldest:)`: changes below revision `oldest`
    /// are not all there any more; ask again from the state at `oldest - 1` or now.
    package func changes(
        _ request: ChangesRequest
    ) throws(Tables.Failure) -> ReadOutcome<ChangesPage> {
        // Revision n itself is gone when history is compacted to n: its removals are swept.
        if meta.compacted > .zero, request.after < .last(of: meta.compacted) {
            return .compacted(oldest: meta.compacted.next)
        }
        let known = request.after.revision
        if known > meta.revision { return .future(current: meta.revision) }
        let end = min(request.upTo ?? meta.revision, meta.revision)
        guard end > known else {
            return .value(ChangesPage(events: [], revision: known, more: false))
        }
        let limit = ChangeNumber.last(of: end)
        var page = ChangesPage(events: [], revision: known, more: false)
        var after = request.after
        var bytes = 0
        reading: while after < limit {
            let headers = try tables.changes(after: after, upTo: limit, count: bounds.headersAtOnce)
            for header in headers {
                let revision = header.number.revision
                if revision > page.revision {
                    let isFull = page.events.count >= request.count || bytes >= request.bytesMax
                    if isFull && !page.events.isEmpty {
                        page.more = true
                        break reading
                    }
                    page.revision = revision
                }
                let event = try event(header, request.withPrevious, bytesBefore: bytes)
                bytes += event.byteCount
                page.events.append(event)
            }
            guard headers.count == bounds.headersAtOnce, let last = headers.last else { break }
            after = last.number
        }
        if !page.more { page.revision = end }
        return .value(page)
    }

    private func event(
        _ header: ChangeHeader, _ withPrevious: Bool, bytesBefore: Int
    ) throws(Tables.Failure) -> ChangeEvent {
        let row = VersionRow(
            change: header.number, createRevision: header.createRevision, version: header.version,
            valueBytes: 0, lease: header.lease)
        let value = header.isTombstone ? [] : try tables.value(of: header.number)
        var event = ChangeEvent(
            number: header.number, entry: keyValue(header.key, row, value: value),
            isRemoval: header.isTombstone)
        guard withPrevious, header.previous != .zero,
            let row = try tables.row(of: header.previous), !row.isTombstone,
            bytesBefore + event.byteCount + row.valueBytes <= bounds.changePageBytesMax
        else { return event }
        event.previous = keyValue(header.key, row, value: try tables.value(of: row.change))
        return event
    }

    /// Changes of one key below revision `before` (nil: from the newest), newest first, at most
    /// `limit` (1 to `KVLimits.historyCountMax`) and about `Limits.scanPageBytesMax`. Each has with
    /// it what it replaced, unless that is compacted away. Ends with the oldest entry that can
    /// still be read.
    package func history(
        of key: [UInt8], before: Revision?, limit: Int
    ) throws(Tables.Failure) -> HistoryPage {
        var page = HistoryPage(
            events: [], more: false, revision: meta.revision, compacted: meta.compacted)
        let newest: ChangeNumber
        switch before {
        case nil: newest = .max
        case Revision.zero?: return page
        case let before?:
            newest =
                before > meta.revision
                ? .max : .last(of: Revision(before.rawValue - 1))
        }
        let count = min(max(limit, 1), bounds.historyCountMax)
        // A revision is never split, and a transaction may change one key several times.
        // What is readable at or below the compacted revision is the newest there, whatever is asked for.
        let rows = try readable(
            try tables.history(
                of: key, upTo: max(newest, .last(of: meta.compacted)),
                count: count + 1 + Limits.transactionOperationsMax)
        ).drop { $0.change > newest }
        var newer: (row: VersionRow, value: [UInt8])?
        var bytes = 0
        for row in rows {
            let value = row.isTombstone ? [] : try tables.value(of: row.change)
            if let (newerRow, newerValue) = newer {
                var event = event(key, newerRow, newerValue)
                if !row.isTombstone { event.previous = keyValue(key, row, value: value) }
                page.events.append(event)
                let isFull = page.events.count >= count || bytes > bounds.scanPageBytesMax
                if isFull, row.change.revision < newerRow.change.revision {
                    page.more = true
                    return page
                }
            }
            bytes += key.count + value.count
            newer = (row, value)
        }
        if let (row, value) = newer { page.events.append(event(key, row, value)) }
        if has(.historyWithoutRemovals) { page.events.removeAll(where: \.isRemoval) }
        return page
    }

    private func event(_ key: [UInt8], _ row: VersionRow, _ value: [UInt8]) -> ChangeEvent {
        ChangeEvent(
            number: row.change, entry: keyValue(key, row, value: value),
            isRemoval: row.isTombstone)
    }

    /// What is older than the compacted revision is there until it is swept, and not to be seen.
    private func readable(_ rows: [VersionRow]) throws(Tables.Failure) -> [VersionRow] {
        guard let place = rows.firstIndex(where: { $0.change.revision <= meta.compacted }) else {
            return rows
        }
        return Array(rows[...(rows[place].isTombstone ? place - 1 : place)])
    }
}
