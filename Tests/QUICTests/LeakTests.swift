// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import NIOCore
import Testing

@testable import QUIC

/// Remembers objects without keeping them.
private struct Graves {
    private final class Grave {
        weak var object: AnyObject?
        init(_ object: AnyObject) { self.object = object }
    }
    private var graves: [Grave] = []
    var count: Int { graves.count }
    var alive: Int { graves.count { $0.object != nil } }
    mutating func watch(_ object: AnyObject) { graves.append(Grave(object)) }
}

/// Connections and streams whose callbacks hold on to them, as those of careless callers do: all
/// are freed once they are over.
@Suite struct LeakTests {
    /// How a connection ends.
    enum End: Int, CaseIterable { case byClient, byServer, streamsOpen, streamsReset }

    @Test func thousandsOfConnectionsAndStreamsAreFreed() async throws {
        try await Loopback.run { loopback in
            let graves = Box(Graves())
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            try await loopback.on {
                server.onConnection = { connection in
                    graves.value.watch(connection)
                    connection.onClosed = { _ in _ = connection.isOpen }
                    connection.onStreamsAvailable = { _ = connection.isOpen }
                    connection.onStream = { stream in
                        _ = connection.isOpen
                        graves.value.watch(stream)
                        stream.onData = { stream.write($0) }
                        stream.onEnd = { stream.finish() }
                        stream.onReset = { _ in _ = stream.id }
                        stream.onWritable = { _ = stream.id }
                    }
                }
            }
            var resident: [Int] = []
            for batch in 0..<50 {
                for number in 0..<20 {
                    let end = try #require(End(rawValue: number % End.allCases.count))
                    try await Self.round(loopback, client, server, graves, end)
                }
                if batch == 14 || batch == 49 { resident.append(residentBytes()) }
            }
            while try await loopback.on({
                !(client.connections.isEmpty && server.connections.isEmpty)
            }) { try await StreamTests.quiet(loopback) }
            // The loop lets go of what it ran only at the end of a turn.
            try await StreamTests.quiet(loopback)
            try await loopback.on {
                #expect(graves.value.count >= 2 * 1000 + 3 * 1000, "all were watched")
                #expect(graves.value.alive == 0)
            }
            let growth = resident[1] - resident[0]
            #expect(growth < 4 << 20, "\(growth) bytes in 700 connections")
        }
    }

    /// One connection with three streams, and its end.
    private static func round(
        _ loopback: Loopback, _ client: QUICEndpoint, _ server: QUICEndpoint, _ graves: Box<Graves>,
        _ end: End
    ) async throws {
        let over = loopback.loop.makePromise(of: Void.self)
        let echoed = loopback.loop.makePromise(of: Void.self)
        let connection = try await loopback.connect(client, to: server)
        try await loopback.on {
            graves.value.watch(connection)
            connection.onStream = { _ in _ = connection.isOpen }
            connection.onStreamsAvailable = { _ = connection.isOpen }
            connection.onClosed = { _ in
                _ = connection.isOpen
                over.succeed()
            }
            var waiting = 3
            for _ in 0..<3 {
                let stream = try connection.openStream()
                graves.value.watch(stream)
                stream.onData = { _ in
                    _ = stream.id
                    waiting -= 1
                    if waiting == 0 { echoed.succeed() }
                    if end == .streamsReset { stream.reset(code: 1) }
                }
                stream.onEnd = { _ = stream.id }
                stream.onReset = { _ in _ = stream.id }
                stream.onWritable = { _ = stream.id }
                stream.write(ByteBuffer(string: "x"))
                if end == .byClient || end == .byServer { stream.finish() }
            }
        }
        try await echoed.futureResult.get()
        try await loopback.on {
            guard end == .byServer else { return connection.close(code: 0, reason: "") }
            for connection in server.connections.values where connection.isOpen {
                connection.close(code: 0, reason: "")
            }
        }
        try await over.futureResult.get()
    }

    /// Attempts that lead to nothing leave nothing.
    @Test func failedAttemptsAreFreed() async throws {
        try await Loopback.run { loopback in
            let graves = Box(Graves())
            let server = try await loopback.endpoint(serves: [protocolName]) {
                $0.handshakeTimeout = .milliseconds(300)
            }
            let client = try await loopback.endpoint { $0.handshakeTimeout = .milliseconds(300) }
            let silent = try await SilentSocket(loopback)
            let address = try await loopback.address(of: server)
            try await loopback.on { server.acceptPolicy = { _, _, _ in "nobody" } }
            var attempts: [EventLoopFuture<QUICConnection>] = []
            for number in 0..<200 {
                attempts.append(
                    client.connect(
                        to: server.id, addresses: number % 2 == 0 ? [address] : [silent.address],
                        alpn: number % 4 == 0 ? protocolName : "another"))
                try await loopback.on {
                    for connection in client.connections.values { graves.value.watch(connection) }
                    for connection in server.connections.values { graves.value.watch(connection) }
                }
            }
            for attempt in attempts {
                #expect(await failure { try await attempt.get() } != nil)
            }
            attempts = []
            while try await loopback.on({
                !(client.connections.isEmpty && server.connections.isEmpty)
            }) { try await StreamTests.quiet(loopback) }
            // The loop lets go of what it ran only at the end of a turn.
            try await StreamTests.quiet(loopback)
            try await loopback.on {
                #expect(graves.value.count > 200)
                #expect(graves.value.alive == 0)
            }
            try await silent.close()
        }
    }
}

/// The resident set of this process (proc(5): statm).
private func residentBytes() -> Int {
    let descriptor = open("/proc/self/statm", O_RDONLY)
    defer { close(descriptor) }
    var buffer = [UInt8](repeating: 0, count: 256)
    let count = read(descriptor, &buffer, buffer.count)
    let fields = String(decoding: buffer.prefix(max(0, count)), as: UTF8.self).split(separator: " ")
    return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * 4096
}
