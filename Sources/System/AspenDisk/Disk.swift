// SPDX-License-Identifier: GPL-2.0-or-later

/// The seam between storage code and a disk. The real one is `PosixDisk`; the simulator has one that
/// loses unsynced writes and tears pages; a recording one lists every write and sync, so that a test
/// can build what a power cut would leave. All paths are relative to the disk's directory.
package protocol Disk: AnyObject, Sendable {
    func open(_ name: String, create: Bool) throws(DiskError) -> any DiskFile
    /// Names of the files present, sorted.
    func list() throws(DiskError) -> [String]
    /// Atomic; durable only after `syncDirectory`.
    func rename(_ from: String, to: String) throws(DiskError)
    func remove(_ name: String) throws(DiskError)
    /// Makes creations, renames and removals durable.
    func syncDirectory() throws(DiskError)
    /// How full the file system is; nil if there is no end to it.
    func freeSpace() throws(DiskError) -> DiskSpace?
}

/// One open file.
package protocol DiskFile: AnyObject, Sendable {
    var byteCount: UInt64 { get throws(DiskError) }
    /// Fewer bytes than asked for only at the end of the file.
    func read(at offset: UInt64, count: Int) throws(DiskError) -> [UInt8]
    /// Writes everything or throws; durable only after `sync`.
    func write(_ bytes: [UInt8], at offset: UInt64) throws(DiskError)
    /// The same from memory that the caller owns; saves the log a copy of each batch.
    func write(raw bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(DiskError)
    func truncate(to byteCount: UInt64) throws(DiskError)
    /// Makes the file own the blocks of that range, so that writing there needs no space; the range
    /// reads as zeros. Nothing is promised about what a power cut leaves of it. After an error part
    /// of it may be there.
    func allocate(from offset: UInt64, count: Int) throws(DiskError)
    /// fdatasync. After an error the file's content is unknown and the owner must stop (fsync errors
    /// are reported once: Rebello and others, 2020).
    func sync() throws(DiskError)
    func close()
}

extension DiskFile {
    /// For disks that have no use for the shortcut.
    package func write(raw bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(DiskError) {
        try write(Array(bytes), at: offset)
    }
}

package struct DiskError: Error, Equatable, Sendable, CustomStringConvertible {
    package enum Kind: Equatable, Sendable { case notFound, full, readOnly, locked, io }
    package var kind: Kind
    /// "write log.000001"
    package var operation: String
    package var errno: Int32

    package init(_ kind: Kind, operation: String, errno: Int32) {
        self.kind = kind
        self.operation = operation
        self.errno = errno
    }

    package var description: String { "\(operation): \(kind) (errno \(errno))" }
}
