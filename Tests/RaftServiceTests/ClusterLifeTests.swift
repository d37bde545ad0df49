// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import Glibc
import NIOCore
import Testing

@testable import RaftService

@Suite(.serialized) struct ClusterLifeTests {
    private func add(_ node: UInt64, _ client: TestClient) async throws {
        let added = try await client.addLearner(node)
        try #require(added.failure == nil, "\(added)")
    }

    private func promote(
        _ node: UInt64, replacing: UInt64 = 0, force: Bool = false, _ client: TestClient
    ) async throws -> WireResponse {
        var body = Aspen_Client_V1_PromoteLearnerRequest()
        body.nodeID = node
        body.replace = replacing
        body.force = force
        return try await client.ask(.promoteLearner(body))
    }

    /// Asks again while the learner is behind, as `--wait` does.
    private func promoteWhenCaughtUp(
        _ node: UInt64, replacing: UInt64 = 0, _ client: TestClient
    ) async throws -> Aspen_Client_V1_PromoteLearnerResponse {
        while true {
            let answer = try await promote(node, replacing: replacing, client)
            if answer.failure?.code == .preconditionFailed { continue }
            try #require(answer.failure == nil, "\(answer)")
            return answer.promoteLearner
        }
    }

    private func leave(_ node: UInt64, _ client: TestClient) async throws -> WireResponse {
        var body = Aspen_Client_V1_LeaveClusterRequest()
        body.nodeID = node
        return try await client.ask(.leaveCluster(body))
    }

    private func transfer(_ node: UInt64, _ client: TestClient) async throws -> WireResponse {
        var body = Aspen_Client_V1_TransferLeadershipRequest()
        body.nodeID = node
        return try await client.ask(.transferLeadership(body))
    }

    @Test(.timeLimit(.minutes(1))) func leadershipGoesWhereItIsAskedTo() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let others = cluster.ids.filter { $0 != leader }
        // Through a node that does not lead.
        let client = try await cluster.client(of: others[0])
        let moved = try await transfer(others[1].rawValue, client)
        #expect(moved.failure == nil, "\(moved)")
        #expect(moved.transferLeadership.leaderID == others[1].rawValue)
        #expect(moved.transferLeadership.term > 0)
        #expect(try await client.put("k", [1]).get().failure == nil)
        let any = try await transfer(0, client)
        #expect(any.failure == nil, "\(any)")
        #expect(any.transferLeadership.leaderID != others[1].rawValue)
        // To whoever leads: it is so already.
        let same = try await transfer(any.transferLeadership.leaderID, client)
        #expect(same.transferLeadership.leaderID == any.transferLeadership.leaderID)
        #expect(try await transfer(9, client).failure?.code == .preconditionFailed)
        // And it is known why.
        var why = Aspen_Client_V1_WhyRequest()
        why.subject = .leader
        let reason = try await client.ask(.why(why)).why
        #expect(reason.answer.contains("handed leadership over"), "\(reason.answer)")
        #expect(reason.events.contains { $0.kind == "leader-elected" })
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func aLearnerIsPromotedAndReplacesAVoter() async throws {
        let cluster = TestCluster(4)
        for id in cluster.ids { try await cluster.start(id) }
        let client = try await cluster.client(of: NodeID(1))
        #expect(try await client.ask(.initCluster(.init())).failure == nil)
        #expect(try await promote(2, client).failure?.code == .preconditionFailed, "no member")
        for node in UInt64(2)...4 { try await add(node, client) }
        #expect(try await promoteWhenCaughtUp(2, client).voters == [1, 2])
        #expect(try await promoteWhenCaughtUp(3, client).voters == [1, 2, 3])
        // Cut off, it is behind for all that is known.
        for other in UInt64(1)...3 { cluster.network.cut(NodeID(other), NodeID(4)) }
        while try await client.ask(.getClusterStatus(.init())).getClusterStatus.nodes
            .first(where: { $0.nodeID == 4 })?.reachable == true
        {}
        let refused = try await promote(4, client)
        #expect(refused.failure?.code == .preconditionFailed)
        #expect(refused.failure?.message.contains("cannot be reached") == true)
        for other in UInt64(1)...3 { cluster.network.mend(NodeID(other), NodeID(4)) }
        let replaced = try await promoteWhenCaughtUp(4, replacing: 3, client)
        #expect(replaced.voters == [1, 2, 4])
        #expect(replaced.learners.isEmpty)
        // Done already: no harm in asking again.
        #expect(try await promote(4, client).promoteLearner.voters == [1, 2, 4])
        var why = Aspen_Client_V1_WhyRequest()
        why.subject = .member
        why.nodeID = 4
        #expect(try await client.ask(.why(why)).why.answer.contains("good standing"))
        why.nodeID = 3
        #expect(try await client.ask(.why(why)).why.answer.contains("no member"))
        try await cluster.stop()
    }

    /// The peers' nets forget a leaver as soon as they have the final membership; the leader that
    /// leaves must still hear that they have it, or nobody answers whoever asked.
    @Test(.timeLimit(.minutes(1))) func aLeaderThatLeavesIsHeardToTheEnd() async throws {
        let cluster = TestCluster(4)
        for round in 0..<3 {
            if round == 0 { try await cluster.form() }
            let leader = try await cluster.leader()
            let client = try await cluster.client(of: leader)
            let left = try await leave(0, client)
            #expect(left.failure == nil, "\(left)")
            #expect(!left.leaveCluster.voters.contains(leader.rawValue))
            #expect(left.leaveCluster.voters.count == 3 - round)
            try await cluster.kill(leader)
            let other = try #require(
                cluster.ids.first { left.leaveCluster.voters.contains($0.rawValue) })
            let next = try await cluster.client(of: other)
            #expect(try await next.put("round-\(round)", [1]).get().failure == nil)
        }
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func aChangeThatWouldLoseTheQuorumIsRefused() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let others = cluster.ids.filter { $0 != leader }
        let client = try await cluster.client(of: leader)
        try await cluster.kill(others[1])
        let refused = try await leave(others[0].rawValue, client)
        #expect(refused.failure?.code == .preconditionFailed)
        #expect(refused.failure?.message.contains("lose the quorum") == true)
        var body = Aspen_Client_V1_ChangeMembershipRequest()
        body.voters = [leader.rawValue, others[1].rawValue].sorted()
        let change = try await client.ask(.changeMembership(body))
        #expect(change.failure?.code == .preconditionFailed)
        #expect(change.failure?.message.contains("--force") == true)
        // The dead one may go.
        let removed = try await leave(others[1].rawValue, client)
        #expect(removed.failure == nil, "\(removed)")
        #expect(removed.leaveCluster.voters == [leader, others[0]].map(\.rawValue).sorted())
        // Removed already.
        #expect(try await leave(others[1].rawValue, client).failure == nil)
        try await cluster.stop()
    }

    @Test func quorumRuleByTheTable() {
        func objection(_ old: ClosedRange<UInt64>, _ new: [UInt64], sound: [UInt64]) -> String? {
            let set = Set(sound.map { NodeID($0) })
            return QuorumRule(sound: set, reachable: set).objection(
                from: old.map { NodeID($0) }, to: new.map { NodeID($0) })
        }
        #expect(objection(1...1, [1, 2], sound: [1, 2]) == nil)
        #expect(objection(1...1, [1, 2], sound: [1]) != nil, "needs both")
        #expect(objection(1...3, [1, 2, 3, 4], sound: [1, 2, 4]) == nil, "no worse than before")
        #expect(objection(1...3, [1], sound: [1, 2, 3]) == nil, "fewer, all of them up")
        #expect(objection(1...3, [1, 2], sound: [1, 3]) != nil)
        #expect(
            objection(1...5, [1, 2, 3, 4], sound: [1, 2, 3, 5]) != nil, "the next one stops it")
        #expect(objection(1...5, [1, 2, 3, 5], sound: [1, 2, 3, 5]) == nil, "the dead one goes")
        #expect(objection(1...3, [1], sound: [1]) != nil, "the old ones cannot agree")
    }

    /// What the rule is for, said without it, over all ways in which four nodes can be old voters, new
    /// voters, up and caught up: and a rule that forgets a part of it is found out.
    @Test(arguments: [nil] + QuorumRule.PlantedBug.allCases)
    func noChangeThatLosesTheQuorumIsAllowed(bug: QuorumRule.PlantedBug?) {
        func nodes(_ bits: Int) -> [NodeID] {
            (0..<4).filter { bits & 1 << $0 != 0 }.map { NodeID(UInt64($0) + 1) }
        }
        func stands(_ voters: [NodeID], _ up: Set<NodeID>) -> Int {
            voters.count { up.contains($0) } * 2 - voters.count
        }
        var mistakes = 0
        for bits in 0..<(1 << 13) {
            let (old, new) = (nodes(bits & 15), nodes(bits >> 4 & 15))
            let sound = Set(nodes(bits >> 8 & 15))
            let reachable = bits >> 12 == 0 ? sound : Set(nodes(15))
            guard !old.isEmpty, !new.isEmpty else { continue }
            var rule = QuorumRule(sound: sound, reachable: reachable)
            rule.plantedBug = bug
            guard rule.objection(from: old, to: new) == nil else { continue }
            let isStuck = stands(old, reachable) <= 0 || stands(new, sound) <= 0
            let isWorse =
                stands(new, sound) <= 2 && stands(old, sound) > 2
                && !new.allSatisfy(sound.contains)
            if isStuck || isWorse { mistakes += 1 }
        }
        #expect((mistakes > 0) == (bug != nil), "\(mistakes)")
    }

    @Test(.timeLimit(.minutes(1))) func figuresAreReal() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let client = try await cluster.client(of: leader)
        for count in 0..<20 { _ = try await client.put("m-\(count)", [1]).get() }
        _ = try await client.put("", [1]).get()
        let metrics = try await client.ask(.getMetrics(.init())).getMetrics.metrics
        func value(_ name: String) -> Double? { metrics.first { $0.name == name }?.value }
        #expect(value("aspen_requests_total{request=\"WriteKey\"}") == 21)
        #expect(value("aspen_errors_total{code=\"INVALID_ARGUMENT\"}") == 1)
        #expect(
            value("aspen_commit_seconds_bucket{le=\"+Inf\"}") == value("aspen_commit_seconds_count")
        )
        #expect(value("aspen_commit_seconds_count") ?? 0 >= 20)
        #expect(value("aspen_raft_is_leader") == 1)
        #expect(value("aspen_raft_peers_reachable") == 2)
        for stage in CommitStage.allCases {
            let label = "stage=\"\(stage.name)\""
            #expect(value("aspen_commit_stage_seconds_count{\(label)}") ?? 0 >= 1)
            #expect(value("aspen_commit_stage_seconds_sum{\(label)}") ?? -1 >= 0)
            let half = value("aspen_commit_stage_seconds{\(label),quantile=\"0.5\"}") ?? -1
            #expect(half >= 0)
            #expect(value("aspen_commit_stage_seconds{\(label),quantile=\"0.99\"}") ?? -1 >= half)
        }
        var why = Aspen_Client_V1_WhyRequest()
        why.subject = .slow
        let slow = try await client.ask(.why(why)).why
        #expect(slow.stages.map(\.stage) == CommitStage.allCases.map(\.name))
        #expect(slow.stages.allSatisfy { $0.nodeID == leader.rawValue && $0.count >= 1 })
        #expect(slow.stages.allSatisfy { $0.p50Ns <= $0.p99Ns && $0.p99Ns <= $0.longestNs })
        #expect(slow.answer.contains("went into: "))
        let raft = try await client.ask(.getRaftMetrics(.init())).getRaftMetrics
        #expect(raft.role == "leader")
        #expect(raft.progress.count == 2)
        #expect(raft.commit >= 20)
        #expect(raft.commit <= raft.lastLogIndex)
        #expect(raft.lastLogTerm == raft.term)
        try await cluster.stop()
    }

    @Test func eventsSurviveTheDaemon() throws {
        var template = Array("/tmp/aspen-events-XXXXXX".utf8CString)
        let directory = String(cString: try #require(mkdtemp(&template)))
        defer { _ = system("rm -r '\(directory)'") }
        let path = directory + "/events"
        let first = NodeEvents(path: path)
        first.record("started", "line one\nand two")
        for count in 0..<3000 { first.record("slow-commit", "commit took \(count) ms") }
        #expect(first.count == NodeEvents.eventsMax)
        let second = NodeEvents(path: path)
        #expect(second.count == NodeEvents.eventsMax)
        #expect(second.all.last?.text == "commit took 2999 ms")
        // A line torn by a crash is left out, nothing else.
        #expect(NodeEvent(line: "123 slow") == nil)
        #expect(NodeEvent(line: "123 started aspend-raft started")?.wallMilliseconds == 123)
    }
}
