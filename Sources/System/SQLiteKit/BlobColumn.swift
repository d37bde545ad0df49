// SPDX-License-Identifier: GPL-2.0-or-later

import CSQLite

/// One column of a table with row numbers, whose blobs are read row after row. For many rows that is a
/// fraction of what a statement for each takes: the place in the tree is kept from row to row.
///
/// As long as it lives after the first row it holds a read transaction, and the rows must not change.
package struct BlobColumn: ~Copyable {
    private unowned let database: Database
    private let table: String
    private let column: String
    private var handle: OpaquePointer?

    package init(_ database: Database, table: String, column: String) {
        self.database = database
        self.table = table
        self.column = column
    }

    deinit { sqlite3_blob_close(handle) }

    /// Takes the row's bytes into `bytes`, in the place of what was there.
    /// - Returns: false if there is no such row, or if it has no blob there.
    package mutating func read(_ row: Int64, into bytes: inout [UInt8]) throws(SQLiteError) -> Bool
    {
        let code =
            handle.map { sqlite3_blob_reopen($0, row) }
            ?? sqlite3_blob_open(database.handle, "main", table, column, row, 0, &handle)
        // What it says of a row that it does not find.
        if code == SQLITE_ERROR { return false }
        try database.check(code)
        let count = Int(sqlite3_blob_bytes(handle))
        if bytes.count != count {
            bytes.removeAll(keepingCapacity: true)
            bytes.append(contentsOf: repeatElement(0, count: count))
        }
        guard count > 0 else { return true }
        let handle = handle
        try database.check(
            bytes.withUnsafeMutableBytes {
                sqlite3_blob_read(handle, $0.baseAddress, Int32(count), 0)
            })
        return true
    }
}
