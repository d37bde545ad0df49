// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import Glibc
import GossipCore
import NIOCore
import NIOPosix
import ServiceKit
import Testing

@testable import GossipService

/// Peers that have proved the cookie, over real sockets, as aspend-net hands their streams over.
@Suite struct FloodTests {
    private static func endpoint(_ number: UInt8) -> EndpointID {
        guard let id = EndpointID(bytes: [UInt8](repeating: number, count: 32)) else {
            preconditionFailure("32 bytes make an id")
        }
        return id
    }

    private static func frame(_ content: [UInt8]) -> [UInt8] {
        withUnsafeBytes(of: UInt32(content.count).littleEndian) { Array($0) } + content
    }

    /// One whose net says who it is, and signs nothing.
    private func started() throws -> SocketBench {
        let bench = try SocketBench { request in
            switch request {
            case .identify:
                [
                    .identity(
                        endpoint: Self.endpoint(1), addresses: ["192.0.2.1:1"], configuredPeers: []
                    )
                ]
            case .gossipSetup:
                [
                    .gossipSetup(
                        topics: [[UInt8](repeating: 7, count: 32)],
                        port: 1, advertised: [])
                ]
            case .sign: [.failed(code: .unavailable, message: "not here")]
            default: [.done]
            }
        }
        while try counters(bench) == nil { try Task.checkCancellation() }
        return bench
    }

    /// Nil until the daemon knows who it is.
    private func counters(_ bench: SocketBench) throws -> GossipCounters? {
        let service = bench.service
        return try bench.loop.next().submit { service.overlay?.counters }.wait()
    }

    /// A stream of that peer's, with a neighbour's first message.
    private func open(_ bench: SocketBench, _ number: UInt8) throws -> CInt {
        let descriptor = try bench.connect(to: bench.peerPath)
        let principal = Principal(
            endpoint: Self.endpoint(number), alpn: .gossip, hasProvedCookie: true,
            remoteAddress: "192.0.2.\(number):1")
        let hello =
            Self.frame(principal.encoded())
            + Self.frame(GossipMessage.neighbor(isHighPriority: true).encoded())
        try #require(send(descriptor, hello, hello.count, CInt(MSG_NOSIGNAL)) == hello.count)
        return descriptor
    }

    /// The next message from the daemon.
    private func next(_ descriptor: CInt) throws -> GossipMessage {
        var head = [UInt8](repeating: 0, count: 4)
        try #require(recv(descriptor, &head, 4, CInt(MSG_WAITALL)) == 4)
        var body = [UInt8](repeating: 0, count: Int(head[0]) | Int(head[1]) << 8)
        try #require(recv(descriptor, &body, body.count, CInt(MSG_WAITALL)) == body.count)
        return try GossipMessage(decoding: body)
    }

    /// Writes as much as is taken for so long, of one frame again and again.
    private func flood(_ descriptor: CInt, _ frame: [UInt8], for duration: Duration) -> Int {
        let copies = max(1, 65_536 / frame.count)
        let chunk = (0..<copies).flatMap { _ in frame }
        let end = ContinuousClock.now + duration
        var (sent, place) = (0, 0)
        while ContinuousClock.now < end {
            var poll = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
            guard Glibc.poll(&poll, 1, 50) >= 0 else { break }
            let count = chunk.withUnsafeBytes { raw in
                send(
                    descriptor, raw.baseAddress.map { $0 + place }, raw.count - place,
                    CInt(MSG_NOSIGNAL) | CInt(MSG_DONTWAIT))
            }
            guard count > 0 else {
                if errno == EAGAIN { continue }
                break
            }
            sent += count
            place = (place + count) % chunk.count
        }
        return sent
    }

    @Test(arguments: [
        // The shortest, one of a later version, the longest.
        GossipMessage.prune(MessageID(1)).encoded(), [99],
        [1, 99] + [UInt8](repeating: 0, count: GossipLimits.messageBytesMax - 2),
    ]) func aFlooderIsReadAtARateAndOthersAtOnce(content: [UInt8]) throws {
        let bench = try started()
        let flooder = try open(bench, 3)
        let started = ContinuousClock.now
        let sent = flood(flooder, Self.frame(content), for: .seconds(2))
        // Meanwhile an honest peer is answered.
        let honest = try open(bench, 4)
        var answer = try next(honest)
        while answer != .neighborReply(isAccepted: true) { answer = try next(honest) }
        let counters = try #require(try counters(bench))
        let elapsed = ContinuousClock.now - started
        let (frames, bytes) = (GossipLimits.frames, GossipLimits.bytes)
        #expect(counters.pauses > 0 && counters.unread <= counters.read)
        #expect(counters.refusals[.flooding] == nil, "who waits loses nothing")
        #expect(counters.read <= frames.burst + Int(elapsed / frames.interval) + 2)
        #expect(counters.bytesRead <= bytes.burst + Int(elapsed / bytes.interval))
        // Beyond that he was stopped: what he got rid of is in buffers of a fixed size.
        let buffers = 1 << 20
        #expect(sent < counters.read * (content.count + 4) + buffers, "\(sent) bytes")
    }
}
