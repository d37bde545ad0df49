// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import KVCore
import SQLiteKit

/// The tables in one SQLite file.
///
/// Everything lies in `changes`, a rowid table whose key only grows: an insert appends to the last leaf,
/// however random the user's keys are, values of any size lie in leaves or overflow pages (the rows
/// of a WITHOUT ROWID table also fill inner pages), and history costs no copying. The user's order
/// of keys is kept by `newest`, which names the newest change of each key and repeats what is small of
/// it. A put overwrites a row there, in a tree of tens of bytes a key that has one row for each key
/// and none for its past, and a page of it that many puts touch is written once.
///
/// The past of a key is found by going back from change to change: each names the one before it. So that
/// this does not take the longer the more often a key is written, one change in 64 has a row in
/// `milestones`, from which a search may start (see `SQLiteTables+Past`).
///
/// Rejected: a row for every version in a tree ordered by (key, number). Its inserts land on random pages,
/// each has to be taken out again, and with 100,000 revisions of history that tree is many times as large:
/// about a fifth of all that applying a put costs. A second copy of the value beside the key reads
/// faster and writes each value twice.
///
/// A row of `newest` has the sum of the hashes of its change (`RowHash.ofRows`), and a row of `changes` that of
/// the change before it, with the bytes of its value: what history has lost is then reckoned without
/// being read again. Zero: not known, as in files of before, or a tombstone.
///
/// What is swept of history stays in `changes` for a while: see `GarbageCollector`.
final class SQLiteTables: StateTables {
    typealias Failure = SQLiteError

    /// "aspn"; in the file's header, so that a foreign database is not taken for ours.
    static let applicationID: Int64 = 0x6173_706e
    /// Grows with every change of the schema.
    static let schemaVersion: Int64 = 4

    /// What lies before a value can be read without touching its overflow pages.
    static let schema = """
        CREATE TABLE meta(id INTEGER PRIMARY KEY CHECK (id = 1), bytes BLOB NOT NULL);
        CREATE TABLE changes(
            number INTEGER PRIMARY KEY, create_revision INTEGER NOT NULL, version INTEGER NOT NULL,
            previous INTEGER NOT NULL, lease INTEGER NOT NULL, replaced_hash INTEGER NOT NULL,
            replaced_bytes INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL);
        \(newestSchema)
        CREATE TABLE sessions(
            id INTEGER PRIMARY KEY, last_active INTEGER NOT NULL,
            acknowledged_below INTEGER NOT NULL, answers BLOB NOT NULL);
        CREATE TABLE answers(
            session INTEGER NOT NULL, number INTEGER NOT NULL, bytes BLOB NOT NULL,
            PRIMARY KEY (session, number)) WITHOUT ROWID;
        \(leaseSchema)
        \(GarbageCollector.schema)
        PRAGMA application_id = \(applicationID);
        PRAGMA user_version = \(schemaVersion);
        """

    /// What version 2 of the schema has more than version 1, besides columns.
    static let leaseSchema = """
        CREATE TABLE leases(
            id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL, deadline INTEGER NOT NULL,
            key_count INTEGER NOT NULL);
        CREATE INDEX leases_by_deadline ON leases(deadline, id);
        CREATE TABLE attachments(
            lease INTEGER NOT NULL, key BLOB NOT NULL, PRIMARY KEY (lease, key)) WITHOUT ROWID;
        """

    /// What version 4 of the schema has in the place of a table `versions`.
    static let newestSchema = """
        CREATE TABLE newest(
            key BLOB NOT NULL PRIMARY KEY, number INTEGER NOT NULL, create_revision INTEGER NOT NULL,
            version INTEGER NOT NULL, value_bytes INTEGER NOT NULL, lease INTEGER NOT NULL,
            hash INTEGER NOT NULL) WITHOUT ROWID;
        CREATE TABLE milestones(number INTEGER PRIMARY KEY, key BLOB NOT NULL);
        CREATE INDEX milestones_by_key ON milestones(key, number);
        """

    static let changeColumns = "number, create_revision, version, previous, lease, key, value"
    static let versionColumns = "number, create_revision, version, value_bytes, lease"
    /// About what a row of `newest` takes besides its key.
    static let newestRowBytes = 34

    let database: Database
    private let begin: Statement
    private let commit: Statement
    private let selectNewest: Statement
    let scanTo: Statement
    let scanOn: Statement
    let scanDownFrom: Statement
    let scanDown: Statement
    private let deleteNewest: Statement
    let selectPast: Statement
    let nextMilestone: Statement
    private let selectValue: Statement
    private let selectChange: Statement
    private let selectHeaders: Statement
    private let selectSwept: Statement
    private let recentKeys: Statement
    private let deleteChange: Statement
    private let selectSession: Statement
    private let replaceSession: Statement
    private let deleteSession: Statement
    private let silentSessions: Statement
    private let oldestSession: Statement
    private let selectAnswer: Statement
    private let replaceAnswer: Statement
    private let deleteAnswer: Statement
    private let replaceMeta: Statement
    let leases: LeaseStatements
    let garbage: GarbageCollector
    let pending: PendingChanges
    /// Rows of `newest` as they are, of keys that were asked for or written lately: who writes a few keys
    /// again and again finds them here.
    private var recent: [[UInt8]: Newest] = [:]
    /// Rows of that; when there are more, all are dropped.
    private static let recentMax = 16_384

    private struct Newest {
        var row: VersionRow
        /// See `RowHash.ofRows`; zero: not known.
        var hash: UInt64
    }

    /// The schema must be there.
    init(
        _ database: Database, garbageCountMin: Int = GarbageCollector.countMin
    ) throws(SQLiteError) {
        self.database = database
        begin = try database.prepare("BEGIN IMMEDIATE")
        commit = try database.prepare("COMMIT")
        selectNewest = try database.prepare(
            "SELECT \(Self.versionColumns), hash FROM newest WHERE key = ?1")
        deleteNewest = try database.prepare("DELETE FROM newest WHERE key = ?1 AND number = ?2")
        selectPast = try database.prepare(
            """
            SELECT number, create_revision, version, length(value), lease, previous
            FROM changes WHERE number = ?1
            """)
        nextMilestone = try database.prepare(
            """
            SELECT number FROM milestones WHERE key = ?1 AND number > ?2 ORDER BY number LIMIT 1
            """)
        scanTo = try database.prepare(
            """
            SELECT key, \(Self.versionColumns) FROM newest
            WHERE key >= ?1 AND key < ?2 ORDER BY key
            """)
        scanOn = try database.prepare(
            "SELECT key, \(Self.versionColumns) FROM newest WHERE key >= ?1 ORDER BY key")
        scanDownFrom = try database.prepare(
            """
            SELECT key, \(Self.versionColumns) FROM newest
            WHERE key >= ?1 AND key < ?2 ORDER BY key DESC
            """)
        scanDown = try database.prepare(
            "SELECT key, \(Self.versionColumns) FROM newest WHERE key >= ?1 ORDER BY key DESC")
        selectValue = try database.prepare("SELECT value FROM changes WHERE number = ?1")
        selectChange = try database.prepare(
            """
            SELECT \(Self.changeColumns) FROM changes WHERE number = ?1
            """)
        selectHeaders = try database.prepare(
            """
            SELECT number, create_revision, version, previous, lease, key FROM changes
            WHERE number > ?1 AND number <= ?2 ORDER BY number LIMIT ?3
            """)
        selectSwept = try database.prepare(
            """
            SELECT number, previous, version, length(key), replaced_hash, replaced_bytes
            FROM changes WHERE number > ?1 AND number <= ?2 ORDER BY number LIMIT ?3
            """)
        recentKeys = try database.prepare(
            """
            SELECT avg(length(key)) FROM (SELECT key FROM changes ORDER BY number DESC LIMIT 32)
            """)
        deleteChange = try database.prepare("DELETE FROM changes WHERE number = ?1")
        selectSession = try database.prepare(
            "SELECT last_active, acknowledged_below, answers FROM sessions WHERE id = ?1")
        replaceSession = try database.prepare("REPLACE INTO sessions VALUES (?1, ?2, ?3, ?4)")
        deleteSession = try database.prepare("DELETE FROM sessions WHERE id = ?1")
        silentSessions = try database.prepare(
            "SELECT id FROM sessions WHERE last_active < ?1 ORDER BY id")
        oldestSession = try database.prepare("SELECT min(last_active) FROM sessions")
        selectAnswer = try database.prepare(
            "SELECT bytes FROM answers WHERE session = ?1 AND number = ?2")
        replaceAnswer = try database.prepare("REPLACE INTO answers VALUES (?1, ?2, ?3)")
        deleteAnswer = try database.prepare(
            "DELETE FROM answers WHERE session = ?1 AND number = ?2")
        replaceMeta = try database.prepare("REPLACE INTO meta VALUES (1, ?1)")
        leases = try LeaseStatements(database)
        garbage = try GarbageCollector(database, countMin: garbageCountMin)
        pending = try PendingChanges(database)
    }

    func beginTransaction() throws(SQLiteError) { try begin.run() }
    func commitTransaction() throws(SQLiteError) {
        try settle()
        try commit.run()
    }

    /// Writes to the tables what is in memory only.
    func settle() throws(SQLiteError) {
        try pending.write()
        try garbage.store()
    }

    // MARK: Versions

    func version(
        of key: [UInt8], upTo limit: ChangeNumber
    ) throws(SQLiteError) -> VersionRow? {
        guard let newest = try newest(of: key) else { return nil }
        let row = newest.row
        return row.change <= limit ? row : try past(of: key, row.change, upTo: limit).row
    }

    private func newest(of key: [UInt8]) throws(SQLiteError) -> Newest? {
        if let newest = recent[key] { return newest }
        let newest = try withUnsafeBytes(key) { key throws(SQLiteError) -> Newest? in
            selectNewest.bind(1, unowned: key)
            defer { selectNewest.reset() }
            guard try selectNewest.step() else { return nil }
            return Newest(
                row: Self.versionRow(selectNewest, at: 0),
                hash: UInt64(bitPattern: selectNewest.integer(5)))
        }
        if let newest { try remember(key, newest) }
        return newest
    }

    /// All that is pending is here as well.
    private func remember(_ key: [UInt8], _ newest: Newest) throws(SQLiteError) {
        guard key.count <= PendingChanges.keyBytesMax else { return }
        if recent.count >= Self.recentMax {
            try pending.write()
            recent.removeAll(keepingCapacity: true)
        }
        recent[key] = newest
    }

    /// Gives back memory. Nothing is pending.
    func rest() {
        recent = [:]
        database.releaseMemory()
    }

    @inline(__always)
    static func versionRow(_ statement: borrowing Statement, at column: Int32) -> VersionRow {
        VersionRow(
            change: ChangeNumber(UInt64(bitPattern: statement.integer(column))),
            createRevision: Revision(UInt64(bitPattern: statement.integer(column + 1))),
            version: UInt64(bitPattern: statement.integer(column + 2)),
            valueBytes: Int(statement.integer(column + 3)),
            lease: LeaseID(UInt64(bitPattern: statement.integer(column + 4))))
    }

    // MARK: Changes

    func value(of change: ChangeNumber) throws(SQLiteError) -> [UInt8] {
        if let value = pending.value(of: change) { return value }
        selectValue.bind(1, Int64(bitPattern: change.rawValue))
        defer { selectValue.reset() }
        guard try selectValue.step() else { throw Self.hasNoChange }
        return selectValue.bytes(0)
    }

    func changes(
        after: ChangeNumber, upTo: ChangeNumber, count: Int
    ) throws(SQLiteError) -> [ChangeHeader] {
        if upTo >= pending.first { try pending.write() }
        selectHeaders.bind(1, Int64(bitPattern: after.rawValue))
        selectHeaders.bind(2, Int64(bitPattern: upTo.rawValue))
        selectHeaders.bind(3, Int64(count))
        defer { selectHeaders.reset() }
        var found: [ChangeHeader] = []
        while try selectHeaders.step() { found.append(Self.header(selectHeaders)) }
        return found
    }

    func sweepable(
        after: ChangeNumber, upTo: ChangeNumber, count: Int
    ) throws(SQLiteError) -> [SweptChange] {
        if upTo >= pending.first { try pending.write() }
        selectSwept.bind(1, Int64(bitPattern: after.rawValue))
        selectSwept.bind(2, Int64(bitPattern: upTo.rawValue))
        selectSwept.bind(3, Int64(count))
        defer { selectSwept.reset() }
        var found: [SweptChange] = []
        while try selectSwept.step() {
            let hash = UInt64(bitPattern: selectSwept.integer(4))
            found.append(
                SweptChange(
                    number: ChangeNumber(UInt64(bitPattern: selectSwept.integer(0))),
                    previous: ChangeNumber(UInt64(bitPattern: selectSwept.integer(1))),
                    isTombstone: selectSwept.integer(2) == 0,
                    keyBytes: Int(selectSwept.integer(3)),
                    replaced: hash == 0
                        ? nil : .init(hash: hash, valueBytes: Int(selectSwept.integer(5)))))
        }
        return found
    }

    /// How long the keys of the newest changes are; 0 if there are none.
    func recentKeyBytes() throws(SQLiteError) -> Int {
        defer { recentKeys.reset() }
        return try recentKeys.step() ? Int(recentKeys.integer(0)) : 0
    }

    func insert(_ change: Change, hash: UInt64) throws(SQLiteError) {
        let header = change.header
        try pending.append(change, replaced: try replaced(by: header), hash: hash)
        try remember(header.key, Newest(row: change.versionRow, hash: hash))
    }

    /// A tombstone may be gone before its successor is swept.
    private func replaced(
        by header: ChangeHeader
    ) throws(SQLiteError) -> SweptChange.Replaced? {
        guard header.previous != .zero, let newest = try newest(of: header.key),
            newest.row.change == header.previous, !newest.row.isTombstone, newest.hash != 0
        else { return nil }
        return SweptChange.Replaced(hash: newest.hash, valueBytes: newest.row.valueBytes)
    }

    /// Nobody asks for one that is garbage already: each has one successor that removes it, and a
    /// tombstone, which two may remove, is taken out at once.
    func remove(_ number: ChangeNumber) throws(SQLiteError) -> Change? {
        if number >= pending.first { try pending.write() }
        let id = Int64(bitPattern: number.rawValue)
        selectChange.bind(1, id)
        guard try selectChange.step() else {
            selectChange.reset()
            return nil
        }
        let change = Self.change(selectChange)
        selectChange.reset()
        let header = change.header
        guard header.isTombstone else {
            try remove(number, keyBytes: header.key.count, valueBytes: change.value.count)
            return change
        }
        garbage.noteSwept()
        deleteChange.bind(1, id)
        try deleteChange.run()
        // With the way to all that is older.
        try withUnsafeBytes(header.key) { key throws(SQLiteError) in
            deleteNewest.bind(1, unowned: key)
            deleteNewest.bind(2, id)
            try deleteNewest.run()
        }
        if recent[header.key]?.row.change == number { recent[header.key] = nil }
        return change
    }

    func remove(
        _ number: ChangeNumber, keyBytes: Int, valueBytes: Int
    ) throws(SQLiteError) {
        if number >= pending.first { try pending.write() }
        garbage.noteSwept()
        if try garbage.leave(number, bytes: keyBytes + valueBytes) { return }
        deleteChange.bind(1, Int64(bitPattern: number.rawValue))
        try deleteChange.run()
    }

    static func header(_ statement: borrowing Statement) -> ChangeHeader {
        ChangeHeader(
            number: ChangeNumber(UInt64(bitPattern: statement.integer(0))),
            key: statement.bytes(5),
            createRevision: Revision(UInt64(bitPattern: statement.integer(1))),
            version: UInt64(bitPattern: statement.integer(2)),
            previous: ChangeNumber(UInt64(bitPattern: statement.integer(3))),
            lease: LeaseID(UInt64(bitPattern: statement.integer(4))))
    }

    static func change(_ statement: borrowing Statement) -> Change {
        Change(header: header(statement), value: statement.bytes(6))
    }

    // MARK: Sessions

    func session(_ id: SessionID) throws(SQLiteError) -> SessionRow? {
        selectSession.bind(1, Int64(bitPattern: id.rawValue))
        defer { selectSession.reset() }
        guard try selectSession.step() else { return nil }
        return try Self.session(id, selectSession, at: 0)
    }

    static func session(
        _ id: SessionID, _ statement: borrowing Statement, at column: Int32
    ) throws(SQLiteError) -> SessionRow {
        var reader = ByteReader(statement.bytes(column + 2))
        let answers: [SessionRow.Answer]
        do {
            answers = try SessionAnswersCodec.decode(from: &reader)
            try reader.end()
        } catch { throw damaged("a session cannot be read: \(error)") }
        return SessionRow(
            id: id,
            lastActive: ClusterTime(milliseconds: UInt64(bitPattern: statement.integer(column))),
            acknowledgedBelow: UInt64(bitPattern: statement.integer(column + 1)), answers: answers)
    }

    func sessions(lastActiveBefore time: ClusterTime) throws(SQLiteError) -> [SessionID] {
        silentSessions.bind(1, Int64(clamping: time.milliseconds))
        defer { silentSessions.reset() }
        var found: [SessionID] = []
        while try silentSessions.step() {
            found.append(SessionID(UInt64(bitPattern: silentSessions.integer(0))))
        }
        return found
    }

    func oldestSessionActivity() throws(SQLiteError) -> ClusterTime? {
        defer { oldestSession.reset() }
        guard try oldestSession.step(), !oldestSession.isNull(0) else { return nil }
        return ClusterTime(milliseconds: UInt64(bitPattern: oldestSession.integer(0)))
    }

    func store(_ session: SessionRow) throws(SQLiteError) {
        let answers = SessionAnswersCodec.encode(session.answers)
        try withUnsafeBytes(answers) { answers throws(SQLiteError) in
            replaceSession.bind(1, Int64(bitPattern: session.id.rawValue))
            replaceSession.bind(2, Int64(clamping: session.lastActive.milliseconds))
            replaceSession.bind(3, Int64(bitPattern: session.acknowledgedBelow))
            replaceSession.bind(4, unowned: answers)
            try replaceSession.run()
        }
    }

    func removeSession(_ id: SessionID) throws(SQLiteError) {
        deleteSession.bind(1, Int64(bitPattern: id.rawValue))
        try deleteSession.run()
    }

    func answer(of session: SessionID, number: UInt64) throws(SQLiteError) -> [UInt8]? {
        selectAnswer.bind(1, Int64(bitPattern: session.rawValue))
        selectAnswer.bind(2, Int64(bitPattern: number))
        defer { selectAnswer.reset() }
        return try selectAnswer.step() ? selectAnswer.bytes(0) : nil
    }

    func store(_ answer: AnswerRow) throws(SQLiteError) {
        try withUnsafeBytes(answer.bytes) { bytes throws(SQLiteError) in
            replaceAnswer.bind(1, Int64(bitPattern: answer.session.rawValue))
            replaceAnswer.bind(2, Int64(bitPattern: answer.number))
            replaceAnswer.bind(3, unowned: bytes)
            try replaceAnswer.run()
        }
    }

    func removeAnswer(of session: SessionID, number: UInt64) throws(SQLiteError) {
        deleteAnswer.bind(1, Int64(bitPattern: session.rawValue))
        deleteAnswer.bind(2, Int64(bitPattern: number))
        try deleteAnswer.run()
    }

    // MARK: Meta

    /// As in a new state if nothing has been applied yet.
    static func storedMeta(_ database: Database) throws(SQLiteError) -> StateMeta {
        let select = try database.prepare("SELECT bytes FROM meta WHERE id = 1")
        guard try select.step() else { return StateMeta() }
        do { return try StateMeta(decoding: select.bytes(0)) } catch {
            throw damaged("the meta row cannot be read: \(error)")
        }
    }

    func store(_ meta: StateMeta) throws(SQLiteError) {
        try withUnsafeBytes(meta.encoded()) { bytes throws(SQLiteError) in
            replaceMeta.bind(1, unowned: bytes)
            try replaceMeta.run()
        }
    }

    /// What SQLite would say, had it noticed.
    static let hasNoChange = damaged("a version has no change")

    /// Pages of several moments, each of them sound.
    static func contradiction(_ what: String) -> SQLiteError { damaged(what) }

    static func damaged(_ text: String) -> SQLiteError {
        SQLiteError(code: SQLiteError.corruptCode, message: text)
    }
}

/// `Array.withUnsafeBytes` with a typed error.
@inline(__always)
func withUnsafeBytes<Result>(
    _ array: [UInt8], _ body: (UnsafeRawBufferPointer) throws(SQLiteError) -> Result
) throws(SQLiteError) -> Result {
    var failure: SQLiteError?
    let result = array.withUnsafeBytes { bytes -> Result? in
        do throws(SQLiteError) { return try body(bytes) } catch {
            failure = error
            return nil
        }
    }
    if let failure { throw failure }
    guard let result else { preconditionFailure("a result or an error") }
    return result
}
