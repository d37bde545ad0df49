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

    /// A page of keys. It has at least one entry if there is one, however large, and never more
    /// bytes than `Limits.scanPageBytesMax` with two or more.
    package func range(_ request: RangeRequest) throws(Tables.Failure) -> ReadOutcome<RangePage> {
        let limit: ChangeNumber
        switch self.limit(at: request.at) {
        case .value(let number): limit = number
        case .compacted(let oldest): return .compacted(oldest: oldest)
        case .future(let current): return .future(current: current)
        }
        let count = min(max(request.limit, 1), Limits.batchCountMax)
        let rows = try tables.versions(
            from: request.from, to: request.to, upTo: limit, count: count + 1)
        var entries: [KeyValue] = []
        entries.reserveCapacity(min(rows.count, count))
        var byteCount = 0
        for row in rows.prefix(count) {
            let value = request.keysOnly ? [] : try tables.value(of: row.row.change)
            byteCount += row.key.count + value.count
            if byteCount > Limits.scanPageBytesMax && !entries.isEmpty { break }
            entries.append(keyValue(row.key, row.row, value: value))
        }
        return .value(
            RangePage(
                entries: entries, more: entries.count < rows.count,
                revision: request.at ?? meta.revision))
    }

    private func limit(at revision: Revision?) -> ReadOutcome<ChangeNumber> {
        guard let revision else { return .value(.max) }
        if revision < meta.compacted { return .compacted(oldest: meta.compacted) }
        if revision > meta.revision { return .future(current: meta.revision) }
        return .value(.last(of: revision))
    }

    private func keyValue(_ key: [UInt8], _ row: VersionRow, value: [UInt8]) -> KeyValue {
        KeyValue(
            key: key, value: value, createRevision: row.createRevision,
            modRevision: row.change.revision, version: row.version)
    }
}
