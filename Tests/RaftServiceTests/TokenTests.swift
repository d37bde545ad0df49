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

/// Every request from another machine, with every kind of token.
@Suite(.serialized) struct TokenTests {
    static let root = key(1)
    static let client = key(2)

    static func key(_ number: UInt8) -> NodeKey {
        guard let key = NodeKey(seed: [UInt8](repeating: number, count: 32)) else {
            preconditionFailure("32 bytes make a key")
        }
        return key
    }

    static func token(
        _ capabilities: [String], for audience: EndpointID = client.endpoint,
        by signer: NodeKey = root, from: Int = -5, until: Int = 600, id: UInt128 = 1
    ) throws -> TokenChain {
        let now = time(nil)
        let link = try #require(
            TokenLink(
                id: TokenID(id), audience: audience, notBefore: UInt64(now + from),
                expires: UInt64(now + until),
                capabilities: try capabilities.map { try Capability(parsing: $0) }))
        return try TokenChain(root: signer.endpoint, link, sign: signer.sign)
    }

    static let everything = ["kv:read:*", "kv:write:*", "cluster:admin"]

    /// A link that gives more than the one before: the public format, written by hand.
    static func widened() throws -> [UInt8] {
        let holder = key(5)
        let parent = try token(["kv:read:app/*"], for: holder.endpoint)
        let child = try token(Self.everything, by: holder, id: 2).encoded()
        // Header: magic, version, root. Link: length, body, signature.
        let body = child.dropFirst(4 + 1 + 32).dropLast(64)
        let text = Array("aspen capability token v1\0".utf8) + parent.encoded() + body
        return parent.encoded() + body + holder.sign(text)
    }

    static func withCluster(
        _ body: (TestCluster, TestClient) async throws -> Void
    ) async throws {
        let cluster = TestCluster(1)
        try await cluster.start(cluster.ids[0], adjust: { $0.options.areTokensRequired = true })
        try await cluster.found()
        let admin = try await cluster.client(of: cluster.ids[0])
        var body1 = Aspen_Client_V1_AddTokenRootRequest()
        body1.root = Data(root.endpoint.bytes)
        let added = try await admin.ask(.addTokenRoot(body1))
        try #require(added.failure == nil && added.addTokenRoot.added, "\(added)")
        try await body(cluster, admin)
        try await cluster.stop()
    }

    /// Asks on a connection of its own: a token that does not hold ends it.
    static func ask(
        _ cluster: TestCluster, _ token: [UInt8], _ request: WireRequest.OneOf_Request,
        of node: NodeID? = nil, as endpoint: EndpointID = client.endpoint, timeoutMs: UInt32 = 5000
    ) async throws -> WireResponse {
        let client = try await cluster.remoteClient(
            of: node ?? cluster.ids[0], endpoint: endpoint, token: token)
        let answer = try await client.ask(request, timeoutMs: timeoutMs)
        try? await client.channel.close().get()
        return answer
    }

    /// One of each, about keys below "app/", with the capabilities that are enough for it.
    static let requests: [(request: WireRequest.OneOf_Request, enough: [String])] = {
        let key = Data("app/x".utf8)
        var write = Aspen_Client_V1_WriteKeyRequest()
        write.key = key
        var read = Aspen_Client_V1_ReadKeyRequest()
        read.key = key
        var delete = Aspen_Client_V1_DeleteKeyRequest()
        delete.key = key
        var scan = Aspen_Client_V1_ScanKeysRequest()
        scan.prefix = Data("app/".utf8)
        var transaction = Aspen_Client_V1_TransactionRequest()
        var put = Aspen_Client_V1_Operation()
        put.put.key = key
        transaction.success = [put]
        var watch = Aspen_Client_V1_WatchRequest()
        watch.from = Data("app/".utf8)
        watch.to = Data("app0".utf8)
        var batch = Aspen_Client_V1_BatchReadRequest()
        batch.keys = [key]
        var history = Aspen_Client_V1_KeyHistoryRequest()
        history.key = key
        let reading = ["kv:read:app/*"]
        let writing = ["kv:write:app/*"]
        let looking = ["cluster:read"]
        let ruling = ["cluster:admin"]
        return [
            (.getHealth(.init()), looking), (.getClusterStatus(.init()), looking),
            (.getLeader(.init()), looking), (.getNodeInfo(.init()), looking),
            (.getClusterTicket(.init()), looking), (.initCluster(.init()), ruling),
            (.addLearner(.init()), ruling), (.changeMembership(.init()), ruling),
            (.writeKey(write), writing), (.readKey(read), reading), (.deleteKey(delete), writing),
            (.scanKeys(scan), reading), (.openSession(.init()), writing),
            (.keepSessionAlive(.init()), writing), (.closeSession(.init()), writing),
            (.transaction(transaction), writing), (.triggerSnapshot(.init()), ruling),
            (.grantLease(.init()), writing), (.revokeLease(.init()), ["kv:write:*"]),
            (.keepLeaseAlive(.init()), ["kv:write:*"]),
            (.leaseTimeToLive(.init()), ["kv:read:*"]), (.listLeases(.init()), ["kv:read:*"]),
            (.watch(watch), reading), (.cancelWatch(.init()), reading),
            (.batchRead(batch), reading), (.keyHistory(history), reading),
            (.promoteLearner(.init()), ruling), (.transferLeadership(.init()), ruling),
            (.leaveCluster(.init()), ruling), (.backup(.init()), ruling),
            (.restoreChunk(.init()), ruling), (.recoverQuorum(.init()), ruling),
            (.why(.init()), looking), (.getMetrics(.init()), looking),
            (.getRaftMetrics(.init()), looking), (.addTokenRoot(.init()), ruling),
            (.removeTokenRoot(.init()), ruling), (.listTokenRoots(.init()), looking),
            (.revokeToken(.init()), ruling), (.listRevokedTokens(.init()), looking),
        ]
    }()

    @Test(.timeLimit(.minutes(2))) func everyRequestWithEveryKindOfToken() async throws {
        try await Self.withCluster { cluster, admin in
            var revoke = Aspen_Client_V1_RevokeTokenRequest()
            revoke.id = Data(TokenID(99).bytes)
            let revoked = try await admin.ask(.revokeToken(revoke))
            try #require(revoked.failure == nil)
            let all = Self.everything
            let bad: [(name: String, token: [UInt8])] = [
                ("no token", []), ("no chain", [1, 2, 3]),
                ("wrong root", try Self.token(all, by: Self.key(7)).encoded()),
                ("expired", try Self.token(all, from: -9, until: -1).encoded()),
                ("not yet valid", try Self.token(all, from: 90).encoded()),
                ("wrong audience", try Self.token(all, for: Self.key(8).endpoint).encoded()),
                ("widened", try Self.widened()),
                ("revoked", try Self.token(all, id: 99).encoded()),
            ]
            let narrow = try Self.token(["kv:read:other", "kv:write:other"]).encoded()
            let anyKey: Set<String> = [
                "OpenSession", "KeepSessionAlive", "CloseSession", "GrantLease", "CancelWatch",
            ]
            for (request, enough) in Self.requests {
                let name = ClientService.requestTable[request.row].name
                for (kind, token) in bad {
                    let answer = try await Self.ask(cluster, token, request)
                    #expect(answer.failure?.code == .unauthenticated, "\(name), \(kind): \(answer)")
                }
                let other = try await Self.ask(cluster, narrow, request)
                #expect(
                    (other.failure?.code == .permissionDenied) == !anyKey.contains(name),
                    "\(name) with keys of no concern: \(other)")
                // What it does then is another matter (and ending this cluster is not wanted).
                guard !TokenMatrixTests.changesTheCluster.contains(name) else { continue }
                let right = try await Self.ask(
                    cluster, try Self.token(enough).encoded(), request)
                let code = right.failure?.code
                #expect(
                    code != .permissionDenied && code != .unauthenticated, "\(name): \(right)")
            }
        }
    }

    @Test(.timeLimit(.minutes(1))) func oneForbiddenKeyOfAHundredRefusesAll() async throws {
        try await Self.withCluster { cluster, admin in
            let token = try Self.token(["kv:write:app/*", "kv:read:app/*"]).encoded()
            var transaction = Aspen_Client_V1_TransactionRequest()
            for number in 0..<100 {
                var operation = Aspen_Client_V1_Operation()
                operation.put.key = Data((number == 73 ? "secret/x" : "app/\(number)").utf8)
                transaction.success.append(operation)
            }
            let refused = try await Self.ask(cluster, token, .transaction(transaction))
            #expect(refused.failure?.code == .permissionDenied)
            #expect(refused.failure?.message.contains("kv:write:secret/x") == true)
            #expect(try await admin.get("app/0").readKey.hasEntry == false)
            transaction.success.remove(at: 73)
            #expect(try await Self.ask(cluster, token, .transaction(transaction)).failure == nil)
            #expect(try await admin.get("app/0").readKey.hasEntry)
            // A compare is a read; a deletion by range has to be covered whole.
            var compare = Aspen_Client_V1_Compare()
            compare.key = Data("secret/x".utf8)
            compare.exists = true
            transaction.compares = [compare]
            let spying = try await Self.ask(cluster, token, .transaction(transaction))
            #expect(spying.failure?.message.contains("kv:read:secret/x") == true)
            transaction.compares = []
            var range = Aspen_Client_V1_Operation()
            range.deleteRange.from = Data("app/".utf8)
            range.deleteRange.to = Data("app1".utf8)
            transaction.success = [range]
            let wide = try await Self.ask(cluster, token, .transaction(transaction))
            #expect(wide.failure?.code == .permissionDenied)
            var scan = Aspen_Client_V1_ScanKeysRequest()
            scan.prefix = Data("app".utf8)
            let scanned = try await Self.ask(cluster, token, .scanKeys(scan))
            #expect(scanned.failure?.message.contains("kv:read:app*") == true)
        }
    }

    @Test(.timeLimit(.minutes(1))) func whatIsTheClustersOwnIsNobodys() async throws {
        try await Self.withCluster { cluster, admin in
            let own = TokenTrust.key(ofRoot: Self.root.endpoint)
            let text = String(decoding: own, as: UTF8.self)
            #expect(try await admin.get(text).failure?.code == .permissionDenied)
            #expect(try await admin.put(text, [1]).get().failure?.code == .permissionDenied)
            #expect(try await admin.put("a", [1]).get().failure == nil)
            let all = try await admin.ask(.scanKeys(.init())).scanKeys
            #expect(all.entries.map { String(decoding: $0.key, as: UTF8.self) } == ["a"])
            var scan = Aspen_Client_V1_ScanKeysRequest()
            scan.prefix = Data("_sys/tokens".utf8)
            #expect(try await admin.ask(.scanKeys(scan)).failure?.code == .permissionDenied)
            let token = try Self.token(Self.everything).encoded()
            let remote = try await Self.ask(cluster, token, .scanKeys(scan))
            #expect(remote.failure?.code == .permissionDenied)
        }
    }

    @Test(.timeLimit(.minutes(1))) func trustThatIsWithdrawnEndsConnections() async throws {
        try await Self.withCluster { cluster, admin in
            let token = try Self.token(["kv:read:app/*"], id: 4).encoded()
            let open = try await cluster.remoteClient(
                of: cluster.ids[0], endpoint: Self.client.endpoint, token: token)
            #expect(try await open.get("app/x").failure == nil)
            var revoke = Aspen_Client_V1_RevokeTokenRequest()
            revoke.id = Data(TokenID(4).bytes)
            #expect(try await admin.ask(.revokeToken(revoke)).failure == nil)
            try await open.closed.get()
            let listed = try await admin.ask(.listRevokedTokens(.init())).listRevokedTokens
            #expect(listed.tokens.map(\.id) == [Data(TokenID(4).bytes)])

            let second = try Self.token(["kv:read:app/*"], id: 5).encoded()
            let another = try await cluster.remoteClient(
                of: cluster.ids[0], endpoint: Self.client.endpoint, token: second)
            #expect(try await another.get("app/x").failure == nil)
            var remove = Aspen_Client_V1_RemoveTokenRootRequest()
            remove.root = Data(Self.root.endpoint.bytes)
            #expect(try await admin.ask(.removeTokenRoot(remove)).removeTokenRoot.removed)
            try await another.closed.get()
            #expect(try await admin.ask(.listTokenRoots(.init())).listTokenRoots.roots.isEmpty)
        }
    }

    /// Session numbers are guessable log indexes: those of others are of no use to a token's bearer.
    @Test(.timeLimit(.minutes(1))) func aSessionIsItsOwnersOnly() async throws {
        try await Self.withCluster { cluster, admin in
            let token = try Self.token(["kv:read:app/*", "kv:write:app/*"]).encoded()
            let local = try await admin.ask(.openSession(.init())).openSession.session
            var keep = Aspen_Client_V1_KeepSessionAliveRequest()
            keep.session = local
            #expect(try await admin.ask(.keepSessionAlive(keep)).failure == nil)
            let stolen = try await Self.ask(cluster, token, .keepSessionAlive(keep))
            #expect(stolen.failure?.code == .sessionExpired)
            let own = try await Self.ask(cluster, token, .openSession(.init())).openSession.session
            keep.session = own
            #expect(try await Self.ask(cluster, token, .keepSessionAlive(keep)).failure == nil)
            let other = Self.key(3)
            let theirs = try Self.token(["kv:write:b"], for: other.endpoint).encoded()
            let foreign = try await Self.ask(
                cluster, theirs, .keepSessionAlive(keep), as: other.endpoint)
            #expect(foreign.failure?.code == .sessionExpired)
        }
    }

    @Test func theVeilIsAPermutation() {
        let veil = SessionVeil(secret: [1, 2, 3], client: Self.client.endpoint)
        for session in [0, 1, 42, UInt64.max, 1 << 40] {
            #expect(veil.unveil(veil.veil(session)) == session)
            #expect(veil.veil(session) != session)
        }
    }
}
