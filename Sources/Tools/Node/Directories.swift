// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import ServiceKit

/// Where a foreground node keeps its things.
enum Directories {
    /// Makes the directory and its parents, private to the user.
    static func create(_ path: String) throws(AspenError) {
        var prefix = path.hasPrefix("/") ? "/" : ""
        for part in path.split(separator: "/") {
            prefix += prefix.isEmpty || prefix.hasSuffix("/") ? String(part) : "/\(part)"
            if mkdir(prefix, 0o700) != 0, errno != EEXIST {
                throw AspenError(
                    .storage,
                    "the directory '\(prefix)' cannot be made: \(String(cString: strerror(errno)))")
            }
        }
    }

    /// Keeps other supervisors out for as long as the descriptor is open: a second one would put its
    /// own sockets in the place of those that serve, before its daemons find the data in use.
    static func lock(_ data: String) throws(AspenError) -> CInt {
        let path = "\(data)/LOCK"
        let descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw AspenError(
                .storage, "'\(path)' cannot be opened: \(String(cString: strerror(errno)))")
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            let isTaken = errno == EWOULDBLOCK
            close(descriptor)
            throw AspenError(
                isTaken ? .unavailable : .storage,
                isTaken
                    ? "another aspen-node runs on the data directory '\(data)': stop it, or give this "
                        + "node a directory of its own (--data-dir)"
                    : "'\(path)' cannot be locked: \(String(cString: strerror(errno)))")
        }
        return descriptor
    }

    /// The directory of the sockets: DATA/run, or one below /tmp when that path is too long for a
    /// Unix socket (108 bytes, unix(7)); DATA/run is then a link to it.
    static func makeRuntime(_ data: String) throws(AspenError) -> String {
        let wanted = "\(data)/run"
        guard let absolute = realpath(data, nil) else {
            throw AspenError(.storage, "the directory '\(data)' cannot be resolved")
        }
        defer { free(absolute) }
        let path = String(cString: absolute) + "/run"
        if path.utf8.count + "/raft.peer.sock".utf8.count < 108 {
            unlink(wanted)
            try create(wanted)
            return path
        }
        var template = Array("/tmp/aspen-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else {
            throw AspenError(.storage, "no directory for the sockets can be made in /tmp")
        }
        let short = template.withUnsafeBufferPointer { buffer in
            buffer.baseAddress.map { String(cString: $0) } ?? ""
        }
        unlink(wanted)
        guard symlink(short, wanted) == 0 else {
            throw AspenError(.storage, "'\(wanted)' cannot be linked to '\(short)'")
        }
        return short
    }
}

/// The directory in which the daemons' programs are: this program's own, or ASPEN_LIBEXEC_DIR.
enum DaemonPrograms {
    static func directory() throws(AspenError) -> String {
        if let directory = Environment["ASPEN_LIBEXEC_DIR"], !directory.isEmpty { return directory }
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        guard count > 0 else { throw AspenError(.internal, "/proc/self/exe cannot be read") }
        let path = String(
            decoding: buffer.prefix(count).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)])
    }
}
