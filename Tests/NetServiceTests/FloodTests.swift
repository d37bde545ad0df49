// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import LinkCore
import NIOCore
import Synchronization
import Testing

@testable import NetService
@testable import QUIC

/// Somebody who has the cookie and sends, or opens, as much as he can.
extension NetServiceTests {
    @Suite struct FloodTests {
        private func started() async throws -> TestNode {
            let node = TestNode(echo: EchoService(keepsBytes: true))
            try await node.start { $0.connectors[.gossip] = $0.connectors[.raft] }
            try await node.startEcho()
            try await node.startControl([], isClosed: false)
            #expect(await eventually { node.connects.withLock { $0 } == 1 })
            return node
        }

        @Test func whatAPeersNetSaysHasARate() async throws {
            let node = try await started()
            let rogue = try await Rogue()
            let (_, stream) = try await rogue.prove(node, alpn: .raft)
            let started = ContinuousClock.now
            try await rogue.loop.submit {
                let one = Array(buffer: ControlMessage.service(.raft, .serving).encoded())
                let many = ByteBuffer(bytes: (0..<100_000).flatMap { _ in one })
                for _ in 0..<8 { stream.write(many) }
            }.get()
            @Sendable func count() async throws -> Int {
                try await node.loop.submit {
                    node.service?.sessions.values.map(\.noticeCount).max() ?? 0
                }.get()
            }
            #expect(try await eventually { try await count() >= NetLimits.notices.burst })
            // Others come and are served as ever; and the flooder's words wait with him.
            let member = TestNode()
            try await member.start()
            try await member.startEcho()
            try await member.startControl([node.peer])
            #expect(await eventually { member.has(.peerUp(node.endpoint)) })
            let taken = try await count()
            let elapsed = (ContinuousClock.now - started) / NetLimits.notices.interval
            #expect(taken <= NetLimits.notices.burst + Int(elapsed) + 1, "\(taken)")
            let unsent = try await rogue.loop.submit { stream.unsentBytes }.get()
            #expect(unsent > 2_000_000, "\(unsent)")
            try await member.stop()
            try await rogue.stop()
            try await node.stop()
        }

        @Test func streamsForGossipAreLetInOneAfterTheOther() async throws {
            let node = try await started()
            let rogue = try await Rogue()
            let (connection, _) = try await rogue.prove(node, alpn: .gossip)
            let started = ContinuousClock.now
            let open = Limits.streamsPerConnectionMax - 1
            let streams = try await rogue.loop.submit {
                try (0..<open).map { _ in
                    let stream = try connection.openStream()
                    stream.write(StreamHeader.bytes(for: .gossip))
                    return stream
                }
            }.get()
            @Sendable func count() -> Int { node.echo.principals.withLock { $0.count } }
            let burst = NetLimits.gossipStreams.burst
            #expect(await eventually { count() >= burst })
            // Who gives up waiting is forgotten, and the next one comes in its time.
            try await rogue.loop.submit {
                for stream in streams[burst..<open - 1] { stream.reset(code: 1) }
            }.get()
            #expect(await eventually { count() > burst })
            let elapsed = (ContinuousClock.now - started) / NetLimits.gossipStreams.interval
            #expect(count() <= burst + Int(elapsed) + 1)
            #expect(await eventually { node.echo.channels.withLock { $0.count } == count() })
            try await rogue.stop()
            try await node.stop()
        }

        /// The service has closed its side, and its last words wait for a peer that does not read them, and sends
        /// on and on: what nobody hears is not read for ever.
        @Test func whoTalksToNobodyIsStopped() async throws {
            let node = try await started()
            let rogue = try await Rogue()
            let (connection, _) = try await rogue.prove(node, alpn: .gossip)
            let resets = Mutex(0)
            let stream = try await rogue.loop.submit {
                let stream = try connection.openStream()
                stream.pauseReading()
                stream.onReset = { _ in resets.withLock { $0 += 1 } }
                stream.write(StreamHeader.bytes(for: .gossip))
                // More than any window.
                for _ in 0..<12 { stream.write(ByteBuffer(repeating: 7, count: 1 << 20)) }
                return stream
            }.get()
            // The echo fills the window towards the peer.
            @Sendable func unsent() async throws -> Int {
                try await node.loop.submit {
                    node.service?.joined.values.map(\.splice.heldBytes).max() ?? 0
                }.get()
            }
            #expect(try await eventually { try await unsent() > 1 << 20 })
            node.echo.die()
            try await rogue.loop.submit {
                for _ in 0..<32 { stream.write(ByteBuffer(repeating: 7, count: 1 << 20)) }
            }.get()
            #expect(await eventually { resets.withLock { $0 } == 1 })
            try await rogue.stop()
            try await node.stop()
        }

        /// A gossip daemon that reads slowly, or not at all for a while, is enough to stop whoever sends.
        @Test func whatIsNotReadWaitsWithItsSender() async throws {
            let node = try await started()
            node.echo.isStalled.withLock { $0 = true }
            let rogue = try await Rogue()
            let (connection, _) = try await rogue.prove(node, alpn: .gossip)
            let total = 12 << 20
            let stream = try await rogue.loop.submit {
                let stream = try connection.openStream()
                stream.onData = { _ in }
                stream.resumeReading()
                stream.write(StreamHeader.bytes(for: .gossip))
                for _ in 0..<12 { stream.write(ByteBuffer(repeating: 7, count: 1 << 20)) }
                return stream
            }.get()
            @Sendable func held() async throws -> Int {
                try await node.loop.submit {
                    node.service?.joined.values.reduce(0) { $0 + $1.splice.heldBytes } ?? 0
                }.get()
            }
            // The window of the stream is full, and it stays at that.
            #expect(try await eventually { try await held() > 1 << 20 })
            #expect(try await held() < 4 << 20)
            let unsent = try await rogue.loop.submit { stream.unsentBytes }.get()
            #expect(unsent > total - (4 << 20), "\(unsent)")
            // Nothing of it is lost.
            for channel in node.echo.channels.withLock({ $0 }) {
                try await channel.setOption(.autoRead, value: true).get()
            }
            #expect(await eventually { node.echo.bytes.withLock { $0.count } == total })
            try await rogue.stop()
            try await node.stop()
        }
    }
}
