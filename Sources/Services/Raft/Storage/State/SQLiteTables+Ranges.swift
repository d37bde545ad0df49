// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
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
        var tally = Tally(countMax: count, rowsMax: .max)
        guard count > 0 else { return }
        _ = try withStatement(from, to, descending) { statement throws(SQLiteError) in
            try scan(statement, limit, &tally, take)
        }
    }

    func countVersions(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, rowsMax: Int
    ) throws(SQLiteError) -> (count: Int, next: [UInt8]?) {
        var tally = Tally(countMax: .max, rowsMax: rowsMax)
        let next = try withStatement(from, to, false) { statement throws(SQLiteError) in
            try scan(statement, limit, &tally) { _, _ in true }
        }
        return (tally.count, next)
    }

    private func withStatement<Result>(
        _ from: [UInt8], _ to: [UInt8]?, _ descending: Bool,
        _ body: (borrowing Statement) throws(SQLiteError) -> Result
    ) throws(SQLiteError) -> Result {
        try pending.write()
        return try withUnsafeBytes(from) { from throws(SQLiteError) in
            guard let to else {
                if descending { return try Self.run(scanDown, from, nil, body) }
                return try Self.run(scanOn, from, nil, body)
            }
            return try withUnsafeBytes(to) { to throws(SQLiteError) in
                if descending { return try Self.run(scanDownFrom, from, to, body) }
                return try Self.run(scanTo, from, to, body)
            }
        }
    }

    private static func run<Result>(
        _ statement: borrowing Statement, _ from: UnsafeRawBufferPointer,
        _ to: UnsafeRawBufferPointer?,
        _ body: (borrowing Statement) throws(SQLiteError) -> Result
    ) throws(SQLiteError) -> Result {
        statement.bind(1, unowned: from)
        if let to { statement.bind(2, unowned: to) }
        defer { statement.reset() }
        return try body(statement)
    }

    private struct Tally {
        let countMax: Int
        let rowsMax: Int
        var count = 0
        var rows = 0
    }

    /// Hands out what it finds.
    /// - Returns: the key from which to go on when enough rows were looked at; each step into the past
    ///   of a key counts as one.
    private func scan(
        _ statement: borrowing Statement, _ limit: ChangeNumber, _ tally: inout Tally, _ take: Take
    ) throws(SQLiteError) -> [UInt8]? {
        while tally.count < tally.countMax, try statement.step() {
            tally.rows += 1
            let key = statement.unownedBytes(0)
            var found: VersionRow? = Self.versionRow(statement, at: 1)
            if let newest = found, newest.change > limit {
                let past = try past(of: [UInt8](key), newest.change, upTo: limit)
                found = past.row
                tally.rows += past.steps
            }
            if let row = found, !row.isTombstone {
                guard try take(key, row) else { return nil }
                tally.count += 1
            }
            if tally.rows >= tally.rowsMax { return [UInt8](key) + [0] }
        }
        return nil
    }
}
