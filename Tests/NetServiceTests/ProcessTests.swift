// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import CAspenSystem
import Glibc
import NIOCore
import NetClient
import QUIC
import ServiceKit
import Synchronization
import Testing

@testable import NetService

/// The program itself, started as a supervisor starts it.
final class NetProcess: @unchecked Sendable {
    // SAFETY: used by one test at a time.
    let node: TestNode
    let stateDirectory = Scratch()
    private var sockets: [(name: String, descriptor: CInt)]
    /// Where the program says what a supervisor should know, and what it has asked to keep.
    private let notifications: CInt
    private(set) var kept: [CInt] = []
    /// What it has said, in order.
    private(set) var said: [String] = []
    private(set) var pid: pid_t = 0
    /// Further environment, "NAME=value".
    var variables: [String] = []
    var logPath: String { "\(stateDirectory.path)/log" }

    /// - Parameter node: gives the key's place, the ports and the stand-in for raft.
    init(node: TestNode, cookie: String? = Cookies.text) {
        self.node = node
        var sockets: [(name: String, descriptor: CInt)] = [
            ("net.sock", Self.high(Sockets.listening(node.netSocket))),
            ("quic", Self.high(node.datagram())),
            ("raft.peer", Self.high(node.passingEnd)),
        ]
        if let cookie { sockets.append(("cookie", Self.cookie(cookie))) }
        self.sockets = sockets
        notifications = aspen_bind_unix_datagram("\(node.scratch.path)/notify.sock")
        precondition(notifications >= 0)
    }

    deinit {
        kill()
        for descriptor in sockets.map(\.descriptor) + kept + [notifications] { close(descriptor) }
    }

    private static func cookie(_ text: String) -> CInt {
        high(aspen_memory_file("cookie", text, text.utf8.count))
    }

    /// What the next start is given.
    func changeCookie(_ text: String) {
        for place in sockets.indices where sockets[place].name == "cookie" {
            close(sockets[place].descriptor)
            sockets[place].descriptor = Self.cookie(text)
        }
    }

    /// Does as systemd does with what the program has said since the last time (sd_notify(3)).
    func readNotifications() {
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            var sender: pid_t = 0
            var descriptor: CInt = -1
            let count = aspen_receive_notification(
                notifications, &buffer, buffer.count, &sender, &descriptor)
            guard count >= 0 else { return }
            let text = String(decoding: buffer.prefix(count), as: UTF8.self)
            said.append(text)
            if text.contains("FDSTOREREMOVE=1") {
                for descriptor in kept { close(descriptor) }
                kept = []
            } else if text.contains("FDSTORE=1"), descriptor >= 0 {
                kept.append(Self.high(descriptor))
            }
        }
    }

    /// Out of the way of the numbers that the child will have.
    private static func high(_ descriptor: CInt) -> CInt {
        let moved = fcntl(descriptor, F_DUPFD_CLOEXEC, 200)
        close(descriptor)
        return moved
    }

    static var program: String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        let own = String(decoding: buffer.prefix(max(0, count)).map(UInt8.init), as: UTF8.self)
        return own.split(separator: "/").dropLast().reduce("") { "\($0)/\($1)" } + "/aspend-net"
    }

    /// Runs the program to its end; what it wrote to stdout and stderr, and its exit code.
    static func run(_ arguments: [String]) -> (output: String, errors: String, code: CInt) {
        let scratch = Scratch()
        let child = spawn(
            arguments, [], out: "\(scratch.path)/out", errors: "\(scratch.path)/err")
        let code = wait(child)
        return (text("\(scratch.path)/out"), text("\(scratch.path)/err"), code)
    }

    func start(peers: [String] = [], tokensRequired: Bool = true) {
        var arguments = [
            "--state-dir", stateDirectory.path, "--runtime-dir", node.scratch.path, "--node-id",
            "1", "--tokens-required", "\(tokensRequired)",
        ]
        for peer in peers { arguments += ["--peers", peer] }
        start(arguments: arguments)
    }

    func start(arguments: [String]) {
        readNotifications()
        pid = Self.spawn(
            arguments, sockets + kept.map { (CookieKey.keptName, $0) }, out: "/dev/null",
            errors: logPath, notify: "\(node.scratch.path)/notify.sock", variables: variables)
    }

    /// kill -9.
    func kill() {
        guard pid > 0 else { return }
        Glibc.kill(pid, SIGKILL)
        _ = Self.wait(pid)
        pid = 0
    }

    /// SIGTERM; the exit code.
    func stop() -> CInt {
        Glibc.kill(pid, SIGTERM)
        defer { pid = 0 }
        return Self.wait(pid)
    }

    func end() -> CInt {
        defer { pid = 0 }
        return Self.wait(pid)
    }

    var log: String { Self.text(logPath) }
    var residentBytes: Int {
        let fields = Self.text("/proc/\(pid)/statm").split(separator: " ")
        return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * 4096
    }

    /// Processor time used so far, in clock ticks of 10 ms (proc(5): stat).
    var processorTicks: Int {
        let fields = Self.text("/proc/\(pid)/stat").split(separator: " ")
        guard fields.count > 14 else { return 0 }
        return (Int(fields[13]) ?? 0) + (Int(fields[14]) ?? 0)
    }

    static func text(_ path: String) -> String {
        let descriptor = open(path, O_RDONLY)
        guard descriptor >= 0 else { return "" }
        defer { close(descriptor) }
        var buffer = [UInt8](repeating: 0, count: 1 << 20)
        let count = read(descriptor, &buffer, buffer.count)
        return String(decoding: buffer.prefix(max(0, count)), as: UTF8.self)
    }

    private static func wait(_ pid: pid_t) -> CInt {
        var status: CInt = 0
        waitpid(pid, &status, 0)
        return status & 0x7f == 0 ? (status >> 8) & 0xff : -(status & 0x7f)
    }

    private static func spawn(
        _ arguments: [String], _ sockets: [(name: String, descriptor: CInt)], out: String,
        errors: String, notify: String? = nil, variables more: [String] = []
    ) -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        let create = O_WRONLY | O_CREAT | O_APPEND
        posix_spawn_file_actions_addopen(&actions, 1, out, create, 0o600)
        posix_spawn_file_actions_addopen(&actions, 2, errors, create, 0o600)
        for (place, socket) in sockets.enumerated() {
            posix_spawn_file_actions_adddup2(&actions, socket.descriptor, CInt(3 + place))
        }
        var environment =
            [
                "LISTEN_FDS=\(sockets.count)",
                "LISTEN_FDNAMES=\(sockets.map(\.name).joined(separator: ":"))",
                "LD_LIBRARY_PATH=" + (getenv("LD_LIBRARY_PATH").map { String(cString: $0) } ?? ""),
                "ASPEN_LOG_LEVEL=debug",
            ] + more
        if let notify { environment.append("NOTIFY_SOCKET=\(notify)") }
        var words = ([program] + arguments).map { strdup($0) } + [nil]
        var variables = environment.map { strdup($0) } + [nil]
        defer { (words + variables).forEach { free($0) } }
        var pid: pid_t = 0
        let result = posix_spawn(&pid, program, &actions, nil, &words, &variables)
        precondition(result == 0, "cannot start \(program)")
        return pid
    }
}

extension NetServiceTests {
    @Suite struct ProcessTests {
        @Test func printIdentityWritesTheEndpointAndNothingElse() throws {
            let scratch = Scratch()
            let first = NetProcess.run(["--print-identity", "--state-dir", scratch.path])
            #expect(first.code == 0)
            #expect(first.errors.isEmpty)
            let line = first.output.split(separator: "\n", omittingEmptySubsequences: false)
            #expect(line.count == 2 && line[1].isEmpty)
            #expect(EndpointID(String(line[0])) != nil)
            let second = NetProcess.run(["--print-identity", "true", "--state-dir", scratch.path])
            #expect(second.output == first.output)
        }

        @Test func withoutACookieItEndsAsMisconfigured() {
            let node = TestNode()
            let process = NetProcess(node: node, cookie: nil)
            process.start()
            #expect(process.end() == 78)
            #expect(process.log.contains("there is no cluster cookie"))
            #expect(process.log.contains("aspen-cli setup"))
        }

        @Test func withoutSocketsItSaysWhoStartsIt() {
            let scratch = Scratch()
            let result = NetProcess.run(["--state-dir", scratch.path])
            #expect(result.code == 78)
            #expect(!result.errors.isEmpty)
        }

        @Test func killedAgainAndAgainItComesBackAndNobodyCallsItsRaftGone() async throws {
            let nodes = [TestNode(), TestNode()]
            let processes = nodes.map { NetProcess(node: $0) }
            defer { for process in processes { process.kill() } }
            for process in processes {
                process.start()
                try await process.node.startEcho()
            }
            for node in nodes { try await node.startControl([], isClosed: false) }
            #expect(await eventually { nodes.allSatisfy { $0.identity.withLock { $0 } != nil } })
            let peers = nodes.compactMap { node in
                node.identity.withLock { $0 }.map {
                    NetPeer(endpoint: $0.endpoint, addresses: $0.addresses)
                }
            }
            try #require(peers.count == 2)
            try await nodes[0].setPeers([peers[1]], isClosed: true)
            try await nodes[1].setPeers([peers[0]], isClosed: true)
            #expect(await eventually { nodes[0].has(.peerUp(peers[1].endpoint)) })
            var times: [Duration] = []
            for round in 1...5 {
                let start = ContinuousClock.now
                processes[1].kill()
                processes[1].start()
                #expect(processes[1].kept.count == 1, "the key of the cookie")
                #expect(await eventually { nodes[1].connects.withLock { $0 } == round + 1 })
                let isBack = await eventually {
                    guard let stream = try? await nodes[0].open(to: peers[1].endpoint) else {
                        return false
                    }
                    try? await stream.write([1])
                    let isEchoed = await eventually(0.2) { stream.count == 1 }
                    try? await stream.close()
                    return isEchoed
                }
                #expect(isBack)
                times.append(ContinuousClock.now - start)
            }
            let gone = nodes[0].events.withLock {
                $0.contains(.serviceGone(peers[1].endpoint, .raft))
            }
            #expect(!gone)
            #expect(times.sorted()[2] < .seconds(2), "\(times)")
            for process in processes {
                #expect(process.residentBytes < 40 << 20, "\(process.residentBytes) bytes")
                #expect(!process.log.contains(Cookies.text))
                #expect(process.stop() == 0)
            }
            for node in nodes { try await node.stop() }
        }

        @Test func garbageDoesNotMakeItGrow() async throws {
            let node = TestNode()
            let process = NetProcess(node: node)
            defer { process.kill() }
            process.start()
            try await node.startEcho()
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            try await Garbage.datagrams(3000, to: node.port, seed: 1)
            try await Garbage.frames(3000, to: node.netSocket, loop: node.loop, seed: 1)
            let before = process.residentBytes
            try await Garbage.datagrams(10_000, to: node.port, seed: 2)
            try await Garbage.frames(10_000, to: node.netSocket, loop: node.loop, seed: 2)
            #expect(process.residentBytes - before < 4 << 20)
            #expect(process.residentBytes < 40 << 20)
            let lines = process.log.split(separator: "\n")
            #expect(lines.count { $0.contains("closed a connection on net.sock") } == 1)
            #expect(lines.count < 20)
            #expect(node.losses.withLock { $0 } == 0, "it never fell over")
            #expect(process.stop() == 0)
            try await node.stop()
        }
    }
}
