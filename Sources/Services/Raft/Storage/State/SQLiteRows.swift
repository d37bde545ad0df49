// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

/// Every row of the database, table by table, in the order that `StateLoader` wants.
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

    init(_ database: Database, includingVersions: Bool) throws(SQLiteError) {
        includesVersions = includingVersions
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
                if try changes.step() { return .change(SQLiteTables.change(changes)) }
                changes.reset()
                table = includesVersions ? .versions : .sessions
            case .versions:
                if try versions.step() {
                    return .version(
                        KeyVersion(
                            key: versions.bytes(0), row: SQLiteTables.versionRow(versions, at: 1)))
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
}
