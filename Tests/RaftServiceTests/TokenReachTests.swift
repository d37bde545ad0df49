// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import Glibc
import NIOCore
import QUIC
import Testing
import TokenCore

@testable import RaftService

/// How far a token reaches: over whole ranges, over each of several keys, and not beyond its end.
@Suite(.serialized) struct TokenReachTests {
    private static func scan(
        _ from: String, _ to: String, countOnly: Bool = false
    ) -> WireRequest.OneOf_Request {
        var body = Aspen_Client_V1_ScanKeysRequest()
        body.from = Data(from.utf8)
        body.to = Data(to.utf8)
        body.countOnly = countOnly
        body.descending = !countOnly
        return .scanKeys(body)
    }

    private static func deleting(_ from: String, _ to: String) -> WireRequest.OneOf_Request {
        var operation = Aspen_Client_V1_Operation()
        operation.deleteRange.from = Data(from.utf8)
        operation.deleteRange.to = Data(to.utf8)
        var body = Aspen_Client_V1_TransactionRequest()
        body.failure = [operation]
        return .transaction(body)
    }

    private static func watching(_ from: String, _ to: String) -> WireRequest.OneOf_Request {
        var body = Aspen_Client_V1_WatchRequest()
        body.from = Data(from.utf8)
        body.to = Data(to.utf8)
        return .watch(body)
    }

    private static func reading(_ keys: String...) -> WireRequest.OneOf_Request {
        var body = Aspen_Client_V1_BatchReadRequest()
        body.keys = keys.map { Data($0.utf8) }
        return .batchRead(body)
    }

    private static func history(_ key: String) -> WireRequest.OneOf_Request {
        var body = Aspen_Client_V1_KeyHistoryRequest()
        body.key = Data(key.utf8)
        return .keyHistory(body)
    }

    private static func leasing(_ key: String, _ lease: UInt64) -> WireRequest.OneOf_Request {
        var body = Aspen_Client_V1_WriteKeyRequest()
        body.key = Data(key.utf8)
        body.lease = lease
        return .writeKey(body)
    }

    @Test(.timeLimit(.minutes(1))) func allOfARangeAndEachOfSeveralKeysMustBeAllowed() async throws
    {
        try await TokenTests.withCluster { cluster, _ in
            let token = try TokenTests.token(["kv:read:app/*", "kv:write:app/*"]).encoded()
            var grant = Aspen_Client_V1_GrantLeaseRequest()
            grant.ttlMs = 60_000
            let granted = try await TokenTests.ask(cluster, token, .grantLease(grant))
            let lease = granted.grantLease.lease
            #expect(lease != 0, "\(granted)")
            for request in [
                Self.scan("app/", "app0"), Self.scan("app/b", "app/c", countOnly: true),
                Self.watching("app/", "app0"), Self.watching("app/x", "app/x\0"),
                Self.reading("app/1", "app/2"), Self.history("app/1"),
                Self.deleting("app/", "app0"), Self.leasing("app/1", lease),
            ] {
                let answer = try await TokenTests.ask(cluster, token, request)
                #expect(answer.failure == nil, "\(request): \(answer)")
            }
            for (request, needed) in [
                (Self.scan("app/", ""), "kv:read:"), (Self.scan("app/", "app1"), "kv:read:"),
                (Self.scan("app", "app0", countOnly: true), "kv:read:"),
                (Self.watching("app/", "app1"), "kv:read:"), (Self.watching("", ""), "kv:read:*"),
                (Self.reading("app/1", "other", "app/2"), "kv:read:other"),
                (Self.history("other"), "kv:read:other"),
                (Self.deleting("app/", "app1"), "kv:write:"),
                (Self.deleting("", ""), "kv:write:*"),
                (Self.leasing("other", lease), "kv:write:other"),
            ] {
                let answer = try await TokenTests.ask(cluster, token, request)
                #expect(answer.failure?.code == .permissionDenied, "\(request): \(answer)")
                #expect(answer.failure?.message.contains(needed) == true, "\(answer)")
            }
        }
    }

    /// How long after its token's end a stream may go on: a sweep, and what a busy machine takes.
    private static let endsWithin = 5

    @Test(.timeLimit(.minutes(1)), arguments: ["revoked", "expired"])
    func aWatchEndsWithItsTokenAndIsToldWhy(_ ending: String) async throws {
        try await TokenTests.withCluster { cluster, admin in
            let isShort = ending == "expired"
            let token = try TokenTests.token(["kv:read:app/*"], until: isShort ? 5 : 600, id: 6)
            let client = try await cluster.remoteClient(
                of: cluster.ids[0], endpoint: TokenTests.client.endpoint, token: token.encoded())
            var logs: [WatchLog] = []
            for _ in 0..<2 {
                logs.append(try await WatchTests.start(client, Self.watching("app/", "app0")).log)
            }
            let put = try await admin.put("app/\(ending)", [1]).get().writeKey.revision
            for log in logs { await log.wait(for: put) }
            if !isShort {
                var revoke = Aspen_Client_V1_RevokeTokenRequest()
                revoke.id = Data(TokenID(6).bytes)
                #expect(try await admin.ask(.revokeToken(revoke)).failure == nil)
            }
            let end = isShort ? Int(token.links[0].expires) : time(nil)
            try await client.closed.get()
            #expect(time(nil) - end <= Self.endsWithin)
            for log in logs {
                #expect(log.failure?.code == .unauthenticated, "\(ending): \(log.responses)")
                #expect(log.failure?.message.contains(ending) == true, "\(log.responses)")
            }
            #expect(try await admin.put("app/after", [1]).get().failure == nil)
            #expect(logs.allSatisfy { $0.events.count == 1 }, "\(ending)")
            let node = try cluster.running(cluster.ids[0])
            let watches = try await node.loop.submit { node.server.service.watches.count }.get()
            #expect(watches == 0, "\(ending)")
        }
    }

    /// Whoever has revoked a token at one node finds it refused at all others a moment later, where its
    /// bearers are connected too.
    @Test(.timeLimit(.minutes(1))) func whatIsRevokedAtOneNodeIsRefusedAtAll() async throws {
        let cluster = TestCluster(3)
        for id in cluster.ids {
            try await cluster.start(id, adjust: { $0.options.areTokensRequired = true })
        }
        try await cluster.found()
        let admin = try await cluster.client(of: cluster.ids[0])
        var add = Aspen_Client_V1_AddTokenRootRequest()
        add.root = Data(TokenTests.root.endpoint.bytes)
        #expect(try await admin.ask(.addTokenRoot(add)).addTokenRoot.added)
        let token = try TokenTests.token(["kv:read:app/*"], id: 9).encoded()
        let reading = Self.reading("app/1")
        var open: [(client: TestClient, log: WatchLog)] = []
        for id in cluster.ids {
            let client = try await cluster.remoteClient(
                of: id, endpoint: TokenTests.client.endpoint, token: token)
            #expect(try await client.ask(reading).failure == nil)
            open.append(
                (client, try await WatchTests.start(client, Self.watching("app/", "app0")).log))
        }
        var revoke = Aspen_Client_V1_RevokeTokenRequest()
        revoke.id = Data(TokenID(9).bytes)
        #expect(try await admin.ask(.revokeToken(revoke)).failure == nil)
        let revoked = time(nil)
        for (client, log) in open {
            try await client.closed.get()
            #expect(log.failure?.code == .unauthenticated, "\(log.responses)")
        }
        for id in cluster.ids {
            let answer = try await TokenTests.ask(cluster, token, reading, of: id)
            #expect(answer.failure?.code == .unauthenticated, "\(answer)")
        }
        #expect(time(nil) - revoked <= Self.endsWithin)
        try await cluster.stop()
    }
}
