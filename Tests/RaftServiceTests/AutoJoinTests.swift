// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import KVCore
import NIOCore
import RaftCore
import Testing

@testable import RaftService

/// Whom `auto-join` takes in, by the table and in clusters.
@Suite(.serialized) struct AutoJoinTests {
    // MARK: - The rule

    private static func member(_ number: UInt64) -> Membership.Member {
        Membership.Member(
            node: NodeID(number), endpoint: FakeNetwork.endpoint(NodeID(number)),
            replica: ReplicaID(number), addresses: [])
    }

    private static func rule(
        voters: [UInt64], learners: [UInt64] = [], admitted: [UInt64]? = nil
    ) -> JoinRule {
        var roster = JoinRoster()
        for number in admitted ?? learners {
            roster.admitted[FakeNetwork.endpoint(NodeID(number))] = NodeID(number)
        }
        return JoinRule(
            membership: Membership(
                cluster: ClusterID(1), voters: voters.map { NodeID($0) },
                learners: learners.map { NodeID($0) }, members: (voters + learners).map(member)),
            roster: roster)
    }

    private static func found(_ number: UInt64?, key: UInt64) -> ConfiguredPeer {
        ConfiguredPeer(
            node: number.map { NodeID($0) },
            peer: NetPeer(endpoint: FakeNetwork.endpoint(NodeID(key)), addresses: []))
    }

    @Test func votersAreOddAndNotTooMany() {
        func voters(
            _ voters: [UInt64], _ learners: [UInt64], admitted: [UInt64]? = nil,
            caughtUp: [UInt64]? = nil
        ) -> [UInt64]? {
            Self.rule(voters: voters, learners: learners, admitted: admitted)
                .promotion(caughtUp: Set((caughtUp ?? learners).map { NodeID($0) }))?
                .map(\.rawValue)
        }
        #expect(voters([1], []) == nil)
        #expect(voters([1], [2]) == nil)
        #expect(voters([1], [2, 3]) == [1, 2, 3])
        #expect(voters([1], [2, 3, 4]) == [1, 2, 3])
        #expect(voters([1], [2, 3], caughtUp: [3]) == nil)
        #expect(voters([1, 2], [3]) == [1, 2, 3])
        #expect(voters([1, 2], []) == nil)
        #expect(voters([1, 2, 3], [4]) == nil)
        #expect(voters([1, 2, 4], [3, 5]) == [1, 2, 3, 4, 5])
        // Learners of an administrator stay what he made them.
        #expect(voters([1], [2, 3], admitted: [2]) == nil)
        #expect(voters([1], [2, 3, 4], admitted: [3, 4]) == [1, 3, 4])
        let most = UInt64(Limits.autoVotersMax)
        #expect(voters(Array(1...most), [most + 1, most + 2]) == nil)
        #expect(
            voters(Array(1...most - 1), [most + 1, most + 2, most + 3])
                == Array(1...most - 1) + [most + 1])
        // An administrator may have made more.
        #expect(voters(Array(1...most + 2), [most + 3, most + 4]) == nil)
        // A number that was admitted under another key was not admitted.
        var rule = Self.rule(voters: [1], learners: [2, 3])
        rule.roster.admitted[FakeNetwork.endpoint(NodeID(3))] = nil
        rule.roster.admitted[FakeNetwork.endpoint(NodeID(9))] = NodeID(3)
        #expect(rule.promotion(caughtUp: [NodeID(2), NodeID(3)]) == nil)
    }

    @Test func whoIsNotAdmittedIsToldWhy() {
        var rule = Self.rule(voters: [1], learners: [2])
        func objection(_ found: [ConfiguredPeer]) -> JoinRule.Objection? {
            let judged = rule.judge(found)
            #expect(!judged.isEmpty)
            return judged.first?.objection
        }
        // Members, and who has no number, are no candidates.
        #expect(
            rule.judge([Self.found(1, key: 1), Self.found(2, key: 2), Self.found(nil, key: 3)])
                .isEmpty)
        #expect(objection([Self.found(3, key: 3)]) == nil)
        // The same one twice: configured, and found.
        #expect(objection([Self.found(3, key: 3), Self.found(3, key: 3)]) == nil)
        #expect(
            objection([Self.found(2, key: 7)])
                == .numberIsTaken(by: FakeNetwork.endpoint(NodeID(2))))
        #expect(objection([Self.found(3, key: 3), Self.found(3, key: 4)]) == .numberIsClaimedTwice)
        rule.roster.removed[FakeNetwork.endpoint(NodeID(3))] = NodeID(3)
        // Not under another number either.
        #expect(objection([Self.found(8, key: 3)]) == .removed)
        for number in 0..<UInt64(Limits.removedEndpointsMax) {
            rule.roster.removed[FakeNetwork.longEndpoint(number)] = NodeID(1000 + number)
        }
        #expect(objection([Self.found(4, key: 4)]) == .rosterIsFull)
        rule = Self.rule(
            voters: [1], learners: Array(2..<2 + UInt64(Limits.learnersMax)))
        #expect(objection([Self.found(200, key: 200)]) == .learnersAreFull)
    }

    /// Whoever writes values that look like it makes nobody read the tables again.
    @Test func onlyWhatNamesReservedKeysIsLookedAt() {
        func changes(_ transaction: Transaction) -> Bool {
            SystemTables.mayBeChanged(
                by: Entry(
                    index: LogIndex(1), term: Term(1), kind: .command, origin: nil, time: .zero,
                    payload: CommandCodec.encode(.transaction(transaction, nil))))
        }
        func put(_ key: String, _ value: String) -> Transaction {
            Transaction(success: [.put(key: Array(key.utf8), value: Array(value.utf8))])
        }
        #expect(changes(JoinRoster.removal(of: [Self.member(3)])))
        #expect(changes(JoinRoster.admission(of: NodeID(3), FakeNetwork.endpoint(NodeID(3)))))
        #expect(changes(put("_sys/tokens/roots/x", "")))
        #expect(!changes(put("a", "b")))
        #expect(!changes(put("a", "_sys/join/removed/x")))
        #expect(!changes(put("a_sys/join/", "")))
    }

    // MARK: - Clusters

    private static func start(_ count: Int) async throws -> TestCluster {
        let cluster = TestCluster(count)
        for id in cluster.ids {
            try await cluster.start(id, adjust: { $0.options.joinsByItself = true })
        }
        return cluster
    }

    /// The present leader's.
    private static func membership(_ cluster: TestCluster) async throws -> Membership? {
        guard let leader = try? await cluster.leader() else { return nil }
        let node = try cluster.running(leader)
        return try await node.loop.submit { node.server.node.membership }.get()
    }

    private static func voters(_ cluster: TestCluster, _ expected: [UInt64]) async throws {
        while true {
            let membership = try await membership(cluster)
            if let membership, !membership.isJoint,
                membership.voters.map(\.rawValue) == expected
            {
                return
            }
            try Task.checkCancellation()
            await Task.yield()
        }
    }

    private static func why(_ node: UInt64, _ client: TestClient, _ part: String) async throws {
        var body = Aspen_Client_V1_WhyRequest()
        body.subject = .member
        body.nodeID = node
        while true {
            if try await client.ask(.why(body)).why.answer.contains(part) { return }
            try Task.checkCancellation()
        }
    }

    @Test(.timeLimit(.minutes(1))) func threeNodesAreAClusterByInitAlone() async throws {
        let cluster = try await Self.start(3)
        let client = try await cluster.client(of: NodeID(1))
        let founded = try await client.ask(.initCluster(Aspen_Client_V1_InitClusterRequest()))
        try #require(founded.failure == nil, "\(founded)")
        try await Self.voters(cluster, [1, 2, 3])
        try await cluster.stop()
    }

    /// Four: three voters and a learner; two leave, and do not come back by themselves.
    @Test(.timeLimit(.minutes(1))) func whoWasRemovedDoesNotComeBackByItself() async throws {
        let cluster = try await Self.start(4)
        let client = try await cluster.client(of: NodeID(1))
        let founded = try await client.ask(.initCluster(Aspen_Client_V1_InitClusterRequest()))
        try #require(founded.failure == nil, "\(founded)")
        try await Self.voters(cluster, [1, 2, 3])
        while try await Self.membership(cluster)?.learners != [NodeID(4)] {
            try Task.checkCancellation()
        }
        // It leaves as a wiped one would come back: another process, with nothing, under the same key.
        var leave = Aspen_Client_V1_LeaveClusterRequest()
        leave.nodeID = 4
        let left = try await client.ask(.leaveCluster(leave))
        try #require(left.failure == nil, "\(left)")
        try await cluster.kill(NodeID(4))
        try await cluster.start(NodeID(4), adjust: { $0.options.joinsByItself = true })
        try await Self.why(4, client, "removed")
        #expect(try await Self.membership(cluster)?.member(NodeID(4)) == nil)
        // Another leader knows it too.
        let leader = try await cluster.leader()
        let next = leader == NodeID(2) ? NodeID(3) : NodeID(2)
        var transfer = Aspen_Client_V1_TransferLeadershipRequest()
        transfer.nodeID = next.rawValue
        let transferred = try await client.ask(.transferLeadership(transfer))
        try #require(transferred.failure == nil, "\(transferred)")
        try await Self.why(4, client, "does not come back by itself")
        #expect(try await Self.membership(cluster)?.member(NodeID(4)) == nil)
        // An administrator may.
        let added = try await client.addLearner(4)
        try #require(added.failure == nil, "\(added)")
        #expect(try await Self.membership(cluster)?.learners == [NodeID(4)])
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func clustersDoNotMerge() async throws {
        let cluster = try await Self.start(2)
        let (first, second) = (
            try await cluster.client(of: NodeID(1)), try await cluster.client(of: NodeID(2))
        )
        for client in [first, second] {
            let founded = try await client.ask(.initCluster(Aspen_Client_V1_InitClusterRequest()))
            try #require(founded.failure == nil, "\(founded)")
        }
        try await Self.why(2, first, "no cluster of its own")
        try await Self.why(1, second, "no cluster of its own")
        for id in cluster.ids {
            let node = try cluster.running(id)
            let membership = try await node.loop.submit { node.server.node.membership }.get()
            #expect(membership?.members.map(\.node) == [id])
        }
        try await cluster.stop()
    }

    /// Without the setting nobody comes by himself.
    @Test(.timeLimit(.minutes(1))) func itIsOffUnlessAsked() throws {
        #expect(try !RaftSettings(arguments: ["--node-id", "1"]).options.joinsByItself)
        #expect(
            try RaftSettings(arguments: ["--node-id", "1", "--auto-join", "true"]).options
                .joinsByItself)
        #expect(throws: AspenError.self) {
            try RaftSettings(arguments: ["--node-id", "1", "--auto-join", "perhaps"])
        }
    }
}

extension FakeNetwork {
    static func longEndpoint(_ number: UInt64) -> EndpointID {
        var bytes = [UInt8](repeating: 7, count: 32)
        for place in 0..<8 {
            bytes[place] = UInt8(truncatingIfNeeded: number >> (8 * UInt64(place)))
        }
        guard let endpoint = EndpointID(bytes: bytes) else { preconditionFailure("32 bytes") }
        return endpoint
    }
}
