// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenVFS
import CSQLite
import Glibc

/// What SQLite said.
package struct SQLiteError: Error, Equatable, Sendable, CustomStringConvertible {
    /// An extended result code.
    package var code: Int32
    package var message: String

    package init(code: Int32, message: String) {
        self.code = code
        self.message = message
    }

    /// SQLITE_CORRUPT, for those who notice before SQLite does.
    package static let corruptCode = SQLITE_CORRUPT

    /// SQLITE_SCHEMA, for a database that a newer program wrote.
    package static let schemaCode = SQLITE_SCHEMA

    package var primaryCode: Int32 { code & 0xff }
    package var isLocked: Bool { primaryCode == SQLITE_BUSY || primaryCode == SQLITE_LOCKED }
    package var isFull: Bool { primaryCode == SQLITE_FULL }
    package var isNewerSchema: Bool { primaryCode == SQLITE_SCHEMA }
    package var description: String { "\(message) (SQLite \(code))" }

    /// Bytes on disk are not those that were written. No statement of ours violates a constraint, unless
    /// it finds rows that should not be there.
    package var isCorruption: Bool {
        // SQLITE_IOERR_DATA is a macro with an expression; Swift does not import it.
        code == SQLITE_IOERR | (32 << 8) || primaryCode == SQLITE_CORRUPT
            || primaryCode == SQLITE_NOTADB || primaryCode == SQLITE_CONSTRAINT
    }
}

/// One connection, for one thread at a time, to a database of which this process is the only user.
///
/// How it is configured, and why (each alternative has lost rows or time when it was measured):
/// - WAL with `synchronous=NORMAL`: no sync at a commit, one when the WAL is started over. `OFF`
///   leaves a rewritten WAL header unsynced, and old frames replay over a newer database.
/// - No automatic checkpoints, and none at closing: the owner says when, never beside a commit.
/// - `auto_vacuum=INCREMENTAL` from the first file: it cannot be switched on later.
/// - No memory mapping: pages are verified as they are read.
/// - Ordinary locking mode, because a snapshot reads through a second connection; with the `aspen`
///   VFS its locks cost no system calls and no other process can take them.
package final class Database {
    package struct Options: Sendable {
        /// Memory for pages, in KiB.
        package var cacheKiB = 8192
        /// Size to which the WAL file is cut back when it is started over.
        package var walBytesKept = 16_777_216
        package var isReadOnly = false
        /// False for a file that is built, synced once and then renamed: nothing in it counts before.
        package var isJournaled = true

        package init() {}
    }

    /// How `PRAGMA auto_vacuum` says INCREMENTAL.
    private static let incrementalVacuum: Int64 = 2

    let handle: OpaquePointer
    /// Frames in the WAL after the last commit, or none after it was emptied; it shrinks when the WAL
    /// is started over.
    package private(set) var walFrameCount = 0

    package init(path: String, options: Options = Options()) throws(SQLiteError) {
        let registered = aspen_vfs_register()
        guard registered == SQLITE_OK else {
            throw SQLiteError(code: registered, message: "cannot register the VFS")
        }
        var opened: OpaquePointer?
        let flags =
            SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE
            | (options.isReadOnly
                ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE)
        let code = sqlite3_open_v2(path, &opened, flags, ASPEN_VFS_NAME)
        guard code == SQLITE_OK, let opened else {
            let error = SQLiteError(code: code, message: String(cString: sqlite3_errstr(code)))
            sqlite3_close_v2(opened)
            throw error
        }
        handle = opened
        try configure(options)
    }

    deinit {
        // Statements still alive keep the connection until they are finalised.
        sqlite3_close_v2(handle)
    }

    private func configure(_ options: Options) throws(SQLiteError) {
        try check(aspen_sqlite_no_checkpoint_on_close(handle))
        try execute("PRAGMA temp_store=MEMORY")
        try execute("PRAGMA cache_size=-\(options.cacheKiB)")
        if options.isReadOnly { return }
        var reserved = Int32(ASPEN_VFS_RESERVED_BYTES)
        try check(sqlite3_file_control(handle, "main", SQLITE_FCNTL_RESERVE_BYTES, &reserved))
        try execute("PRAGMA page_size=4096")
        // To set it again writes the first page again, which costs every start five syncs.
        if try integer("PRAGMA auto_vacuum") != Self.incrementalVacuum {
            try execute("PRAGMA auto_vacuum=INCREMENTAL")
        }
        if options.isJournaled {
            guard try text("PRAGMA journal_mode=WAL") == "wal" else {
                throw SQLiteError(code: SQLITE_ERROR, message: "the database refuses WAL mode")
            }
            try execute("PRAGMA synchronous=NORMAL")
        } else {
            _ = try text("PRAGMA journal_mode=OFF")
            try execute("PRAGMA synchronous=OFF")
        }
        _ = try text("PRAGMA wal_autocheckpoint=0")
        _ = try text("PRAGMA journal_size_limit=\(options.walBytesKept)")
        // Debian's default overwrites what is deleted with zeros: twice the writing for nothing.
        _ = try text("PRAGMA secure_delete=OFF")
        guard try integer("PRAGMA page_size") == Int64(ASPEN_VFS_PAGE_BYTES) else {
            throw SQLiteError(code: SQLITE_NOTADB, message: "the database has another page size")
        }
        sqlite3_wal_hook(
            handle,
            { context, _, _, frames in
                guard let context else { return SQLITE_OK }
                Unmanaged<Database>.fromOpaque(context).takeUnretainedValue().walFrameCount =
                    Int(frames)
                return SQLITE_OK
            }, Unmanaged.passUnretained(self).toOpaque())
    }

    /// Pages written so far in the middle of a transaction, because the cache was full of changed ones.
    package var spilledPageCount: Int {
        var count: Int32 = 0
        var most: Int32 = 0
        sqlite3_db_status(handle, SQLITE_DBSTATUS_CACHE_SPILL, &count, &most, 0)
        return Int(count)
    }

    /// Memory for pages from here on.
    package func setCache(kibibytes: Int) throws(SQLiteError) {
        try execute("PRAGMA cache_size=-\(kibibytes)")
    }

    /// Lets go of the pages in memory that are as they are on the disk.
    package func releaseMemory() { sqlite3_db_release_memory(handle) }

    // MARK: Statements

    package func prepare(_ sql: String) throws(SQLiteError) -> Statement {
        var statement: OpaquePointer?
        let flags = UInt32(SQLITE_PREPARE_PERSISTENT)
        try check(sqlite3_prepare_v3(handle, sql, -1, flags, &statement, nil))
        guard let statement else {
            throw SQLiteError(code: SQLITE_MISUSE, message: "an empty statement")
        }
        return Statement(statement, of: self)
    }

    package func execute(_ sql: String) throws(SQLiteError) {
        try check(sqlite3_exec(handle, sql, nil, nil, nil))
    }

    /// The first column of the first row. The statement runs to its end: what it changes is committed
    /// only there, and may fail.
    package func integer(_ sql: String) throws(SQLiteError) -> Int64? {
        let statement = try prepare(sql)
        guard try statement.step() else { return nil }
        let result = statement.integer(0)
        while try statement.step() {}
        return result
    }

    package func text(_ sql: String) throws(SQLiteError) -> String? {
        let statement = try prepare(sql)
        guard try statement.step(), let text = sqlite3_column_text(statement.pointer, 0) else {
            return nil
        }
        let result = String(cString: text)
        while try statement.step() {}
        return result
    }

    /// That the WAL, which was just opened, holds all that a checkpoint may have copied from it; ask
    /// before anything is written.
    /// - Throws: SQLITE_CORRUPT: pages of the database are newer than what is left of the WAL.
    package func checkWALIsWhole() throws(SQLiteError) {
        // Whatever is read makes SQLite look at the WAL.
        _ = try integer("PRAGMA schema_version")
        var found: UInt32 = 0
        var copied: UInt32 = 0
        let path = sqlite3_db_filename(handle, "main")
        guard aspen_vfs_wal_falls_short(path, &found, &copied) == 0 else {
            throw SQLiteError(
                code: SQLiteError.corruptCode,
                message: "the WAL is damaged: \(copied) of its frames were being copied into the "
                    + "database, \(found) of them can be read")
        }
    }

    // MARK: Checkpoint

    package enum CheckpointMode: Sendable { case passive, truncate }

    /// Copies WAL frames into the database and syncs it.
    /// - Returns: whether every frame was copied. False when a reader holds on to old pages, which
    ///   is no error to SQLite, and when the disk has no room for the database to grow: the WAL then
    ///   keeps all it has. Only a complete checkpoint says anything about what is durable.
    package func checkpoint(_ mode: CheckpointMode) throws(SQLiteError) -> Bool {
        var framesInWAL: Int32 = -1
        var framesCopied: Int32 = -1
        let mode = mode == .passive ? SQLITE_CHECKPOINT_PASSIVE : SQLITE_CHECKPOINT_TRUNCATE
        let code = sqlite3_wal_checkpoint_v2(handle, "main", mode, &framesInWAL, &framesCopied)
        if code & 0xff == SQLITE_BUSY || code & 0xff == SQLITE_FULL { return false }
        try check(code)
        guard framesInWAL >= 0, framesInWAL == framesCopied else { return false }
        if mode == SQLITE_CHECKPOINT_TRUNCATE { walFrameCount = 0 }
        return true
    }

    // MARK: Writing later

    package enum Deferral: Sendable, CaseIterable {
        case nothing
        /// A thread of its own does it.
        case toThread
        /// `carryOut` does it.
        case byHand
    }

    /// From here on what is written to the files is put off, in order, and each call returns before
    /// it is done: after a crash the files are as they were earlier. What is durable is said by
    /// `hasReached` and `awaitDeferred`.
    /// For a WAL that has been opened. Waits for what was put off before.
    /// - Returns: false where that has no room on its disk. Then nothing has changed.
    package func deferWriting(_ deferral: Deferral) throws(SQLiteError) -> Bool {
        let mode =
            switch deferral {
            case .nothing: ASPEN_VFS_DEFER_NOTHING
            case .toThread: ASPEN_VFS_DEFER_TO_THREAD
            case .byHand: ASPEN_VFS_DEFER_BY_HAND
            }
        let failure = aspen_vfs_defer(filePath, mode)
        if failure == ENOSPC { return false }
        try checkDisk(failure)
        return true
    }

    /// Names all that was put off until now.
    package func deferralMark() -> UInt64 { aspen_vfs_deferred(filePath) }

    /// - Returns: whether all that the mark names has been done.
    /// - Throws: something that was put off has failed; nothing behind it was done, nor will be. What
    ///   finds no room on its disk has not failed: it is tried again until there is some.
    package func hasReached(_ mark: UInt64) throws(SQLiteError) -> Bool {
        var failure: Int32 = 0
        let isReached = aspen_vfs_await(filePath, mark, 0, &failure) != 0
        try checkDisk(failure)
        return isReached
    }

    /// Until all that was put off has been done.
    /// - Returns: false where it has no room on its disk.
    package func awaitDeferred() throws(SQLiteError) -> Bool {
        var failure: Int32 = 0
        let isDone = aspen_vfs_await(filePath, 0, 1, &failure) != 0
        try checkDisk(failure)
        return isDone
    }

    /// `byHand`: does the next `count` operations, if there are so many, and room.
    package func carryOut(_ count: Int) throws(SQLiteError) {
        try checkDisk(aspen_vfs_carry_out(filePath, UInt32(clamping: count)))
    }

    private var filePath: UnsafePointer<CChar>? { sqlite3_db_filename(handle, "main") }

    private func checkDisk(_ failure: Int32) throws(SQLiteError) {
        guard failure != 0 else { return }
        throw SQLiteError(
            code: SQLITE_IOERR,
            message: "writing to the disk: \(String(cString: strerror(failure)))")
    }

    /// Makes a running call on this connection return SQLITE_INTERRUPT; from any thread.
    package func interrupt() { sqlite3_interrupt(handle) }

    func check(_ code: Int32) throws(SQLiteError) {
        guard code == SQLITE_OK else { throw error(code) }
    }

    func error(_ code: Int32) -> SQLiteError {
        SQLiteError(code: code, message: String(cString: sqlite3_errmsg(handle)))
    }
}
