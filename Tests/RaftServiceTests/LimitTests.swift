// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import FoundationEssentials
import NIOCore
import NIOPosix
import Testing
import TokenCore
import WatchCore

@testable import RaftService

/// One step beyond what a node takes, over its socket: the answer has a name, and the next request
/// is served as ever. What many connections can do to a node is in `Tests/Integration`.
@Suite(.serialized) struct LimitTests {
    private func code(
        _ client: TestClient, _ request: WireRequest.OneOf_Request
    ) async throws -> AspenErrorCode? {
        try await client.ask(request).failure?.code
    }

    @Test(.timeLimit(.minutes(1))) func aFrameThatIsTooLongEndsTheConnection() async throws {
        try await RequestTests.withNode { cluster, client in
            let node = try cluster.running(NodeID(1))
            let server = node.server
            for peer in [false, true] {
                let channel = try await RawConnection.open(
                    on: cluster.group.next(), serverLoop: node.loop,
                    accept: { try peer ? server.acceptStream($0) : server.acceptClient($0) })
                var head = ByteBuffer()
                head.writeInteger(UInt32(Limits.rpcMessageBytesMax + 1), endianness: .little)
                // The node closes without waiting for the rest.
                channel.writeAndFlush(head, promise: nil)
                try await channel.closeFuture.get()
            }
            #expect(try await client.put("still", [1]).get().failure == nil)
        }
    }

    @Test(.timeLimit(.minutes(1))) func pagesAndBatchesAreBoundedByBytes() async throws {
        try await RequestTests.withNode { _, client in
            let value = [UInt8](repeating: 1, count: Limits.valueBytesMax)
            let keys = (0..<9).map { "k\($0)" }
            for key in keys { #expect(try await client.put(key, value).get().failure == nil) }
            var batch = Aspen_Client_V1_BatchReadRequest()
            batch.keys = keys.map { Data($0.utf8) }
            #expect(try await code(client, .batchRead(batch)) == .resourceExhausted)
            batch.keys.removeLast(3)
            #expect(try await client.ask(.batchRead(batch)).batchRead.results.count == 6)
            let page = try await client.ask(.scanKeys(.init())).scanKeys
            let bytes = page.entries.reduce(0) { $0 + $1.key.count + $1.value.count }
            #expect(!page.continuation.isEmpty && page.entries.count < 9)
            #expect(bytes <= Limits.scanPageBytesMax + Limits.valueBytesMax + Limits.keyBytesMax)

            let gets = keys.prefix(5).map { key in
                var get = Aspen_Client_V1_Operation()
                get.get.key = Data(key.utf8)
                return get
            }
            var transaction = Aspen_Client_V1_TransactionRequest()
            transaction.success = gets
            #expect(try await code(client, .transaction(transaction)) == .resourceExhausted)
            transaction.success = Array(
                repeating: gets[0], count: Limits.transactionOperationsMax + 1)
            #expect(try await code(client, .transaction(transaction)) == .invalidArgument)
        }
    }

    @Test(.timeLimit(.minutes(1))) func previousValuesThatFillAFrameAreLeftOut() async throws {
        try await RequestTests.withNode { _, client in
            let value = [UInt8](repeating: 1, count: 1_000_000)
            for number in 0..<10 { _ = try await client.put("p/\(number)", value).get() }
            let (log, _) = try await WatchTests.start(
                client, WatchTests.request(prefix: "p/") { $0.previousValues = true })
            var delete = Aspen_Client_V1_Operation()
            (delete.deleteRange.from, delete.deleteRange.to) = (Data("p/".utf8), Data("p0".utf8))
            var transaction = Aspen_Client_V1_TransactionRequest()
            transaction.success = [delete]
            let deleted = try await client.ask(.transaction(transaction)).transaction
            await log.wait(for: deleted.revision)
            #expect(log.failure == nil && log.events.count == 10)
            let bytes = log.events.reduce(0) { $0 + $1.previous.value.count }
            #expect(bytes <= WatchConfiguration().previousBytesMax)
        }
    }

    @Test(.timeLimit(.minutes(1))) func membershipsAreBounded() async throws {
        try await RequestTests.withNode { _, client in
            var change = Aspen_Client_V1_ChangeMembershipRequest()
            change.voters = Array(1...UInt64(Limits.votersMax) + 1)
            let tooManyVoters = try await code(client, .changeMembership(change))
            #expect(tooManyVoters == .invalidArgument)
            var add = Aspen_Client_V1_AddLearnerRequest()
            add.nodeID = 2
            add.endpointID = FakeNetwork.endpoint(NodeID(2)).description
            add.addresses = (0...Limits.addressesMax).map { "127.0.0.1:\($0 + 1)" }
            let tooManyAddresses = try await code(client, .addLearner(add))
            #expect(tooManyAddresses == .invalidArgument)
        }
    }

    @Test(.timeLimit(.minutes(1))) func backupsAndPiecesOfARestoreAreBounded() async throws {
        try await RequestTests.withNode { cluster, client in
            let node = try cluster.running(NodeID(1))
            func underWay(_ count: Int) async throws {
                try await node.loop.submit {
                    (node.server.node.client as? ClientService)?.backupCount = count
                }.get()
            }
            // As if so many clients were reading one.
            try await underWay(2)
            #expect(try await code(client, .backup(.init())) == .resourceExhausted)
            try await underWay(0)
        }
        let cluster = TestCluster(1)
        try await cluster.start(NodeID(1))
        let client = try await cluster.client(of: NodeID(1))
        var piece = Aspen_Client_V1_RestoreChunkRequest()
        piece.chunk = Data(repeating: 0, count: Limits.snapshotChunkBytesMax + 1)
        var refused: AspenErrorCode?
        // Until the node knows its own address.
        repeat {
            refused = try await code(client, .restoreChunk(piece))
        } while refused
            == .unavailable
        #expect(refused == .invalidArgument)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func rootsAndRevocationsAreBounded() async throws {
        try await RequestTests.withNode { cluster, client in
            func root(_ number: Int) -> WireRequest.OneOf_Request {
                var body = Aspen_Client_V1_AddTokenRootRequest()
                body.root = Data(FakeNetwork.endpoint(NodeID(UInt64(number))).bytes)
                return .addTokenRoot(body)
            }
            for number in 1...TokenLimits.rootsMax {
                #expect(try await code(client, root(number)) == nil)
            }
            #expect(try await code(client, root(TokenLimits.rootsMax + 1)) == .resourceExhausted)
            #expect(try await code(client, root(1)) == nil, "it is trusted already")

            var revoke = Aspen_Client_V1_RevokeTokenRequest()
            revoke.id = Data(repeating: 1, count: 16)
            #expect(try await code(client, .revokeToken(revoke)) == nil)
            let node = try cluster.running(NodeID(1))
            try await node.loop.submit {
                guard let service = node.server.node.client as? ClientService else { return }
                for number in 0..<UInt64(TokenLimits.revocationsMax - 1) {
                    service.trust?.revoked[TokenID(UInt128(number))] = 0
                }
            }.get()
            revoke.id = Data(repeating: 2, count: 16)
            #expect(try await code(client, .revokeToken(revoke)) == .resourceExhausted)
        }
    }

    @Test(.timeLimit(.minutes(1))) func waitingRequestsAreBoundedByBytes() async throws {
        try await RequestTests.withNode { cluster, client in
            let node = try cluster.running(NodeID(1))
            func waiting() async throws -> Int {
                try await node.loop.submit {
                    (node.server.node.client as? ClientService)?.requestBytes ?? -1
                }.get()
            }
            func wait(_ bytes: Int) async throws {
                try await node.loop.submit {
                    (node.server.node.client as? ClientService)?.requestBytes += bytes
                }.get()
            }
            let large = [UInt8](repeating: 1, count: 100_000)
            // As if other clients waited for the answers to so much.
            try await wait(ClientConnection.requestBytesMax - 50_000)
            let refused = try await client.put("large", large).get().failure
            #expect(refused?.code == .resourceExhausted && refused?.retry == .safe)
            #expect(try await client.put("small", [1]).get().failure == nil)
            try await wait(50_000 - ClientConnection.requestBytesMax)
            for _ in 0..<3 { #expect(try await client.put("large", large).get().failure == nil) }
            #expect(try await waiting() == 0, "what is answered counts no more")
        }
    }
}
