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
    private var memory = UnsafeMutableRawBufferPointer(start: nil, count: 0)

    package init(_ database: Database, table: String, column: String) {
        self.database = database
        self.table = table
        self.column = column
    }

    deinit {
        sqlite3_blob_close(handle)
        memory.deallocate()
    }

    /// - Returns: the row's bytes, valid until the next call; nil if there is no such row, or if it has no
    ///   blob there.
    package mutating func read(_ row: Int64) throws(SQLiteError) -> UnsafeRawBufferPointer? {
        let code: Int32
        if let handle {
            code = sqlite3_blob_reopen(handle, row)
        } else {
            code = sqlite3_blob_open(database.handle, "main", table, column, row, 0, &handle)
        }
        // What it says of a row that it does not find.
        if code == SQLITE_ERROR { return nil }
        guard code == SQLITE_OK else { throw database.error(code) }
        let count = sqlite3_blob_bytes(handle)
        if count > memory.count {
            memory.deallocate()
            memory = .allocate(byteCount: max(1024, 2 * Int(count)), alignment: 16)
        }
        let copied = sqlite3_blob_read(handle, memory.baseAddress, count, 0)
        guard copied == SQLITE_OK else { throw database.error(copied) }
        return UnsafeRawBufferPointer(start: memory.baseAddress, count: Int(count))
    }
}
