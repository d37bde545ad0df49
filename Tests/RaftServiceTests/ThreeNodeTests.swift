// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import NIOCore
import Testing

@testable import RaftService

@Suite(.serialized) struct ThreeNodeTests {
    @Test(.timeLimit(.minutes(1))) func everyNodeAnswers() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        for id in cluster.ids {
            let client = try await cluster.client(of: id)
            for count in 0..<50 {
                let put = try await client.put("key-\(id)", Array("\(count)".utf8)).get()
                #expect(put.failure == nil)
                // Another node sees it at once.
                let other = cluster.ids[Int(id.rawValue) % 3]
                let reader = try await cluster.client(of: other)
                let read = try await reader.get("key-\(id)")
                #expect(read.readKey.entry.value == Data("\(count)".utf8))
                try await reader.channel.close().get()
            }
        }
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func statusNamesAllMembers() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let client = try await cluster.client(of: NodeID(2))
        // Two of the members may still be busy getting to know each other.
        while try await client.ask(.getHealth(.init())).getHealth.status != "healthy" {}
        var answer = try await client.ask(.getClusterStatus(.init()))
        // A follower may hear of the new voters, and have its links to them, a little later.
        while answer.getClusterStatus.nodes.contains(where: { !$0.reachable || !$0.isVoter }) {
            answer = try await client.ask(.getClusterStatus(.init()))
        }
        #expect(answer.failure == nil)
        let status = answer.getClusterStatus
        #expect(status.nodes.map(\.nodeID) == [1, 2, 3])
        #expect(status.nodes.allSatisfy { $0.reachable && $0.isVoter })
        #expect(status.nodes.filter { $0.role == "leader" }.map(\.nodeID) == [status.leaderID])
        #expect(status.clusterID.count == 32)
        let health = try await client.ask(.getHealth(.init()))
        #expect(health.getHealth.status == "healthy")
        let ticket = try await client.ask(.getClusterTicket(.init())).getClusterTicket.ticket
        #expect(try Ticket(ticket).endpoints.count == 3)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func theClusterOutlivesItsLeader() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let rest = cluster.ids.filter { $0 != leader }
        let client = try await cluster.client(of: rest[0])
        // Without sessions, and some of them on their way while the leader dies.
        var waiting: [EventLoopFuture<WireResponse>] = []
        for count in 0..<100 { waiting.append(client.put("a-\(count)", [1])) }
        _ = try await waiting[20].get()
        try await cluster.kill(leader)
        for count in 100..<200 { waiting.append(client.put("a-\(count)", [1])) }
        for answer in waiting {
            let response = try await answer.get()
            #expect(response.failure == nil, "\(response)")
        }
        let reader = try await cluster.client(of: rest[1])
        for count in 0..<200 {
            let read = try await reader.get("a-\(count)").readKey
            #expect(read.entry.version == 1, "applied once: a-\(count)")
        }
        let health = try await client.ask(.getHealth(.init()))
        #expect(health.getHealth.status == "degraded")
        let status = try await client.ask(.getClusterStatus(.init())).getClusterStatus
        #expect(status.nodes.filter { !$0.reachable }.map(\.nodeID) == [leader.rawValue])
        try await cluster.stop()
    }
}
