// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenVFS
import Glibc
import SQLiteKit

// Names and errors: what SQLite and the file system say, in the words of `StorageError`.

extension SQLiteState {
    static func explain(_ error: SQLiteError) -> StorageError {
        if error.isCorruption { return .corrupt("\(fileName): \(error)") }
        if error.isLocked {
            return .locked("\(fileName) is open in another process; stop that one first")
        }
        if error.isFull {
            return .disk("\(fileName): no space left on the device; free some and start again")
        }
        if error.isNewerSchema { return .newerVersion("\(fileName): \(error.message)") }
        return .disk("\(fileName): \(error)")
    }

    static func newerSchema(_ version: Int64) -> SQLiteError {
        SQLiteError(
            code: SQLiteError.schemaCode,
            message: "it has version \(version), this program knows versions up to"
                + " \(SQLiteTables.schemaVersion): install a newer aspend-raft")
    }

    static func syncDirectory(_ path: String) throws(StorageError) {
        try check(aspen_vfs_sync_directory(path), "sync \(path)")
    }

    static func syncFile(_ path: String) throws(StorageError) {
        try check(aspen_vfs_sync_file(path), "sync \(path)")
    }

    /// Has the kernel begin to write what it holds of a file, once it has written what it was told of
    /// before. Not for a database that is shared: closing a descriptor gives up the locks of this process.
    static func writeBehind(_ path: String) {
        let descriptor = open(path, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { return }
        aspen_vfs_write_behind_all(descriptor)
        Glibc.close(descriptor)
    }

    static func rename(_ from: String, _ to: String) throws(StorageError) {
        try check(aspen_vfs_rename(from, to), "rename \(from)")
    }

    /// It is no error if there is no such file.
    static func remove(_ path: String) throws(StorageError) {
        let code = aspen_vfs_remove(path)
        if code != ENOENT { try check(code, "remove \(path)") }
    }

    static func removeIncoming(in directory: String) throws(StorageError) {
        for suffix in ["", "-wal", "-journal"] {
            try remove(directory + "/" + incomingName + suffix)
        }
    }

    /// Removes what `rebuildEmpty` has set aside. Call once the state is whole again.
    package func removeSetAside() throws(StorageError) {
        let paths = ["-wal", "-journal", ""].map { directory + "/" + Self.setAsideName + $0 }
            .filter(Self.exists)
        guard !paths.isEmpty else { return }
        // Whole, and durable; on a full disk that has to wait, and so do they.
        guard try checkpoint() == appliedIndex else { return }
        for path in paths { try Self.remove(path) }
    }

    /// Writes what the file holds over itself and syncs it. No error if there is no such file.
    static func rewriteFile(_ path: String) throws(StorageError) {
        try check(aspen_vfs_rewrite_file(path), "write \(path) again")
    }

    static func exists(_ path: String) -> Bool {
        var status = stat()
        return stat(path, &status) == 0
    }

    // MARK: Damage found at run time

    /// A page may be found damaged long after the start. The next start then makes the state anew
    /// instead of finding the same page again.
    static func noteDamage(_ reason: String, in directory: String) {
        let descriptor = open(
            directory + "/" + damageName, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { return }
        defer { Glibc.close(descriptor) }
        // Its being there says enough: what cannot be written is left out.
        _ = Glibc.write(descriptor, reason, min(reason.utf8.count, 1000))
        _ = fsync(descriptor)
        _ = aspen_vfs_sync_directory(directory)
    }

    static func knownDamage(in directory: String) -> String? {
        let descriptor = open(directory + "/" + damageName, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { Glibc.close(descriptor) }
        let bytes = [UInt8](unsafeUninitializedCapacity: 1000) { buffer, count in
            count = max(0, Glibc.read(descriptor, buffer.baseAddress, 1000))
        }
        return "found while running: " + String(decoding: bytes, as: UTF8.self)
    }

    private static func check(_ code: Int32, _ operation: String) throws(StorageError) {
        guard code != 0 else { return }
        throw .disk("\(operation): \(String(cString: strerror(code)))")
    }

    static func byteCount(of path: String) -> UInt64 {
        var status = stat()
        return stat(path, &status) == 0 ? UInt64(status.st_size) : 0
    }
}
