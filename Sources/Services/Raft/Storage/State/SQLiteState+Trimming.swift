// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore
import SQLiteKit

// What is of no use any more goes: garbage, and free pages.

extension SQLiteState {
    /// Free pages given back to the file system with a checkpoint; with more than half of the file
    /// free, four times as many.
    private static let vacuumPages = 256
    /// Times that many pages are given back in one `trim`.
    private static let trimRounds = 8
    /// Pages that one row taken out changes at most on average, and those that any number of rows do.
    private static let pagesPerRow = 2
    private static let otherPages = 64
    /// A page in the WAL.
    private static let frameBytes = 4120

    package func trim() throws(StorageError) -> (durable: LogIndex, hasMore: Bool) {
        var durable = try checkpoint()
        // A reader, or a full disk, would keep all that the vacuum writes in the WAL.
        guard durable == meta.appliedIndex, !spools.contains(where: \.isReadingDatabase) else {
            return (durable, false)
        }
        for _ in 0..<Self.trimRounds {
            let hasGarbage = try collectAtRest()
            let free: Int64 = try storing { machine throws(SQLiteError) in
                let database = machine.tables.database
                let free = try database.integer("PRAGMA freelist_count") ?? 0
                guard free > 0 else { return 0 }
                return try Self.vacuum(database, pages: Self.vacuumPages) ? free : 0
            }
            if free == 0, !hasGarbage { return (durable, false) }
            // Each time: what the vacuum moves is in the WAL, and the WAL must stay small.
            durable = try checkpoint()
        }
        return (durable, true)
    }

    /// A transaction of its own, for which the WAL gets its blocks before it begins: what finds the disk
    /// full when it is committed is an error.
    /// - Returns: whether there is more, and room for it.
    private func collectAtRest() throws(StorageError) -> Bool {
        let rows = isSpaceTight ? GarbageCollector.tightStep : GarbageCollector.restStep
        let isDue = try storing { machine throws(SQLiteError) in
            machine.tables.garbage.isOverdue(machine.meta.figures, isSpaceTight: isSpaceTight)
        }
        guard isDue, hasRoom(bytes: (Self.pagesPerRow * rows + Self.otherPages) * Self.frameBytes)
        else { return false }
        return try storing { machine throws(SQLiteError) in
            try machine.tables.beginTransaction()
            let hasMore = try machine.tables.garbage.collectAtRest(
                rows, machine.meta.figures, isSpaceTight: isSpaceTight)
            try machine.tables.commitTransaction()
            return hasMore
        }
    }

    /// Gives free pages back to the file system, a few at a time, when a quarter of the file is
    /// free: less than that will be used again.
    static func vacuum(_ database: Database) throws(SQLiteError) {
        let free = try database.integer("PRAGMA freelist_count") ?? 0
        let all = try database.integer("PRAGMA page_count") ?? 0
        guard free > max(Int64(4 * vacuumPages), all / 4) else { return }
        _ = try vacuum(database, pages: free > all / 2 ? 4 * vacuumPages : vacuumPages)
    }

    /// A transaction of its own.
    /// - Returns: false if the disk had no room for it: then SQLite has undone it.
    private static func vacuum(_ database: Database, pages: Int) throws(SQLiteError) -> Bool {
        do throws(SQLiteError) {
            try database.execute("PRAGMA incremental_vacuum(\(pages))")
        } catch {
            guard error.isFull else { throw error }
            return false
        }
        return true
    }
}
