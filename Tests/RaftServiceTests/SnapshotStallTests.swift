// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import NIOCore
import Testing

@testable import RaftService

/// A peer that takes nothing of the snapshot that it needs.
@Suite(.serialized) struct SnapshotStallTests {
    private static let pieces = 12

    /// What the leader says of a transfer that has ended.
    private func ended(_ client: TestClient) async throws -> [String] {
        var why = Aspen_Client_V1_WhyRequest()
        why.subject = .member
        why.nodeID = 2
        let events = try await client.ask(.why(why)).why.events
        return events.filter { $0.kind == "snapshot-sent" }.map(\.text)
    }

    @Test(.timeLimit(.minutes(1))) func itIsSentOneWindowAndTriedAgainLater() async throws {
        let cluster = TestCluster(2)
        let leader = try await cluster.start(
            NodeID(1),
            adjust: {
                $0.options.logTailEntries = 0
                $0.options.snapshots.stallTimeout = .seconds(2)
            })
        let client = try await cluster.client(of: NodeID(1))
        #expect(try await client.ask(.initCluster(.init())).failure == nil)
        let value = [UInt8](repeating: 7, count: Limits.valueBytesMax - 100_000)
        for count in 0..<Self.pieces { _ = try await client.put("big-\(count)", value).get() }
        #expect(try await client.ask(.triggerSnapshot(.init())).failure == nil)
        while try await client.nodeInfo().firstLogIndex < UInt64(Self.pieces) {}

        let peer = try await cluster.start(NodeID(2))
        try await peer.whileStateStandsStill {
            #expect(try await client.addLearner(2).failure == nil)
            // Nothing that it gets can be taken in, or acknowledged.
            var said: [String] = []
            while said.isEmpty { said = try await ended(client) }
            let first = said[0]
            #expect(first.contains("was not taken by node 2"), "\(first)")
            let sent = try #require(first.split(separator: " ").compactMap { UInt64($0) }.first)
            let window = SnapshotTransfers.windowBytes
            let piece = UInt64(Limits.snapshotChunkBytesMax)
            #expect(sent > window - piece && sent < window + piece, "\(sent) of 12 MB")
        }
        let reader = try await cluster.client(of: NodeID(2))
        let applied = try await client.nodeInfo().node.applied
        _ = try await reader.nodeInfo(applied: applied)
        let hashes = [try await client.nodeInfo().stateHash, try await reader.nodeInfo().stateHash]
        #expect(hashes[0] == hashes[1])
        let succeeded = try await leader.loop.submit { leader.server.node.metrics.snapshotsSent }
            .get()
        #expect(succeeded == 1)
        try await cluster.stop()
    }
}
