// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import NIOCore
import NIOPosix
import Testing

/// A UDP relay between one client and a server: what is done to each datagram is the test's choice.
// SAFETY: confined to the event loop of the test.
final class Relay: ChannelInboundHandler, @unchecked Sendable {
    typealias InboundIn = AddressedEnvelope<ByteBuffer>

    /// What goes on in place of a datagram. Bool: it goes to the server.
    var transform: (ByteBuffer, Bool) -> [ByteBuffer] = { datagram, _ in [datagram] }
    private(set) var forwarded = 0
    private let server: SocketAddress
    private var client: SocketAddress?
    private(set) var channel: (any Channel)?

    init(to server: SocketAddress) { self.server = server }

    func start(_ loopback: Loopback) async throws -> SocketAddress {
        let channel = try await DatagramBootstrap(group: loopback.group)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(self)
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
        try await loopback.on { self.channel = channel }
        return try #require(channel.localAddress)
    }

    /// From now on the client's datagrams come from another port, as behind a NAT that forgot.
    func rebind(_ loopback: Loopback) async throws {
        rebound = try await DatagramBootstrap(group: loopback.group)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Back(self))
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
    }

    private var rebound: (any Channel)?

    private final class Back: ChannelInboundHandler {
        typealias InboundIn = AddressedEnvelope<ByteBuffer>
        let relay: Relay
        init(_ relay: Relay) { self.relay = relay }
        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            relay.toClient(unwrapInboundIn(data).data)
        }
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let envelope = unwrapInboundIn(data)
        if envelope.remoteAddress == server {
            toClient(envelope.data)
        } else {
            client = envelope.remoteAddress
            for datagram in transform(envelope.data, true) {
                forwarded += 1
                (rebound ?? channel)?.writeAndFlush(
                    AddressedEnvelope(remoteAddress: server, data: datagram), promise: nil)
            }
        }
    }

    private func toClient(_ data: ByteBuffer) {
        guard let client else { return }
        for datagram in transform(data, false) {
            forwarded += 1
            channel?.writeAndFlush(
                AddressedEnvelope(remoteAddress: client, data: datagram), promise: nil)
        }
    }
}

extension ByteBuffer {
    /// The same with some bits, bytes or its length changed.
    func mutated(_ random: inout RandomSource) -> ByteBuffer {
        var bytes = Array(readableBytesView)
        guard !bytes.isEmpty else { return self }
        switch random.uniform(0..<5) {
        case 0: bytes[random.uniform(0..<bytes.count)] ^= 1 << UInt8(random.uniform(0..<8))
        case 1: bytes.removeLast(random.uniform(0..<bytes.count))
        case 2: bytes.append(contentsOf: (0..<random.uniform(1..<200)).map { _ in 0 })
        case 3:
            // The header: version, ids, token and length are not all authenticated before use.
            for _ in 0..<random.uniform(1..<6) {
                bytes[random.uniform(0..<min(bytes.count, 60))] = UInt8(random.uniform(0..<256))
            }
        default:
            let start = random.uniform(0..<bytes.count)
            for index in start..<min(start + 40, bytes.count) {
                bytes[index] = UInt8(random.uniform(0..<256))
            }
        }
        // One bit makes a forged version negotiation of a packet, and that ends an attempt to connect,
        // whoever sent it (RFC 9000, section 6.2): it has a test of its own.
        if bytes.count > 4, bytes[0] & 0x80 != 0, bytes[1..<5].allSatisfy({ $0 == 0 }) {
            return self
        }
        return ByteBuffer(bytes: bytes)
    }
}
