// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore
import Testing

@testable import QUIC

@Suite struct HandshakeTests {
    @Test func bothSidesLearnTheOthersKey() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            let inbound = loopback.loop.makePromise(of: QUICConnection.self)
            try await loopback.on { server.onConnection = { inbound.succeed($0) } }
            let outbound = try await loopback.connect(client, to: server)
            let accepted = try await inbound.futureResult.get()
            try await loopback.on {
                #expect(outbound.remoteEndpoint == server.key.endpoint)
                #expect(accepted.remoteEndpoint == client.key.endpoint)
                #expect(outbound.alpn == protocolName && accepted.alpn == protocolName)
                #expect(!outbound.isInbound && accepted.isInbound)
                #expect(outbound.isOpen && accepted.isOpen)
                #expect(accepted.remoteAddress == client.localAddress)
                #expect(outbound.smoothedRTT > .zero)
            }
        }
    }

    @Test func echoesOnAStream() async throws {
        try await Loopback.run { loopback in
            let server = try await loopback.endpoint(serves: [protocolName])
            let client = try await loopback.endpoint()
            try await loopback.on { server.serveEcho() }
            let connection = try await loopback.connect(client, to: server)
            let done = loopback.loop.makePromise(of: String.self)
            try await loopback.on {
                let stream = try connection.openStream()
                var text = ""
                stream.onData = { text += String(buffer: $0) }
                stream.onEnd = { done.succeed(text) }
                stream.onReset = { _ in done.succeed("reset") }
                stream.write(ByteBuffer(string: "hello"))
                stream.finish()
            }
            #expect(try await done.futureResult.get() == "hello")
        }
    }
}
