// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import SQLiteKit
import Testing

@Suite struct BlobColumnTests {
    private static func open(_ directory: StateDirectory) throws -> Database {
        let database = try Database(path: directory.path + "/blobs.db")
        try database.execute(
            "CREATE TABLE things(number INTEGER PRIMARY KEY, word TEXT, bytes BLOB)")
        return database
    }

    private static func insert(_ database: Database, _ row: Int64, _ bytes: [UInt8]) throws {
        let statement = try database.prepare("REPLACE INTO things VALUES (?1, 'word', ?2)")
        try bytes.withUnsafeBytes {
            statement.bind(1, row)
            statement.bind(2, unowned: $0)
            try statement.run()
        }
    }

    @Test func givesWhatAStatementGives() throws {
        let directory = StateDirectory()
        let database = try Self.open(directory)
        var random = RandomSource(seed: 5)
        var rows: [Int64: [UInt8]] = [:]
        for number in 0..<300 as Range<Int64> {
            // In the page, at its end, and over many pages.
            let count = random.uniform(0..<[8, 300, 6000, 100_000][Int(number) % 4])
            rows[number * 3] = (0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        }
        for (row, bytes) in rows { try Self.insert(database, row, bytes) }
        var column = BlobColumn(database, table: "things", column: "bytes")
        let sorted = rows.keys.sorted()
        for row in sorted + sorted.sorted(by: { $0 * 7919 % 1009 < $1 * 7919 % 1009 }) {
            let found = try column.read(row).map { [UInt8]($0) }
            #expect(found == rows[row])
        }
    }

    @Test func aRowThatIsNotThereIsSaidToBeMissing() throws {
        let directory = StateDirectory()
        let database = try Self.open(directory)
        try Self.insert(database, 2, [7])
        try database.execute("INSERT INTO things VALUES (4, 'word', NULL)")
        for missing in [1, 3, 4, 5] as [Int64] {
            var first = BlobColumn(database, table: "things", column: "bytes")
            let alone = try first.read(missing) == nil
            // And as one that is not the first.
            var later = BlobColumn(database, table: "things", column: "bytes")
            let there = try later.read(2).map { [UInt8]($0) }
            let missed = try later.read(missing) == nil
            #expect(alone && there == [7] && missed)
        }
        // Nothing is left open that would keep anybody from writing.
        try Self.insert(database, 2, [8, 9])
        var column = BlobColumn(database, table: "things", column: "bytes")
        let found = try column.read(2).map { [UInt8]($0) }
        #expect(found == [8, 9])
    }
}
