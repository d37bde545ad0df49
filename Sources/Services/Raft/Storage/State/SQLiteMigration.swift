// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

/// Takes a database of an older schema to the present one, in place and in one transaction: a
/// process that dies meanwhile leaves the old one.
enum SQLiteMigration {
    /// - Parameter version: of the schema found, older than the present one.
    static func run(_ database: Database, from version: Int64) throws(SQLiteError) {
        precondition((1...3).contains(version), "there are three older schemas")
        try database.execute("BEGIN IMMEDIATE")
        if version == 1 { try addLeases(database) }
        try replaceVersions(database)
        try replaceGarbage(database, isThere: version == 3)
        if version == 1 { try count(database) }
        try database.execute("PRAGMA user_version = \(SQLiteTables.schemaVersion)")
        try database.execute("COMMIT")
    }

    private static func addLeases(_ database: Database) throws(SQLiteError) {
        try database.execute(
            """
            ALTER TABLE changes ADD COLUMN lease INTEGER NOT NULL DEFAULT 0;
            ALTER TABLE versions ADD COLUMN value_bytes INTEGER NOT NULL DEFAULT 0;
            ALTER TABLE versions ADD COLUMN lease INTEGER NOT NULL DEFAULT 0;
            UPDATE versions SET value_bytes =
                (SELECT length(value) FROM changes WHERE changes.number = versions.number);
            \(SQLiteTables.leaseSchema)
            """)
    }

    /// The columns added to `changes` lie behind the value, where one that is large is read to find them:
    /// slower when it is swept, until a snapshot takes the place of the file.
    ///
    /// Version 3 had a row for every version, ordered by (key, number DESC), garbage among them; but
    /// the newest of a key is never garbage.
    private static func replaceVersions(_ database: Database) throws(SQLiteError) {
        // The other columns are those of the row with the greatest number: SQLite says so.
        try database.execute(
            """
            ALTER TABLE changes ADD COLUMN replaced_hash INTEGER NOT NULL DEFAULT 0;
            ALTER TABLE changes ADD COLUMN replaced_bytes INTEGER NOT NULL DEFAULT 0;
            \(SQLiteTables.newestSchema)
            INSERT INTO newest
                SELECT key, max(number), create_revision, version, value_bytes, lease, 0
                FROM versions GROUP BY key;
            DROP TABLE versions;
            """)
        let changes = try database.prepare("SELECT number, previous, key FROM changes")
        let insert = try database.prepare("INSERT INTO milestones VALUES (?1, ?2)")
        while try changes.step() {
            let number = ChangeNumber(UInt64(bitPattern: changes.integer(0)))
            let previous = ChangeNumber(UInt64(bitPattern: changes.integer(1)))
            guard SQLiteTables.isMilestone(number, after: previous) else { continue }
            insert.bind(1, changes.integer(0))
            insert.bind(2, unowned: changes.unownedBytes(2))
            try insert.run()
        }
    }

    /// Version 3 had a row for every number, versions 1 and 2 had no garbage.
    private static func replaceGarbage(
        _ database: Database, isThere: Bool
    ) throws(SQLiteError) {
        var numbers: [Int64] = []
        var bytes: Int64 = 0
        if isThere {
            do {
                let rows = try database.prepare("SELECT number, bytes FROM garbage ORDER BY place")
                while try rows.step() {
                    numbers.append(rows.integer(0))
                    bytes += rows.integer(1)
                }
            }
            try database.execute("DROP TABLE garbage; DROP TABLE hand;")
        }
        try database.execute(GarbageCollector.schema)
        try GarbageCollector.fill(database, numbers, bytes: bytes)
    }

    private static func count(_ database: Database) throws(SQLiteError) {
        var meta = try SQLiteTables.storedMeta(database)
        meta.figures = try figures(database)
        meta.needsCounting = false
        guard meta.appliedIndex > .zero else { return }
        let replace = try database.prepare("REPLACE INTO meta VALUES (1, ?1)")
        try withUnsafeBytes(meta.encoded()) { bytes throws(SQLiteError) in
            replace.bind(1, unowned: bytes)
            try replace.run()
        }
    }

    /// From the rows, as `StateFigures` would have counted them.
    static func figures(_ database: Database) throws(SQLiteError) -> StateFigures {
        var figures = StateFigures()
        let columns = "2 * length(key) + length(value) + \(StateFigures.rowBytes)"
        let all = try database.prepare("SELECT count(*), sum(\(columns)) FROM changes")
        if try all.step() {
            figures.changeCount = UInt64(bitPattern: all.integer(0))
            figures.changeBytes = UInt64(bitPattern: all.integer(1))
        }
        let one = try database.prepare("SELECT \(columns) FROM changes WHERE number = ?1")
        for number in try GarbageCollector.numbers(database) {
            one.bind(1, number)
            if try one.step() {
                figures.changeCount -= 1
                figures.changeBytes -= UInt64(bitPattern: one.integer(0))
            }
            one.reset()
        }
        let live = try database.prepare(
            """
            SELECT count(*), sum(2 * length(key) + value_bytes + \(StateFigures.rowBytes))
            FROM newest WHERE version > 0
            """)
        if try live.step() {
            figures.liveCount = UInt64(bitPattern: live.integer(0))
            figures.liveBytes = UInt64(bitPattern: live.integer(1))
        }
        return figures
    }
}
