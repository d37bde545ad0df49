// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import AspenWire
import Testing

@Suite struct NetProtocolTests {
    static func endpoint(_ seed: UInt8) -> EndpointID {
        EndpointID(bytes: [UInt8](repeating: seed, count: 32)) ?? { preconditionFailure() }()
    }

    static let peer = NetPeer(endpoint: endpoint(7), addresses: ["127.0.0.1:7701", "[::1]:1"])

    static let requests: [NetRequest] = [
        .openStream(endpoint: endpoint(1), alpn: .raft, service: .raft), .identify,
        .setPeers(peers: [peer], isClosed: true), .setPeers(peers: [], isClosed: false),
        .members([NetMember(node: NodeID(3), endpoint: endpoint(3))]), .members([]),
        .listConnections,
        .subscribe, .sign(context: "gossip", bytes: [1, 2, 3]),
        .learned(peers: [ConfiguredPeer(node: NodeID(7), peer: peer)]), .learned(peers: []),
        .listLearned, .gossipSetup, .located(addresses: ["192.0.2.1:7001", "[2001:db8::1]:7001"]),
    ]

    static let replies: [NetReply] = [
        .opened, .done,
        .identity(
            endpoint: endpoint(2), addresses: ["127.0.0.1:1"],
            configuredPeers: [
                ConfiguredPeer(node: NodeID(2), peer: peer), ConfiguredPeer(node: nil, peer: peer),
            ]),
        .signature([9]), .failed(code: .unavailable, message: "no"),
        .event(.peerUp(endpoint(3))), .event(.peerDown(endpoint(3), reason: "gone")),
        .event(.serviceGone(endpoint(3), .raft)), .event(.located(["192.0.2.1:7001"])),
        .event(.members([NetMember(node: NodeID(3), endpoint: endpoint(3))])),
        .connections([
            NetConnection(
                endpoint: endpoint(3), address: "192.0.2.1:7001", roundTripMicroseconds: 250)
        ]),
        .event(.located([])),
        .learned(peers: [ConfiguredPeer(node: nil, peer: peer)]),
        .gossipSetup(
            topics: [[UInt8](repeating: 3, count: 32)], port: 7001, advertised: ["[::1]:7001"]),
        .gossipSetup(
            topics: [[UInt8](repeating: 3, count: 32), [UInt8](repeating: 4, count: 32)],
            port: 7001,
            advertised: []),
    ]

    @Test func framesRoundTrip() throws {
        for request in Self.requests {
            #expect(try NetRequest(decoding: request.encoded()) == request)
        }
        for reply in Self.replies { #expect(try NetReply(decoding: reply.encoded()) == reply) }
        let principal = Principal(
            endpoint: Self.endpoint(4), alpn: .client, hasProvedCookie: false, tokenChain: [1],
            remoteAddress: "127.0.0.1:9")
        #expect(try Principal(decoding: principal.encoded()) == principal)
    }

    @Test func everyTruncationIsAnError() {
        for request in Self.requests {
            let bytes = request.encoded()
            for length in 0..<bytes.count {
                #expect(throws: DecodeError.self) {
                    try NetRequest(decoding: Array(bytes.prefix(length)))
                }
            }
        }
        for reply in Self.replies {
            let bytes = reply.encoded()
            for length in 0..<bytes.count {
                #expect(throws: DecodeError.self) {
                    try NetReply(decoding: Array(bytes.prefix(length)))
                }
            }
        }
    }

    @Test func garbageNeverTraps() {
        var random = RandomSource(seed: 5)
        for _ in 0..<20_000 {
            let length = random.uniform(0..<80)
            var bytes = (0..<length).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            if length > 0 { bytes[0] = UInt8(random.uniform(0..<10)) }
            _ = try? NetRequest(decoding: bytes)
            _ = try? NetReply(decoding: bytes)
            _ = try? Principal(decoding: bytes)
        }
    }

    @Test func ticketsRoundTripAndSayWhatIsWrong() throws {
        let ticket = Ticket(
            cluster: ClusterID(0x0123_4567_89ab_cdef),
            endpoints: [
                Ticket.Endpoint(endpoint: Self.endpoint(1), addresses: ["127.0.0.1:7701"]),
                Ticket.Endpoint(endpoint: Self.endpoint(2), addresses: []),
            ])
        let text = ticket.encoded()
        #expect(text.hasPrefix("aspen"))
        #expect(try Ticket(text) == ticket)
        for wrong in ["", "aspen", "aspe", "hello", String(text.dropLast()), text + "a"] {
            #expect(throws: AspenError.self) { try Ticket(wrong) }
        }
        var random = RandomSource(seed: 6)
        for _ in 0..<500 {
            var letters = Array(text)
            letters[random.uniform(5..<letters.count)] = "q"
            let changed = String(letters)
            if changed != text { #expect(throws: AspenError.self) { try Ticket(changed) } }
        }
    }
}
