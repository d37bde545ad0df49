// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import CAspenSystem
import EgressClient
import EgressService
import Glibc
import NIOCore
import NIOPosix
import ServiceKit
import Testing

/// The program itself, started as a supervisor starts it.
private final class EgressProcess {
    private let place: Place
    private(set) var pid: pid_t = 0

    private static var program: String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count)
        let own = String(
            decoding: buffer.prefix(max(0, count)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return own.split(separator: "/").dropLast().reduce("") { "\($0)/\($1)" } + "/aspend-egress"
    }

    init(
        _ place: Place, _ sockets: [(name: String, descriptor: CInt)],
        servers: String = "127.0.0.1:5300", arguments: [String] = []
    ) {
        self.place = place
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        let create = O_WRONLY | O_CREAT | O_APPEND
        posix_spawn_file_actions_addopen(&actions, 1, "\(place.path)/out", create, 0o600)
        posix_spawn_file_actions_addopen(&actions, 2, "\(place.path)/err", create, 0o600)
        // Out of the way of where they are to be.
        let high = sockets.map { fcntl($0.descriptor, F_DUPFD_CLOEXEC, 100) }
        defer { for descriptor in high { close(descriptor) } }
        for (number, descriptor) in high.enumerated() {
            posix_spawn_file_actions_adddup2(&actions, descriptor, CInt(3 + number))
        }
        let environment = [
            "LISTEN_FDS=\(sockets.count)",
            "LISTEN_FDNAMES=\(sockets.map(\.name).joined(separator: ":"))",
            "LD_LIBRARY_PATH=" + (getenv("LD_LIBRARY_PATH").map { String(cString: $0) } ?? ""),
            "ASPEN_DNS_SERVERS=\(servers)",
        ]
        var words = ([Self.program] + arguments).map { strdup($0) } + [nil]
        var variables = environment.map { strdup($0) } + [nil]
        defer { (words + variables).forEach { free($0) } }
        // Threads that run tests block signals, and children would inherit that.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
        let result = posix_spawn(&pid, Self.program, &actions, &attributes, &words, &variables)
        precondition(result == 0, "cannot start \(Self.program)")
    }

    deinit {
        guard pid > 0 else { return }
        kill(pid, SIGKILL)
        _ = end()
    }

    /// The exit code, or the signal as a negative number.
    func end() -> CInt {
        var status: CInt = 0
        waitpid(pid, &status, 0)
        pid = 0
        return status & 0x7f == 0 ? (status >> 8) & 0xff : -(status & 0x7f)
    }

    func text(_ name: String) -> String {
        let descriptor = open("\(place.path)/\(name)", O_RDONLY)
        guard descriptor >= 0 else { return "" }
        defer { close(descriptor) }
        var buffer = [UInt8](repeating: 0, count: 65_536)
        let count = read(descriptor, &buffer, buffer.count)
        return String(decoding: buffer.prefix(max(0, count)), as: UTF8.self)
    }
}

private func frame(_ request: EgressRequest) -> [UInt8] {
    let content = request.encoded()
    return withUnsafeBytes(of: UInt32(content.count).littleEndian) { Array($0) } + content
}

@Suite(.serialized) struct ProgramTests {
    private func ask(_ request: EgressRequest, on connection: CInt) throws {
        let bytes = frame(request)
        try #require(send(connection, bytes, bytes.count, CInt(MSG_NOSIGNAL)) == bytes.count)
    }

    @Test func withOneConnectionItAnswersAndEnds() throws {
        var pair: [CInt] = [-1, -1]
        try #require(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &pair) == 0)
        defer { close(pair[0]) }
        let process = EgressProcess(try Place(), [("connection", pair[1])])
        close(pair[1])
        try ask(.nameServers, on: pair[0])
        #expect(try answer(to: pair[0]).reply == .nameServers(["127.0.0.1:5300"]))
        #expect(process.end() == DaemonExit.ok.rawValue)
    }

    @Test func aWrongSettingIsTheAnswerToAConnection() throws {
        var pair: [CInt] = [-1, -1]
        try #require(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &pair) == 0)
        defer { close(pair[0]) }
        let process = EgressProcess(try Place(), [("connection", pair[1])], servers: "nonsense")
        close(pair[1])
        try ask(.nameServers, on: pair[0])
        guard case .failed(.invalidArgument, let message) = try answer(to: pair[0]).reply else {
            Issue.record("it is told what is wrong")
            return
        }
        #expect(message.contains("--dns-servers"))
        #expect(process.end() == DaemonExit.ok.rawValue)
    }

    @Test func withAListeningSocketItServesEachInAProcessOfItsOwn() throws {
        let place = try Place()
        let process = EgressProcess(place, [("egress.sock", place.listener)])
        let client = EgressClient(socketPath: place.socketPath)
        defer { client.stop() }
        let loop = MultiThreadedEventLoopGroup.singleton.next()
        // One that says nothing holds up nobody.
        let silent = try connect(to: place.socketPath)
        defer { close(silent) }
        for _ in 0..<3 {
            #expect(try client.nameServers(on: loop).wait() == ["127.0.0.1:5300"])
            let connected = try client.nameServer(0, isStream: false, on: loop).wait()
            #expect(connected.address == "127.0.0.1:5300")
            close(connected.descriptor)
        }
        let refused = #expect(throws: AspenError.self) {
            try client.nameServer(1, isStream: false, on: loop).wait()
        }
        #expect(refused?.code == .notFound)
        // Children go with it: the silent one's connection ends.
        kill(process.pid, SIGTERM)
        #expect(process.end() == -SIGTERM)
        var byte: UInt8 = 0
        #expect(recv(silent, &byte, 1, 0) <= 0)
    }

    @Test func processesAreBounded() throws {
        let place = try Place()
        let process = EgressProcess(place, [("egress.sock", place.listener)])
        var silent = try (0..<EgressLimits.processesMax).map { _ in
            try connect(to: place.socketPath)
        }
        let late = try connect(to: place.socketPath)
        defer { for connection in silent + [late] { close(connection) } }
        try ask(.nameServers, on: late)
        var interest = pollfd(fd: late, events: Int16(POLLIN), revents: 0)
        #expect(poll(&interest, 1, 200) == 0, "its turn has not come")
        close(silent.removeLast())
        #expect(try answer(to: late).reply == .nameServers(["127.0.0.1:5300"]))
        #expect(process.pid > 0)
    }

    @Test func whereNobodyListensTheClientSaysSo() throws {
        let client = EgressClient(socketPath: "/nowhere/egress.sock")
        defer { client.stop() }
        let loop = MultiThreadedEventLoopGroup.singleton.next()
        let error = #expect(throws: AspenError.self) { try client.nameServers(on: loop).wait() }
        #expect(error?.code == .unavailable)
        #expect(error?.message.contains("/nowhere/egress.sock") == true)
    }

    @Test func withoutSocketsItSaysWhoStartsIt() throws {
        let process = EgressProcess(try Place(), [])
        #expect(process.end() == DaemonExit.configuration.rawValue)
        #expect(process.text("err").contains("is started by systemd or by aspen-node"))
    }

    @Test func aWrongSettingEndsItWhenItListens() throws {
        let place = try Place()
        let process = EgressProcess(
            place, [("egress.sock", place.listener)], arguments: ["--dns-servers", "x"])
        #expect(process.end() == DaemonExit.configuration.rawValue)
    }

    @Test func itsManualNamesItsSettings() throws {
        let process = EgressProcess(try Place(), [], arguments: ["--help"])
        #expect(process.end() == DaemonExit.ok.rawValue)
        for name in ["dns-servers", "config", "log-level", "version"] {
            #expect(process.text("out").contains("\n  --\(name)"), "\(name)")
        }
    }
}
