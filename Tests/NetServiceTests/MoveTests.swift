// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import LinkCore
import NIOCore
import Synchronization
import Testing

@testable import NetService
@testable import QUIC

extension Rogue {
    /// A connection on which the cookie is proved, with `words` behind the proof, and its first stream.
    func prove(
        _ node: TestNode, alpn: ALPN, _ words: [ControlMessage] = []
    ) async throws -> (QUICConnection, QUICStream) {
        let address = try SocketAddress(ipAddress: "127.0.0.1", port: Int(node.port))
        let before = received.withLock { $0.count }
        let connection = try await endpoint.connect(
            to: node.endpoint, addresses: [address], alpn: alpn.rawValue
        ).get()
        let stream = try await loop.submit { [self] in
            let stream = try connection.openStream()
            stream.onData = { [self] data in received.withLock { $0 += Array(buffer: data) } }
            stream.resumeReading()
            stream.write(StreamHeader.bytes(for: .cookie))
            let exported = try connection.exporter(
                label: CookieKey.exporterLabel, context: [], length: 32)
            let proof = ControlMessage.proof(
                mac: Cookies.right.proof(of: .dialler, exported: exported), incarnation: 1,
                raft: .serving)
            for message in [proof] + words { stream.write(message.encoded()) }
            return stream
        }.get()
        #expect(await eventually { received.withLock { $0.count } > before + 40 })
        return (connection, stream)
    }
}

extension NetServiceTests {
    @Suite struct MoveTests {
        /// A peer that has lost a connection which is young, and of which this node still thinks that
        /// it lives: it dials again, and says so.
        @Test func whatThePeerSaysIsOverIsClosedAtOnce() async throws {
            let node = TestNode()
            try await node.start()
            try await node.startEcho()
            let rogue = try await Rogue()
            try await node.startControl([NetPeer(endpoint: rogue.key.endpoint, addresses: [])])
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            @Sendable func links() async throws -> Set<ObjectIdentifier> {
                try await node.loop.submit {
                    Set(
                        (node.service?.sessions.values.filter(\.isProved) ?? []).map {
                            ObjectIdentifier($0)
                        })
                }.get()
            }
            let (first, _) = try await rogue.prove(node, alpn: .raft)
            #expect(try await eventually { try await links().count == 1 })
            let name = try await rogue.loop.submit {
                try first.exporter(label: CookieKey.nameLabel, context: [], length: 8)
                    .reduce(0) { $0 << 8 | UInt64($1) }
            }.get()
            // Two dials that may have crossed: both connections stay.
            _ = try await rogue.prove(node, alpn: .raft, [.over([LinkName(1)])])
            #expect(try await eventually { try await links().count == 2 })
            let before = try await links()
            _ = try await rogue.prove(node, alpn: .raft, [.over([LinkName(name)])])
            #expect(
                try await eventually {
                    let now = try await links()
                    return now.count == 2 && !now.isSubset(of: before)
                })
            #expect(
                await eventually { (try? await rogue.loop.submit { first.isOpen }.get()) == false })
            #expect(!node.hasSeenAnyPeerDown)
            try await rogue.stop()
            try await node.stop()
        }

        /// An address is gone, and with it one of two connections with a peer: nobody has to dial, and the
        /// peer hears of it on the other.
        @Test func whatIsOverIsToldOnAConnectionThatLives() async throws {
            let node = TestNode()
            try await node.start()
            try await node.startEcho()
            let gone = try await Rogue()
            let living = try await Rogue(key: gone.key)
            try await node.startControl([NetPeer(endpoint: gone.key.endpoint, addresses: [])])
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            let (first, stream) = try await gone.prove(node, alpn: .raft)
            _ = try await living.prove(node, alpn: .raft)
            let name = try await gone.loop.submit {
                try first.exporter(label: CookieKey.nameLabel, context: [], length: 8)
                    .reduce(0) { $0 << 8 | UInt64($1) }
            }.get()
            gone.deafen()
            try await node.loop.submit { node.service?.dropSilentConnections() }.get()
            // What was on its way already still comes in, and is not an answer.
            let said = ControlMessage.service(.raft, .serving).encoded()
            try await gone.loop.submit { stream.write(said) }.get()
            let word = Array(buffer: ControlMessage.over([LinkName(name)]).encoded())
            #expect(
                await eventually {
                    living.received.withLock { bytes in
                        bytes.indices.contains { bytes[$0...].starts(with: word) }
                    }
                })
            try await gone.stop()
            try await living.stop()
            try await node.stop()
        }
    }
}
