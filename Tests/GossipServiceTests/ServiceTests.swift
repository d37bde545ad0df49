// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import CAspenSystem
import Glibc
import GossipService
import Logging
import NIOCore
import NIOPosix
import ServiceKit
import Testing

/// A service on a socket in a directory of its own, without multicast, and without net unless a test has
/// answers of one.
final class SocketBench {
    let loop = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let directory: String
    let service: GossipService
    private var connections: [CInt] = []

    var path: String { "\(directory)/gossip.sock" }

    /// Where aspend-net hands over streams of other nodes.
    var peerPath: String { "\(directory)/gossip.peer.sock" }

    private var net: (any RunningListener)?

    /// - Parameter net: what is answered on net.sock.
    init(
        access: LocalAccess = .ofSystem(), net: (@Sendable (NetRequest) -> [NetReply])? = nil
    ) throws {
        var template = Array("/tmp/aspen-gossip-XXXXXX".utf8CString)
        _ = mkdtemp(&template)
        directory = String(
            decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        service = GossipService(
            loop: loop.next(), logger: Logger(label: "test"), node: NodeID(1), access: access,
            sockets: [], netSocketPath: "\(directory)/net.sock")
        if let net { try serve(net) }
        let listener = aspen_listen_unix("\(directory)/gossip.sock")
        let peers = aspen_listen_unix("\(directory)/gossip.peer.sock")
        try #require(listener >= 0 && peers >= 0)
        try loop.next().flatSubmit { [service] in
            service.start(gossipSocket: listener, peerSocket: peers)
        }.wait()
    }

    deinit {
        for descriptor in connections { close(descriptor) }
        try? loop.next().flatSubmit { [service] in service.stop() }.wait()
        if let net { try? loop.next().submit { net.close() }.wait() }
        try? loop.syncShutdownGracefully()
        unlink(path)
        unlink(peerPath)
        unlink("\(directory)/net.sock")
        rmdir(directory)
    }

    private func serve(_ answers: @escaping @Sendable (NetRequest) -> [NetReply]) throws {
        let listener = aspen_listen_unix("\(directory)/net.sock")
        try #require(listener >= 0)
        let loop = loop.next()
        net = try loop.flatSubmit {
            Listener.start(descriptor: listener, on: loop) { channel in
                let frames = FrameChannel(frameBytesMax: NetRequest.frameBytesMax)
                frames.onFrame = { frames, frame in
                    guard let request = try? NetRequest(decoding: Array(buffer: frame)) else {
                        return frames.close()
                    }
                    for reply in answers(request) { frames.send { $0.writeBytes(reply.encoded()) } }
                }
                try channel.pipeline.syncOperations.addHandler(frames)
            }
        }.wait()
    }

    /// - Parameter path: nil: gossip.sock.
    func connect(to path: String? = nil) throws -> CInt {
        let path = path ?? self.path
        let descriptor = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        try #require(result == 0)
        connections.append(descriptor)
        return descriptor
    }

    /// What is answered; nil when the connection is closed instead.
    func ask(_ content: [UInt8], on descriptor: CInt) throws -> GossipReply? {
        let frame = withUnsafeBytes(of: UInt32(content.count).littleEndian) { Array($0) } + content
        // It may be closed already: no signal for that.
        _ = send(descriptor, frame, frame.count, CInt(MSG_NOSIGNAL))
        guard let head = receive(4, descriptor) else { return nil }
        let length = head.reversed().reduce(0) { $0 << 8 | Int($1) }
        guard let body = receive(length, descriptor) else { return nil }
        return try GossipReply(decoding: body)
    }

    private func receive(_ count: Int, _ descriptor: CInt) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: count)
        return recv(descriptor, &bytes, count, CInt(MSG_WAITALL)) == count ? bytes : nil
    }
}

@Suite struct GossipServiceTests {
    @Test func whoHasBeenFoundIsToldInOrderAndRubbishEndsTheConnection() throws {
        let bench = try SocketBench()
        let connection = try bench.connect()
        for _ in 0..<3 {
            let reply = try bench.ask(GossipRequest.listDiscovered.encoded(), on: connection)
            #expect(reply == .discovered([]))
        }
        guard case .failed(.invalidArgument, _)? = try bench.ask([99], on: connection) else {
            Issue.record("rubbish is refused")
            return
        }
        #expect(try bench.ask([1], on: connection) == nil)
    }

    @Test func strangersAreRefused() throws {
        let bench = try SocketBench(access: LocalAccess(users: [], groups: []))
        let reply = try bench.ask(
            GossipRequest.listDiscovered.encoded(), on: try bench.connect())
        guard case .failed(.permissionDenied, _)? = reply else {
            Issue.record("\(String(describing: reply))")
            return
        }
    }

    @Test func connectionsAreBounded() throws {
        let bench = try SocketBench()
        let request = GossipRequest.listDiscovered.encoded()
        for _ in 0..<GossipSocketLimits.localConnectionsMax {
            #expect(try bench.ask(request, on: try bench.connect()) == .discovered([]))
        }
        #expect(try bench.ask(request, on: try bench.connect()) == nil)
    }

    @Test func repliesSurviveTheWire() throws {
        let endpoint = try #require(EndpointID(bytes: (0..<32).map { UInt8($0) }))
        let peer = DiscoveredPeer(
            source: .mdns, node: NodeID(7), endpoint: endpoint,
            addresses: ["192.0.2.1:7700", "[2001:db8::1]:7700"])
        for reply in [
            GossipReply.discovered([peer, peer]), .discovered([]),
            .failed(code: .unavailable, message: "no"),
        ] {
            #expect(try GossipReply(decoding: reply.encoded()) == reply)
        }
    }

    @Test func settingsSayWhatIsWrong() throws {
        func settings(_ arguments: [String]) throws(AspenError) -> GossipSettings {
            try GossipSettings(ServiceSettings(arguments: arguments, known: GossipSettings.known))
        }
        #expect(try settings(["--node-id", "3"]).isMDNSDisabled == false)
        #expect(try settings(["--node-id", "3", "--disable-mdns", "true"]).isMDNSDisabled)
        #expect(try settings(["--node-id=3"]).runtimeDirectory == "/run/aspen")
        #expect(throws: AspenError.self) { try settings([]) }
        #expect(throws: AspenError.self) { try settings(["--node-id", "0"]) }
        #expect(throws: AspenError.self) {
            try settings(["--node-id", "3", "--disable-mdns", "x"])
        }
    }

    @Test func settingsOfDNSAndGossipSayWhatIsWrong() throws {
        func settings(_ arguments: [String]) throws(AspenError) -> GossipSettings {
            try GossipSettings(
                ServiceSettings(
                    arguments: ["--node-id", "3"] + arguments, known: GossipSettings.known))
        }
        let plain = try settings(["--dns-discovery-origin", "nodes.example.org"])
        #expect(plain.dnsOrigin == nil && !plain.isGossipDisabled)
        #expect(try settings(["--disable-gossip", "true"]).isGossipDisabled)
        let asking = try settings([
            "--enable-dns-discovery", "true", "--dns-discovery-origin", "nodes.example.org.",
        ])
        #expect(asking.dnsOrigin.map { "\($0)" } == "nodes.example.org.")
        #expect(try settings(["--enable-pkarr", "false"]).dnsOrigin == nil)
        let wrong = [
            (["--enable-dns-discovery", "true"], "--dns-discovery-origin"),
            (["--dns-discovery-origin", "nodes..org"], "is no domain name"),
            (["--dns-discovery-origin", "https://nodes.org"], "is no domain name"),
            (
                [
                    "--dns-discovery-origin",
                    [String](repeating: "node", count: 39).joined(separator: "."),
                ],
                "is over 190 bytes"
            ),
            (["--enable-pkarr", "true"], "not yet"),
            (["--disable-gossip", "perhaps"], "true or false"),
        ]
        for (arguments, text) in wrong {
            let error = #expect(throws: AspenError.self) { try settings(arguments) }
            #expect(error?.code == .invalidArgument)
            #expect(error?.message.contains(text) == true, "\(arguments): \(error?.message ?? "")")
        }
    }

    @Test func itsManualNamesItsSettings() {
        let help = GossipDaemon.manual.help
        for name in GossipSettings.known.union(["config", "log-level"]) {
            #expect(help.contains("\n  --\(name)"), "\(name)")
        }
    }
}
