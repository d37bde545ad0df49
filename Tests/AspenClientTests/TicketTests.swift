// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FakeRaftServer
import NIOCore
import NIOPosix
import QUIC
import Testing

@testable import AspenClient

/// A node's QUIC side for a server behind a socket: joins each stream to a connection.
final class QUICGate: Sendable {
    let endpoint: QUICEndpoint
    let address: SocketAddress

    init(to path: String, key: NodeKey = .generate()) async throws {
        let loop = MultiThreadedEventLoopGroup.singleton.any()
        let endpoint = QUICEndpoint(eventLoop: loop, key: key, configuration: .init())
        try await endpoint.bind(host: "127.0.0.1", port: 0).get()
        address = try await loop.submit {
            endpoint.serverProtocols = [ALPN.client.rawValue]
            endpoint.onConnection = { connection in
                connection.onStream = { QUICGate.join($0, path, on: loop) }
            }
            guard let address = endpoint.localAddress else { throw QUICError.endpointClosed }
            return address
        }.get()
        self.endpoint = endpoint
    }

    func close() async { try? await endpoint.close().get() }

    var ticketEndpoint: Ticket.Endpoint {
        get throws {
            let port = try #require(address.port)
            return .init(endpoint: endpoint.id, addresses: ["127.0.0.1:\(port)"])
        }
    }

    private static func join(_ stream: QUICStream, _ path: String, on loop: any EventLoop) {
        var header: [UInt8] = []
        var channel: (any Channel)?
        var early = ByteBuffer()
        stream.onData = { data in
            var data = data
            while header.count < 2, let byte: UInt8 = data.readInteger() { header.append(byte) }
            if header.count == 2, header != [1, 1] {
                return stream.reset(code: StreamErrorCode.noSuchService.rawValue)
            }
            if let channel {
                channel.writeAndFlush(data, promise: nil)
            } else {
                early.writeBuffer(&data)
            }
        }
        ClientBootstrap(group: loop)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Back(stream))
                }
            }
            .connect(unixDomainSocketPath: path)
            .assumeIsolated().whenComplete { result in
                switch result {
                case .success(let connected):
                    channel = connected
                    connected.writeAndFlush(early, promise: nil)
                    stream.onReset = { _ in connected.close(promise: nil) }
                case .failure: stream.reset(code: StreamErrorCode.serviceGone.rawValue)
                }
            }
    }

    private final class Back: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        let stream: QUICStream
        init(_ stream: QUICStream) { self.stream = stream }
        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            stream.write(unwrapInboundIn(data))
        }
        func channelInactive(context: ChannelHandlerContext) {
            stream.reset(code: StreamErrorCode.serviceGone.rawValue)
        }
    }
}

@Suite struct TicketTests {
    private func withGate(
        _ body: (FakeRaftServer, QUICGate, AspenClient) async throws -> Void
    ) async throws {
        let server = FakeRaftServer()
        try await server.start()
        let gate = try await QUICGate(to: server.path)
        let ticket = Ticket(cluster: ClusterID(1), endpoints: [try gate.ticketEndpoint])
        let client = try await AspenClient.connect(.ticket(parsing: ticket.encoded()))
        try await body(server, gate, client)
        await client.close()
        await gate.close()
        await server.stop()
    }

    @Test func aTicketIsEnough() async throws {
        try await withGate { server, _, client in
            try await client.set("k", to: "v")
            #expect(try await client.get("k").entry?.value == Array("v".utf8))
            let large = [UInt8](repeating: 0xc3, count: Limits.valueBytesMax)
            try await client.set("large".utf8, to: large)
            let isEqual = try await client.get("large").entry?.value == large
            #expect(isEqual)
            await withTaskGroup { group in
                for number in 0..<500 {
                    group.addTask {
                        await #expect(throws: Never.self) {
                            try await client.set("k\(number)", to: "v")
                        }
                    }
                }
            }
            #expect(server.appliedCount == 502)
        }
    }

    @Test func aLostServiceIsRetried() async throws {
        try await withGate { server, _, client in
            server.faults([.dropAfter, .dropBefore]) {
                if case .writeKey = $0.request { true } else { false }
            }
            let answer = try await client.set("k", to: "v")
            #expect(answer.version == 1)
            #expect(server.appliedCount == 1)
        }
    }

    /// The first endpoint does not answer, the second is another node than the ticket says.
    @Test func theEndpointThatAnswersIsTaken() async throws {
        let server = FakeRaftServer()
        try await server.start()
        let gate = try await QUICGate(to: server.path)
        let silent = try await DatagramBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .bind(host: "127.0.0.1", port: 0).get()
        let port = try #require(silent.localAddress?.port)
        var impostor = try gate.ticketEndpoint
        impostor.endpoint = NodeKey.generate().endpoint
        let ticket = Ticket(
            cluster: ClusterID(1),
            endpoints: [
                .init(endpoint: NodeKey.generate().endpoint, addresses: ["127.0.0.1:\(port)"]),
                impostor, try gate.ticketEndpoint,
            ])
        let clock = ContinuousClock()
        let start = clock.now
        let client = try await AspenClient.connect(.ticket(ticket))
        #expect(clock.now - start < Limits.connectTimeout)
        try await client.set("k", to: "v")
        await client.close()

        var options = AspenClient.Options()
        options.timeout = .seconds(30)
        let error = await #expect(throws: AspenError.self) {
            _ = try await AspenClient.connect(
                .ticket(Ticket(cluster: ClusterID(1), endpoints: [impostor])), options: options)
        }
        #expect(error?.code == .unavailable)
        try await silent.close()
        await gate.close()
        await server.stop()
    }

    @Test(arguments: [
        ("127.0.0.1:7001", true), ("[::1]:7001", true), ("::1:7001", false), ("host:7001", false),
        ("127.0.0.1", false), ("127.0.0.1:0", false), ("127.0.0.1:70000", false), ("", false),
    ])
    func addresses(text: String, isGood: Bool) {
        #expect((QUICTransport.socketAddress(text) != nil) == isGood)
    }
}
