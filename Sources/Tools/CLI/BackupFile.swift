// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc

/// Where a backup goes: a name that is free, or that of a regular file. A rename would put the backup
/// in the place of whatever has the name, a device or a pipe as well; those are refused.
struct BackupPlace {
    /// As many as the kernel follows.
    private static let linksMax = 40

    /// What the symbolic links lead to, so that they stay.
    let path: String

    init(_ given: String) throws(AspenError) {
        var path = given
        var linkCount = 0
        var state = stat()
        while lstat(CName.of(path), &state) == 0 {
            switch state.st_mode & S_IFMT {
            case S_IFREG:
                self.path = path
                return
            case S_IFLNK:
                linkCount += 1
                guard linkCount <= Self.linksMax else {
                    errno = ELOOP
                    throw .ofFile(given)
                }
                path = try Self.target(ofLink: path)
            case let kind: throw Self.refusal(given, kind)
            }
        }
        guard errno == ENOENT else { throw .ofFile(given) }
        self.path = path
    }

    /// The directory of `path`, with its slash; empty: the present one.
    static func parent(of path: String) -> String {
        path.lastIndex(of: "/").map { String(path[...$0]) } ?? ""
    }

    private static func target(ofLink path: String) throws(AspenError) -> String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink(CName.of(path), &buffer, buffer.count)
        guard count >= 0 else { throw .ofFile(path) }
        let target = ArgumentBytes.text(buffer.prefix(count).map { UInt8(bitPattern: $0) })
        return target.hasPrefix("/") ? target : parent(of: path) + target
    }

    private static func refusal(_ path: String, _ kind: mode_t) -> AspenError {
        let name =
            switch kind {
            case S_IFDIR: "a directory"
            case S_IFIFO: "a pipe"
            case S_IFSOCK: "a socket"
            default: "a device"
            }
        return AspenError(
            .invalidArgument,
            "\(Display.oneLine(path)) is \(name), and a backup goes into a regular file: name one "
                + "that is not there yet, or one to replace")
    }
}

/// A file that gets its name only when it is whole and on the disk. Until then it has one of its own:
/// two backups to one name are two files, and the one that ends last keeps the name.
// SAFETY: written to by the client's thread alone until the backup has ended; `commit` comes after.
final class BackupSink: @unchecked Sendable {
    private let path: String
    private let partial: String
    private let descriptor: CInt
    private var isCommitted = false

    init(path: String) throws(AspenError) {
        let place = try BackupPlace(path)
        self.path = place.path
        var name = CName.of(place.path + ".partial-XXXXXX")
        // With O_EXCL and mode 0600.
        descriptor = mkstemp(&name)
        partial = ArgumentBytes.text(name.dropLast().map { UInt8(bitPattern: $0) })
        if descriptor < 0 { throw .ofFile(path) }
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
    }

    deinit {
        close(descriptor)
        if !isCommitted { unlink(CName.of(partial)) }
    }

    /// For a program that writes one backup and ends.
    func unlinkOnInterruption() { Interruption.unlinking(partial) }

    func write(_ bytes: [UInt8]) throws(AspenError) {
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress.map { $0 + done }, bytes.count - done)
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw .ofFile(partial) }
            done += count
        }
    }

    func commit() throws(AspenError) {
        guard fsync(descriptor) == 0, rename(CName.of(partial), CName.of(path)) == 0 else {
            throw .ofFile(path)
        }
        isCommitted = true
        let parent = BackupPlace.parent(of: path)
        let directory = open(
            CName.of(parent.isEmpty ? "." : parent), O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard directory >= 0 else { throw .ofFile(parent) }
        defer { close(directory) }
        guard fsync(directory) == 0 else { throw .ofFile(parent) }
    }
}

/// Whoever presses Ctrl-C wants no half of a backup to stay behind.
private enum Interruption {
    // SAFETY: written once, before the handler is there that reads it.
    private nonisolated(unsafe) static var name: UnsafeMutablePointer<CChar>?

    static func unlinking(_ partial: String) {
        name = strdup(CName.of(partial))
        for number in [SIGHUP, SIGINT, SIGTERM] {
            let before = signal(number) { number in
                // Nothing but what may be called in a handler.
                if let name = Interruption.name { unlink(name) }
                signal(number, SIG_DFL)
                raise(number)
            }
            // What the caller had ignored, as nohup does, stays so.
            let isIgnored = unsafeBitCast(before, to: Int.self) == 1
            if isIgnored { signal(number, SIG_IGN) }
        }
    }
}

final class BackupSource {
    private let path: String
    private let descriptor: CInt

    init(path: String) throws(AspenError) {
        self.path = path
        descriptor = open(CName.of(path), O_RDONLY | O_CLOEXEC)
        if descriptor < 0 { throw .ofFile(path) }
    }

    deinit { close(descriptor) }

    /// Fewer bytes than asked for only at the end.
    func read(_ count: Int) throws(AspenError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let got = bytes.withUnsafeMutableBytes {
                Glibc.read(descriptor, $0.baseAddress.map { $0 + done }, count - done)
            }
            if got < 0, errno == EINTR { continue }
            guard got >= 0 else { throw .ofFile(path) }
            if got == 0 { break }
            done += got
        }
        return Array(bytes.prefix(done))
    }
}

/// A path as the kernel takes it: arguments are bytes, whatever stands for them in a text.
enum CName {
    static func of(_ path: String) -> [CChar] {
        ArgumentBytes.bytes(path).map { CChar(bitPattern: $0) } + [0]
    }
}

extension AspenError {
    /// What the kernel said last, of a file.
    static func ofFile(_ path: String) -> AspenError {
        AspenError(.storage, "\(Display.oneLine(path)): \(String(cString: strerror(errno)))")
    }
}
