// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

/// Every row of the state, table by table, in the order that `StateLoader` wants. What is left over of
/// history that was swept is not part of it (see `GarbageCollector`).
final class SQLiteRows: RowSource {
    private enum Table { case changes, versions, sessions, answers, leases, attachments, end }

    private let changes: Statement
    private let versions: Statement
    private let sessions: Statement
    private let answers: Statement
    private let leases: Statement
    private let attachments: Statement
    private let includesVersions: Bool
    private var table = Table.changes
    /// Numbers of changes that are garbage, ascending; those before `passed` have been passed.
    private let garbage: [Int64]
    private var passed = 0
    private let swept: ChangeNumber
    /// The key of the last version, and whether what is older of it is dead.
    private var key: [UInt8] = []
    private var isCovered = false

    init(_ database: Database, includingVersions: Bool) throws(SQLiteError) {
        includesVersions = includingVersions
        garbage = try GarbageCollector.numbers(database)
        swept = try SQLiteTables.storedMeta(database).swept
        changes = try database.prepare(
            "SELECT \(SQLiteTables.changeColumns) FROM changes ORDER BY number")
        versions = try database.prepare(
            "SELECT key, \(SQLiteTables.versionColumns) FROM versions ORDER BY key, number DESC")
        sessions = try database.prepare(
            "SELECT id, last_active, acknowledged_below, answers FROM sessions ORDER BY id")
        answers = try database.prepare(
            "SELECT session, number, bytes FROM answers ORDER BY session, number")
        leases = try database.prepare(
            "SELECT \(SQLiteTables.leaseColumns) FROM leases ORDER BY id")
        attachments = try database.prepare(
            "SELECT lease, key FROM attachments ORDER BY lease, key")
    }

    func next() throws(SQLiteError) -> StateRow? {
        while true {
            switch table {
            case .changes:
                while try changes.step() {
                    if !isGarbage(changes.integer(0)) {
                        return .change(SQLiteTables.change(changes))
                    }
                }
                changes.reset()
                table = includesVersions ? .versions : .sessions
            case .versions:
                while try versions.step() {
                    let row = SQLiteTables.versionRow(versions, at: 1)
                    if !isDead(row) { return .version(KeyVersion(key: key, row: row)) }
                }
                versions.reset()
                table = .sessions
            case .sessions:
                if try sessions.step() {
                    let id = SessionID(UInt64(bitPattern: sessions.integer(0)))
                    return .session(try SQLiteTables.session(id, sessions, at: 1))
                }
                sessions.reset()
                table = .answers
            case .answers:
                if try answers.step() {
                    return .answer(
                        AnswerRow(
                            session: SessionID(UInt64(bitPattern: answers.integer(0))),
                            number: UInt64(bitPattern: answers.integer(1)), bytes: answers.bytes(2))
                    )
                }
                answers.reset()
                table = .leases
            case .leases:
                if try leases.step() { return .lease(SQLiteTables.lease(leases)) }
                leases.reset()
                table = .attachments
            case .attachments:
                if try attachments.step() {
                    return .attachment(
                        AttachmentRow(
                            lease: LeaseID(UInt64(bitPattern: attachments.integer(0))),
                            key: attachments.bytes(1)))
                }
                attachments.reset()
                table = .end
            case .end: return nil
            }
        }
    }

    private func isGarbage(_ number: Int64) -> Bool {
        while passed < garbage.count, garbage[passed] < number { passed += 1 }
        return passed < garbage.count && garbage[passed] == number
    }

    /// Of the row that `versions` is at.
    private func isDead(_ row: VersionRow) -> Bool {
        if versions.withBytes(0, { !$0.elementsEqual(key) }) {
            key = versions.bytes(0)
            isCovered = false
        }
        if isCovered { return true }
        isCovered = row.change <= swept
        return false
    }
}
