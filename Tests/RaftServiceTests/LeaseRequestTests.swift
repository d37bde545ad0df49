// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import NIOCore
import RaftCore
import Testing

@testable import RaftService

@Suite(.serialized) struct LeaseRequestTests {
    /// Leases need a version of the state machine that the leader takes into force by itself.
    private func grant(
        _ client: TestClient, ttlMs: UInt64, lease: UInt64 = 0
    ) async throws -> WireResponse {
        var body = Aspen_Client_V1_GrantLeaseRequest()
        body.ttlMs = ttlMs
        body.lease = lease
        while true {
            let answer = try await client.ask(.grantLease(body))
            guard answer.failure?.code == .unsupportedVersion else { return answer }
            await Task.yield()
        }
    }

    private func put(_ client: TestClient, _ key: String, lease: UInt64) async throws
        -> WireResponse
    {
        var body = Aspen_Client_V1_WriteKeyRequest()
        body.key = Data(key.utf8)
        body.value = Data([1])
        body.lease = lease
        return try await client.ask(.writeKey(body))
    }

    private func timeToLive(_ client: TestClient, _ lease: UInt64) async throws -> WireResponse {
        var body = Aspen_Client_V1_LeaseTimeToLiveRequest()
        body.lease = lease
        body.withKeys = true
        return try await client.ask(.leaseTimeToLive(body))
    }

    @Test(.timeLimit(.minutes(1))) func aLeaseTakesItsKeysAlong() async throws {
        try await RequestTests.withNode(3) { _, client in
            let granted = try await grant(client, ttlMs: 60_000)
            #expect(granted.failure == nil)
            let lease = granted.grantLease.lease
            #expect(lease > 0 && granted.grantLease.ttlMs == 60_000)
            for key in ["b", "a"] {
                #expect(try await put(client, key, lease: lease).failure == nil)
            }
            #expect(try await put(client, "c", lease: lease + 12345).failure?.code == .notFound)
            #expect(try await client.get("a").readKey.entry.lease == lease)
            let info = try await timeToLive(client, lease).leaseTimeToLive
            #expect(info.lease.attachedKeys == 2 && info.lease.grantedTtlMs == 60_000)
            #expect(info.lease.remainingTtlMs > 30_000 && info.lease.remainingTtlMs <= 60_000)
            #expect(info.keys == [Data("a".utf8), Data("b".utf8)])
            var keep = Aspen_Client_V1_KeepLeaseAliveRequest()
            keep.lease = lease
            #expect(try await client.ask(.keepLeaseAlive(keep)).keepLeaseAlive.ttlMs == 60_000)
            var revoke = Aspen_Client_V1_RevokeLeaseRequest()
            revoke.lease = lease
            let revoked = try await client.ask(.revokeLease(revoke)).revokeLease
            #expect(revoked.deleted == 2 && revoked.revision > 0)
            #expect(try await client.get("a").readKey.hasEntry == false)
            #expect(try await client.ask(.keepLeaseAlive(keep)).failure?.code == .notFound)
            #expect(try await timeToLive(client, lease).failure?.code == .notFound)
        }
    }

    @Test(.timeLimit(.minutes(1))) func aLeaseEndsAndWatchersHearIt() async throws {
        try await RequestTests.withNode(3) { _, client in
            let lease = try await grant(client, ttlMs: 1000, lease: 77).grantLease.lease
            #expect(lease == 77)
            let (log, _) = try await WatchTests.start(client, WatchTests.request())
            let began = RaftNode.now
            for key in ["a", "b"] { _ = try await put(client, key, lease: lease) }
            await log.wait { $0.flatMap(\.watch.events).count >= 4 }
            let took = RaftNode.now - began
            #expect(took >= .milliseconds(900) && took < .milliseconds(2500), "\(took)")
            let ends = log.events.suffix(2)
            #expect(ends.allSatisfy { $0.kind == .delete })
            #expect(Set(ends.map(\.entry.modRevision)).count == 1)
        }
    }

    /// Many that are due together are ended by entries that follow one another closely, and by few
    /// more than are needed.
    @Test(.timeLimit(.minutes(1))) func manyLeasesEndTogether() async throws {
        try await RequestTests.withNode { cluster, client in
            _ = try await grant(client, ttlMs: 60_000, lease: 1)
            let node = try cluster.running(NodeID(1))
            /// Nothing is ended while the leader seems to be looking already.
            func look(_ isOn: Bool) async throws {
                try await node.loop.submit {
                    let service = node.server.node.client as? ClientService
                    service?.housekeeping.isLookingForLeases = !isOn
                    service?.keepHouse()
                }.get()
            }
            try await look(false)
            // More than one connection may have waiting at once is refused.
            let granted = (0..<ClientConnection.requestsMax).map { number in
                var body = Aspen_Client_V1_GrantLeaseRequest()
                body.ttlMs = 1000
                body.lease = UInt64(number + 2)
                return client.send(.grantLease(body))
            }
            for answer in granted { #expect(try await answer.get().failure == nil) }
            let last = UInt64(granted.count + 1)
            while try await timeToLive(client, last).leaseTimeToLive.lease.remainingTtlMs > 0 {}

            let index = { try await node.loop.submit { node.server.node.core.lastIndex }.get() }
            let before = try await index().rawValue
            try await look(true)
            func left() async throws -> Int {
                try await client.ask(.listLeases(.init())).listLeases.leases.count
            }
            while try await left() > 1 {}
            let needed = granted.count / KVLimits.leasesExpiredPerEntry + 1
            let entries = Int(try await index().rawValue - before)
            #expect(entries >= needed)
            #expect(entries <= needed + Housekeeping.expiriesInFlightMax, "\(entries)")
        }
    }

    @Test func roundsThatAreSlowNarrowTheWindow() {
        var housekeeping = Housekeeping()
        var now = RaftNode.now
        func round(_ time: Duration) {
            housekeeping.expiriesProposedAt = now
            now = now + time
            housekeeping.adaptExpiryWindow(now)
        }
        #expect(housekeeping.expiryWindow == 1)
        for _ in 0..<9 { round(.milliseconds(5)) }
        #expect(housekeeping.expiryWindow == Housekeeping.expiriesInFlightMax)
        round(.milliseconds(150))
        #expect(housekeeping.expiryWindow == Housekeeping.expiriesInFlightMax)
        for _ in 0..<9 { round(.milliseconds(300)) }
        #expect(housekeeping.expiryWindow == 1)
    }

    @Test(.timeLimit(.minutes(1))) func leasesAreListedInPages() async throws {
        try await RequestTests.withNode { _, client in
            for lease in [5, 3, 9] as [UInt64] {
                #expect(try await grant(client, ttlMs: 60_000, lease: lease).failure == nil)
            }
            #expect(
                try await grant(client, ttlMs: 60_000, lease: 3).failure?.code
                    == .preconditionFailed)
            for ttl in [0, 999, 86_400_001] as [UInt64] {
                #expect(try await grant(client, ttlMs: ttl).failure?.code == .invalidArgument)
            }
            var body = Aspen_Client_V1_ListLeasesRequest()
            body.limit = 2
            let page = try await client.ask(.listLeases(body)).listLeases
            #expect(page.leases.map(\.lease) == [3, 5] && page.more)
            body.after = 5
            let rest = try await client.ask(.listLeases(body)).listLeases
            #expect(rest.leases.map(\.lease) == [9] && !rest.more)
        }
    }
}
