// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore
import SQLiteKit

/// Builds a database out of a snapshot beside the one in force and, when all of it is there and
/// sound, puts it in its place.
final class SQLiteSnapshotWriter: SnapshotWriter {
    private let state: SQLiteState
    private let meta: SnapshotMeta
    /// Bytes taken in after which the kernel is asked to write what the new file has in memory: all at
    /// once, at the end, it would stall every sync of that disk for seconds.
    private static let writeBehindBytes = 1_048_576

    private var behindBytes = 0
    /// The file is, or may be, the state itself.
    private var isInForce = false
    /// Nil once finished or abandoned, and after an error.
    private var intake: SnapshotIntake<SQLiteTables>?

    init(into state: SQLiteState, meta: SnapshotMeta) throws(StorageError) {
        self.state = state
        self.meta = meta
        try SQLiteState.removeIncoming(in: state.directory)
        var options = Database.Options()
        options.cacheKiB = state.options.cacheKiB
        // Nothing in this file counts until it is synced as a whole and renamed.
        options.isJournaled = false
        do {
            let database = try Database(
                path: state.directory + "/" + SQLiteState.incomingName, options: options)
            try database.execute("BEGIN IMMEDIATE; \(SQLiteTables.schema)")
            intake = SnapshotIntake(tables: try SQLiteTables(database))
        } catch { throw SQLiteState.explain(error) }
    }

    func append(_ bytes: [UInt8]) throws(StorageError) {
        guard var intake else { throw .corrupt("the snapshot was given up") }
        self.intake = nil
        // Left out on an error: what was taken in so far is of no use.
        try intake.append(bytes, storage: SQLiteState.explain)
        self.intake = intake
        behindBytes += bytes.count
        guard behindBytes >= Self.writeBehindBytes else { return }
        behindBytes = 0
        SQLiteState.writeBehind(state.directory + "/" + SQLiteState.incomingName)
    }

    func finish() throws(StorageError) {
        guard var intake else { throw .corrupt("the snapshot was given up") }
        self.intake = nil
        do {
            let (tables, _) = try intake.finish(expecting: meta, storage: SQLiteState.explain)
            try tables.commitTransaction()
        } catch let error as SQLiteError {
            throw SQLiteState.explain(error)
        } catch let error as StorageError {
            throw error
        } catch { preconditionFailure("nothing else is thrown") }
        // Closes the file.
        _ = consume intake
        try takeUpWAL()
        try SQLiteState.syncFile(state.directory + "/" + SQLiteState.incomingName)
        try state.replaceByIncoming { isInForce = true }
    }

    /// Opened as it will be used, the file is made ready for a WAL, which rewrites its first page.
    /// Done before the file counts, a power cut in the middle of that costs nothing.
    private func takeUpWAL() throws(StorageError) {
        let path = state.directory + "/" + SQLiteState.incomingName
        do { _ = try Database(path: path) } catch { throw SQLiteState.explain(error) }
        for suffix in ["-wal", "-journal"] { try SQLiteState.remove(path + suffix) }
    }

    func abandon() {
        guard !isInForce else { return }
        intake = nil
        // What stays behind is removed at the next snapshot or start.
        try? SQLiteState.removeIncoming(in: state.directory)
    }
}
