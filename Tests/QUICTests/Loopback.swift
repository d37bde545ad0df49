// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore
import NIOPosix
import Testing

@testable import QUIC

/// The protocol that the tests speak.
let protocolName = "aspen-test"

/// One event loop with endpoints on the loopback interface, for the length of a test.
final class Loopback: Sendable {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let loop: any EventLoop

    init() { loop = group.next() }

    /// Runs a test with a loopback of its own, and shuts it down in any case.
    static func run(_ body: (Loopback) async throws -> Void) async throws {
        let loopback = Loopback()
        do {
            try await body(loopback)
        } catch {
            try? await loopback.group.shutdownGracefully()
            throw error
        }
        try await loopback.group.shutdownGracefully()
    }

    /// Runs on the event loop.
    func on<Value: Sendable>(_ work: @escaping @Sendable () throws -> Value) async throws -> Value {
        try await loop.submit(work).get()
    }

    func endpoint(
        key: NodeKey = .generate(), serves: [String] = [], port: Int = 0,
        host: String = "127.0.0.1",
        _ configure: (inout QUICConfiguration) -> Void = { _ in }
    ) async throws -> QUICEndpoint {
        var configuration = QUICConfiguration()
        configure(&configuration)
        let endpoint = QUICEndpoint(eventLoop: loop, key: key, configuration: configuration)
        try await endpoint.bind(host: host, port: port).get()
        try await on {
            endpoint.serverProtocols = serves
            endpoint.onConnection = { _ in }
        }
        return endpoint
    }

    func address(of endpoint: QUICEndpoint) async throws -> SocketAddress {
        try #require(try await on { endpoint.localAddress })
    }

    func connect(
        _ client: QUICEndpoint, to server: QUICEndpoint, expecting: EndpointID? = nil,
        alpn: String = protocolName
    ) async throws -> QUICConnection {
        let address = try await address(of: server)
        return try await client.connect(
            to: expecting ?? server.key.endpoint, addresses: [address], alpn: alpn
        ).get()
    }
}

/// Sends back what arrives, and ends when the peer does.
func echo(_ stream: QUICStream) {
    stream.onData = { [unowned stream] in stream.write($0) }
    stream.onEnd = { [unowned stream] in stream.finish() }
}

extension QUICEndpoint {
    /// Answers every stream with what it brings.
    func serveEcho() {
        onConnection = { connection in connection.onStream = echo }
    }
}

/// The error that `work` fails with.
func failure<Value>(_ work: () async throws -> Value) async -> QUICError? {
    do {
        _ = try await work()
        return nil
    } catch {
        return error as? QUICError
    }
}

/// A value that lives on the event loop.
// SAFETY: tests touch it on their one event loop only.
final class Box<Value>: @unchecked Sendable {
    var value: Value
    init(_ value: Value) { self.value = value }
}

/// A UDP socket that never answers, and keeps nobody from dialling it.
struct SilentSocket: Sendable {
    let channel: any Channel
    let address: SocketAddress

    init(_ loopback: Loopback) async throws {
        channel = try await DatagramBootstrap(group: loopback.group)
            .bind(host: "127.0.0.1", port: 0).get()
        address = try #require(channel.localAddress)
    }

    func close() async throws { try await channel.close().get() }
}
