// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// Files and directories of the configuration directory, written so that a power cut leaves the old
/// or the new one.
package enum AtomicFile {
    /// What failed; the text names the file and says why.
    package struct Failure: Error, Sendable, Equatable {
        package var text: String

        init(_ what: String) {
            let code = errno
            text = "\(what): \(String(cString: strerror(code)))"
            if code == EACCES || code == EPERM { text += "; run it as root (sudo)" }
        }
    }

    /// Makes the directory unless it is there; the mode of one that is there stays.
    package static func makeDirectory(_ path: String, mode: mode_t) throws(Failure) {
        guard mkdir(path, mode) != 0 else {
            // Whatever the umask.
            guard chmod(path, mode) == 0 else { throw Failure("cannot set the mode of \(path)") }
            return
        }
        guard errno == EEXIST else { throw Failure("cannot make the directory \(path)") }
    }

    package static func write(_ bytes: [UInt8], to path: String, mode: mode_t) throws(Failure) {
        // The pid keeps two writers apart; a leftover of an earlier one is nobody's.
        let temporary = "\(path).\(getpid()).new"
        unlink(temporary)
        let flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW
        let descriptor = open(temporary, flags, 0o600)
        guard descriptor >= 0 else { throw Failure("cannot create \(temporary)") }
        defer { unlink(temporary) }
        let isWritten =
            fchmod(descriptor, mode) == 0
            && Glibc.write(descriptor, bytes, bytes.count) == bytes.count && fsync(descriptor) == 0
        let reason = errno
        close(descriptor)
        guard isWritten else {
            errno = reason
            throw Failure("cannot write \(temporary)")
        }
        guard rename(temporary, path) == 0 else { throw Failure("cannot create \(path)") }
        let end = path.lastIndex(of: "/") ?? path.startIndex
        let folder = path[..<end].isEmpty ? "." : String(path[..<end])
        let directory = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard directory >= 0 else { throw Failure("cannot open \(folder)") }
        defer { close(directory) }
        guard fsync(directory) == 0 else { throw Failure("cannot sync \(folder)") }
    }
}
