// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

/// Takes a database of an older schema to the present one, in place and in one transaction: a
/// process that dies meanwhile leaves the old one.
enum SQLiteMigration {
    /// - Parameter version: of the schema found, older than the present one.
    static func run(_ database: Database, from version: Int64) throws(SQLiteError) {
        precondition(version == 1 || version == 2, "there are two older schemas")
        try database.execute("BEGIN IMMEDIATE")
        try database.execute(
            """
            \(GarbageCollector.schema)
            PRAGMA user_version = \(SQLiteTables.schemaVersion);
            """)
        if version == 1 { try addLeases(database) }
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
        var meta = try SQLiteTables.storedMeta(database)
        meta.figures = try figures(database)
        meta.needsCounting = false
        if meta.appliedIndex > .zero {
            let replace = try database.prepare("REPLACE INTO meta VALUES (1, ?1)")
            try withUnsafeBytes(meta.encoded()) { bytes throws(SQLiteError) in
                replace.bind(1, unowned: bytes)
                try replace.run()
            }
        }
    }

    /// From the rows, as `StateFigures` would have counted them.
    static func figures(_ database: Database) throws(SQLiteError) -> StateFigures {
        var figures = StateFigures()
        let all = try database.prepare(
            """
            SELECT count(*), sum(2 * length(key) + length(value) + \(StateFigures.rowBytes))
            FROM changes WHERE number NOT IN (SELECT number FROM garbage)
            """)
        if try all.step() {
            figures.changeCount = UInt64(bitPattern: all.integer(0))
            figures.changeBytes = UInt64(bitPattern: all.integer(1))
        }
        // The other columns are those of the row with the greatest number: SQLite says so.
        let live = try database.prepare(
            """
            SELECT count(*), sum(2 * length(key) + value_bytes + \(StateFigures.rowBytes)) FROM
            (SELECT key, version, value_bytes, max(number) FROM versions GROUP BY key)
            WHERE version > 0
            """)
        if try live.step() {
            figures.liveCount = UInt64(bitPattern: live.integer(0))
            figures.liveBytes = UInt64(bitPattern: live.integer(1))
        }
        return figures
    }
}
