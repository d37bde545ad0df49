// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CAspenSystem
import Glibc
import ServiceKit

/// Starts a node's daemons through the protocol of systemd's socket activation, restarts what dies,
/// and stops them in order. One thread, one poll loop: so that `fork` is safe and a child's
/// parent-death signal belongs to a thread that lives as long as the process.
struct Supervisor {
    private var children: [Child]
    private let signals: CInt
    private let notifications: CInt
    private let nodeID: UInt64
    private let runtime: String
    /// Of the data directory; held while this process lives.
    private let lock: CInt
    private var isStopping = false
    private var stopDeadline: UInt64 = .max
    private var exitCode: CInt = 0
    private var hasAnnounced = false

    /// How long a daemon may take to stop before it is killed, in milliseconds.
    static let stopMilliseconds: UInt64 = 8000
    /// Exit codes after which a restart cannot help: usage and configuration.
    static let hopeless: Set<CInt> = [
        DaemonExit.usage.rawValue, DaemonExit.configuration.rawValue,
        DaemonExit.noPermission.rawValue,
    ]

    /// A daemon that finds damage, while it serves or while it applies its log again at the start, mends
    /// it when it starts the next time; one that finds it then, too, would find it again and again.
    private static func isHopeless(_ code: CInt, _ child: Child) -> Bool {
        hopeless.contains(code) || child.damagedStarts > 1
    }

    init(options: NodeOptions, programs: String) throws(AspenError) {
        nodeID = options.nodeID
        signal(SIGPIPE, SIG_IGN)
        let data = options.dataDirectory
        for part in ["net", "raft", "gossip"] { try Directories.create("\(data)/\(part)") }
        lock = try Directories.lock(data)
        let runtime = try Directories.makeRuntime(data)
        self.runtime = runtime
        signals = try Self.check(aspen_signal_descriptor(), "signals")
        let notifyPath = "\(runtime)/notify.sock"
        notifications = try Self.check(aspen_bind_unix_datagram(notifyPath), notifyPath)

        let quic = try Self.check(
            aspen_bind_datagram(options.listenHost, options.listenPort),
            "UDP \(options.listenHost):\(options.listenPort)")
        let net = try Self.check(aspen_listen_unix("\(runtime)/net.sock"), "net.sock")
        let raft = try Self.check(aspen_listen_unix("\(runtime)/raft.sock"), "raft.sock")
        let raftPair = try Self.pair()
        let gossipPair = try Self.pair()
        let cookie = try Self.check(
            aspen_memory_file("cookie", options.cookie, options.cookie.count), "memory file")

        var secrets = [("cookie", cookie)]
        if !options.acceptedCookie.isEmpty {
            let accepted = aspen_memory_file(
                "cookie-accepted", options.acceptedCookie, options.acceptedCookie.count)
            secrets.append(("cookie-accepted", try Self.check(accepted, "memory file")))
        }

        var shared = options.settings
        shared["ASPEN_RUNTIME_DIR"] = runtime
        shared["NOTIFY_SOCKET"] = notifyPath
        for name in ["PATH", "LANG", "TZ", "HOME", "LD_LIBRARY_PATH"] {
            shared[name] = shared[name] ?? Environment[name]
        }
        let gossip = try Self.check(aspen_listen_unix("\(runtime)/gossip.sock"), "gossip.sock")
        func variables(_ part: String) -> [String] {
            var all = shared
            all["ASPEN_STATE_DIR"] = "\(data)/\(part)"
            return all.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }
        }
        children = [
            Child(
                name: "net", program: "\(programs)/aspend-net",
                descriptors: [
                    ("net.sock", net), ("quic", quic), ("raft.peer", raftPair[0]),
                    ("gossip.peer", gossipPair[0]),
                ] + secrets,
                environment: variables("net")),
            Child(
                name: "raft", program: "\(programs)/aspend-raft",
                descriptors: [("raft.sock", raft), ("raft.peer", raftPair[1])],
                environment: variables("raft")),
            Child(
                name: "gossip", program: "\(programs)/aspend-gossip",
                descriptors: [("gossip.sock", gossip), ("gossip.peer", gossipPair[1])]
                    + Self.discoverySockets(withoutMDNS: options.isMDNSDisabled),
                environment: variables("gossip")),
        ]
        guard options.needsEgress else { return }
        let egress = try Self.check(aspen_listen_unix("\(runtime)/egress.sock"), "egress.sock")
        children.append(
            Child(
                name: "egress", program: "\(programs)/aspend-egress",
                descriptors: [("egress.sock", egress)], environment: variables("egress")))
    }

    /// Over one end a net passes connections, which come out of the other.
    private static func pair() throws(AspenError) -> [CInt] {
        var pair: [CInt] = [-1, -1]
        let kind = CInt(SOCK_SEQPACKET.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &pair) == 0 else {
            throw AspenError(.internal, "no socket pair: \(String(cString: strerror(errno)))")
        }
        return pair
    }

    /// Discovery on the local link is a convenience: without it the node runs all the same. What tells of
    /// the interfaces is needed anyhow, for a node that is bound to every address.
    private static func discoverySockets(
        withoutMDNS isMDNSDisabled: Bool
    ) -> [(name: String, descriptor: CInt)] {
        let routes = aspen_open_route_socket()
        guard routes >= 0 else {
            Terminal.error(
                "aspen-node: no multicast DNS, and nothing is known of the interfaces: "
                    + String(cString: strerror(-routes)))
            return []
        }
        var sockets = [("routes", routes)]
        if isMDNSDisabled { return sockets }
        for six: CInt in [0, 1] {
            let socket = aspen_bind_shared_datagram(six, 5353)
            if socket >= 0 {
                sockets.append(("mdns", socket))
            } else if socket != -EAFNOSUPPORT {
                Terminal.error(
                    "aspen-node: no multicast DNS over IPv\(six == 0 ? 4 : 6): UDP port 5353 cannot be bound: "
                        + String(cString: strerror(-socket)))
            }
        }
        return sockets
    }

    private static func check(_ descriptor: CInt, _ what: String) throws(AspenError) -> CInt {
        guard descriptor < 0 else { return descriptor }
        let reason = String(cString: strerror(-descriptor))
        var advice = ""
        if -descriptor == EADDRINUSE {
            advice = ": another program, perhaps another node, has it; choose another --listen"
        }
        throw AspenError(.unavailable, "\(what) cannot be opened: \(reason)\(advice)")
    }

    /// Runs until stopped; the exit code of the process.
    mutating func run() -> CInt {
        for index in children.indices { start(index) }
        while true {
            wait()
            readSignals()
            readNotifications()
            for index in children.indices { children[index].forwardOutput() }
            reap()
            if isStopping {
                if children.allSatisfy({ $0.pid == 0 }) { return finish() }
                stopNext()
            } else {
                let now = Self.milliseconds()
                for index in children.indices {
                    if let at = children[index].restartAt, at <= now { start(index) }
                }
            }
        }
    }

    private mutating func start(_ index: Int) {
        do {
            try children[index].start(now: Self.milliseconds())
        } catch {
            Terminal.error("aspen-node: \(error.message)")
            children[index].ended(now: Self.milliseconds())
        }
    }

    private func wait() {
        var interest = [
            pollfd(fd: signals, events: Int16(POLLIN), revents: 0),
            pollfd(fd: notifications, events: Int16(POLLIN), revents: 0),
        ]
        for child in children where child.output >= 0 {
            interest.append(pollfd(fd: child.output, events: Int16(POLLIN), revents: 0))
        }
        let now = Self.milliseconds()
        var next = stopDeadline
        if !isStopping {
            for child in children { next = min(next, child.restartAt ?? .max) }
        }
        let timeout = next == .max ? -1 : CInt(clamping: next > now ? next - now : 0)
        poll(&interest, nfds_t(interest.count), timeout)
    }

    private mutating func readSignals() {
        while true {
            let signal = aspen_next_signal(signals)
            guard signal > 0 else { return }
            if signal == SIGTERM || signal == SIGINT || signal == SIGHUP { stop(exit: 0) }
        }
    }

    private mutating func readNotifications() {
        while let notification = Notification.next(from: notifications) {
            // Only a child of ours is heard, and for itself alone.
            guard let index = children.firstIndex(where: { $0.pid == notification.sender }) else {
                if let descriptor = notification.descriptor { close(descriptor) }
                continue
            }
            children[index].notified(notification)
            if !hasAnnounced, children.allSatisfy(\.isReady) {
                hasAnnounced = true
                Terminal.error("aspen-node: node \(nodeID) is up; its sockets are in \(runtime)")
            }
        }
    }

    private mutating func reap() {
        while true {
            var status: CInt = 0
            let pid = waitpid(-1, &status, WNOHANG)
            guard pid > 0 else { return }
            guard let index = children.firstIndex(where: { $0.pid == pid }) else { continue }
            let name = children[index].name
            let signal = status & 0x7f
            let code = (status >> 8) & 0xff
            let foundDamage = signal == 0 && code == DaemonExit.dataError.rawValue
            children[index].forwardOutput()
            children[index].ended(now: Self.milliseconds(), foundDamage: foundDamage)
            if isStopping { continue }
            if signal == 0, Self.isHopeless(code, children[index]) {
                Terminal.error("aspen-node: \(name) cannot run (exit \(code)); stopping the node")
                stop(exit: code)
            } else {
                let how = signal != 0 ? "was killed by signal \(signal)" : "exited with \(code)"
                Terminal.error("aspen-node: \(name) \(how); starting it again")
            }
        }
    }

    private mutating func stop(exit: CInt) {
        guard !isStopping else { return }
        isStopping = true
        exitCode = exit
    }

    /// Stops the last child still running, then the one before it: raft drains through net.
    private mutating func stopNext() {
        guard let index = children.lastIndex(where: { $0.pid != 0 }) else { return }
        let now = Self.milliseconds()
        if children[index].restartAt == nil {
            children[index].restartAt = .max  // marks that it was told
            stopDeadline = now + Self.stopMilliseconds
            kill(children[index].pid, SIGTERM)
        } else if now >= stopDeadline {
            Terminal.error("aspen-node: \(children[index].name) does not stop; killing it")
            kill(children[index].pid, SIGKILL)
            stopDeadline = now + Self.stopMilliseconds
        }
    }

    private mutating func finish() -> CInt {
        for index in children.indices { children[index].forwardOutput() }
        for name in ["net.sock", "raft.sock", "gossip.sock", "egress.sock", "notify.sock"] {
            unlink("\(runtime)/\(name)")
        }
        return exitCode
    }

    private static func milliseconds() -> UInt64 {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return UInt64(now.tv_sec) * 1000 + UInt64(now.tv_nsec) / 1_000_000
    }
}
