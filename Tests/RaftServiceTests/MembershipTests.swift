// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import NIOCore
import RaftCore
import Testing

@testable import RaftService

@Suite(.serialized) struct MembershipTests {
    private func change(_ voters: [UInt64], _ client: TestClient) async throws -> WireResponse {
        var body = Aspen_Client_V1_ChangeMembershipRequest()
        body.voters = voters
        return try await client.ask(.changeMembership(body))
    }

    /// Waits until `node` has applied what the cluster had committed when asked.
    private func caughtUp(_ cluster: TestCluster, _ node: NodeID) async throws {
        let client = try await cluster.client(of: node)
        // Before its first entry it does not know that it belongs to a cluster.
        while try await client.get("k").failure?.code == .notInitialized {}
        // Linearizable: answered only from a state that has everything committed before.
        let read = try await client.get("k")
        #expect(read.failure == nil, "\(read)")
    }

    @Test(.timeLimit(.minutes(1))) func aLearnerGetsASnapshotWhenTheLogIsGone() async throws {
        let cluster = TestCluster(3)
        let noTail: @Sendable (inout RaftSettings) -> Void = { $0.options.logTailEntries = 0 }
        try await cluster.start(NodeID(1), adjust: noTail)
        let client = try await cluster.client(of: NodeID(1))
        #expect(try await client.ask(.initCluster(.init())).failure == nil)
        let value = [UInt8](repeating: 7, count: 100_000)
        for count in 0..<100 { _ = try await client.put("big-\(count)", value).get() }
        #expect(try await client.ask(.triggerSnapshot(.init())).failure == nil)
        // Until the log has really let go of it.
        while try await client.ask(.getNodeInfo(.init())).getNodeInfo.firstLogIndex < 50 {}
        try await cluster.start(NodeID(2), adjust: noTail)
        #expect(try await client.addLearner(2).failure == nil)
        try await caughtUp(cluster, NodeID(2))
        let reader = try await cluster.client(of: NodeID(2))
        for count in 0..<100 {
            let read = try await reader.get("big-\(count)", stale: true)
            #expect(read.readKey.entry.value == Data(value))
        }
        // Both have the same state, and the log goes on behind the snapshot.
        _ = try await reader.put("after", [1]).get()
        try await caughtUp(cluster, NodeID(2))
        let one = try await client.ask(.getNodeInfo(.init())).getNodeInfo
        let two = try await reader.ask(.getNodeInfo(.init())).getNodeInfo
        #expect(one.node.applied == two.node.applied)
        #expect(one.stateHash == two.stateHash)
        #expect(two.node.role == "learner")
        #expect(two.firstLogIndex > 50)
        try await cluster.stop()
    }

    /// Also when its state is behind, and hears of one membership after the other.
    @Test(.timeLimit(.minutes(1))) func whoHasTheLeaderLeaveIsAnswered() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let running = try cluster.running(leader)
        let client = try await cluster.client(of: leader)
        let others = cluster.ids.filter { $0 != leader }.map(\.rawValue)
        // As if it had been removed before: what is agreed upon first is applied, which nothing is here.
        try await running.loop.submit {
            let service = running.server.node.client as? ClientService
            service?.roster?.removed[FakeNetwork.endpoint(leader)] = leader
        }.get()
        async let answer = change(others, client)
        try await running.whileStateStandsStill {
            // What is done in between keeps the memberships in batches of their own.
            while try await !running.loop.submit({
                running.server.node.state.perform { _ in {} }
                return (running.server.node.client as? ClientService)?.hasLeft == true
            }).get() {}
        }
        #expect(try await answer.failure == nil)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func changesGoThroughAnyNode() async throws {
        let cluster = TestCluster(4)
        for id in cluster.ids { try await cluster.start(id) }
        let first = try await cluster.client(of: NodeID(1))
        #expect(cluster.network.members(at: NodeID(1)) == [], "it belongs to no cluster")
        #expect(try await first.ask(.initCluster(.init())).failure == nil)
        #expect(try await first.addLearner(2).failure == nil)
        try await caughtUp(cluster, NodeID(2))
        for id in [NodeID(1), NodeID(2)] {
            #expect(cluster.network.members(at: id) == [1, 2], "learners are members, too")
        }
        // Node 2 passes it on to the leader.
        let second = try await cluster.client(of: NodeID(2))
        #expect(try await second.addLearner(3).failure == nil)
        #expect(try await second.addLearner(3).failure == nil, "it is so already")
        let unknown = try await change([1, 4], second)
        #expect(unknown.failure?.code == .preconditionFailed)
        let changed = try await change([1, 2, 3], second)
        #expect(changed.failure == nil)
        #expect(changed.changeMembership.voters == [1, 2, 3])
        // Out with the leader: somebody else goes on.
        let smaller = try await change([2, 3], second)
        #expect(smaller.failure == nil, "\(smaller)")
        #expect(try await second.put("k", [1]).get().failure == nil)
        let status = try await second.ask(.getClusterStatus(.init())).getClusterStatus
        #expect(status.nodes.map(\.nodeID) == [2, 3])
        #expect(cluster.network.members(at: NodeID(2)) == [2, 3])
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func aShortCutChangesNoTerm() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let client = try await cluster.client(of: leader)
        let before = try await client.ask(.getLeader(.init())).getLeader
        for round in 0..<5 {
            for other in cluster.ids where other != leader { cluster.network.cut(leader, other) }
            for other in cluster.ids where other != leader { cluster.network.mend(leader, other) }
            #expect(try await client.put("cut-\(round)", [1]).get().failure == nil)
        }
        let after = try await client.ask(.getLeader(.init())).getLeader
        #expect(after == before)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func aLeaderThatStopsHandsOver() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let client = try await cluster.client(of: leader)
        var waiting: [EventLoopFuture<WireResponse>] = []
        for count in 0..<50 { waiting.append(client.put("d-\(count)", [1])) }
        for answer in waiting { #expect(try await answer.get().failure == nil) }
        let running = try cluster.running(leader)
        try await running.loop.flatSubmit { running.server.drain() }.get()
        let other = try #require(cluster.ids.first { $0 != leader })
        let reader = try await cluster.client(of: other)
        // Already somebody else: no election timeout has to pass.
        let now = try await reader.ask(.getLeader(.init())).getLeader
        #expect(now.leaderID != 0)
        #expect(now.leaderID != leader.rawValue)
        for count in 0..<50 {
            #expect(try await reader.get("d-\(count)").readKey.hasEntry)
        }
        try await cluster.kill(leader)
        try await cluster.stop()
    }

    /// Nothing can be answered and nobody takes over: it does not sit out what it would wait for others.
    @Test(.timeLimit(.minutes(1))) func aLeaderThatIsCutOffStopsAtOnce() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let client = try await cluster.client(of: leader)
        let running = try cluster.running(leader)
        for other in cluster.ids where other != leader { cluster.network.cut(leader, other) }
        let unanswered = client.put("cut-off", [1])
        let server = running.server
        while try await running.loop.submit({ server.service.writeCount }).get() == 0 {}
        let began = ContinuousClock.now
        try await running.loop.flatSubmit { running.server.drain() }.get()
        // Some 20 ms; without the look at its links, the whole of `drainTimeout`, 2 s.
        #expect(ContinuousClock.now - began < .milliseconds(1900))
        _ = try? await unanswered.get()
        try await cluster.kill(leader)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func aWipedVoterIsNotTakenForTheOldOne() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let victim = try #require(cluster.ids.last { $0 != leader })
        try await cluster.kill(victim)
        // In memory: it comes back as another replica under the same id.
        try await cluster.start(victim)
        let client = try await cluster.client(of: leader)
        #expect(try await client.put("k", [1]).get().failure == nil)
        let refused = try await client.addLearner(victim.rawValue)
        #expect(refused.failure?.code == .preconditionFailed)
        let rest = cluster.ids.filter { $0 != victim }.map(\.rawValue)
        #expect(try await change(rest, client).failure == nil)
        #expect(try await client.addLearner(victim.rawValue).failure == nil)
        #expect(try await change([1, 2, 3], client).failure == nil)
        try await caughtUp(cluster, victim)
        try await cluster.stop()
    }
}
