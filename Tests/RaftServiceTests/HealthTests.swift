// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Dispatch
import NIOCore
import Testing

@testable import RaftService

/// What a cluster says of its health.
@Suite struct HealthTests {
    /// A process that is stopped, or a machine without power, leaves its streams open for a while.
    @Test(.timeLimit(.minutes(1))) func aVoterThatStandsStillIsNotUp() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let rest = cluster.ids.filter { $0 != leader }
        let stopped = try cluster.running(rest[0])
        let atLeader = try await Self.client(of: leader, in: cluster, notOn: stopped.loop)
        let atOther = try await Self.client(of: rest[1], in: cluster, notOn: stopped.loop)
        while try await Self.health(atOther).status != "healthy" {}
        let gate = DispatchSemaphore(value: 0)
        defer { gate.signal() }
        stopped.loop.execute { gate.wait() }
        while try await Self.health(atLeader).status == "healthy" {}
        for client in [atLeader, atOther] {
            let health = try await Self.health(client)
            #expect(health.status == "degraded")
            #expect(
                health.detail == "2 of 3 voters are up, 2 are needed: "
                    + "node \(stopped.id) does not answer")
        }
        gate.signal()
        while try await Self.health(atOther).status != "healthy" {}
        try await cluster.stop()
    }

    /// A leader that stands still is missed before there is another one.
    @Test(.timeLimit(.minutes(1))) func aLeaderThatStandsStillIsMissed() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let stopped = try cluster.running(leader)
        let rest = cluster.ids.filter { $0 != leader }
        let other = rest[0]
        let third = try cluster.running(rest[1])
        let client = try await Self.client(of: other, in: cluster, notOn: stopped.loop, third.loop)
        while try await Self.health(client).status != "healthy" {}
        let gate = DispatchSemaphore(value: 0)
        let gateOfThird = DispatchSemaphore(value: 0)
        defer {
            gate.signal()
            gateOfThird.signal()
        }
        // However late the question comes, nobody can have been elected before.
        await Self.standStill(third.loop, until: gateOfThird)
        await Self.standStill(stopped.loop, until: gate)
        #expect(try await Self.health(client).status == "unavailable")
        gateOfThird.signal()
        while try await Self.health(client).status != "degraded" {}
        #expect(
            try await Self.health(client).detail.hasSuffix("node \(leader) does not answer"))
        gate.signal()
        while try await Self.health(client).status != "healthy" {}
        try await cluster.stop()
    }

    @Test func whoLagsIsNamedAndIsNoHelpInAFailure() {
        let lag = ["node 3 lags 40000 entries behind"]
        let three = ClientService.judge(up: 3, lagging: 1, of: 3, lag)
        #expect(three.status == "degraded")
        #expect(
            three.detail == "3 of 3 voters are up, 2 are needed: node 3 lags 40000 entries behind")
        #expect(ClientService.judge(up: 5, lagging: 1, of: 5, lag).status == "healthy")
        #expect(ClientService.judge(up: 4, lagging: 1, of: 5, lag).status == "degraded")
        #expect(ClientService.judge(up: 2, lagging: 0, of: 5, []).status == "unavailable")
        let whole = ClientService.judge(up: 3, lagging: 0, of: 3, [])
        #expect(whole.status == "healthy" && whole.detail == "all 3 voters are up")
    }

    /// Returns when the loop does nothing any more.
    private static func standStill(
        _ loop: any EventLoop, until gate: DispatchSemaphore
    ) async {
        await withCheckedContinuation { continuation in
            loop.execute {
                continuation.resume()
                gate.wait()
            }
        }
    }

    private static func health(
        _ client: TestClient
    ) async throws -> Aspen_Client_V1_GetHealthResponse {
        try await client.ask(.getHealth(.init())).getHealth
    }

    private static func client(
        of node: NodeID, in cluster: TestCluster, notOn loops: any EventLoop...
    ) async throws -> TestClient {
        while true {
            let client = try await cluster.client(of: node)
            if !loops.contains(where: { $0 === client.channel.eventLoop }) { return client }
            try await client.channel.close().get()
        }
    }
}
