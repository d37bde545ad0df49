// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import LinkCore
import NIOCore
import NIOPosix
import QUIC
import Synchronization
import Testing

@testable import NetService

/// A peer that keeps to QUIC and to nothing else.
final class Rogue: @unchecked Sendable {
    // SAFETY: the endpoint is set up before use; everything else is behind locks.
    let loop: any EventLoop
    let endpoint: QUICEndpoint
    let key: NodeKey
    let port: UInt16
    private let descriptor: CInt
    let received = Mutex<[UInt8]>([])
    let accepted = Mutex<Int>(0)

    /// - Parameter host: the last byte of its address, 127.0.0.x.
    init(key: NodeKey = .generate(), host: UInt8 = 1) async throws {
        loop = MultiThreadedEventLoopGroup.singleton.next()
        self.key = key
        descriptor = Sockets.datagram(host: host)
        let descriptor = descriptor
        port = Sockets.port(of: descriptor)
        let loop = loop
        endpoint = try await loop.submit {
            QUICEndpoint(eventLoop: loop, key: key, configuration: QUICConfiguration())
        }.get()
        try await endpoint.bind(inheritedDatagramSocket: descriptor).get()
    }

    /// From now on nothing reaches it, so that it acknowledges nothing: as if its address were gone.
    func deafen() {
        // One instruction of classic BPF: return 0, keep no byte.
        struct Filter {
            var count: UInt16
            var instructions: UnsafePointer<UInt64>
        }
        let drop: UInt64 = 6
        withUnsafePointer(to: drop) {
            var filter = Filter(count: 1, instructions: $0)
            let size = socklen_t(MemoryLayout<Filter>.size)
            let code = setsockopt(descriptor, SOL_SOCKET, SO_ATTACH_FILTER, &filter, size)
            precondition(code == 0, "SO_ATTACH_FILTER: errno \(errno)")
        }
    }

    var peer: NetPeer { NetPeer(endpoint: key.endpoint, addresses: ["127.0.0.1:\(port)"]) }

    /// Accepts whoever comes and answers the first stream with what `answer` makes of its bytes.
    func accept(_ answer: @escaping @Sendable ([UInt8]) -> [UInt8]) async throws {
        try await loop.submit { [self] in
            endpoint.serverProtocols = [ALPN.raft.rawValue]
            endpoint.onConnection = { [self] connection in
                accepted.withLock { $0 += 1 }
                connection.onStream = { [self] stream in
                    stream.onData = { [self] data in
                        let bytes = Array(buffer: data)
                        received.withLock { $0 += bytes }
                        stream.write(ByteBuffer(bytes: answer(bytes)))
                    }
                }
            }
        }.get()
    }

    /// Dials a node and sends `bytes` on each of `streams` first streams.
    /// - Returns: why the connection ended.
    func attack(
        _ node: TestNode, alpn: ALPN = .raft, streams: Int = 1, _ bytes: [UInt8]
    ) async throws -> QUICError {
        let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
        let connection: QUICConnection
        do {
            connection = try await endpoint.connect(
                to: node.endpoint, addresses: [address], alpn: alpn.rawValue
            ).get()
        } catch let error as QUICError {
            return error
        }
        let over = loop.makePromise(of: QUICError.self)
        try await loop.submit { [self] in
            connection.onClosed = { over.succeed($0) }
            for _ in 0..<streams {
                let stream = try connection.openStream()
                stream.onData = { [self] data in
                    received.withLock { $0 += Array(buffer: data) }
                }
                stream.write(ByteBuffer(bytes: bytes))
            }
        }.get()
        return try await over.futureResult.get()
    }

    func stop() async throws { try await endpoint.close().get() }
}

private func code(_ error: QUICError) -> StreamErrorCode? {
    guard case .closedByPeer(let code, _) = error else { return nil }
    return StreamErrorCode(rawValue: code)
}

private func isRefusedInHandshake(_ error: QUICError) -> Bool {
    if case .handshakeRefused = error { true } else { false }
}

extension NetServiceTests {
    @Suite struct RefusalTests {
        /// Handshakes are done, and then nobody proves that it knows the cookie.
        @Test func strangersWithoutAProofAreCounted() async throws {
            let node = TestNode()
            try await node.start { $0.proofTimeout = .seconds(60) }
            try await node.startEcho()
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
            @Sendable func connect(_ stranger: Rogue) async throws -> QUICConnection {
                try await stranger.endpoint.connect(
                    to: node.endpoint, addresses: [address], alpn: ALPN.raft.rawValue
                ).get()
            }
            // At as many addresses as it takes: one alone may not fill all there is.
            var strangers: [Rogue] = []
            var open: [QUICConnection] = []
            while open.count < NetLimits.unprovedMax {
                let stranger = try await Rogue(host: UInt8(2 + strangers.count))
                strangers.append(stranger)
                for _ in 0..<NetLimits.unprovedPerAddressMax {
                    open.append(try await connect(stranger))
                }
                await #expect(throws: QUICError.self) { _ = try await connect(stranger) }
            }
            #expect(
                await eventually {
                    node.log.count("more than 16 strangers at one address before the proof") > 0
                })
            let stranger = try #require(strangers.last)
            let another = try await Rogue(host: 200)
            await #expect(throws: QUICError.self) { _ = try await connect(another) }
            // The refusal may arrive before it is written down.
            #expect(
                await eventually {
                    node.log.count("more than 64 strangers before the proof") > 0
                })
            // Whoever is expected is let in all the same.
            let member = TestNode()
            try await member.start()
            try await member.startEcho()
            try await member.startControl([node.peer])
            try await node.setPeers([member.peer], isClosed: false)
            #expect(await eventually { member.has(.peerUp(node.endpoint)) })
            // Who has left makes room.
            let last = try #require(open.last)
            try await stranger.loop.submit { last.close(code: 0, reason: "") }.get()
            #expect(await eventually { (try? await connect(another)) != nil })
            try await member.stop()
            for rogue in strangers + [another] { try await rogue.stop() }
            try await node.stop()
        }

        @Test func anotherCookieIsRefusedByBothAndLoggedOnce() async throws {
            let nodes = [TestNode(), TestNode()]
            try await nodes[0].start(cookie: Cookies.right)
            try await nodes[1].start(cookie: Cookies.wrong)
            for node in nodes {
                try await node.startEcho()
                try await node.startControl(nodes.filter { $0 !== node }.map(\.peer))
            }
            #expect(await eventually { nodes.allSatisfy(\.hasSeenAnyPeerDown) })
            // Both dial, so each is refused once and refuses once; the slow back-off sees to it that
            // a log does not fill.
            #expect(
                await eventually { nodes.allSatisfy { $0.log.count("the cookie differs") > 0 } })
            let isRepeated = await eventually(3) {
                nodes.contains { node in
                    node.log.all.filter { $0.hasPrefix("warning") }.count > 2
                }
            }
            #expect(!isRepeated)
            for node in nodes {
                #expect(node.echo.principals.withLock { $0.isEmpty })
                #expect(!node.hasSeenAnyPeerUp)
                let warnings = node.log.all.filter { $0.hasPrefix("warning") }
                #expect((1...2).contains(warnings.count), "\(warnings)")
                let failures = node.log.count("peer down")
                #expect(failures == 1)
            }
            let other = nodes[1].endpoint
            await #expect(throws: AspenError.self) { _ = try await nodes[0].open(to: other) }
            for node in nodes { try await node.stop() }
        }

        @Test func aStrangerIsRefusedInTheHandshake() async throws {
            try await withCluster(2) { nodes in
                let rogue = try await Rogue()
                let error = try await rogue.attack(nodes[0], [1, 1] + Array("let me in".utf8))
                #expect(isRefusedInHandshake(error), "\(error)")
                #expect(rogue.received.withLock { $0.isEmpty })
                #expect(nodes[0].log.count("not a member of this cluster") == 1)
                for _ in 0..<20 { _ = try await rogue.attack(nodes[0], [1, 1]) }
                #expect(nodes[0].log.count("not a member of this cluster") == 1, "logged once")
                #expect(nodes[0].echo.principals.withLock { $0.isEmpty })
                try await rogue.stop()
            }
        }

        @Test func whoDoesNotProveTheCookieGetsNowhere() async throws {
            let node = TestNode()
            try await node.start()
            try await node.startEcho()
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            let garbage = [UInt8](repeating: 9, count: 100)
            let zeros = ControlMessage.proof(
                mac: [UInt8](repeating: 0, count: 32), incarnation: 1, raft: .serving
            ).encoded()
            let attacks: [(String, [UInt8], Int, StreamErrorCode)] = [
                ("a service stream first", [1, 1] + garbage, 1, .malformed),
                ("a wrong proof", [1, 255] + Array(buffer: zeros), 1, .cookie),
                ("no message", [1, 255] + garbage, 1, .malformed),
                ("no version", garbage, 1, .malformed),
                ("many streams", [1, 1], 10, .malformed),
                ("silence", [1, 255], 1, .cookie),
            ]
            for (name, bytes, streams, expected) in attacks {
                let rogue = try await Rogue()
                let error = try await rogue.attack(node, streams: streams, bytes)
                #expect(code(error) == expected, "\(name): \(error)")
                #expect(
                    rogue.received.withLock { $0.isEmpty }, "\(name): not even the node's own proof"
                )
                try await rogue.stop()
            }
            #expect(node.echo.principals.withLock { $0.isEmpty })
            #expect(!node.hasSeenAnyPeerUp)
            try await node.stop()
        }

        @Test func aReflectedProofIsWorthNothingAndTheCookieIsNotInIt() async throws {
            let rogue = try await Rogue()
            try await rogue.accept { bytes in bytes.count > 2 ? Array(bytes.dropFirst(2)) : [] }
            let node = TestNode()
            try await node.start()
            try await node.startControl([rogue.peer])
            #expect(await eventually { node.log.count("the cookie differs") > 0 })
            #expect(!node.has(.peerUp(rogue.key.endpoint)))
            let seen = rogue.received.withLock { $0 }
            #expect(
                seen.count == 46, "header 2, length 2, type 1, proof 32, incarnation 8, state 1")
            #expect(!seen.contains(Array(Cookies.text.utf8).prefix(8)))
            #expect(node.log.all.allSatisfy { !$0.contains(Cookies.text) })
            try await node.stop()
            try await rogue.stop()
        }

        @Test func theProofBelongsToOneConnectionAndOneDirection() {
            let exported = [UInt8](repeating: 3, count: 32)
            let other = [UInt8](repeating: 4, count: 32)
            let proof = Cookies.right.proof(of: .dialler, exported: exported)
            #expect(Cookies.right.verifies(proof, of: .dialler, exported: exported))
            #expect(!Cookies.right.verifies(proof, of: .acceptor, exported: exported))
            #expect(!Cookies.right.verifies(proof, of: .dialler, exported: other))
            #expect(!Cookies.wrong.verifies(proof, of: .dialler, exported: exported))
            #expect("\(Cookies.right)" == "<secret>")
            var dumped = ""
            dump(Cookies.right, to: &dumped)
            #expect(!dumped.contains("["))
        }

        @Test func removedMembersAreCutOff() async throws {
            try await withCluster(3) { nodes in
                let gone = nodes[2]
                let stream = try await nodes[0].open(to: gone.endpoint)
                try await nodes[0].setPeers([nodes[1].peer], isClosed: true)
                #expect(await eventually { stream.isClosed.withLock { $0 } })
                #expect(
                    await eventually {
                        nodes[0].has(.peerDown(gone.endpoint, reason: "it is no member"))
                    })
                #expect(await eventually { nodes[0].log.count("not a member of this cluster") > 0 })
                let refusal =
                    "refused by peer \(nodes[0].endpoint): it does not know this node as a member yet"
                #expect(await eventually { gone.log.count(refusal) > 0 })
                await #expect(throws: AspenError.self) {
                    _ = try await nodes[0].open(to: gone.endpoint)
                }
            }
        }

        @Test func garbageOnEverySocketIsSurvived() async throws {
            try await withCluster(2) { nodes in
                let node = nodes[0]
                let port = node.port
                let path = node.netSocket
                // Warm up, so that what is measured is growth and not first use.
                try await Garbage.datagrams(2000, to: port, seed: 1)
                try await Garbage.frames(2000, to: path, loop: node.loop, seed: 1)
                let before = residentBytes()
                try await Garbage.datagrams(10_000, to: port, seed: 2)
                try await Garbage.frames(10_000, to: path, loop: node.loop, seed: 2)
                let growth = residentBytes() - before
                #expect(growth < 8 << 20, "\(growth) bytes")
                #expect(node.log.count("closed a connection on net.sock") == 1, "logged once")
                let stream = try await nodes[1].open(to: node.endpoint)
                try await stream.write([1])
                #expect(await eventually { stream.count == 1 }, "still serving")
            }
        }
    }
}

extension Array where Element == UInt8 {
    func contains(_ part: ArraySlice<UInt8>) -> Bool {
        guard count >= part.count else { return false }
        return indices.dropLast(part.count - 1).contains {
            self[$0..<$0 + part.count].elementsEqual(part)
        }
    }
}
