// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import NIOCore
import QUIC
import SwiftProtobuf
import Testing
import TokenCore

@testable import RaftService

/// Every request of the schema has its rows in the matrix of tokens, and each capability reaches as far
/// as it says.
@Suite(.serialized) struct TokenMatrixTests {
    /// One of each request that the schema has: an empty message in each field that may be one.
    static let schema: [WireRequest.OneOf_Request] = (1...4095).compactMap { field in
        var bytes: [UInt8] = []
        var tag = field << 3 | 2
        while tag > 127 {
            bytes.append(UInt8(tag & 127 | 128))
            tag >>= 7
        }
        bytes += [UInt8(tag), 0]
        return (try? WireRequest(serializedBytes: bytes))?.request
    }

    @Test func everyRequestOfTheSchemaIsInTheMatrix() {
        let rows = Self.schema.map(\.row).sorted()
        #expect(rows.count > 30)
        #expect(rows == Array(0..<ClientService.requestTable.count))
        #expect(rows == TokenTests.requests.map(\.request.row).sorted())
    }

    /// A row of the table that says one thing and the rule for tokens that says another would let
    /// bearers do what local users may not, or the other way round.
    @Test func localRolesAndCapabilitiesAgree() {
        for request in Self.schema {
            let rule = ClientService.requestTable[request.row]
            switch request.need {
            case .cluster(.clusterAdmin): #expect(rule.permission == .admin, "\(rule.name)")
            case .cluster, .anyKey(.read), .allKeys(.read):
                #expect(rule.permission == .read, "\(rule.name)")
            case .anyKey(.write), .allKeys(.write):
                #expect(rule.permission == .use, "\(rule.name)")
            case .keys: #expect(rule.permission < .admin, "\(rule.name)")
            }
        }
    }

    /// Each request with each capability alone: it is carried out with the one that it needs, and with
    /// no other.
    @Test(.timeLimit(.minutes(2))) func eachCapabilityAllowsItsOwnRequestsOnly() async throws {
        let each = [
            "kv:read:app/*", "kv:write:app/*", "kv:read:*", "kv:write:*", "cluster:read",
            "cluster:admin",
        ]
        try await TokenTests.withCluster { cluster, _ in
            for capability in each {
                let token = try TokenTests.token([capability]).encoded()
                for (request, enough) in TokenTests.requests {
                    let includes = CapabilitySet([try Capability(parsing: capability)])
                    let isEnough = try enough.allSatisfy {
                        includes.includes(try Capability(parsing: $0))
                    }
                    let name = ClientService.requestTable[request.row].name
                    if isEnough, Self.changesTheCluster.contains(name) { continue }
                    let answer = try await TokenTests.ask(cluster, token, request)
                    let code = answer.failure?.code
                    #expect(code != .unauthenticated, "\(name), \(capability): \(answer)")
                    #expect(
                        (code == .permissionDenied) == !isEnough,
                        "\(name), \(capability): \(answer)")
                }
            }
        }
    }

    /// With empty bodies they change nothing; all the same nothing else is asked afterwards.
    static let changesTheCluster = ["LeaveCluster", "RestoreChunk", "RecoverQuorum"]

    @Test(.timeLimit(.minutes(1)), arguments: changesTheCluster)
    func theRightTokenIsEnoughForWhatChangesTheCluster(_ name: String) async throws {
        let request = try #require(
            TokenTests.requests.map(\.request).first {
                ClientService.requestTable[$0.row].name == name
            })
        try await TokenTests.withCluster { cluster, _ in
            let token = try TokenTests.token(["cluster:admin"]).encoded()
            let answer = try await TokenTests.ask(cluster, token, request)
            let code = answer.failure?.code
            #expect(code != .permissionDenied && code != .unauthenticated, "\(answer)")
        }
    }

    // MARK: - One forbidden key

    private static func put(_ key: String) -> Aspen_Client_V1_Operation {
        var operation = Aspen_Client_V1_Operation()
        operation.put.key = Data(key.utf8)
        operation.put.value = Data([1])
        return operation
    }

    /// Wherever it stands, among what is carried out or what would be, nothing is.
    @Test(.timeLimit(.minutes(1))) func oneForbiddenKeyAnywhereChangesNothing() async throws {
        try await TokenTests.withCluster { cluster, admin in
            let token = try TokenTests.token(["kv:write:app/*", "kv:read:app/*"]).encoded()
            var get = Aspen_Client_V1_Operation()
            get.get.key = Data("secret/x".utf8)
            var delete = Aspen_Client_V1_Operation()
            delete.delete.key = Data("secret/x".utf8)
            var range = Aspen_Client_V1_Operation()
            range.deleteRange.from = Data("secret/".utf8)
            range.deleteRange.to = Data("secret0".utf8)
            let before = try await admin.put("secret/x", [7]).get().writeKey.revision
            for place in [0, 50, 99] {
                for forbidden in [Self.put("secret/x"), get, delete, range] {
                    for isTaken in [true, false] {
                        var transaction = Aspen_Client_V1_TransactionRequest()
                        var many = (0..<100).map { Self.put("app/\($0)") }
                        many[place] = forbidden
                        if isTaken {
                            transaction.success = many
                        } else {
                            transaction.failure = many
                        }
                        let refused = try await TokenTests.ask(
                            cluster, token, .transaction(transaction))
                        #expect(refused.failure?.code == .permissionDenied, "\(forbidden)")
                        #expect(refused.failure?.message.contains("secret/") == true)
                    }
                }
                var batch = Aspen_Client_V1_BatchReadRequest()
                batch.keys = (0..<100).map { Data("app/\($0)".utf8) }
                batch.keys[place] = Data("secret/x".utf8)
                let refused = try await TokenTests.ask(cluster, token, .batchRead(batch))
                #expect(refused.failure?.code == .permissionDenied)
                #expect(refused.batchRead.results.isEmpty)
            }
            let all = try await admin.ask(.scanKeys(.init())).scanKeys
            #expect(all.entries.map { String(decoding: $0.key, as: UTF8.self) } == ["secret/x"])
            let after = try await admin.put("app/1", [1]).get().writeKey.revision
            #expect(after == before + 1, "no revision in between")
        }
    }

    // MARK: - The cluster's own keys

    /// Every request that names a key or a range, about `key` and what begins with it.
    private static func requests(about key: String) -> [WireRequest.OneOf_Request] {
        let bytes = Data(key.utf8)
        var end = bytes
        end[end.count - 1] += 1
        var write = Aspen_Client_V1_WriteKeyRequest()
        write.key = bytes
        var read = Aspen_Client_V1_ReadKeyRequest()
        read.key = bytes
        var stale = read
        stale.consistency = .stale
        var delete = Aspen_Client_V1_DeleteKeyRequest()
        delete.key = bytes
        var history = Aspen_Client_V1_KeyHistoryRequest()
        history.key = bytes
        var batch = Aspen_Client_V1_BatchReadRequest()
        batch.keys = [Data("app/x".utf8), bytes]
        var prefix = Aspen_Client_V1_ScanKeysRequest()
        prefix.prefix = bytes
        var scan = Aspen_Client_V1_ScanKeysRequest()
        scan.from = bytes
        scan.to = end
        var watch = Aspen_Client_V1_WatchRequest()
        watch.from = bytes
        watch.to = end
        var operations = [Aspen_Client_V1_Operation](repeating: .init(), count: 4)
        operations[0].put.key = bytes
        operations[1].get.key = bytes
        operations[2].delete.key = bytes
        operations[3].deleteRange.from = bytes
        operations[3].deleteRange.to = end
        var transactions = operations.flatMap { operation in
            var taken = Aspen_Client_V1_TransactionRequest()
            taken.success = [operation]
            var other = Aspen_Client_V1_TransactionRequest()
            other.failure = [operation]
            return [taken, other]
        }
        var compare = Aspen_Client_V1_Compare()
        compare.key = bytes
        compare.exists = true
        transactions.append(.init())
        transactions[transactions.count - 1].compares = [compare]
        return [
            .writeKey(write), .readKey(read), .readKey(stale), .deleteKey(delete),
            .keyHistory(history), .batchRead(batch), .scanKeys(prefix), .scanKeys(scan),
            .watch(watch),
        ] + transactions.map { .transaction($0) }
    }

    @Test(.timeLimit(.minutes(1))) func reservedKeysAreClosedToTheRightTokenToo() async throws {
        try await TokenTests.withCluster { cluster, admin in
            let token = try TokenTests.token(
                TokenTests.everything + ["kv:read:_sys/*", "kv:write:_sys/*"]
            ).encoded()
            let root = String(
                decoding: TokenTrust.key(ofRoot: TokenTests.root.endpoint), as: UTF8.self)
            for key in [root, "_sys/tokens/", "_sys/", "_sys/jobs/1"] {
                for request in Self.requests(about: key) {
                    let answer = try await TokenTests.ask(cluster, token, request)
                    #expect(answer.failure?.code == .permissionDenied, "\(request): \(answer)")
                }
            }
            // What only passes over them leaves them as they are, and out.
            var scan = Aspen_Client_V1_ScanKeysRequest()
            scan.from = Data("A".utf8)
            let seen = try await TokenTests.ask(cluster, token, .scanKeys(scan)).scanKeys
            #expect(seen.entries.isEmpty)
            scan.countOnly = true
            #expect(try await TokenTests.ask(cluster, token, .scanKeys(scan)).scanKeys.count == 0)
            var wipe = Aspen_Client_V1_TransactionRequest()
            wipe.success = [.init()]
            wipe.success[0].deleteRange.from = Data()
            #expect(try await TokenTests.ask(cluster, token, .transaction(wipe)).failure == nil)
            let roots = try await admin.ask(.listTokenRoots(.init())).listTokenRoots.roots
            #expect(roots == [Data(TokenTests.root.endpoint.bytes)])
        }
    }

    @Test(.timeLimit(.minutes(1))) func aWatchOfEverythingIsToldNothingOfThem() async throws {
        try await TokenTests.withCluster { cluster, admin in
            let token = try TokenTests.token(["kv:read:*"]).encoded()
            let client = try await cluster.remoteClient(
                of: cluster.ids[0], endpoint: TokenTests.client.endpoint, token: token)
            for from: UInt64 in [0, 1] {
                let (log, _) = try await WatchTests.start(
                    client, WatchTests.request(prefix: "", from: from))
                var add = Aspen_Client_V1_AddTokenRootRequest()
                add.root = Data(TokenTests.key(60 + UInt8(from)).endpoint.bytes)
                #expect(try await admin.ask(.addTokenRoot(add)).addTokenRoot.added)
                let put = try await admin.put("z", [1]).get().writeKey.revision
                await log.wait(for: put)
                let keys = Set(log.events.map { String(decoding: $0.entry.key, as: UTF8.self) })
                #expect(keys == ["z"], "from \(from)")
            }
        }
    }
}
