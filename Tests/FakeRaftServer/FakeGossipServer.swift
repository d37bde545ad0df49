// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import NIOConcurrencyHelpers
import NIOCore
import NIOPosix
import ServiceKit

/// Speaks the frames of `gossip.sock`, and answers whatever it is told to.
package final class FakeGossipServer: Sendable {
    package enum Answer: Sendable {
        case reply(GossipReply)
        /// Bytes that are no reply.
        case garbage
        case silence
        /// The connection goes instead.
        case hangUp
    }

    package let path: String
    private let answer: NIOLockedValueBox<Answer>
    private let listening = NIOLockedValueBox<(any Channel)?>(nil)

    /// - Parameter raftSocket: the path of a `FakeRaftServer`; the socket is beside it.
    package init(beside raftSocket: String, answer: Answer) {
        let directory = raftSocket.split(separator: "/").dropLast().reduce("") { $0 + "/" + $1 }
        path = directory + "/gossip.sock"
        self.answer = NIOLockedValueBox(answer)
    }

    package func start() async throws {
        let channel = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let frames = FrameChannel()
                    frames.onFrame = { [answer = self.answer] frames, buffer in
                        Self.respond(answer.withLockedValue { $0 }, to: buffer, frames)
                    }
                    try channel.pipeline.syncOperations.addHandler(frames)
                }
            }
            .bind(unixDomainSocketPath: path).get()
        listening.withLockedValue { $0 = channel }
    }

    private static func respond(_ answer: Answer, to frame: ByteBuffer, _ frames: FrameChannel) {
        guard (try? GossipRequest(decoding: Array(buffer: frame))) == .listPeers else {
            return frames.close()
        }
        switch answer {
        case .reply(let reply): frames.send { $0.writeBytes(reply.encoded()) }
        case .garbage: frames.send { $0.writeRepeatingByte(0xff, count: 3) }
        case .silence: break
        case .hangUp: frames.close()
        }
    }

    /// Stops listening and removes the socket.
    package func stop() async {
        let channel = listening.withLockedValue { $0.take() }
        try? await channel?.close()
        unlink(path)
    }
}

extension PeerLine {
    /// A peer of each kind that `peers list` tells apart.
    package static let examples: [PeerLine] = [
        example(
            6, isNumbered: false, sources: ["manual"], standing: "unknown",
            reason: "it has never been seen"),
        example(
            3, sources: ["mdns"], addresses: ["192.0.2.3:7700"], standing: "unknown",
            reason: "its cookie is another one"),
        example(
            2, sources: ["mdns", "gossip"], addresses: ["[2001:db8::2]:7700", "192.0.2.2:7700"],
            isConnected: true, standing: "alive", roundTrip: 412, lastSeen: 3200,
            version: "1.0.0"),
        example(
            4, sources: ["gossip"], addresses: ["192.0.2.4:7700"], standing: "alive",
            roundTrip: 12_600, lastSeen: 8000, version: "1.0.0"),
        example(
            5, sources: ["ticket"], addresses: ["192.0.2.5:7700"], standing: "suspected",
            roundTrip: 1260, lastSeen: 240_000, version: "1.0.0",
            reason: "nothing answers at 192.0.2.5:7700"),
    ]

    /// Of the endpoint whose bytes are all `number`.
    private static func example(
        _ number: UInt8, isNumbered: Bool = true, sources: [String], addresses: [String] = [],
        isConnected: Bool = false, standing: String, roundTrip: UInt64 = 0,
        lastSeen: UInt64? = nil, version: String = "", reason: String = ""
    ) -> PeerLine {
        guard
            let endpoint = EndpointID(
                bytes: [UInt8](repeating: number, count: EndpointID.byteCount))
        else { preconditionFailure("an endpoint id has 32 bytes") }
        return PeerLine(
            endpoint: endpoint, node: isNumbered ? NodeID(UInt64(number)) : nil, sources: sources,
            addresses: addresses, isConnected: isConnected, standing: standing,
            roundTripMicroseconds: roundTrip, lastSeenMilliseconds: lastSeen, version: version,
            reason: reason)
    }
}
