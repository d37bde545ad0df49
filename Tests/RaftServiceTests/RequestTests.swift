// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import NIOCore
import NIOPosix
import Testing

@testable import RaftService

@Suite(.serialized) struct RequestTests {
    static func withNode(
        _ count: Int = 1, _ body: (TestCluster, TestClient) async throws -> Void
    ) async throws {
        let cluster = TestCluster(count)
        try await cluster.form()
        let client = try await cluster.client(of: cluster.ids[count - 1])
        try await body(cluster, client)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func bytesAreBytes() async throws {
        try await Self.withNode(3) { _, client in
            let values: [[UInt8]] = [
                [], [0], [0xff, 0xfe, 0, 0x80], Array(repeating: 0xa5, count: Limits.valueBytesMax),
            ]
            for (number, value) in values.enumerated() {
                let put = try await client.put("value-\(number)", value).get()
                #expect(put.failure == nil)
                #expect(
                    try await client.get("value-\(number)").readKey.entry.value == Data(value))
            }
            let tooLarge = Array(repeating: UInt8(1), count: Limits.valueBytesMax + 1)
            let refused = try await client.put("large", tooLarge).get()
            #expect(refused.failure?.code == .invalidArgument)
            let longKey = String(repeating: "k", count: Limits.keyBytesMax + 1)
            #expect(try await client.put(longKey, []).get().failure?.code == .invalidArgument)
            #expect(try await client.get(longKey).failure?.code == .invalidArgument)
            #expect(try await client.put("", []).get().failure?.code == .invalidArgument)
        }
    }

    @Test(.timeLimit(.minutes(1))) func aRevisionInTheFutureIsRefused() async throws {
        try await Self.withNode(1) { _, client in
            let put = try await client.put("key", [1]).get()
            let past = put.writeKey.revision
            #expect(try await client.get("key", revision: past).readKey.entry.value == Data([1]))
            let refused = try await client.get("key", revision: past + 1000)
            #expect(refused.failure?.code == .invalidArgument)
            // Another node may have it already.
            let stale = try await client.get("key", revision: past + 1000, stale: true)
            #expect(stale.failure?.code == .unavailable)
        }
    }

    @Test(.timeLimit(.minutes(1))) func aRetriedWriteIsAppliedOnce() async throws {
        try await Self.withNode(3) { cluster, client in
            let opened = try await client.ask(.openSession(.init())).openSession
            #expect(opened.session > 0)
            var session = Aspen_Client_V1_SessionRequest()
            session.session = opened.session
            session.number = 1
            session.acknowledgedBelow = 1
            let first = try await client.put("once", [1], session: session).get()
            let again = try await client.put("once", [1], session: session).get()
            // Another node gives the same answer.
            let other = try await cluster.client(of: cluster.ids[0])
            let elsewhere = try await other.put("once", [1], session: session).get()
            for answer in [again, elsewhere] {
                #expect(answer.writeKey.revision == first.writeKey.revision)
                #expect(answer.writeKey.version == 1)
            }
            #expect(try await client.get("once").readKey.entry.version == 1)
            var close = Aspen_Client_V1_CloseSessionRequest()
            close.session = opened.session
            #expect(try await client.ask(.closeSession(close)).failure == nil)
            session.number = 2
            let late = try await client.put("once", [2], session: session).get()
            #expect(late.failure?.code == .sessionExpired)
        }
    }

    @Test(.timeLimit(.minutes(1))) func transactionsCompareAndSwap() async throws {
        try await Self.withNode { _, client in
            func swap(from version: UInt64, to value: UInt8) async throws -> WireResponse {
                var compare = Aspen_Client_V1_Compare()
                compare.key = Data("k".utf8)
                compare.version = version
                var put = Aspen_Client_V1_Operation()
                put.put.key = Data("k".utf8)
                put.put.value = Data([value])
                var get = Aspen_Client_V1_Operation()
                get.get.key = Data("k".utf8)
                var body = Aspen_Client_V1_TransactionRequest()
                body.compares = [compare]
                body.success = [put]
                body.failure = [get]
                return try await client.ask(.transaction(body))
            }
            #expect(try await swap(from: 0, to: 1).transaction.succeeded)
            let failed = try await swap(from: 0, to: 2).transaction
            #expect(!failed.succeeded)
            #expect(failed.results.first?.entry.value == Data([1]))
            #expect(try await swap(from: 1, to: 3).transaction.succeeded)
        }
    }

    @Test(.timeLimit(.minutes(1))) func aScanGivesAllPagesOfOneMoment() async throws {
        try await Self.withNode { _, client in
            let total = 25_000
            var waiting: [EventLoopFuture<WireResponse>] = []
            for number in 0..<total {
                waiting.append(client.put(Self.scanKey(number), [UInt8(number & 0xff)]))
                if waiting.count == 2000 {
                    for answer in waiting { #expect(try await answer.get().failure == nil) }
                    waiting.removeAll()
                }
            }
            for answer in waiting { #expect(try await answer.get().failure == nil) }
            _ = try await client.put("other", [1]).get()
            var scan = Aspen_Client_V1_ScanKeysRequest()
            scan.prefix = Data("scan/".utf8)
            var keys: [Data] = []
            var revision: UInt64 = 0
            repeat {
                let page = try await client.ask(.scanKeys(scan))
                #expect(page.failure == nil)
                keys += page.scanKeys.entries.map(\.key)
                if revision == 0 {
                    revision = page.scanKeys.revision
                    // What is written meanwhile is not seen by later pages.
                    _ = try await client.put("scan/99999x", [1]).get()
                }
                #expect(page.scanKeys.revision == revision)
                scan.continuation = page.scanKeys.continuation
            } while !scan.continuation.isEmpty
            #expect(keys == (0..<total).map { Data(Self.scanKey($0).utf8) })
        }
    }

    private static func scanKey(_ number: Int) -> String {
        let digits = String(number)
        return "scan/" + String(repeating: "0", count: 5 - digits.count) + digits
    }

    @Test(.timeLimit(.minutes(1))) func hostileContinuationsAreRefused() async throws {
        try await Self.withNode { _, client in
            for number in 0..<5 { _ = try await client.put("a/\(number)", [1]).get() }
            var scan = Aspen_Client_V1_ScanKeysRequest()
            scan.prefix = Data("a/".utf8)
            scan.limit = 2
            let page = try await client.ask(.scanKeys(scan)).scanKeys
            #expect(page.entries.count == 2)
            let token = Array(page.continuation)
            var random = RandomSource(seed: 7)
            for round in 0..<500 {
                var damaged = token
                switch round % 3 {
                case 0: damaged[random.uniform(0..<damaged.count)] ^= UInt8(1 << (round % 8))
                case 1: damaged.removeLast(1 + random.uniform(0..<damaged.count - 1))
                default: damaged.append(UInt8(round & 0xff))
                }
                scan.continuation = Data(damaged)
                let answer = try await client.ask(.scanKeys(scan))
                #expect(answer.failure?.code == .invalidArgument)
            }
            // A token of another scan.
            scan.prefix = Data("b/".utf8)
            scan.continuation = Data(token)
            let refusal = try await client.ask(.scanKeys(scan)).failure
            #expect(refusal?.code == .invalidArgument)
            #expect(refusal?.message.contains("(") == false, "for people, not for decoders")
        }
    }

    @Test(.timeLimit(.minutes(1))) func garbageIsRefusedAndHarmsNobody() async throws {
        try await Self.withNode { cluster, client in
            var random = RandomSource(seed: 42)
            let node = try cluster.running(NodeID(1))
            for round in 0..<10_000 {
                var frame = ByteBuffer()
                let length = random.uniform(0..<64)
                let isFramed = round % 4 != 0
                if isFramed { frame.writeInteger(UInt32(length), endianness: .little) }
                for _ in 0..<length { frame.writeInteger(UInt8(random.uniform(0..<256))) }
                if round % 100 == 0 { frame = ByteBuffer(bytes: [0xff, 0xff, 0xff, 0xff, 1]) }
                try await Self.throwAway(frame, at: node, asPeer: round % 2 == 1, cluster)
            }
            #expect(try await client.put("still", [1]).get().failure == nil)
            #expect(try await client.get("still").readKey.hasEntry)
        }
    }

    /// Connects, sends, and waits until the node has closed, or closes after an answer.
    private static func throwAway(
        _ bytes: ByteBuffer, at node: TestCluster.Running, asPeer: Bool, _ cluster: TestCluster
    ) async throws {
        let server = node.server
        let channel = try await RawConnection.open(
            on: cluster.group.next(), serverLoop: node.loop,
            accept: { try asPeer ? server.acceptStream($0) : server.acceptClient($0) })
        channel.writeAndFlush(bytes, promise: nil)
        // The node may have closed first.
        try? await channel.close().get()
    }

    @Test(.timeLimit(.minutes(1))) func withoutALeaderRequestsEndInTime() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let survivor = NodeID(2)
        for id in cluster.ids where id != survivor { try await cluster.kill(id) }
        let client = try await cluster.client(of: survivor)
        var read = Aspen_Client_V1_ReadKeyRequest()
        read.key = Data("k".utf8)
        let lost = try await client.ask(.readKey(read), timeoutMs: 700)
        #expect(lost.failure?.code == .unavailable)
        #expect(lost.failure?.retry == .safe)
        var write = Aspen_Client_V1_WriteKeyRequest()
        write.key = Data("k".utf8)
        let refused = try await client.ask(.writeKey(write), timeoutMs: 700)
        let code = refused.failure?.code
        #expect(code == .unavailable || code == .deadlineExceeded)
        // What does not need the others is answered.
        #expect(try await client.get("k", stale: true).failure == nil)
        #expect(
            try await client.ask(.getHealth(.init())).getHealth.status == "unavailable")
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func requestsBeforeInitSayWhatToDo() async throws {
        let cluster = TestCluster(1)
        try await cluster.start(NodeID(1))
        let client = try await cluster.client(of: NodeID(1))
        #expect(try await client.put("k", []).get().failure?.code == .notInitialized)
        #expect(try await client.get("k").failure?.code == .notInitialized)
        #expect(
            try await client.ask(.getClusterStatus(.init())).failure?.code == .notInitialized)
        try await cluster.found()
        let again = try await client.ask(.initCluster(.init()))
        #expect(again.failure?.code == .alreadyInitialized)
        try await cluster.stop()
    }
}
