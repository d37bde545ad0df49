// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import NIOCore
import ProposalCore
import RaftCore
import RaftStorage
import Testing

@testable import RaftService

/// What a leader does by itself, seen from outside.
@Suite struct HousekeepingTests {
    private func activeVersion(_ cluster: TestCluster, _ id: NodeID) async throws -> UInt8 {
        let node = try cluster.running(id)
        return try await node.loop.submit { node.server.node.applied.facts.activeVersion }.get()
    }

    private func lastIndex(_ cluster: TestCluster, _ id: NodeID) async throws -> LogIndex {
        let node = try cluster.running(id)
        return try await node.loop.submit { node.server.node.core.lastIndex }.get()
    }

    private func propose(
        _ command: Command, _ cluster: TestCluster, _ id: NodeID
    ) async throws {
        let node = try cluster.running(id)
        let payload = CommandCodec.encode(command)
        try await node.loop.submit { [server = node.server] in
            server.node.propose(payload, number: server.service.proposals.takeNumber())
        }.get()
    }

    private func put(
        _ client: TestClient, _ key: String, under lease: UInt64
    ) async throws -> WireResponse {
        var body = Aspen_Client_V1_WriteKeyRequest()
        body.key = Data(key.utf8)
        body.lease = lease
        return try await client.ask(.writeKey(body))
    }

    /// - Parameter written: revisions a second.
    /// - Returns: changes removed a second while 100,000 revisions too many are there.
    private func removed(written: UInt64, took: Duration, changesPerRevision: UInt64 = 1) -> Double
    {
        var pace = CompactionPace()
        var now = MonotonicInstant(nanoseconds: 1_000_000_000)
        let began = now
        var compacted: UInt64 = 0
        func look() -> CompactionPace.Look {
            let revision = 1_000_000 + written * (now - began).nanoseconds.magnitude / 1_000_000_000
            return CompactionPace.Look(
                at: now, revision: Revision(revision),
                changeCount: (revision - compacted) * changesPerRevision)
        }
        while compacted < 100_000, now - began < .seconds(100) {
            let before = Revision(compacted)
            let step = pace.propose(
                from: before, towards: Revision(900_000), changesPerRevision: changesPerRevision,
                look())
            now = now + took
            compacted = step.rawValue
            pace.finished(look())
            now = max(now, pace.next)
        }
        return Double(compacted * changesPerRevision) / Double((now - began).nanoseconds) * 1e9
    }

    /// What is removed costs writes something, and must overtake them nevertheless.
    @Test func historyGoesFasterThanItComes() {
        #expect(removed(written: 0, took: .milliseconds(5)) > 10_000, "nobody is disturbed")
        for written in [100, 500] as [UInt64] {
            #expect((800...1200).contains(removed(written: written, took: .milliseconds(5))))
        }
        #expect((1300...1700).contains(removed(written: 1000, took: .milliseconds(5))))
        #expect((6500...8500).contains(removed(written: 5000, took: .milliseconds(10))))
        #expect(removed(written: 10_000, took: .milliseconds(20)) > 12_000)
        #expect(
            removed(written: 13_000, took: .milliseconds(250)) > 14_000, "it waits behind writes")
        let many = removed(written: 10, took: .milliseconds(5), changesPerRevision: 100)
        #expect((800...1200).contains(many), "\(many)")
    }

    /// The members are asked, and once all know leases there are leases. A key goes with its lease,
    /// not before its time, on every node, although the leader of then is gone.
    @Test(.timeLimit(.minutes(1))) func leasesEndAcrossALeaderChange() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        for id in cluster.ids {
            while try await activeVersion(cluster, id) < KVVersion.leases {}
        }
        let leader = try await cluster.leader()
        let others = cluster.ids.filter { $0 != leader }
        let client = try await cluster.client(of: others[0])
        let clock = ContinuousClock()
        let granted = clock.now
        try await propose(
            .grantLease(id: LeaseID(77), ttlMilliseconds: 1500, nil), cluster, leader)
        while try await put(client, "leased", under: 77).failure?.code == .notFound {}
        let revision = try await put(client, "leased too", under: 77).writeKey.revision
        #expect(try await put(client, "other", under: 78).failure?.code == .notFound)
        try await cluster.kill(leader)
        while try await client.get("leased").readKey.hasEntry {}
        #expect(clock.now - granted >= .milliseconds(1500))
        #expect(clock.now - granted < .seconds(8), "a loaded machine, but not never")
        for id in others {
            let reader = try await cluster.client(of: id)
            for key in ["leased", "leased too"] {
                let answer = try await reader.get(key).readKey
                #expect(!answer.hasEntry && answer.revision == revision + 1, "in one revision")
                #expect(try await reader.get(key, revision: revision).readKey.hasEntry)
            }
        }
        // Now nothing is due, and nothing is written.
        let index = try await lastIndex(cluster, others[0])
        let quiet = clock.now
        while clock.now - quiet < .milliseconds(700) { _ = try await client.get("leased") }
        #expect(try await lastIndex(cluster, others[0]) == index)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func historyGoesByItself() async throws {
        let cluster = TestCluster(1)
        try await cluster.start(
            NodeID(1),
            adjust: { settings in
                settings.options.compaction.revisionsKept = 200
                settings.options.compaction.revisionsKeptMin = 10
            })
        try await cluster.found()
        let client = try await cluster.client(of: NodeID(1))
        let writes = (0..<1000).map { client.put("k\($0 % 7)", [UInt8($0 % 250)]) }
        for write in writes { #expect(try await write.get().failure == nil) }
        while try await client.get("k1", revision: 500).failure?.code != .compacted {}
        #expect(try await client.get("k1", revision: 850).failure == nil)
        // Swept to the end, and then left alone.
        let node = try cluster.running(NodeID(1))
        func isDone() async throws -> Bool {
            try await node.loop.submit { node.server.node.applied.facts.compaction == nil }.get()
        }
        while try await !isDone() { _ = try await client.get("k1") }
        #expect(try await client.get("k1").readKey.hasEntry)
        try await cluster.stop()
    }
}
