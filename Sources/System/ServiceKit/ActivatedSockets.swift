// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenSystem
import Glibc

/// The descriptors a supervisor handed over by the protocol of sd_listen_fds(3): systemd, or
/// `aspen-node` in its place. Each is named; several may share a name.
///
/// Spoken here instead of through libsystemd because the names must be paired with descriptors
/// exactly once, and the variables removed so that no child ever believes them.
package struct ActivatedSockets {
    private var descriptors: [(name: String, descriptor: CInt)] = []

    /// Takes the descriptors out of the environment; call once, before any thread exists.
    package init() {
        defer {
            unsetenv("LISTEN_PID")
            unsetenv("LISTEN_FDS")
            unsetenv("LISTEN_FDNAMES")
        }
        // A supervisor that starts us with posix_spawn cannot know our pid beforehand: aspen-node
        // leaves LISTEN_PID out. One that names another process is not meant for us.
        if let pid = Environment["LISTEN_PID"], pid != String(getpid()) { return }
        guard let count = Environment["LISTEN_FDS"].flatMap(Int.init), count > 0, count <= 64
        else { return }
        let names = (Environment["LISTEN_FDNAMES"] ?? "").split(
            separator: ":", omittingEmptySubsequences: false)
        for offset in 0..<count {
            let descriptor = CInt(3 + offset)
            _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
            let name = offset < names.count ? String(names[offset]) : "unknown"
            descriptors.append((name, descriptor))
        }
    }

    /// Listening sockets of that name once more, for somebody who serves them until their owner can.
    package func duplicates(of name: String) -> [CInt] {
        descriptors.filter { $0.name == name }
            .map { fcntl($0.descriptor, F_DUPFD_CLOEXEC, 3) }.filter { $0 >= 0 }
    }

    /// For tests: descriptors by name, as if a supervisor had passed them.
    package init(_ descriptors: [(name: String, descriptor: CInt)]) {
        self.descriptors = descriptors
    }

    /// The descriptors called `name`, in order; they are the caller's from then on.
    package mutating func take(_ name: String) -> [CInt] {
        let taken = descriptors.filter { $0.name == name }.map(\.descriptor)
        descriptors.removeAll { $0.name == name }
        return taken
    }
}

/// The process environment, without Foundation.
package enum Environment {
    package static subscript(name: String) -> String? {
        guard let value = getenv(name) else { return nil }
        return String(cString: value)
    }

    /// An empty variable counts as absent.
    package static func nonEmpty(_ name: String) -> String? {
        guard let value = self[name], !value.isEmpty else { return nil }
        return value
    }
}

/// Who is at the other end of a local socket, as the kernel tells (SO_PEERCRED, SO_PEERGROUPS).
package struct LocalPeer: Equatable, Sendable {
    package var uid: uid_t
    package var gid: gid_t
    package var groups: [gid_t]
    package var pid: pid_t

    /// - Returns: nil when the descriptor is no connected Unix socket.
    package init?(descriptor: CInt) {
        var peer = aspen_peer()
        guard aspen_peer_credentials(descriptor, &peer) == 0 else { return nil }
        var groups = [gid_t](repeating: 0, count: 64)
        let count = aspen_peer_groups(descriptor, &groups, groups.count)
        uid = peer.uid
        gid = peer.gid
        pid = peer.pid
        self.groups = count > 0 ? Array(groups.prefix(Int(count))) : []
    }
}
