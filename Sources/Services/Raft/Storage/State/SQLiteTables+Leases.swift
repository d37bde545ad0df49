// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

/// The statements over leases and attachments.
final class LeaseStatements {
    fileprivate let select: Statement
    fileprivate let selectAfter: Statement
    fileprivate let selectDue: Statement
    fileprivate let earliest: Statement
    fileprivate let replace: Statement
    fileprivate let delete: Statement
    fileprivate let selectKeys: Statement
    fileprivate let insertKey: Statement
    fileprivate let deleteKey: Statement

    init(_ database: Database) throws(SQLiteError) {
        let columns = SQLiteTables.leaseColumns
        select = try database.prepare("SELECT \(columns) FROM leases WHERE id = ?1")
        selectAfter = try database.prepare(
            "SELECT \(columns) FROM leases WHERE id > ?1 ORDER BY id LIMIT ?2")
        selectDue = try database.prepare(
            "SELECT \(columns) FROM leases WHERE deadline <= ?1 ORDER BY deadline, id LIMIT ?2")
        earliest = try database.prepare("SELECT min(deadline) FROM leases")
        replace = try database.prepare("REPLACE INTO leases(\(columns)) VALUES (?1, ?2, ?3, ?4)")
        delete = try database.prepare("DELETE FROM leases WHERE id = ?1")
        selectKeys = try database.prepare(
            "SELECT key FROM attachments WHERE lease = ?1 AND key > ?2 ORDER BY key LIMIT ?3")
        insertKey = try database.prepare("INSERT INTO attachments(lease, key) VALUES (?1, ?2)")
        deleteKey = try database.prepare("DELETE FROM attachments WHERE lease = ?1 AND key = ?2")
    }
}

extension SQLiteTables {
    static let leaseColumns = "id, ttl, deadline, key_count"

    static func lease(_ statement: borrowing Statement) -> LeaseRow {
        LeaseRow(
            id: LeaseID(UInt64(bitPattern: statement.integer(0))),
            ttlMilliseconds: UInt64(bitPattern: statement.integer(1)),
            deadline: ClusterTime(milliseconds: UInt64(bitPattern: statement.integer(2))),
            keyCount: UInt64(bitPattern: statement.integer(3)))
    }

    func lease(_ id: LeaseID) throws(SQLiteError) -> LeaseRow? {
        leases.select.bind(1, Int64(bitPattern: id.rawValue))
        defer { leases.select.reset() }
        return try leases.select.step() ? Self.lease(leases.select) : nil
    }

    func leases(after: LeaseID, count: Int) throws(SQLiteError) -> [LeaseRow] {
        leases.selectAfter.bind(1, Int64(bitPattern: after.rawValue))
        leases.selectAfter.bind(2, Int64(count))
        defer { leases.selectAfter.reset() }
        var found: [LeaseRow] = []
        while try leases.selectAfter.step() { found.append(Self.lease(leases.selectAfter)) }
        return found
    }

    func leases(dueBy time: ClusterTime, count: Int) throws(SQLiteError) -> [LeaseRow] {
        leases.selectDue.bind(1, Int64(clamping: time.milliseconds))
        leases.selectDue.bind(2, Int64(count))
        defer { leases.selectDue.reset() }
        var found: [LeaseRow] = []
        while try leases.selectDue.step() { found.append(Self.lease(leases.selectDue)) }
        return found
    }

    func earliestDeadline() throws(SQLiteError) -> ClusterTime? {
        defer { leases.earliest.reset() }
        guard try leases.earliest.step(), !leases.earliest.isNull(0) else { return nil }
        return ClusterTime(milliseconds: UInt64(bitPattern: leases.earliest.integer(0)))
    }

    func store(_ lease: LeaseRow) throws(SQLiteError) {
        leases.replace.bind(1, Int64(bitPattern: lease.id.rawValue))
        leases.replace.bind(2, Int64(bitPattern: lease.ttlMilliseconds))
        leases.replace.bind(3, Int64(clamping: lease.deadline.milliseconds))
        leases.replace.bind(4, Int64(bitPattern: lease.keyCount))
        try leases.replace.run()
    }

    func removeLease(_ id: LeaseID) throws(SQLiteError) {
        leases.delete.bind(1, Int64(bitPattern: id.rawValue))
        try leases.delete.run()
    }

    func keys(
        of lease: LeaseID, after: [UInt8]?, count: Int
    ) throws(SQLiteError) -> [[UInt8]] {
        try withUnsafeBytes(after ?? []) { after throws(SQLiteError) in
            leases.selectKeys.bind(1, Int64(bitPattern: lease.rawValue))
            leases.selectKeys.bind(2, unowned: after)
            leases.selectKeys.bind(3, Int64(count))
            defer { leases.selectKeys.reset() }
            var found: [[UInt8]] = []
            while try leases.selectKeys.step() { found.append(leases.selectKeys.bytes(0)) }
            return found
        }
    }

    func insert(_ attachment: AttachmentRow) throws(SQLiteError) {
        try withUnsafeBytes(attachment.key) { key throws(SQLiteError) in
            leases.insertKey.bind(1, Int64(bitPattern: attachment.lease.rawValue))
            leases.insertKey.bind(2, unowned: key)
            try leases.insertKey.run()
        }
    }

    func remove(_ attachment: AttachmentRow) throws(SQLiteError) {
        try withUnsafeBytes(attachment.key) { key throws(SQLiteError) in
            leases.deleteKey.bind(1, Int64(bitPattern: attachment.lease.rawValue))
            leases.deleteKey.bind(2, unowned: key)
            try leases.deleteKey.run()
        }
    }
}
