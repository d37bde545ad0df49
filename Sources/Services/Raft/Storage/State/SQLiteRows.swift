// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

/// Every row of the state, table by table, in the order that `StateLoader` wants. What is left over of
/// history that was swept is not part of it (see `GarbageCollector`).
final class SQLiteRows: RowSource {
    private enum Table { case changes, newest, past, sessions, answers, leases, attachments, end }

    private let changes: Statement
    private let newest: Statement
    private let previous: Statement
    private let sessions: Statement
    private let answers: Statement
    private let leases: Statement
    private let attachments: Statement
    private let includesVersions: Bool
    private var table = Table.changes
    /// Numbers of changes that are garbage, ascending; those before `passed` have been passed.
    private let garbage: [Int64]
    private var passed = 0

    init(_ database: Database, includingVersions: Bool) throws(SQLiteError) {
        includesVersions = includingVersions
        garbage = try GarbageCollector.numbers(database)
        changes = try database.prepare(
            "SELECT \(SQLiteTables.changeColumns) FROM changes ORDER BY number")
        newest = try database.prepare(
            "SELECT key, \(SQLiteTables.versionColumns) FROM newest ORDER BY key")
        // Each change but the newest of its key has one that follows it.
        previous = try database.prepare(
            """
            SELECT key, number, create_revision, version, length(value), lease FROM changes
            WHERE number = ?1
            """)
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
                table = includesVersions ? .newest : .sessions
            case .newest:
                if try newest.step() { return .version(Self.version(newest)) }
                newest.reset()
                passed = 0
                table = .past
            case .past:
                while try changes.step() {
                    if isGarbage(changes.integer(0)) { continue }
                    if let version = try version(of: changes.integer(3)) {
                        return .version(version)
                    }
                }
                changes.reset()
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

    /// Nil if there is none any more.
    private func version(of change: Int64) throws(SQLiteError) -> KeyVersion? {
        guard change != 0, !isGarbageAnywhere(change) else { return nil }
        previous.bind(1, change)
        defer { previous.reset() }
        return try previous.step() ? Self.version(previous) : nil
    }

    private static func version(_ statement: borrowing Statement) -> KeyVersion {
        KeyVersion(key: statement.bytes(0), row: SQLiteTables.versionRow(statement, at: 1))
    }

    private func isGarbageAnywhere(_ number: Int64) -> Bool {
        var (low, high) = (0, garbage.count)
        while low < high {
            let middle = (low + high) / 2
            if garbage[middle] < number { low = middle + 1 } else { high = middle }
        }
        return low < garbage.count && garbage[low] == number
    }
}
