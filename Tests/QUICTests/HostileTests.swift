// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import NIOCore
import NIOPosix
import Testing

@testable import QUIC

/// Networks that lose and strangers that send: nothing crashes, nothing leaks, and what was asked
/// for still happens.
@Suite struct HostileTests {
    /// A client and an echoing server with a relay in between.
    static func withRelay(
        _ body: (Loopback, Relay, QUICEndpoint, QUICEndpoint, SocketAddress) async throws -> Void
    ) async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            try await loopback.on { server.serveEcho() }
            let relay = Relay(to: try await loopback.address(of: server))
            let address = try await relay.start(loopback)
            try await body(loopback, relay, server, client, address)
        }
    }

    static func echoes(
        _ loopback: Loopback, _ connection: QUICConnection, bytes: Int
    ) async throws -> Bool {
        let done = loopback.loop.makePromise(of: Bool.self)
        try await loopback.on {
            let producer = try Producer(connection, bytes: bytes)
            let stream = producer.stream
            var count = 0
            stream.onData = { count += $0.readableBytes }
            stream.onEnd = { withExtendedLifetime(producer) { done.succeed(count == bytes) } }
            stream.onReset = { _ in done.succeed(false) }
        }
        return try await done.futureResult.get()
    }

    @Test(arguments: [UInt64(1), 2, 3])
    func lossDuplicationAndReorderingAreOvercome(seed: UInt64) async throws {
        try await Self.withRelay { loopback, relay, server, client, address in
            try await loopback.on {
                var random = RandomSource(seed: seed)
                var held: [Bool: ByteBuffer] = [:]
                relay.transform = { datagram, toServer in
                    switch random.uniform(0..<20) {
                    case 0: return []
                    case 1: return [datagram, datagram]
                    case 2 where held[toServer] == nil:
                        held[toServer] = datagram
                        return []
                    default:
                        guard let late = held.removeValue(forKey: toServer) else {
                            return [datagram]
                        }
                        return [datagram, late]
                    }
                }
            }
            let connection = try await client.connect(
                to: server.key.endpoint, addresses: [address], alpn: protocolName
            ).get()
            #expect(try await Self.echoes(loopback, connection, bytes: 300_000))
        }
    }

    @Test func aClientMayMoveToAnotherAddress() async throws {
        try await Self.withRelay { loopback, relay, server, client, address in
            let inbound = loopback.loop.makePromise(of: QUICConnection.self)
            try await loopback.on {
                server.onConnection = { connection in
                    connection.onStream = echo
                    inbound.succeed(connection)
                }
            }
            let connection = try await client.connect(
                to: server.key.endpoint, addresses: [address], alpn: protocolName
            ).get()
            let accepted = try await inbound.futureResult.get()
            let before = try await loopback.on { accepted.remoteAddress }
            try await relay.rebind(loopback)
            #expect(try await Self.echoes(loopback, connection, bytes: 100_000))
            try await loopback.on { #expect(accepted.remoteAddress != before) }
        }
    }

    /// 10,000 datagrams of noise and of real packets with something changed, at both ends, while
    /// a connection works; afterwards it still does, and nothing is left of the noise.
    @Test func tenThousandHostileDatagrams() async throws {
        try await Self.withRelay { loopback, relay, server, client, address in
            let injected = Box(0)
            try await loopback.on {
                var random = RandomSource(seed: 11)
                relay.transform = { datagram, _ in
                    injected.value += 3
                    return [
                        datagram.mutated(&random), datagram, datagram.mutated(&random),
                        datagram.mutated(&random),
                    ]
                }
            }
            let connection = try await client.connect(
                to: server.key.endpoint, addresses: [address], alpn: protocolName
            ).get()
            try await Self.noise(loopback, to: server, and: client, count: 5000)
            while try await loopback.on({ injected.value < 5000 }) {
                #expect(try await Self.echoes(loopback, connection, bytes: 200_000))
            }
            // Handshakes under the same treatment.
            for _ in 0..<20 {
                let another = try await client.connect(
                    to: server.key.endpoint, addresses: [address], alpn: protocolName
                ).get()
                try await loopback.on { another.close(code: 0, reason: "") }
            }
            try await loopback.on {
                #expect(connection.isOpen)
                #expect(server.halfOpenCount <= server.configuration.maxHalfOpen)
                #expect(server.counters.strayDatagrams > 1000)
            }
        }
    }

    /// Before the first packet of the server whoever is on the path can end an attempt; the next one is
    /// none the worse for it.
    @Test func aForgedVersionNegotiationEndsOneAttempt() async throws {
        try await Self.withRelay { loopback, relay, server, client, address in
            try await loopback.on {
                // Flags and version, both ids with their lengths (RFC 8999): those of the client's first
                // packet, turned round, and a version that nobody has.
                var forged: ByteBuffer?
                var isSent = false
                relay.transform = { datagram, toServer in
                    let bytes = Array(datagram.readableBytesView)
                    if toServer, forged == nil {
                        let source = 6 + Int(bytes[5])
                        let end = source + 1 + Int(bytes[source])
                        forged = ByteBuffer(
                            bytes: [0xc0, 0, 0, 0, 0] + bytes[source..<end] + bytes[5..<source]
                                + [0x1a, 0x2a, 0x3a, 0x4a])
                    }
                    guard !toServer, !isSent, let forged else { return [datagram] }
                    isSent = true
                    return [forged, datagram]
                }
            }
            let attempt = client.connect(
                to: server.key.endpoint, addresses: [address], alpn: protocolName)
            let error = await failure { _ = try await attempt.get() }
            #expect("\(String(describing: error))".contains("ERR_RECV_VERSION_NEGOTIATION"))
            let connection = try await client.connect(
                to: server.key.endpoint, addresses: [address], alpn: protocolName
            ).get()
            #expect(try await Self.echoes(loopback, connection, bytes: 100_000))
        }
    }

    /// Random bytes of random lengths, some with a header that looks right.
    static func noise(
        _ loopback: Loopback, to server: QUICEndpoint, and client: QUICEndpoint, count: Int
    ) async throws {
        let stranger = try await DatagramBootstrap(group: loopback.group)
            .bind(host: "127.0.0.1", port: 0).get()
        let targets = [
            try await loopback.address(of: server), try await loopback.address(of: client),
        ]
        for start in stride(from: 0, to: count, by: 50) {
            try await loopback.on {
                var random = RandomSource(seed: UInt64(start))
                for number in 0..<50 {
                    let length = random.uniform(0..<1452)
                    var bytes = (0..<length).map { _ in UInt8(random.uniform(0..<256)) }
                    if bytes.count > 8, random.chance(1, in: 2) {
                        // A long header of version 1, an Initial one.
                        bytes.replaceSubrange(0..<5, with: [0xc3, 0, 0, 0, 1])
                        bytes[5] = UInt8(random.uniform(0..<24))
                    }
                    let datagram = AddressedEnvelope(
                        remoteAddress: targets[number & 1], data: ByteBuffer(bytes: bytes))
                    stranger.write(datagram, promise: nil)
                }
                stranger.flush()
            }
        }
        try await stranger.close().get()
    }

    @Test func anotherVersionIsAnsweredWithOurs() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let answer = loopback.loop.makePromise(of: ByteBuffer.self)
            let stranger = try await DatagramBootstrap(group: loopback.group)
                .channelInitializer { channel in
                    channel.eventLoop.makeCompletedFuture {
                        try channel.pipeline.syncOperations.addHandler(FirstDatagram(answer))
                    }
                }
                .bind(host: "127.0.0.1", port: 0).get()
            let target = try await loopback.address(of: server)
            for version: UInt32 in [0x0a0a_0a0a, 0x709a_50c4] {
                var packet = ByteBuffer(bytes: [0xc0])
                packet.writeInteger(version)
                packet.writeBytes([8, 1, 2, 3, 4, 5, 6, 7, 8, 4, 9, 9, 9, 9])
                // Below 1,200 bytes there is no answer.
                try await stranger.writeAndFlush(
                    AddressedEnvelope(remoteAddress: target, data: packet)
                ).get()
                packet.writeRepeatingByte(0, count: 1200 - packet.readableBytes)
                try await stranger.writeAndFlush(
                    AddressedEnvelope(remoteAddress: target, data: packet)
                ).get()
            }
            var received = try await answer.futureResult.get()
            #expect(received.readInteger(as: UInt8.self).map { $0 & 0x80 } == 0x80)
            #expect(received.readInteger(as: UInt32.self) == 0)
            #expect(received.readBytes(length: 6) == [4, 9, 9, 9, 9, 8])
            #expect(received.readBytes(length: 8) == [1, 2, 3, 4, 5, 6, 7, 8])
            #expect(received.readInteger(as: UInt32.self) == 1)
            #expect(received.readableBytes == 0)
            while try await loopback.on({ server.counters.versionNegotiations < 2 }) {
                try await StreamTests.quiet(loopback)
            }
            try await loopback.on {
                #expect(server.counters.strayDatagrams == 2)
                #expect(server.halfOpenCount == 0)
            }
            try await stranger.close().get()
        }
    }

    /// Hundreds of first packets that nobody follows up: state stays bounded, and a client that
    /// means it still gets in, by proving its address.
    @Test func aFloodOfFirstPacketsIsBounded() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName]) {
                $0.retryThreshold = 10
                $0.handshakeTimeout = .milliseconds(800)
            }
            let flood = try await loopback.endpoint { $0.handshakeTimeout = .milliseconds(400) }
            // A relay that lets nothing back: each attempt stays half open.
            let relay = Relay(to: try await loopback.address(of: server))
            let address = try await relay.start(loopback)
            let most = Box(0)
            try await loopback.on {
                relay.transform = { datagram, toServer in
                    most.value = max(most.value, server.halfOpenCount)
                    return toServer ? [datagram] : []
                }
            }
            // An attempt sends one packet, which may be lost on its way, or come when another attempt has
            // just been given up: the flood goes on until it has had its effect.
            var attempts: [EventLoopFuture<QUICConnection>] = []
            while try await loopback.on({ server.counters.retries < 90 }) {
                for _ in 0..<100 {
                    attempts.append(
                        flood.connect(
                            to: server.key.endpoint, addresses: [address], alpn: protocolName))
                }
                let last = attempts[attempts.count - 1]
                let isOver = Box(false)
                try await loopback.on { last.whenComplete { _ in isOver.value = true } }
                while try await loopback.on({ server.counters.retries < 90 && !isOver.value }) {
                    await Task.yield()
                }
            }
            try await loopback.on {
                most.value = max(most.value, server.halfOpenCount)
                #expect(most.value == 10)
            }
            let honest = try await loopback.endpoint()
            let connection = try await loopback.connect(honest, to: server)
            try await loopback.on { #expect(connection.isOpen) }
            for attempt in attempts {
                #expect(await failure { try await attempt.get() } == .timedOut)
            }
            while try await loopback.on({ server.halfOpenCount > 0 }) {
                try await StreamTests.quiet(loopback)
            }
        }
    }
}

extension HostileTests {
    /// Strangers that prove their addresses and then say no more fill all the room there is: who
    /// comes next is let in all the same.
    @Test func stalledHandshakesMakeRoom() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName]) {
                $0.retryThreshold = 10
                $0.maxHalfOpen = 20
            }
            let flood = try await loopback.endpoint()
            // A relay that lets back nothing but Retry packets.
            let relay = Relay(to: try await loopback.address(of: server))
            let address = try await relay.start(loopback)
            try await loopback.on {
                relay.transform = { datagram, toServer in
                    let first = datagram.getInteger(at: datagram.readerIndex, as: UInt8.self) ?? 0
                    return toServer || first & 0xf0 == 0xf0 ? [datagram] : []
                }
            }
            var attempts: [EventLoopFuture<QUICConnection>] = []
            for _ in 0..<100 {
                attempts.append(
                    flood.connect(to: server.id, addresses: [address], alpn: protocolName))
            }
            while try await loopback.on({
                server.counters.retries < 90 || server.counters.refused < 80
            }) { await Task.yield() }
            try await loopback.on { #expect(server.halfOpenCount == 20) }
            for _ in 0..<10 {
                let honest = try await loopback.endpoint()
                let connection = try await loopback.connect(honest, to: server)
                try await loopback.on {
                    #expect(connection.isOpen)
                    #expect(server.halfOpenCount <= 20)
                }
            }
            try await flood.close().get()
            for attempt in attempts { _ = try? await attempt.get() }
        }
    }
}

/// Tells of the first datagram that comes in.
private final class FirstDatagram: ChannelInboundHandler {
    typealias InboundIn = AddressedEnvelope<ByteBuffer>
    private let promise: EventLoopPromise<ByteBuffer>
    init(_ promise: EventLoopPromise<ByteBuffer>) { self.promise = promise }
    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        promise.succeed(unwrapInboundIn(data).data)
    }
}
