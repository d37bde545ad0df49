// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore
import Testing

@testable import QUIC

/// How connections end.
@Suite struct LifetimeTests {
    /// A pair of connected ends, with the promise of the reason for each end's end.
    struct Pair: Sendable {
        let server: QUICEndpoint
        let client: QUICEndpoint
        let outbound: QUICConnection
        let inbound: QUICConnection
        let outboundClosed: EventLoopFuture<QUICError>
        let inboundClosed: EventLoopFuture<QUICError>
    }

    static func pair(
        _ loopback: Loopback, serverKey: NodeKey = .generate(),
        _ configure: @escaping @Sendable (inout QUICConfiguration) -> Void = { _ in }
    ) async throws -> Pair {
        let server = try await loopback.endpoint(key: serverKey, serves: [protocolName], configure)
        let client = try await loopback.endpoint(configure)
        let accepted = loopback.loop.makePromise(of: QUICConnection.self)
        let atServer = loopback.loop.makePromise(of: QUICError.self)
        let atClient = loopback.loop.makePromise(of: QUICError.self)
        try await loopback.on {
            server.onConnection = { connection in
                connection.onClosed = { atServer.succeed($0) }
                accepted.succeed(connection)
            }
        }
        let outbound = try await loopback.connect(client, to: server)
        try await loopback.on { outbound.onClosed = { atClient.succeed($0) } }
        return Pair(
            server: server, client: client, outbound: outbound,
            inbound: try await accepted.futureResult.get(), outboundClosed: atClient.futureResult,
            inboundClosed: atServer.futureResult)
    }

    @Test func aCloseTellsThePeerItsCodeAndReason() async throws {
        try await Loopback.run { loopback in
            let pair = try await Self.pair(loopback)
            let reset = loopback.loop.makePromise(of: UInt64.self)
            try await loopback.on {
                let stream = try pair.outbound.openStream()
                stream.onReset = { reset.succeed($0) }
                stream.write(ByteBuffer(string: "x"))
                pair.inbound.close(code: 42, reason: "enough")
                #expect(!pair.inbound.isOpen)
            }
            #expect(try await pair.inboundClosed.get() == .closedLocally)
            #expect(
                try await pair.outboundClosed.get() == .closedByPeer(code: 42, reason: "enough"))
            #expect(try await reset.futureResult.get() == QUICStream.connectionLostCode)
            try await loopback.on {
                #expect(!pair.outbound.isOpen)
                #expect(pair.client.connectionCount == 0 && pair.server.connectionCount == 0)
                #expect(throws: QUICError.self) { try pair.outbound.openStream() }
                #expect(throws: QUICError.self) {
                    try pair.outbound.exporter(label: "x", context: [], length: 32)
                }
            }
        }
    }

    @Test func closedConnectionsAreForgotten() async throws {
        try await Loopback.run { loopback in
            let pair = try await Self.pair(loopback)
            try await loopback.on { pair.outbound.close(code: 0, reason: "") }
            _ = try await pair.inboundClosed.get()
            // The ids stay known for three probe timeouts.
            while try await loopback.on({
                !(pair.client.connections.isEmpty && pair.server.connections.isEmpty)
            }) { try await StreamTests.quiet(loopback) }
            try await loopback.on {
                #expect(pair.server.originalIDs.isEmpty && pair.server.resetTokens.isEmpty)
                #expect(pair.client.resetTokens.isEmpty)
            }
        }
    }

    @Test func closingAnEndpointClosesItsConnections() async throws {
        try await Loopback.run { loopback in
            let pair = try await Self.pair(loopback)
            try await pair.server.close().get()
            #expect(try await pair.inboundClosed.get() == .closedLocally)
            guard case .closedByPeer(code: 0, _) = try await pair.outboundClosed.get() else {
                Issue.record("the peer was not told")
                return
            }
            try await loopback.on { #expect(pair.server.localAddress == nil) }
            // Closing again does no harm, and dialling from a closed endpoint fails.
            try await pair.server.close().get()
            let error = await failure {
                try await pair.server.connect(
                    to: pair.client.key.endpoint, addresses: [], alpn: protocolName
                ).get()
            }
            #expect(error == .endpointClosed)
        }
    }

    /// A server that was killed says nothing; the next one under its key and address answers the
    /// first packet of the old connection with a stateless reset.
    @Test func aRestartedServerIsNoticedAtTheFirstPacket() async throws {
        try await Loopback.run { loopback in
            let key = NodeKey.generate()
            let pair = try await Self.pair(loopback, serverKey: key)
            let port = try #require(try await loopback.address(of: pair.server).port)
            let channel = try #require(try await loopback.on { pair.server.channel })
            try await channel.close().get()
            let next = try await loopback.endpoint(key: key, serves: [protocolName], port: port)
            let before = NIODeadline.now()
            try await loopback.on {
                let stream = try pair.outbound.openStream()
                stream.write(ByteBuffer(string: "are you there?"))
            }
            guard case .connectionLost(let text) = try await pair.outboundClosed.get() else {
                Issue.record("expected a loss")
                return
            }
            #expect(text.contains("restarted"))
            #expect(NIODeadline.now() - before < .seconds(1))
            try await loopback.on { #expect(next.counters.statelessResets == 1) }
        }
    }

    /// The same, with nothing to send: the keep-alive finds out.
    @Test func aRestartedServerIsNoticedByKeepAlive() async throws {
        try await Loopback.run { loopback in
            let key = NodeKey.generate()
            let pair = try await Self.pair(loopback, serverKey: key) {
                $0.keepAlive = .milliseconds(50)
            }
            let port = try #require(try await loopback.address(of: pair.server).port)
            let channel = try #require(try await loopback.on { pair.server.channel })
            try await channel.close().get()
            _ = try await loopback.endpoint(key: key, serves: [protocolName], port: port)
            guard case .connectionLost(let text) = try await pair.outboundClosed.get() else {
                Issue.record("expected a loss")
                return
            }
            #expect(text.contains("restarted"))
        }
    }

    @Test func aStrangersResetIsIgnored() async throws {
        try await Loopback.run { loopback in
            let pair = try await Self.pair(loopback)
            let port = try #require(try await loopback.address(of: pair.server).port)
            let channel = try #require(try await loopback.on { pair.server.channel })
            try await channel.close().get()
            // Another key: its tokens are not the ones that the client was told.
            let stranger = try await loopback.endpoint(serves: [protocolName], port: port)
            try await loopback.on {
                try pair.outbound.openStream().write(ByteBuffer(string: "are you there?"))
            }
            while try await loopback.on({ stranger.counters.statelessResets == 0 }) {
                try await StreamTests.quiet(loopback)
            }
            try await loopback.on { #expect(pair.outbound.isOpen) }
        }
    }

    @Test func silenceEndsAConnection() async throws {
        try await Loopback.run { loopback in
            let pair = try await Self.pair(loopback) {
                $0.idleTimeout = .milliseconds(200)
                $0.keepAlive = .seconds(60)
            }
            #expect(try await pair.outboundClosed.get() == .timedOut)
            #expect(try await pair.inboundClosed.get() == .timedOut)
        }
    }

    @Test func keepAliveOutlivesTheIdleTimeout() async throws {
        try await Loopback.run { loopback in
            let pair = try await Self.pair(loopback) {
                $0.idleTimeout = .milliseconds(200)
                $0.keepAlive = .milliseconds(40)
            }
            for _ in 0..<6 { try await StreamTests.quiet(loopback) }
            try await loopback.on {
                #expect(pair.outbound.isOpen && pair.inbound.isOpen)
            }
        }
    }

    @Test func aDeadPeerIsNoticed() async throws {
        try await Loopback.run { loopback in
            let pair = try await Self.pair(loopback) {
                $0.idleTimeout = .milliseconds(300)
                $0.keepAlive = .milliseconds(100)
            }
            let channel = try #require(try await loopback.on { pair.server.channel })
            let before = NIODeadline.now()
            try await channel.close().get()
            #expect(try await pair.outboundClosed.get() == .timedOut)
            #expect(NIODeadline.now() - before < .seconds(2))
        }
    }

    /// A process that was stopped for longer than the idle timeout finds packets from before in its
    /// socket. They are no signs of life: the peer has given the connection up long ago.
    @Test func afterAStopPacketsFromBeforeDoNotReviveAConnection() async throws {
        try await Loopback.run { loopback in
            let pair = try await Self.pair(loopback)
            let outcome = loopback.loop.makePromise(of: QUICError?.self)
            pair.outboundClosed.whenSuccess { outcome.succeed($0) }
            try await loopback.on {
                pair.outbound.onStream = { _ in outcome.succeed(nil) }
                pair.client.clockLead = 20_000_000_000
                // Reaches the client as if it had waited in the socket all the time.
                try pair.inbound.openStream().write(ByteBuffer(string: "heartbeat"))
            }
            try #require(try await outcome.futureResult.get() == .timedOut)
            // Whoever still believes in the connection is told.
            guard case .closedByPeer(code: 0, _) = try await pair.inboundClosed.get() else {
                Issue.record("the peer was not told")
                return
            }
        }
    }

    /// The same, when the first that happens is a write.
    @Test func afterAStopAWriteFindsTheConnectionGone() async throws {
        try await Loopback.run { loopback in
            let pair = try await Self.pair(loopback)
            let outcome = loopback.loop.makePromise(of: QUICError?.self)
            pair.outboundClosed.whenSuccess { outcome.succeed($0) }
            try await loopback.on {
                pair.inbound.onStream = { _ in outcome.succeed(nil) }
                pair.client.clockLead = 20_000_000_000
                try pair.outbound.openStream().write(ByteBuffer(string: "answer"))
            }
            #expect(try await outcome.futureResult.get() == .timedOut)
        }
    }
}
