// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import QUIC
import Testing
import TokenCore

@testable import RaftService

/// What a node knows of the cluster's trust may be old: it says so, and judges by nothing older than
/// the request.
@Suite(.serialized) struct TokenTrustTests {
    private static let behind = NodeID(3)

    private static func read(stale: Bool = false) -> WireRequest.OneOf_Request {
        var body = Aspen_Client_V1_ReadKeyRequest()
        body.key = Data("app/x".utf8)
        body.consistency = stale ? .stale : .linearizable
        return .readKey(body)
    }

    private static func isolate(_ cluster: TestCluster, _ isCut: Bool) {
        for other in cluster.ids where other != behind {
            if isCut {
                cluster.network.cut(other, behind)
            } else {
                cluster.network.mend(other, behind)
            }
        }
    }

    /// Three nodes that require tokens, and whose data outlives them.
    private static func withCluster(
        _ body: (TestCluster, (NodeID) async throws -> Void) async throws -> Void
    ) async throws {
        let scratch = try ScratchDirectory()
        let cluster = TestCluster(3)
        let start: (NodeID) async throws -> Void = { id in
            try await cluster.start(
                id, storage: PersistenceTests.persistent(scratch.path),
                adjust: { $0.options.areTokensRequired = true })
        }
        for id in cluster.ids { try await start(id) }
        try await cluster.found()
        try await body(cluster, start)
        try await cluster.stop()
    }

    private static func trustRoot(_ admin: TestClient) async throws {
        var body = Aspen_Client_V1_AddTokenRootRequest()
        body.root = Data(TokenTests.root.endpoint.bytes)
        let added = try await admin.ask(.addTokenRoot(body))
        try #require(added.failure == nil, "\(added)")
    }

    @Test(.timeLimit(.minutes(1))) func aRootThatIsNotYetKnownIsAskedForBeforeItIsDoubted()
        async throws
    {
        try await Self.withCluster { cluster, _ in
            let token = try TokenTests.token(["kv:read:app/*"]).encoded()
            let admin = try await cluster.client(of: cluster.ids[0])
            Self.isolate(cluster, true)
            try await Self.trustRoot(admin)
            for stale in [true, false] {
                let alone = try await TokenTests.ask(
                    cluster, token, Self.read(stale: stale), of: Self.behind, timeoutMs: 200)
                #expect(alone.failure?.code == .unavailable, "\(alone)")
            }
            Self.isolate(cluster, false)
            let joined = try await TokenTests.ask(cluster, token, Self.read(), of: Self.behind)
            #expect(joined.failure == nil, "\(joined)")
            let other = try TokenTests.token(["kv:read:app/*"], by: TokenTests.key(9)).encoded()
            let unknown = try await TokenTests.ask(cluster, other, Self.read(), of: Self.behind)
            #expect(unknown.failure?.code == .unauthenticated, "\(unknown)")
        }
    }

    @Test(.timeLimit(.minutes(1))) func aNodeThatWasAwayBelievesNoTokenBeforeItHasCaughtUp()
        async throws
    {
        try await Self.withCluster { cluster, start in
            let token = try TokenTests.token(["kv:read:app/*"], id: 5).encoded()
            let admin = try await cluster.client(of: cluster.ids[0])
            try await Self.trustRoot(admin)
            let before = try await TokenTests.ask(cluster, token, Self.read(), of: Self.behind)
            #expect(before.failure == nil, "\(before)")
            try await cluster.kill(Self.behind)
            var revoke = Aspen_Client_V1_RevokeTokenRequest()
            revoke.id = Data(TokenID(5).bytes)
            #expect(try await admin.ask(.revokeToken(revoke)).failure == nil)
            Self.isolate(cluster, true)
            try await start(Self.behind)
            let alone = try await TokenTests.ask(
                cluster, token, Self.read(stale: true), of: Self.behind, timeoutMs: 200)
            #expect(alone.failure?.code == .unavailable, "\(alone)")
            Self.isolate(cluster, false)
            let joined = try await TokenTests.ask(
                cluster, token, Self.read(stale: true), of: Self.behind)
            #expect(joined.failure?.code == .unauthenticated, "\(joined)")
            #expect(joined.failure?.message.contains("revoked") == true, "\(joined)")
        }
    }
}
