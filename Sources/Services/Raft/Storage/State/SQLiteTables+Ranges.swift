// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import KVCore
import SQLiteKit

// Many keys, in order.

extension SQLiteTables {
    /// Told of a key, where it lies, and its row; says whether to go on.
    typealias Take = (UnsafeRawBufferPointer, VersionRow) throws(SQLiteError) -> Bool

    func versions(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, count: Int, descending: Bool
    ) throws(SQLiteError) -> [KeyVersion] {
        var found: [KeyVersion] = []
        found.reserveCapacity(min(count, 64))
        try walk(from, to, limit, count, descending) { key, row throws(SQLiteError) in
            found.append(KeyVersion(key: [UInt8](key), row: row))
            return true
        }
        return found
    }

    func visit(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, count: Int, descending: Bool,
        want: (Int, VersionRow) -> VisitWish, take: (EntryView) -> Void
    ) throws(SQLiteError) {
        var values = ValueReader(self)
        try walk(from, to, limit, count, descending) { key, row throws(SQLiteError) in
            switch want(key.count, row) {
            case .stop: return false
            case .nothing: break
            case .key:
                take(
                    EntryView(
                        key: key, row: row, value: UnsafeRawBufferPointer(start: nil, count: 0)))
            case .value:
                try values.read(row.change) { take(EntryView(key: key, row: row, value: $0)) }
            }
            return true
        }
    }

    /// Values of a page.
    private struct ValueReader: ~Copyable {
        /// The preparation of a `BlobColumn` costs as much as it saves with so many values.
        private static let statementValuesMax = 8

        private let tables: SQLiteTables
        private var column: BlobColumn
        private var count = 0

        init(_ tables: SQLiteTables) {
            self.tables = tables
            column = BlobColumn(tables.database, table: "changes", column: "value")
        }

        mutating func read(
            _ change: ChangeNumber, _ body: (UnsafeRawBufferPointer) -> Void
        ) throws(SQLiteError) {
            count += 1
            guard count > Self.statementValuesMax else {
                return try tables.value(of: change).withUnsafeBytes(body)
            }
            guard let bytes = try column.read(Int64(bitPattern: change.rawValue)) else {
                throw SQLiteTables.hasNoChange
            }
            body(bytes)
        }
    }

    private func walk(
        _ from: [UInt8], _ to: [UInt8]?, _ limit: ChangeNumber, _ count: Int, _ descending: Bool,
        _ take: Take
    ) throws(SQLiteError) {
        if descending { return try walkDown(from, to, limit, count, take) }
        var tally = Tally(countMax: count, rowsMax: .max)
        var start: [UInt8]? = from
        while let from = start, tally.count < count, !tally.isOver {
            start = try scan(from, to, limit, &tally, take)
        }
    }

    func countVersions(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, rowsMax: Int
    ) throws(SQLiteError) -> (count: Int, next: [UInt8]?) {
        var tally = Tally(countMax: .max, rowsMax: rowsMax)
        var start: [UInt8]? = from
        while let from = start, tally.rows < rowsMax {
            start = try scan(from, to, limit, &tally) { _, _ in true }
        }
        return (tally.count, start)
    }

    private func scan(
        _ from: [UInt8], _ to: [UInt8]?, _ limit: ChangeNumber, _ tally: inout Tally, _ take: Take
    ) throws(SQLiteError) -> [UInt8]? {
        try withUnsafeBytes(from) { from throws(SQLiteError) in
            guard let to else {
                scanOn.bind(1, unowned: from)
                defer { scanOn.reset() }
                return try scan(scanOn, limit, &tally, take)
            }
            return try withUnsafeBytes(to) { to throws(SQLiteError) in
                scanTo.bind(1, unowned: from)
                scanTo.bind(2, unowned: to)
                defer { scanTo.reset() }
                return try scan(scanTo, limit, &tally, take)
            }
        }
    }

    private struct Tally {
        let countMax: Int
        let rowsMax: Int
        var count = 0
        var rows = 0
        /// Nobody wants more.
        var isOver = false
    }

    /// Old versions that are stepped over one by one before a new search is cheaper.
    private static let stepsBeforeSearch = 16

    /// Hands out what it finds; returns where to search again if a key has many versions that are
    /// not wanted, or if enough rows were looked at.
    private func scan(
        _ statement: borrowing Statement, _ limit: ChangeNumber, _ tally: inout Tally, _ take: Take
    ) throws(SQLiteError) -> [UInt8]? {
        // The key whose remaining versions are older than the one that was wanted.
        var done: [UInt8] = []
        var isDone = false
        var steps = 0
        var newer = 0
        while try statement.step() {
            tally.rows += 1
            let key = statement.unownedBytes(0)
            if isDone, Self.equal(key, done) {
                steps += 1
                if steps > Self.stepsBeforeSearch { return done + [0] }
                continue
            }
            isDone = false
            var row = Self.versionRow(statement, at: 1)
            if row.change > limit {
                newer += 1
                if newer <= Self.stepsBeforeSearch { continue }
                guard let older = try version(of: [UInt8](key), upTo: limit) else {
                    return [UInt8](key) + [0]
                }
                row = older
                steps = Self.stepsBeforeSearch
            } else {
                steps = 0
            }
            Self.set(&done, key)
            isDone = true
            newer = 0
            if !row.isTombstone {
                guard try take(key, row) else {
                    tally.isOver = true
                    return nil
                }
                tally.count += 1
                if tally.count == tally.countMax { return nil }
            }
            if tally.rows >= tally.rowsMax { return done + [0] }
        }
        return nil
    }

    private func walkDown(
        _ from: [UInt8], _ to: [UInt8]?, _ limit: ChangeNumber, _ countMax: Int, _ take: Take
    ) throws(SQLiteError) {
        var tally = Tally(countMax: countMax, rowsMax: .max)
        var end = to
        var isMore = true
        while isMore, tally.count < countMax, !tally.isOver {
            let below = end
            let stop = try withUnsafeBytes(from) { from throws(SQLiteError) -> [UInt8]? in
                guard let below else {
                    scanDown.bind(1, unowned: from)
                    defer { scanDown.reset() }
                    return try scanDown(scanDown, limit, &tally, take)
                }
                return try withUnsafeBytes(below) { below throws(SQLiteError) in
                    scanDownFrom.bind(1, unowned: from)
                    scanDownFrom.bind(2, unowned: below)
                    defer { scanDownFrom.reset() }
                    return try scanDown(scanDownFrom, limit, &tally, take)
                }
            }
            end = stop
            isMore = stop != nil
        }
    }

    /// Keys downwards, the oldest version of each first: the newest wanted is known when the next
    /// key comes. A key with many versions is looked up instead, and the search goes on below it.
    private func scanDown(
        _ statement: borrowing Statement, _ limit: ChangeNumber, _ tally: inout Tally, _ take: Take
    ) throws(SQLiteError) -> [UInt8]? {
        var key: [UInt8] = []
        var newest: VersionRow?
        var steps = 0
        while try statement.step() {
            let found = statement.unownedBytes(0)
            if steps == 0 || !Self.equal(found, key) {
                try Self.hand(key, newest, &tally, take)
                if tally.count == tally.countMax || tally.isOver { return nil }
                Self.set(&key, statement.unownedBytes(0))
                newest = nil
                steps = 0
            }
            steps += 1
            if steps > Self.stepsBeforeSearch {
                try Self.hand(key, try version(of: key, upTo: limit), &tally, take)
                return key
            }
            let row = Self.versionRow(statement, at: 1)
            if row.change <= limit { newest = row }
        }
        try Self.hand(key, newest, &tally, take)
        return nil
    }

    private static func hand(
        _ key: [UInt8], _ row: VersionRow?, _ tally: inout Tally, _ take: Take
    ) throws(SQLiteError) {
        guard let row, !row.isTombstone else { return }
        let goesOn = try withUnsafeBytes(key) { key throws(SQLiteError) in try take(key, row) }
        if goesOn { tally.count += 1 } else { tally.isOver = true }
    }

    @inline(__always)
    private static func equal(_ bytes: UnsafeRawBufferPointer, _ array: [UInt8]) -> Bool {
        guard bytes.count == array.count, let start = bytes.baseAddress else {
            return bytes.count == array.count
        }
        return array.withUnsafeBytes { $0.baseAddress.map { memcmp(start, $0, bytes.count) == 0 } }
            ?? true
    }

    /// In the memory that the array has.
    @inline(__always)
    private static func set(_ array: inout [UInt8], _ bytes: UnsafeRawBufferPointer) {
        array.removeAll(keepingCapacity: true)
        array.append(contentsOf: bytes)
    }
}
