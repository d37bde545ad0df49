// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore
import NIOPosix
import Testing

@testable import QUIC

@Suite struct HandshakeTests {
    @Test(arguments: ["127.0.0.1", "::1", "0.0.0.0", "::"])
    func bothSidesLearnTheOthersKey(host: String) async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName], host: host)
            let clientHost = host.contains(":") ? "::1" : "0.0.0.0"
            let client = try await loopback.endpoint(host: clientHost)
            let inbound = loopback.loop.makePromise(of: QUICConnection.self)
            try await loopback.on { server.onConnection = { inbound.succeed($0) } }
            let port = try #require(try await loopback.address(of: server).port)
            let target = try SocketAddress(
                ipAddress: host.contains(":") ? "::1" : "127.0.0.1", port: port)
            let outbound = try await client.connect(
                to: server.key.endpoint, addresses: [target], alpn: protocolName
            ).get()
            let accepted = try await inbound.futureResult.get()
            try await loopback.on {
                #expect(outbound.remoteEndpoint == server.key.endpoint)
                #expect(accepted.remoteEndpoint == client.key.endpoint)
                #expect(outbound.alpn == protocolName && accepted.alpn == protocolName)
                #expect(!outbound.isInbound && accepted.isInbound)
                #expect(outbound.isOpen && accepted.isOpen)
                #expect(outbound.remoteAddress == target)
                #expect(accepted.remoteAddress.port == client.localAddress?.port)
                #expect(outbound.smoothedRTT > .zero)
                #expect(server.connectionCount == 1 && client.connectionCount == 1)
            }
        }
    }

    @Test func ipv4IsReachedFromAnIPv6Wildcard() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint(host: "::")
            let connection = try await loopback.connect(client, to: server)
            try await loopback.on { #expect(connection.isOpen) }
        }
    }

    @Test func anotherKeyThanExpectedIsRefusedByTheDialler() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            let refused = loopback.loop.makePromise(of: String.self)
            try await loopback.on {
                server.onConnection = { _ in Issue.record("the handshake must not succeed") }
                server.onRefused = { _, _, reason in refused.succeed(reason) }
            }
            let other = NodeKey.generate().endpoint
            let error = await failure {
                try await loopback.connect(client, to: server, expecting: other)
            }
            #expect(error == .identityMismatch(expected: other, found: server.key.endpoint))
            #expect(try await refused.futureResult.get().contains("alert 42"))
            try await loopback.on {
                #expect(client.connectionCount == 0 && server.connectionCount == 0)
                #expect(server.halfOpenCount == 0)
            }
        }
    }

    /// The policy says no at the first or only at the second asking: either way the dialler's
    /// `connect` fails, and nothing of it reaches the application.
    @Test(arguments: [1, 2])
    func policyRefusesBeforeAnyApplicationByte(refusedAt turn: Int) async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            let asked = Box(0)
            let refused = loopback.loop.makePromise(of: (EndpointID?, String).self)
            try await loopback.on {
                server.onConnection = { _ in Issue.record("refused, and yet connected") }
                server.acceptPolicy = { id, alpn, _ in
                    #expect(id == client.key.endpoint && alpn == protocolName)
                    asked.value += 1
                    return asked.value < turn ? nil : "not a member"
                }
                server.onRefused = { id, _, reason in refused.succeed((id, reason)) }
            }
            let error = await failure { try await loopback.connect(client, to: server) }
            guard case .handshakeRefused(let text) = error else {
                Issue.record("expected a refusal, got \(String(describing: error))")
                return
            }
            #expect(!text.contains("member"), "the reason is for our log, not for the peer")
            let (id, reason) = try await refused.futureResult.get()
            #expect(id == client.key.endpoint)
            #expect(reason.contains("not a member"))
            try await loopback.on {
                #expect(asked.value == turn)
                #expect(server.connectionCount == 0 && server.halfOpenCount == 0)
            }
        }
    }

    @Test func unknownProtocolIsRefused() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            let error = await failure {
                try await loopback.connect(client, to: server, alpn: "something-else")
            }
            // no_application_protocol, RFC 7301
            guard case .handshakeRefused(let text) = error, text.contains("120") else {
                Issue.record("expected alert 120, got \(String(describing: error))")
                return
            }
        }
    }

    @Test func theOfferedProtocolIsChosen() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: ["aspen-raft", "aspen-client"])
            let client = try await loopback.endpoint()
            for name in ["aspen-client", "aspen-raft"] {
                let connection = try await loopback.connect(client, to: server, alpn: name)
                try await loopback.on { #expect(connection.alpn == name) }
            }
        }
    }

    @Test func exporterIsSharedAndDiffersPerConnection() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            let accepted = Box<[QUICConnection]>([])
            try await loopback.on { server.onConnection = { accepted.value.append($0) } }
            let dialled = [
                try await loopback.connect(client, to: server),
                try await loopback.connect(client, to: server),
            ]
            try await loopback.on {
                func export(_ connection: QUICConnection, _ label: String) throws -> [UInt8] {
                    try connection.exporter(label: label, context: [1, 2, 3], length: 32)
                }
                let first = try export(dialled[0], "EXPORTER-aspen")
                #expect(first.count == 32)
                #expect(try export(accepted.value[0], "EXPORTER-aspen") == first)
                #expect(try export(dialled[1], "EXPORTER-aspen") != first)
                #expect(
                    try export(accepted.value[1], "EXPORTER-aspen")
                        == export(dialled[1], "EXPORTER-aspen"))
                #expect(try export(dialled[0], "EXPORTER-other") != first)
                #expect(
                    try dialled[0].exporter(label: "EXPORTER-aspen", context: [], length: 32)
                        != first)
            }
        }
    }

    @Test func theNextAddressIsTriedWhenOneIsSilent() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let silent = try await SilentSocket(loopback)
            let client = try await loopback.endpoint { $0.connectStagger = .milliseconds(10) }
            let good = try await loopback.address(of: server)
            let connection = try await client.connect(
                to: server.key.endpoint,
                addresses: [
                    silent.address, try SocketAddress(ipAddress: "::1", port: 9), good,
                ],
                alpn: protocolName
            ).get()
            try await loopback.on {
                #expect(connection.remoteAddress == good)
                #expect(client.connectionCount == 1)
            }
            try await silent.close()
        }
    }

    @Test func silenceTimesOut() async throws {
        try await Loopback.run { loopback in
            let silent = try await SilentSocket(loopback)
            let client = try await loopback.endpoint { $0.handshakeTimeout = .milliseconds(200) }
            let error = await failure {
                try await client.connect(
                    to: NodeKey.generate().endpoint, addresses: [silent.address],
                    alpn: protocolName
                ).get()
            }
            #expect(error == .timedOut)
            try await silent.close()
        }
    }

    @Test func noAddressAndAForeignFamilyAreUnreachable() async throws {
        try await Loopback.run { loopback in
            let client = try await loopback.endpoint()
            for addresses in [[], [try SocketAddress(ipAddress: "::1", port: 9)]] {
                let error = await failure {
                    try await client.connect(
                        to: NodeKey.generate().endpoint, addresses: addresses, alpn: protocolName
                    ).get()
                }
                guard case .unreachable = error else {
                    Issue.record("expected unreachable, got \(String(describing: error))")
                    return
                }
            }
        }
    }

    @Test func connectionLimitHolds() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName]) {
                $0.maxConnections = 3
            }
            let client = try await loopback.endpoint()
            try await loopback.on { server.serveEcho() }
            var connections: [QUICConnection] = []
            for _ in 0..<3 { connections.append(try await loopback.connect(client, to: server)) }
            let error = await failure { try await loopback.connect(client, to: server) }
            guard case .handshakeRefused = error else {
                Issue.record("expected a refusal, got \(String(describing: error))")
                return
            }
            // One leaves, one may come.
            let first = connections[0]
            try await loopback.on { first.close(code: 0, reason: "") }
            _ = try await loopback.connect(client, to: server)
            try await loopback.on { #expect(server.connectionCount == 3) }
        }
    }

    @Test func manyHalfOpenConnectionsMakeClientsProveTheirAddress() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName]) {
                $0.retryThreshold = 0
            }
            let client = try await loopback.endpoint()
            let connection = try await loopback.connect(client, to: server)
            try await loopback.on {
                #expect(connection.isOpen)
                #expect(server.counters.retries == 1)
            }
        }
    }
}
