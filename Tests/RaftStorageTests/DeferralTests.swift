// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import SQLiteKit
import Synchronization
import Testing

/// Writing that is put off: what SQLite sees, what the disk has, and when.
@Suite struct DeferralTests {
    private let directory = StateDirectory()
    private var path: String { directory.path + "/state.db" }

    private func open() throws -> Database {
        let database = try Database(path: path)
        try database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
        #expect(try database.checkpoint(.passive))
        #expect(try database.checkpoint(.truncate))
        return database
    }

    private func insert(_ rows: Range<Int>, of bytes: Int, into database: Database) throws {
        let last = rows.upperBound - 1
        try database.execute(
            """
            WITH RECURSIVE c(x) AS (VALUES(\(rows.lowerBound)) UNION ALL SELECT x + 1 FROM c
                WHERE x < \(last))
            INSERT INTO t SELECT x, zeroblob(\(bytes)) FROM c
            """)
    }

    private func count(_ database: Database) throws -> Int64 {
        try #require(try database.integer("SELECT count(*) FROM t"))
    }

    /// Everybody in this process sees what waits; the files have it once it has been carried out.
    @Test func whatWaitsIsSeen() throws {
        let database = try open()
        #expect(try database.deferWriting(.byHand))
        let before = directory.copy()
        try insert(0..<500, of: 300, into: database)
        #expect(try database.checkpoint(.passive))
        let mark = database.deferralMark()
        #expect(try database.hasReached(mark) == false)
        #expect(try database.checkpoint(.truncate))
        try insert(500..<900, of: 300, into: database)
        // Not from memory: pages are read again.
        database.releaseMemory()
        #expect(try count(database) == 900)
        #expect(try database.text("PRAGMA integrity_check") == "ok")
        var options = Database.Options()
        options.isReadOnly = true
        let reader = try Database(path: path, options: options)
        #expect(try count(reader) == 900)
        for name in ["state.db", "state.db-wal", "state.db-checkpoint"] {
            #expect(
                StateDirectory.read("\(directory.path)/\(name)")
                    == StateDirectory.read("\(before.path)/\(name)"), "\(name)")
        }
        try database.carryOut(Int(mark) - 1)
        #expect(try database.hasReached(mark) == false)
        try database.carryOut(1)
        #expect(try database.hasReached(mark))
        let checkpointed = directory.copy()
        unlink(checkpointed.path + "/state.db-wal")
        #expect(try count(Database(path: checkpointed.path + "/state.db")) == 500)
        #expect(try database.awaitDeferred())
        let whole = directory.copy()
        #expect(try count(Database(path: whole.path + "/state.db")) == 900)
        withExtendedLifetime((before, checkpointed, whole)) {}
        #expect(try count(reader) == 900)
    }

    /// Whoever writes more than may wait has it carried out first.
    @Test(arguments: [Database.Deferral.byHand, .toThread])
    func whatWaitsIsBounded(_ deferral: Database.Deferral) throws {
        let database = try open()
        let written = Mutex(0)
        let observer = VFSObserver(
            prefix: path,
            after: { event in
                guard event.kind == .write else { return }
                written.withLock { $0 += Int(event.count) }
            })
        #expect(try database.deferWriting(deferral))
        let bytesMax = 16 << 20
        let bytes = bytesMax + (8 << 20)
        try insert(0..<bytes / 4000, of: 4000, into: database)
        #expect(written.withLock { $0 } > bytes - bytesMax)
        if deferral == .byHand { #expect(written.withLock { $0 } < bytes) }
        #expect(try database.deferWriting(.nothing))
        #expect(written.withLock { $0 } > bytes)
        #expect(try count(database) == Int64(bytes / 4000))
        withExtendedLifetime(observer) {}
    }

    /// What has failed is not read from the file either: the file lacks what waited.
    @Test func nothingIsReadBehindAFailure() throws {
        let database = try open()
        #expect(try database.deferWriting(.byHand))
        try insert(0..<500, of: 300, into: database)
        let observer = VFSObserver(
            prefix: path, before: { $0.kind == .write ? EIO : 0 })
        #expect(throws: SQLiteError.self) { try database.carryOut(1) }
        database.releaseMemory()
        #expect(throws: SQLiteError.self) { try count(database) }
        #expect(throws: SQLiteError.self) { try insert(500..<510, of: 300, into: database) }
        #expect(throws: SQLiteError.self) { try database.awaitDeferred() }
        #expect(throws: SQLiteError.self) { try database.deferWriting(.nothing) }
        #expect(throws: SQLiteError.self) { try count(database) }
        withExtendedLifetime(observer) {}
    }

    /// A disk that is full for a while loses nothing, and nobody is told of an error before more waits
    /// than may.
    @Test(arguments: [Database.Deferral.byHand, .toThread])
    func whatFindsNoRoomWaits(_ deferral: Database.Deferral) throws {
        let database = try open()
        #expect(try database.deferWriting(deferral))
        let isFull = Mutex(true)
        let refused = Mutex(0)
        let observer = VFSObserver(
            prefix: path,
            before: { event in
                guard event.kind == .write, isFull.withLock({ $0 }) else { return 0 }
                refused.withLock { $0 += 1 }
                return ENOSPC
            })
        try insert(0..<500, of: 300, into: database)
        let mark = database.deferralMark()
        try database.carryOut(10)
        #expect(try database.awaitDeferred() == false)
        #expect(try database.hasReached(mark) == false)
        #expect(try database.deferWriting(.nothing) == false, "nobody forgets what waits")
        #expect(refused.withLock { $0 } > 0)
        database.releaseMemory()
        #expect(try count(database) == 500)
        try insert(500..<900, of: 300, into: database)
        let tooMuch = #expect(throws: SQLiteError.self) {
            try insert(1000..<9000, of: 4000, into: database)
        }
        #expect(tooMuch?.isFull == true)
        #expect(try count(database) == 900)
        isFull.withLock { $0 = false }
        #expect(try database.deferWriting(.nothing))
        #expect(try database.hasReached(mark))
        #expect(try count(database) == 900)
        let copy = directory.copy()
        let other = try Database(path: copy.path + "/state.db")
        #expect(try count(other) == 900)
        #expect(try other.text("PRAGMA integrity_check") == "ok")
        withExtendedLifetime((observer, copy)) {}
    }

    /// Whoever ends does not wait for room: the files are what a kill would have left.
    @Test(arguments: [Database.Deferral.byHand, .toThread])
    func theEndDoesNotWaitForRoom(_ deferral: Database.Deferral) throws {
        let isFull = Mutex(false)
        let observer = VFSObserver(
            prefix: path,
            before: { $0.kind == .write && isFull.withLock { $0 } ? ENOSPC : 0 })
        do {
            let database = try open()
            #expect(try database.deferWriting(deferral))
            try insert(0..<500, of: 300, into: database)
            #expect(try database.awaitDeferred())
            isFull.withLock { $0 = true }
            try insert(500..<900, of: 300, into: database)
        }
        isFull.withLock { $0 = false }
        let database = try Database(path: path)
        #expect(try count(database) == 500)
        #expect(try database.text("PRAGMA integrity_check") == "ok")
        withExtendedLifetime(observer) {}
    }

    /// After a sync that has failed, for want of room or not, the kernel may have forgotten what it was to
    /// write.
    @Test func aFailedSyncIsNotRepeated() throws {
        let database = try open()
        #expect(try database.deferWriting(.byHand))
        try insert(0..<500, of: 300, into: database)
        #expect(try database.checkpoint(.passive))
        let syncs = Mutex(0)
        let observer = VFSObserver(
            prefix: path,
            before: { event in
                guard event.kind == .sync else { return 0 }
                syncs.withLock { $0 += 1 }
                return ENOSPC
            })
        #expect(throws: SQLiteError.self) { try database.awaitDeferred() }
        #expect(throws: SQLiteError.self) { try database.awaitDeferred() }
        #expect(syncs.withLock { $0 } == 1)
        withExtendedLifetime(observer) {}
    }
}
