// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import Glibc
import LinkCore
import NIOCore
import NIOPosix
import Testing

@testable import NetService

/// Bytes that mean nothing, and bytes that nearly mean something.
enum Garbage {
    static func bytes(_ count: Int, _ random: inout RandomSource) -> [UInt8] {
        (0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    static func datagrams(_ count: Int, to port: UInt16, seed: UInt64) async throws {
        var random = RandomSource(seed: seed)
        let descriptor = Sockets.datagram()
        defer { close(descriptor) }
        for number in 0..<count {
            var datagram = bytes(random.uniform(0..<1400), &random)
            // Some look like Initial packets of version 1.
            if datagram.count > 1200, random.chance(1, in: 2) {
                datagram.replaceSubrange(0..<6, with: [0xc3, 0, 0, 0, 1, 8])
            }
            Sockets.send(datagram, from: descriptor, to: port)
            if number % 64 == 0 { await Task.yield() }
        }
    }

    /// Real requests, some of them with flipped bytes, cut off, or replaced by noise.
    static func request(_ random: inout RandomSource) -> [UInt8] {
        guard let endpoint = EndpointID(bytes: bytes(32, &random)) else { return [] }
        let requests: [NetRequest] = [
            .openStream(endpoint: endpoint, alpn: .raft, service: .raft), .identify, .subscribe,
            .sign(context: "raft", bytes: bytes(40, &random)),
            .openStream(endpoint: endpoint, alpn: .gossip, service: .gossip),
            .learned(
                peers: [
                    ConfiguredPeer(
                        node: NodeID(3),
                        peer: NetPeer(endpoint: endpoint, addresses: ["192.0.2.1:1", "x"]))
                ]), .located(addresses: ["192.0.2.1:1"]), .listLearned, .gossipSetup,
        ]
        var content = requests[random.uniform(0..<requests.count)].encoded()
        switch random.uniform(0..<4) {
        case 0: content = bytes(random.uniform(0..<300), &random)
        case 1: content.removeLast(random.uniform(0..<content.count))
        case 2:
            let place = random.uniform(0..<content.count)
            content[place] = UInt8(truncatingIfNeeded: random.next())
        default: break
        }
        var length = UInt32(content.count)
        if random.chance(1, in: 10) { length = UInt32(truncatingIfNeeded: random.next()) }
        return withUnsafeBytes(of: length.littleEndian) { Array($0) } + content
    }

    /// Each connection lasts until net closes it, or for ten frames.
    static func frames(
        _ count: Int, to path: String, loop: any EventLoop, seed: UInt64
    ) async throws {
        var random = RandomSource(seed: seed)
        var sent = 0
        var patience = 5000
        while sent < count {
            let attempt = ClientBootstrap(group: loop).connect(unixDomainSocketPath: path)
            let channel: any Channel
            do {
                channel = try await attempt.get()
            } catch let error as IOError where error.errnoCode == EAGAIN && patience > 0 {
                // The queue of the socket is full: net is behind on a busy machine.
                patience -= 1
                try await Task.sleep(for: .milliseconds(1))  // polls
                continue
            }
            for _ in 0..<10 where channel.isActive {
                sent += 1
                try? await channel.writeAndFlush(ByteBuffer(bytes: request(&random)))
            }
            try? await channel.close()
        }
    }
}

@Suite struct DecoderTests {
    @Test func controlMessagesRoundTrip() throws {
        let messages: [ControlMessage] = [
            .proof(mac: (0..<32).map { UInt8($0) }, incarnation: .max - 5, raft: .gone),
            .service(.raft, .serving), .service(.dns, .unknown), .over([LinkName(7), LinkName(9)]),
        ]
        var buffer = ByteBuffer()
        for message in messages { buffer.writeImmutableBuffer(message.encoded()) }
        for message in messages { #expect(try ControlMessage.next(in: &buffer) == message) }
        #expect(try ControlMessage.next(in: &buffer) == nil)
    }

    @Test func aMessageInPiecesWaitsForTheRest() throws {
        let whole = ControlMessage.service(.raft, .gone).encoded()
        var buffer = ByteBuffer()
        for byte in Array(buffer: whole).dropLast() {
            buffer.writeInteger(byte)
            #expect(try ControlMessage.next(in: &buffer) == nil)
        }
    }

    @Test func hostileBytesGiveErrorsAndNothingElse() {
        var random = RandomSource(seed: 11)
        var errors = 0
        for _ in 0..<100_000 {
            var buffer = ByteBuffer(bytes: Garbage.bytes(random.uniform(0..<80), &random))
            do {
                while try ControlMessage.next(in: &buffer) != nil {}
            } catch {
                errors += 1
            }
            var header = ByteBuffer(bytes: Garbage.bytes(random.uniform(0..<4), &random))
            _ = try? StreamHeader.read(from: &header)
        }
        #expect(errors > 1000)
    }
}
