// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Why a revision cannot be read.
package enum ReadOutcome<Value> {
    case value(Value)
    /// The revision is below `oldest`, the first that can be read.
    case compacted(oldest: Revision)
    /// The revision is above `current`.
    case future(current: Revision)
}

extension ReadOutcome: Equatable where Value: Equatable {}
extension ReadOutcome: Sendable where Value: Sendable {}

extension KVMachine {
    /// The key at a revision; nil: now.
    package func get(
        _ key: [UInt8], at revision: Revision?
    ) throws(Tables.Failure) -> ReadOutcome<KeyValue?> {
        let limit: ChangeNumber
        switch self.limit(at: revision) {
        case .value(let number): limit = number
        case .compacted(let oldest): return .compacted(oldest: oldest)
        case .future(let current): return .future(current: current)
        }
        guard let row = try tables.version(of: key, upTo: limit), !row.isTombstone else {
            return .value(nil)
        }
        return .value(keyValue(key, row, value: try tables.value(of: row.change)))
    }

    /// A page of keys: see `visit`.
    package func range(_ request: RangeRequest) throws(Tables.Failure) -> ReadOutcome<RangePage> {
        var entries: [KeyValue] = []
        entries.reserveCapacity(min(max(request.limit, 1), 64))
        let outcome = try visit(request) { entries.append(KeyValue($0)) }
        switch outcome {
        case .value(let end):
            return .value(RangePage(entries: entries, more: end.more, revision: end.revision))
        case .compacted(let oldest): return .compacted(oldest: oldest)
        case .future(let current): return .future(current: current)
        }
    }

    /// Hands out a page of keys, one after another, where they lie. It has at least one if there is one,
    /// however large, and never more bytes than `Limits.scanPageBytesMax` with two or more.
    package func visit(
        _ request: RangeRequest, _ take: (EntryView) -> Void
    ) throws(Tables.Failure) -> ReadOutcome<RangeEnd> {
        let limit: ChangeNumber
        switch self.limit(at: request.at) {
        case .value(let number): limit = number
        case .compacted(let oldest): return .compacted(oldest: oldest)
        case .future(let current): return .future(current: current)
        }
        let countMax = min(max(request.limit, 1), Limits.batchCountMax)
        let bytesMax = bounds.scanPageBytesMax
        let keysOnly = request.keysOnly
        var skipsOne = has(.pageDropsKey) && request.at != nil
        var found = 0
        var count = 0
        var byteCount = 0
        var more = false
        for piece in request.pieces where found <= countMax && !more {
            try tables.visit(
                from: piece.from, to: piece.to, upTo: limit, count: countMax + 1 - found,
                descending: request.descending,
                want: { keyBytes, row in
                    found += 1
                    if skipsOne {
                        skipsOne = false
                        return .nothing
                    }
                    byteCount += keyBytes + (keysOnly ? 0 : row.valueBytes)
                    if count == countMax || (byteCount > bytesMax && count > 0) {
                        more = true
                        return .stop
                    }
                    count += 1
                    return keysOnly ? .key : .value
                }, take: take)
        }
        return .value(
            RangeEnd(more: more && !has(.rangeClaimsEnd), revision: request.at ?? meta.revision))
    }

    /// Several keys at one revision; see `KeysPage`.
    package func get(
        _ keys: [[UInt8]], at revision: Revision?
    ) throws(Tables.Failure) -> ReadOutcome<KeysPage> {
        var limit: ChangeNumber
        switch self.limit(at: revision) {
        case .value(let number): limit = number
        case .compacted(let oldest): return .compacted(oldest: oldest)
        case .future(let current): return .future(current: current)
        }
        var page = KeysPage(entries: [], revision: revision ?? meta.revision)
        page.entries.reserveCapacity(keys.count)
        var byteCount = 0
        for key in keys {
            if has(.batchReadMixes), !page.entries.isEmpty, page.revision > meta.compacted {
                limit = .last(of: Revision(page.revision.rawValue - 1))
            }
            guard let row = try tables.version(of: key, upTo: limit), !row.isTombstone else {
                page.entries.append(nil)
                continue
            }
            byteCount += key.count + row.valueBytes
            if byteCount > bounds.scanPageBytesMax && !page.entries.isEmpty { break }
            page.entries.append(keyValue(key, row, value: try tables.value(of: row.change)))
        }
        return .value(page)
    }

    package func count(
        _ request: CountRequest
    ) throws(Tables.Failure) -> ReadOutcome<CountPage> {
        let limit: ChangeNumber
        switch self.limit(at: request.at) {
        case .value(let number): limit = number
        case .compacted(let oldest): return .compacted(oldest: oldest)
        case .future(let current): return .future(current: current)
        }
        var page = CountPage(count: 0, next: nil, revision: request.at ?? meta.revision)
        if request.at == nil, request.from.isEmpty, request.to == nil, request.excluding.isEmpty {
            page.count = meta.figures.liveCount
            return .value(page)
        }
        let pieces = KeyRange(from: request.from, to: request.to)
            .excluding(prefix: request.excluding)
        for (place, piece) in pieces.enumerated() {
            let (count, next) = try tables.countVersions(
                from: piece.from, to: piece.to, upTo: limit, rowsMax: bounds.countRowsMax)
            page.count += UInt64(count)
            page.next = next ?? (place + 1 < pieces.count ? pieces[place + 1].from : nil)
            if next != nil { break }
        }
        return .value(page)
    }

    // MARK: Leases

    package func lease(_ id: LeaseID) throws(Tables.Failure) -> LeaseRow? {
        try tables.lease(id)
    }

    /// Leases above `after` by number, at most `limit` (up to `Limits.batchCountMax`).
    package func leases(after: LeaseID, limit: Int) throws(Tables.Failure) -> LeasesPage {
        let count = min(max(limit, 1), Limits.batchCountMax)
        guard after.rawValue < UInt64(Int64.max) else { return LeasesPage(leases: [], more: false) }
        var leases = try tables.leases(after: after, count: count + 1)
        let more = leases.count > count
        if more { leases.removeLast() }
        return LeasesPage(leases: leases, more: more)
    }

    /// The keys attached to a lease, in order, at most `limit`; no lease has more than
    /// `KVLimits.leaseKeysMax`.
    package func keys(of lease: LeaseID, limit: Int) throws(Tables.Failure) -> [[UInt8]] {
        try tables.keys(
            of: lease, after: nil, count: min(max(limit, 1), bounds.leaseKeysMax))
    }

    private func limit(at revision: Revision?) -> ReadOutcome<ChangeNumber> {
        guard let revision else { return .value(.max) }
        if revision < meta.compacted { return .compacted(oldest: meta.compacted) }
        if revision > meta.revision { return .future(current: meta.revision) }
        if has(.pastReadSeesNow) { return .value(.max) }
        return .value(.last(of: revision))
    }

    func keyValue(_ key: [UInt8], _ row: VersionRow, value: [UInt8]) -> KeyValue {
        KeyValue(
            key: key, value: value, createRevision: row.createRevision,
            modRevision: row.change.revision, version: row.version, lease: row.lease)
    }
}

extension KeyValue {
    init(_ entry: EntryView) {
        self.init(
            key: [UInt8](entry.key), value: [UInt8](entry.value),
            createRevision: entry.row.createRevision, modRevision: entry.row.change.revision,
            version: entry.row.version, lease: entry.row.lease)
    }
}
