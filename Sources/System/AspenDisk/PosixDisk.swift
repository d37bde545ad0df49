// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import Synchronization

/// A directory of a real file system. Everything goes through one directory descriptor, so that
/// renaming or replacing the directory while the daemon runs cannot split its data over two places.
///
/// Files are 0600, the directory 0700. While the disk lives it holds `LOCK` (flock): a second
/// opener, in this process or another, gets `DiskError.Kind.locked`.
package final class PosixDisk: Disk {
    package static let lockName = "LOCK"

    private let directory: Int32
    private let lock: Int32
    /// Asked when the disk is full; if it has made room (true) the call is tried again.
    private let relief: @Sendable () -> Bool

    /// Opens `path`, making its last component if it is missing.
    ///
    /// - Throws: `.locked` if another process holds the directory; `.notFound` if the parent is
    ///   missing; what the kernel said otherwise.
    package init(
        path: String, relief: @escaping @Sendable () -> Bool = { false }
    ) throws(DiskError) {
        self.relief = relief
        try Self.makeDirectory(path)
        let directory = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard directory >= 0 else { throw .posix("open directory \(path)") }
        do throws(DiskError) {
            lock = try Self.takeLock(in: directory, path: path)
        } catch {
            _ = Glibc.close(directory)
            throw error
        }
        self.directory = directory
    }

    deinit {
        // The lock goes with the last descriptor of the open file, and a process that is being started
        // has copies of ours between fork and exec.
        _ = flock(lock, LOCK_UN)
        _ = Glibc.close(lock)
        _ = Glibc.close(directory)
    }

    package func open(_ name: String, create: Bool) throws(DiskError) -> any DiskFile {
        Self.check(name)
        let flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0)
        var descriptor = openat(directory, name, flags, 0o600)
        while descriptor < 0, errno == ENOSPC, relief() {
            descriptor = openat(directory, name, flags, 0o600)
        }
        guard descriptor >= 0 else { throw .posix("open \(name)") }
        return PosixFile(name: name, descriptor: descriptor, relief: relief)
    }

    package func list() throws(DiskError) -> [String] {
        let copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard copy >= 0 else { throw .posix("list") }
        guard let stream = fdopendir(copy) else {
            let error = DiskError.posix("list")
            _ = Glibc.close(copy)
            throw error
        }
        defer { closedir(stream) }
        var names: [String] = []
        while true {
            errno = 0
            guard let entry = readdir(stream) else { break }
            guard entry.pointee.d_type != UInt8(DT_DIR) else { continue }
            let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != Self.lockName { names.append(name) }
        }
        guard errno == 0 else { throw .posix("list") }
        return names.sorted()
    }

    package func rename(_ from: String, to: String) throws(DiskError) {
        Self.check(from)
        Self.check(to)
        guard renameat(directory, from, directory, to) == 0 else {
            throw .posix("rename \(from) to \(to)")
        }
    }

    package func remove(_ name: String) throws(DiskError) {
        Self.check(name)
        guard unlinkat(directory, name, 0) == 0 else { throw .posix("remove \(name)") }
    }

    package func syncDirectory() throws(DiskError) {
        guard fsync(directory) == 0 else { throw .posix("sync directory") }
    }

    package func freeSpace() throws(DiskError) -> DiskSpace? {
        var status = statvfs()
        guard fstatvfs(directory, &status) == 0 else { throw .posix("statvfs") }
        func bytes(_ blocks: Int) -> Int { blocks * Int(clamping: status.f_frsize) }
        // Some file systems have no size (f_blocks is 0).
        guard status.f_blocks > 0 else { return nil }
        let (all, available) = (Int(clamping: status.f_blocks), Int(clamping: status.f_bavail))
        let forRoot = DiskSpace.blocksForRoot(
            all: all, free: Int(clamping: status.f_bfree), available: available)
        return DiskSpace(
            capacity: bytes(all), available: bytes(getuid() == 0 ? forRoot : available))
    }

    /// Makes the last component, and the entry in its parent durable: a data directory that a power
    /// cut takes away whole would take acknowledged writes with it.
    private static func makeDirectory(_ path: String) throws(DiskError) {
        guard mkdir(path, 0o700) == 0 else {
            if errno == EEXIST { return }
            throw .posix("make directory \(path)")
        }
        let end = path.lastIndex { $0 != "/" }
        let trimmed = end.map { path[...$0] } ?? "/"
        let parent = trimmed.lastIndex(of: "/").map { String(trimmed[...$0]) } ?? "."
        let descriptor = Glibc.open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw .posix("open directory \(parent)") }
        defer { _ = Glibc.close(descriptor) }
        guard fsync(descriptor) == 0 else { throw .posix("sync directory \(parent)") }
    }

    private static func takeLock(in directory: Int32, path: String) throws(DiskError) -> Int32 {
        let flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW
        let descriptor = openat(directory, lockName, flags, 0o600)
        guard descriptor >= 0 else { throw .posix("open \(path)/\(lockName)") }
        while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
            if errno == EINTR { continue }
            let error =
                errno == EWOULDBLOCK
                ? DiskError(
                    .locked,
                    operation: "lock \(path): another process\(holder(descriptor)) uses this data "
                        + "directory; stop it, or give this one a data directory of its own",
                    errno: errno)
                : DiskError.posix("lock \(path)")
            _ = Glibc.close(descriptor)
            throw error
        }
        // Only a hint for the message above: the lock itself is the kernel's. Written over the one
        // before, of which what is behind the line's end may stay: to give its block back and take
        // another one is work for the file system's journal, which a start would wait for.
        let text = Array("\(getpid())\n".utf8)
        _ = pwrite(descriptor, text, text.count, 0)
        return descriptor
    }

    private static func holder(_ descriptor: Int32) -> String {
        var bytes = [UInt8](repeating: 0, count: 20)
        let count = pread(descriptor, &bytes, bytes.count, 0)
        let digits = bytes.prefix(max(count, 0)).prefix {
            (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
        }
        return digits.isEmpty ? "" : " (pid \(String(decoding: digits, as: UTF8.self)))"
    }

    private static func check(_ name: String) {
        precondition(
            !name.isEmpty && !name.utf8.contains(UInt8(ascii: "/")) && name != "." && name != "..",
            "a disk has files, not paths")
    }
}

/// A file of a `PosixDisk`. Positioned calls only, so that threads may share it.
final class PosixFile: DiskFile {
    private let name: String
    private let descriptor: Int32
    private let isClosed = Atomic<Bool>(false)
    private let relief: @Sendable () -> Bool

    init(name: String, descriptor: Int32, relief: @escaping @Sendable () -> Bool = { false }) {
        self.relief = relief
        self.name = name
        self.descriptor = descriptor
    }

    deinit { close() }

    var byteCount: UInt64 {
        get throws(DiskError) {
            checkOpen()
            var status = stat()
            guard fstat(descriptor, &status) == 0 else { throw .posix("stat \(name)") }
            return UInt64(status.st_size)
        }
    }

    func read(at offset: UInt64, count: Int) throws(DiskError) -> [UInt8] {
        checkOpen()
        var failure: DiskError?
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            while filled < count {
                let got = pread(
                    descriptor, buffer.baseAddress?.advanced(by: filled), count - filled,
                    off_t(offset) + filled)
                if got > 0 {
                    filled += got
                } else if got == 0 {
                    break
                } else if errno != EINTR {
                    failure = .posix("read \(name)")
                    break
                }
            }
        }
        if let failure { throw failure }
        return bytes
    }

    func write(_ bytes: [UInt8], at offset: UInt64) throws(DiskError) {
        let failure = bytes.withUnsafeBytes { put($0, at: offset) }
        if let failure { throw failure }
    }

    func write(raw bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(DiskError) {
        if let failure = put(bytes, at: offset) { throw failure }
    }

    private func put(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> DiskError? {
        checkOpen()
        var done = 0
        while done < bytes.count {
            let count = pwrite(
                descriptor, bytes.baseAddress?.advanced(by: done), bytes.count - done,
                off_t(offset) + done)
            if count >= 0 {
                done += count
            } else if errno != EINTR {
                let error = DiskError.posix("write \(name)")
                if error.kind == .full, relief() { continue }
                return error
            }
        }
        return nil
    }

    func truncate(to byteCount: UInt64) throws(DiskError) {
        checkOpen()
        guard ftruncate(descriptor, off_t(byteCount)) == 0 else { throw .posix("truncate \(name)") }
    }

    func allocate(from offset: UInt64, count: Int) throws(DiskError) {
        checkOpen()
        let code = posix_fallocate(descriptor, off_t(offset), off_t(count))
        guard code == 0 else {
            errno = code
            throw .posix("allocate \(name)")
        }
    }

    func sync() throws(DiskError) {
        checkOpen()
        guard fdatasync(descriptor) == 0 else { throw .posix("sync \(name)") }
    }

    func close() {
        if !isClosed.exchange(true, ordering: .acquiringAndReleasing) {
            _ = Glibc.close(descriptor)
        }
    }

    private func checkOpen() {
        precondition(!isClosed.load(ordering: .acquiring), "a closed file has no descriptor")
    }
}

extension DiskError {
    /// What `errno` says about the call that has just failed.
    static func posix(_ operation: String) -> DiskError {
        let number = Glibc.errno
        let kind: Kind =
            switch number {
            case ENOENT: .notFound
            case ENOSPC, EDQUOT: .full
            case EROFS: .readOnly
            default: .io
            }
        return DiskError(kind, operation: operation, errno: number)
    }
}
