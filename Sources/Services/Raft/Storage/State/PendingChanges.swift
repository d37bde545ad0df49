// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

/// Changes of the open transaction that are not in the database yet: a statement that inserts many rows
/// costs little more than one that inserts one. Whoever reads what they may be part of has them written
/// before. In the order of their numbers.
final class PendingChanges {
    private struct Row {
        var number: ChangeNumber
        var createRevision: Revision
        var version: UInt64
        var previous: ChangeNumber
        var lease: LeaseID
        var replaced: SweptChange.Replaced?
        /// See `RowHash.ofRows`.
        var hash: UInt64
        /// Where its key begins in the arena; its value follows.
        var start: Int
        var keyBytes: Int
        var valueBytes: Int
    }

    /// Rows, and bytes of keys and values.
    static let countMax = 256
    static let bytesMax = 262_144
    /// Bytes of a key, and of a value: what is larger is written at once.
    static let keyBytesMax = 128
    static let valueBytesMax = 2048
    /// Rows that one statement inserts.
    private static let rowsAtOnce = 16

    private var rows: [Row] = []
    private let arena = UnsafeMutableRawBufferPointer.allocate(byteCount: bytesMax, alignment: 8)
    private var end = 0
    private let one: Statements
    private let many: Statements
    private let milestone: Statement

    private final class Statements {
        let insertChanges: Statement
        let replaceNewest: Statement

        init(_ database: Database, rows: Int) throws(SQLiteError) {
            func values(_ columns: Int) -> String {
                let row = "(" + Array(repeating: "?", count: columns).joined(separator: ",") + ")"
                return Array(repeating: row, count: rows).joined(separator: ",")
            }
            insertChanges = try database.prepare(
                """
                INSERT INTO changes(\(SQLiteTables.changeColumns), replaced_hash, replaced_bytes)
                VALUES \(values(9))
                """)
            replaceNewest = try database.prepare(
                """
                REPLACE INTO newest(key, \(SQLiteTables.versionColumns), hash)
                VALUES \(values(7))
                """)
        }
    }

    init(_ database: Database) throws(SQLiteError) {
        one = try Statements(database, rows: 1)
        many = try Statements(database, rows: Self.rowsAtOnce)
        milestone = try database.prepare("INSERT INTO milestones VALUES (?1, ?2)")
        rows.reserveCapacity(Self.countMax)
    }

    deinit { arena.deallocate() }

    /// The first one; above all changes if there is none.
    var first: ChangeNumber { rows.first?.number ?? .max }

    func append(
        _ change: Change, replaced: SweptChange.Replaced?, hash: UInt64
    ) throws(SQLiteError) {
        let header = change.header
        let (keyBytes, valueBytes) = (header.key.count, change.value.count)
        let isLarge = keyBytes > Self.keyBytesMax || valueBytes > Self.valueBytesMax
        if isLarge || rows.count == Self.countMax || end + keyBytes + valueBytes > arena.count {
            try write()
        }
        let row = Row(
            number: header.number, createRevision: header.createRevision,
            version: header.version, previous: header.previous, lease: header.lease,
            replaced: replaced, hash: hash, start: end, keyBytes: keyBytes, valueBytes: valueBytes)
        guard !isLarge else { return try write(row, change) }
        precondition(row.number > rows.last?.number ?? .zero, "changes are made in order")
        rows.append(row)
        UnsafeMutableRawBufferPointer(rebasing: arena[end...]).copyBytes(from: header.key)
        end += keyBytes
        UnsafeMutableRawBufferPointer(rebasing: arena[end...]).copyBytes(from: change.value)
        end += valueBytes
    }

    /// Nil if there is no such change here.
    func value(of number: ChangeNumber) -> [UInt8]? {
        guard number >= first else { return nil }
        var (low, high) = (0, rows.count)
        while low < high {
            let middle = (low + high) / 2
            if rows[middle].number < number { low = middle + 1 } else { high = middle }
        }
        guard low < rows.count, rows[low].number == number else { return nil }
        return [UInt8](value(rows[low]))
    }

    /// Into the database.
    func write() throws(SQLiteError) {
        var place = 0
        while place < rows.count {
            let isMany = rows.count - place >= Self.rowsAtOnce
            let count = isMany ? Self.rowsAtOnce : 1
            try write(rows[place..<place + count], isMany ? many : one)
            place += count
        }
        for row in rows { try insertMilestone(row, key(row)) }
        rows.removeAll(keepingCapacity: true)
        end = 0
    }

    private func write(
        _ rows: ArraySlice<Row>, _ statements: Statements
    ) throws(SQLiteError) {
        var parameter: Int32 = 0
        for row in rows {
            Self.bind(row, key(row), value(row), to: statements.insertChanges, &parameter)
        }
        try statements.insertChanges.run()
        parameter = 0
        // Where a key comes twice, the later row takes the place of the earlier one.
        for row in rows { Self.bind(row, key(row), to: statements.replaceNewest, &parameter) }
        try statements.replaceNewest.run()
    }

    /// One that is not in the arena.
    private func write(_ row: Row, _ change: Change) throws(SQLiteError) {
        try withUnsafeBytes(change.header.key) { key throws(SQLiteError) in
            var parameter: Int32 = 0
            try withUnsafeBytes(change.value) { value throws(SQLiteError) in
                Self.bind(row, key, value, to: one.insertChanges, &parameter)
                try one.insertChanges.run()
            }
            parameter = 0
            Self.bind(row, key, to: one.replaceNewest, &parameter)
            try one.replaceNewest.run()
            try insertMilestone(row, key)
        }
    }

    private func insertMilestone(
        _ row: Row, _ key: UnsafeRawBufferPointer
    ) throws(SQLiteError) {
        guard SQLiteTables.isMilestone(row.number, after: row.previous) else { return }
        milestone.bind(1, Int64(bitPattern: row.number.rawValue))
        milestone.bind(2, unowned: key)
        try milestone.run()
    }

    /// A row of `changes`.
    private static func bind(
        _ row: Row, _ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer,
        to statement: borrowing Statement, _ parameter: inout Int32
    ) {
        statement.bind(parameter + 1, Int64(bitPattern: row.number.rawValue))
        statement.bind(parameter + 2, Int64(bitPattern: row.createRevision.rawValue))
        statement.bind(parameter + 3, Int64(bitPattern: row.version))
        statement.bind(parameter + 4, Int64(bitPattern: row.previous.rawValue))
        statement.bind(parameter + 5, Int64(bitPattern: row.lease.rawValue))
        statement.bind(parameter + 6, unowned: key)
        statement.bind(parameter + 7, unowned: value)
        statement.bind(parameter + 8, Int64(bitPattern: row.replaced?.hash ?? 0))
        statement.bind(parameter + 9, Int64(row.replaced?.valueBytes ?? 0))
        parameter += 9
    }

    /// A row of `newest`.
    private static func bind(
        _ row: Row, _ key: UnsafeRawBufferPointer, to statement: borrowing Statement,
        _ parameter: inout Int32
    ) {
        statement.bind(parameter + 1, unowned: key)
        statement.bind(parameter + 2, Int64(bitPattern: row.number.rawValue))
        statement.bind(parameter + 3, Int64(bitPattern: row.createRevision.rawValue))
        statement.bind(parameter + 4, Int64(bitPattern: row.version))
        statement.bind(parameter + 5, Int64(row.valueBytes))
        statement.bind(parameter + 6, Int64(bitPattern: row.lease.rawValue))
        statement.bind(parameter + 7, Int64(bitPattern: row.hash))
        parameter += 7
    }

    private func key(_ row: Row) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: arena[row.start..<row.start + row.keyBytes])
    }

    private func value(_ row: Row) -> UnsafeRawBufferPointer {
        let start = row.start + row.keyBytes
        return UnsafeRawBufferPointer(rebasing: arena[start..<start + row.valueBytes])
    }
}
