// SPDX-License-Identifier: GPL-2.0-or-later

import CSQLite

/// A prepared statement: prepared once, then bound, stepped and reset as often as needed. Parameters
/// count from 1, columns from 0.
package struct Statement: ~Copyable {
    let pointer: OpaquePointer
    private unowned let database: Database

    init(_ pointer: OpaquePointer, of database: Database) {
        self.pointer = pointer
        self.database = database
    }

    deinit { sqlite3_finalize(pointer) }

    @inline(__always)
    package func bind(_ parameter: Int32, _ value: Int64) {
        let code = sqlite3_bind_int64(pointer, parameter, value)
        precondition(code == SQLITE_OK, "a statement is bound after it was reset")
    }

    /// The bytes must stay where they are until the statement is reset: nothing is copied.
    @inline(__always)
    package func bind(_ parameter: Int32, unowned bytes: UnsafeRawBufferPointer) {
        let code: Int32
        if let start = bytes.baseAddress, !bytes.isEmpty {
            code = sqlite3_bind_blob64(pointer, parameter, start, UInt64(bytes.count), nil)
        } else {
            // Without an address SQLite would bind NULL.
            code = sqlite3_bind_zeroblob(pointer, parameter, 0)
        }
        precondition(code == SQLITE_OK, "a statement is bound after it was reset")
    }

    /// True: there is a row.
    @inline(__always)
    package func step() throws(SQLiteError) -> Bool {
        let code = sqlite3_step(pointer)
        if code == SQLITE_ROW { return true }
        if code == SQLITE_DONE { return false }
        let error = database.error(code)
        sqlite3_reset(pointer)
        throw error
    }

    /// Steps a statement that gives no rows, then resets it.
    @inline(__always)
    package func run() throws(SQLiteError) {
        let code = sqlite3_step(pointer)
        guard code == SQLITE_DONE else {
            let error = database.error(code)
            sqlite3_reset(pointer)
            throw error
        }
        sqlite3_reset(pointer)
    }

    @inline(__always)
    package func reset() { sqlite3_reset(pointer) }

    @inline(__always)
    package func integer(_ column: Int32) -> Int64 { sqlite3_column_int64(pointer, column) }

    /// The column's bytes where they lie; valid until the next step or reset.
    @inline(__always)
    package func withBytes<Result>(
        _ column: Int32, _ body: (UnsafeRawBufferPointer) -> Result
    ) -> Result {
        body(unownedBytes(column))
    }

    /// The same, for those who look at them before the next step or reset.
    @inline(__always)
    package func unownedBytes(_ column: Int32) -> UnsafeRawBufferPointer {
        let start = sqlite3_column_blob(pointer, column)
        let count = Int(sqlite3_column_bytes(pointer, column))
        precondition(start != nil || count == 0, "SQLite is out of memory")
        return UnsafeRawBufferPointer(start: start, count: count)
    }

    @inline(__always)
    package func bytes(_ column: Int32) -> [UInt8] {
        withBytes(column) { [UInt8]($0) }
    }

    package func isNull(_ column: Int32) -> Bool {
        sqlite3_column_type(pointer, column) == SQLITE_NULL
    }
}
