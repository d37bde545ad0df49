// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import Glibc
import NIOCore
import ServiceKit
import Testing

/// Where a daemon's notifications arrive, as systemd has it.
final class NotifySocket: Sendable {
    let path: String
    private let descriptor: CInt

    init(_ directory: String) {
        path = "\(directory)/notify"
        descriptor = socket(AF_UNIX, CInt(SOCK_DGRAM.rawValue), 0)
        let result = Self.withAddress(path) { bind(descriptor, $0, $1) }
        precondition(result == 0, "cannot bind \(path)")
        var limit = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(
            descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    static func connect(_ path: String) -> CInt {
        let client = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
        let result = withAddress(path) { Glibc.connect(client, $0, $1) }
        precondition(result == 0, "cannot connect to \(path)")
        return client
    }

    private static func withAddress(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> CInt
    ) -> CInt {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { place in
            place.copyBytes(from: path.utf8.prefix(place.count - 1))
        }
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    /// The next one that says how the daemon is, past those that give something into keeping; empty
    /// when none comes for long.
    func next() -> String {
        while true {
            var buffer = [UInt8](repeating: 0, count: 4096)
            let count = recv(descriptor, &buffer, buffer.count, 0)
            let text = String(decoding: buffer.prefix(max(0, count)), as: UTF8.self)
            if !text.hasPrefix("FDSTORE") { return text }
        }
    }

    /// The status that a daemon is shown with once it has said that it is ready; nil if it never does.
    func statusWhenReady() -> String? {
        var status = ""
        while true {
            let lines = next().split(separator: "\n")
            if lines.isEmpty { return nil }
            for line in lines where line.hasPrefix("STATUS=") {
                status = String(line.dropFirst("STATUS=".utf8.count))
            }
            if lines.contains("READY=1") { return status }
        }
    }
}

extension NetServiceTests {
    @Suite struct RefusingTests {
        private let node = TestNode()
        private let notify: NotifySocket
        private let process: NetProcess

        init() {
            notify = NotifySocket(node.scratch.path)
            process = NetProcess(node: node)
            process.variables = ["INVOCATION_ID=0123456789abcdef", "NOTIFY_SOCKET=\(notify.path)"]
        }

        /// Any request on net.sock, and what is answered.
        private func ask() -> NetReply? {
            let client = NotifySocket.connect(node.netSocket)
            defer { close(client) }
            let request = NetRequest.identify.encoded()
            var length = UInt32(request.count).littleEndian
            let bytes = withUnsafeBytes(of: &length) { Array($0) } + request
            guard Glibc.write(client, bytes, bytes.count) == bytes.count else { return nil }
            var buffer = [UInt8](repeating: 0, count: 65_536)
            let count = read(client, &buffer, buffer.count)
            guard count > 4 else { return nil }
            return try? NetReply(decoding: Array(buffer[4..<count]))
        }

        private func refusal() -> String? {
            guard case .failed(.unavailable, let message)? = ask() else { return nil }
            return message
        }

        @Test func aWrongConfigurationIsToldUntilItIsMended() throws {
            defer { process.kill() }
            let config = node.scratch.path
            write(config, "[node]\nidd = 1\n")
            let arguments = [
                "--state-dir", process.stateDirectory.path, "--runtime-dir", config, "--config",
                config,
            ]
            process.start(arguments: arguments)
            let ready = notify.next()
            #expect(ready.hasPrefix("READY=1\nSTATUS=configuration error: "), "\(ready)")
            #expect(ready.contains("aspen.toml:2: there is no setting 'node.idd'"))
            for _ in 0..<3 {
                #expect(refusal()?.contains("aspen.toml:2: there is no setting") == true)
            }
            #expect(process.residentBytes < 40 << 20)
            // Mended: the process ends by itself, and its successor serves on the same socket.
            write(config, "[node]\nid = 1\n")
            #expect(notify.next() == "STOPPING=1")
            #expect(process.end() == 0)
            process.start(arguments: arguments)
            #expect(notify.statusWhenReady() == "serving, 0 peers connected")
            guard case .identity? = ask() else {
                Issue.record("it does not serve: \(process.log)")
                return
            }
            #expect(process.stop() == 0)
        }

        private func write(_ directory: String, _ text: String) {
            let path = "\(directory)/aspen.toml"
            unlink(path)
            let file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0o644)
            _ = Glibc.write(file, text, text.utf8.count)
            close(file)
        }

        @Test func aKeyThatOthersCanReadIsToldAndAHangUpStartsAnew() throws {
            defer { process.kill() }
            let key = "\(process.stateDirectory.path)/identity.key"
            _ = NetProcess.run(["--print-identity", "--state-dir", process.stateDirectory.path])
            chmod(key, 0o644)
            process.start()
            #expect(
                notify.next().contains("STATUS=configuration error: \(key) can be read by others"))
            #expect(refusal()?.contains("can be read by others") == true)
            #expect(kill(process.pid, SIGHUP) == 0)
            #expect(notify.next() == "STOPPING=1")
            #expect(process.end() == 0)
        }

        @Test func aMissingCookieIsTold() throws {
            let other = TestNode()
            let process = NetProcess(node: other, cookie: "\n")
            process.variables = ["INVOCATION_ID=0", "NOTIFY_SOCKET=\(notify.path)"]
            defer { process.kill() }
            process.start()
            #expect(notify.next().contains("there is no cluster cookie"))
            #expect(process.stop() == 0, "SIGTERM ends it as any daemon")
        }

        @Test func aStateDirectoryThatCannotBeUsedIsTold() throws {
            defer { process.kill() }
            process.start(arguments: ["--state-dir", "/proc/self/nothing"])
            #expect(notify.next().contains("STATUS=storage error: "))
            #expect(refusal()?.contains("/proc/self/nothing") == true)
            #expect(process.stop() == 0)
        }

        @Test func inTheForegroundItEnds() {
            process.variables = ["INVOCATION_ID=0", "SYSTEMD_EXEC_PID=1"]
            process.start(arguments: ["--config", "/nonexistent"])
            #expect(process.end() == 78)
            #expect(process.log.contains("/nonexistent"))
        }
    }
}
