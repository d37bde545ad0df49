// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import GossipService
import ServiceKit
import Testing

/// What aspend-gossip makes of what aspend-net tells it.
@Suite struct MembersTests {
    private static func endpoint(_ number: UInt8) throws -> EndpointID {
        try #require(EndpointID(bytes: [UInt8](repeating: number, count: 32)))
    }

    /// A member that nobody has seen yet has its place, and its number.
    @Test func membersAreKnownBeforeTheyAreSeen() throws {
        let own = try Self.endpoint(1)
        let members = [
            NetMember(node: NodeID(1), endpoint: own),
            NetMember(node: NodeID(7), endpoint: try Self.endpoint(7)),
        ]
        let bench = try SocketBench { request in
            switch request {
            case .identify: [.identity(endpoint: own, addresses: [], configuredPeers: [])]
            case .subscribe: [.done, .event(.members(members))]
            case .gossipSetup:
                [
                    .gossipSetup(
                        topics: [[UInt8](repeating: 9, count: 32)], port: 7001, advertised: [])
                ]
            case .sign: [.signature([UInt8](repeating: 0, count: 64))]
            case .listConnections: [.connections([])]
            default: [.done]
            }
        }
        let connection = try bench.connect()
        var lines: [PeerLine] = []
        // Net is asked first, and takes its time.
        for _ in 0..<100_000 where lines.isEmpty {
            let reply = try bench.ask(GossipRequest.listPeers.encoded(), on: connection)
            if case .peers(let found)? = reply { lines = found }
        }
        #expect(lines.map(\.node) == [NodeID(7)], "this node itself is no peer")
        #expect(lines.first?.endpoint == members[1].endpoint)
        #expect(lines.first?.reason.isEmpty == false && lines.first?.isConnected == false)
    }
}
