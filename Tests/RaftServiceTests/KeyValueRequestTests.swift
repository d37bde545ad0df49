// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import NIOCore
import RaftStorage
import SwiftProtobuf
import Testing

@testable import RaftService

@Suite(.serialized) struct KeyValueRequestTests {
    private func scan(
        _ client: TestClient, _ adjust: (inout Aspen_Client_V1_ScanKeysRequest) -> Void
    ) async throws -> WireResponse {
        var body = Aspen_Client_V1_ScanKeysRequest()
        adjust(&body)
        return try await client.ask(.scanKeys(body))
    }

    private func keys(_ response: WireResponse) -> [String] {
        response.scanKeys.entries.map { String(decoding: $0.key, as: UTF8.self) }
    }

    private func batch(
        _ client: TestClient, _ keys: [String],
        _ adjust: (inout Aspen_Client_V1_BatchReadRequest) -> Void = { _ in }
    ) async throws -> WireResponse {
        var body = Aspen_Client_V1_BatchReadRequest()
        body.keys = keys.map { Data($0.utf8) }
        adjust(&body)
        return try await client.ask(.batchRead(body))
    }

    /// Large pages leave in another way than small ones: all of them arrive whole, among other answers.
    @Test(.timeLimit(.minutes(1))) func pagesOfAnySizeArriveInTheirOrder() async throws {
        try await RequestTests.withNode(3) { _, client in
            var values: [String: [UInt8]] = [:]
            for number in 0..<40 {
                let name = "\(number + 10)"
                let value = [UInt8](repeating: UInt8(number), count: number * 150)
                values[name] = value
                _ = try await client.put(name, value).get()
            }
            for limit in [1, 3, 7, 20, 40, 1000] as [UInt32] {
                for descending in [false, true] {
                    var found: [String] = []
                    var body = Aspen_Client_V1_ScanKeysRequest()
                    body.limit = limit
                    body.descending = descending
                    repeat {
                        let before = client.send(.scanKeys(.with { $0.limit = 1 }))
                        let asked = client.send(.scanKeys(body))
                        let after = client.send(.readKey(.with { $0.key = Data("49".utf8) }))
                        #expect(keys(try await before.get()) == ["10"])
                        let page = try await asked.get()
                        #expect(try await after.get().readKey.entry.value.count == 39 * 150)
                        for entry in page.scanKeys.entries {
                            let name = String(decoding: entry.key, as: UTF8.self)
                            #expect(Array(entry.value) == values[name])
                            #expect(entry.version == 1 && entry.createRevision > 0)
                        }
                        found += keys(page)
                        #expect(page.scanKeys.entries.count <= Int(limit))
                        body.continuation = page.scanKeys.continuation
                    } while !body.continuation.isEmpty
                    let sorted = values.keys.sorted()
                    #expect(found == (descending ? sorted.reversed() : sorted))
                }
            }
        }
    }

    @Test(.timeLimit(.minutes(1))) func scansInBothDirectionsAndAtARevision() async throws {
        try await RequestTests.withNode(3) { _, client in
            for name in ["a", "b", "c", "d", "e"] { _ = try await client.put(name, [1]).get() }
            let then = try await client.get("a").readKey.revision
            _ = try await client.put("cc", [2]).get()
            let rest = try await scan(client) { $0.from = Data("b".utf8) }
            #expect(keys(rest) == ["b", "c", "cc", "d", "e"])
            let middle = try await scan(client) {
                ($0.from, $0.to) = (Data("b".utf8), Data("d".utf8))
                $0.descending = true
            }
            #expect(keys(middle) == ["cc", "c", "b"])
            var found: [String] = []
            var token = Data()
            repeat {
                var body = Aspen_Client_V1_ScanKeysRequest()
                body.descending = true
                body.limit = 2
                body.continuation = token
                body.revision = token.isEmpty ? then : 0
                let page = try await client.ask(.scanKeys(body))
                found += keys(page)
                token = page.scanKeys.continuation
                #expect(page.scanKeys.revision == then)
            } while !token.isEmpty
            #expect(found == ["e", "d", "c", "b", "a"])
            var short = Aspen_Client_V1_ScanKeysRequest()
            short.limit = 2
            let page = try await client.ask(.scanKeys(short))
            #expect(keys(page) == ["a", "b"] && !page.scanKeys.continuation.isEmpty)
            short.continuation = page.scanKeys.continuation
            short.descending = true
            let turned = try await client.ask(.scanKeys(short))
            #expect(turned.failure?.code == .invalidArgument)
            let count = try await scan(client) {
                $0.countOnly = true
                $0.from = Data("b".utf8)
            }
            #expect(count.scanKeys.count == 5 && count.scanKeys.entries.isEmpty)
            let both = try await scan(client) { ($0.prefix, $0.from) = (Data([1]), Data([2])) }
            #expect(both.failure?.code == .invalidArgument)
        }
    }

    @Test(.timeLimit(.minutes(1))) func aBatchIsReadAtOneRevision() async throws {
        try await RequestTests.withNode(3) { _, client in
            let first = try await client.put("a", [1]).get().writeKey.revision
            _ = try await client.put("b", [2]).get()
            _ = try await client.put("a", [3]).get()
            let now = try await batch(client, ["b", "nothing", "a"]).batchRead
            #expect(now.results.map(\.entry.value) == [Data([2]), Data(), Data([3])])
            #expect(now.results.map(\.hasEntry) == [true, false, true])
            let past = try await batch(client, ["a", "b"]) { $0.revision = first }.batchRead
            #expect(past.results.map(\.entry.value) == [Data([1]), Data()])
            #expect(past.revision == first)
            let future = try await batch(client, ["a"]) { $0.revision = first + 1000 }
            #expect(future.failure?.code == .invalidArgument)
            #expect(try await batch(client, []).failure?.code == .invalidArgument)
            let many = Array(repeating: "a", count: Limits.batchCountMax + 1)
            #expect(try await batch(client, many).failure?.code == .invalidArgument)
            let large = [UInt8](repeating: 1, count: Limits.valueBytesMax)
            _ = try await client.put("large", large).get()
            #expect(
                try await batch(client, Array(repeating: "large", count: 7)).batchRead.results.count
                    == 7)
            let tooMuch = try await batch(client, Array(repeating: "large", count: 9))
            #expect(tooMuch.failure?.code == .resourceExhausted)
        }
    }

    private func history(
        _ client: TestClient, _ limit: UInt32, before: UInt64
    ) async throws -> Aspen_Client_V1_KeyHistoryResponse {
        var body = Aspen_Client_V1_KeyHistoryRequest()
        body.key = Data("k".utf8)
        body.limit = limit
        body.beforeRevision = before
        return try await client.ask(.keyHistory(body)).keyHistory
    }

    @Test(.timeLimit(.minutes(1))) func theHistoryOfAKey() async throws {
        try await RequestTests.withNode { _, client in
            for value in 1...5 { _ = try await client.put("k", [UInt8(value)]).get() }
            _ = try await client.delete("k")
            let all = try await history(client, 0, before: 0)
            #expect(all.events.map(\.kind) == [.delete, .put, .put, .put, .put, .put])
            #expect(
                all.events.map(\.entry.value) == [
                    Data(), Data([5]), Data([4]), Data([3]), Data([2]), Data([1]),
                ])
            #expect(all.events.first?.previous.value == Data([5]))
            #expect(!all.more)
            let page = try await history(client, 2, before: 0)
            #expect(page.more && page.events.count == 2)
            let rest = try await history(client, 0, before: page.events[1].entry.modRevision)
            #expect(rest.events.map(\.entry.value) == [Data([4]), Data([3]), Data([2]), Data([1])])
        }
    }

    @Test(.timeLimit(.minutes(1))) func reservedKeysAreOutOfReach() async throws {
        try await RequestTests.withNode { cluster, client in
            for key in ["_sys/x", "_sys/"] {
                #expect(try await client.put(key, [1]).get().failure?.code == .permissionDenied)
                #expect(try await client.get(key).failure?.code == .permissionDenied)
                #expect(try await batch(client, ["a", key]).failure?.code == .permissionDenied)
            }
            let node = try cluster.running(cluster.ids[0])
            try await node.loop.submit {
                node.server.service.submit(
                    .transaction(
                        Transaction(success: [.put(key: Array("_sys/x".utf8), value: [1])]), nil),
                    .housekeeping, nil)
            }.get()
            let (log, _) = try await WatchTests.start(client, WatchTests.request())
            for key in ["_sy", "_syt"] { _ = try await client.put(key, [1]).get() }
            // No closures here: inside and outside of a macro they are mistaken for each other.
            var all = Aspen_Client_V1_ScanKeysRequest()
            let found = try await client.ask(.scanKeys(all))
            #expect(keys(found) == ["_sy", "_syt"])
            all.countOnly = true
            let counted = try await client.ask(.scanKeys(all))
            #expect(counted.scanKeys.count == 2)
            all.prefix = Data("_sys/".utf8)
            let refused = try await client.ask(.scanKeys(all))
            #expect(refused.failure?.code == .permissionDenied)
            await log.wait { $0.flatMap(\.watch.events).count >= 2 }
            #expect(log.events.allSatisfy { !$0.entry.key.starts(with: Data("_sys/".utf8)) })
        }
    }

    private static func deletion(_ from: String, _ to: String = "") -> Aspen_Client_V1_Operation {
        .with {
            $0.deleteRange.from = Data(from.utf8)
            $0.deleteRange.to = Data(to.utf8)
        }
    }

    private func delete(
        _ client: TestClient, _ operations: [Aspen_Client_V1_Operation]
    ) async throws -> WireResponse {
        var body = Aspen_Client_V1_TransactionRequest()
        body.success = operations
        return try await client.ask(.transaction(body))
    }

    /// To delete everything means everything of one's own: what clients do not see stays.
    @Test(.timeLimit(.minutes(1))) func aRangeIsDeletedAroundReservedKeys() async throws {
        try await RequestTests.withNode { cluster, client in
            let node = try cluster.running(cluster.ids[0])
            let reserved = Array("_sys/x".utf8)
            try await node.loop.submit {
                node.server.service.submit(
                    .transaction(Transaction(success: [.put(key: reserved, value: [1])]), nil),
                    .housekeeping, nil)
            }.get()
            for key in ["A", "_sy", "_syt", "z"] { _ = try await client.put(key, [1]).get() }
            let get = Aspen_Client_V1_Operation.with { $0.get.key = Data("z".utf8) }
            let all = try await delete(client, [Self.deletion("_"), get, Self.deletion("")])
            // One result an operation, and all of it in one revision.
            #expect(all.transaction.results.map(\.deleted) == [3, 0, 1], "\(all)")
            #expect(!all.transaction.results[1].hasEntry)
            let found = try await client.ask(.scanKeys(Aspen_Client_V1_ScanKeysRequest()))
            #expect(keys(found) == [])
            let kept = try await node.loop.flatSubmit {
                let promise = node.loop.makePromise(of: Bool.self)
                node.server.service.node.state.perform { store in
                    let isThere = try store.get(reserved, at: nil) != nil
                    return { promise.succeed(isThere) }
                }
                return promise.futureResult
            }.get()
            #expect(kept, "a client has deleted a key of the cluster")

            for (from, to) in [("_sys/", "_sys0"), ("_sys/x", "_sys/y")] {
                let refused = try await delete(client, [Self.deletion(from, to)])
                #expect(refused.failure?.code == .permissionDenied)
            }
            let half = Array(repeating: Self.deletion(""), count: 50)
            #expect(try await delete(client, half).failure == nil)
            let tooMany = try await delete(client, half + [Self.deletion("")])
            #expect(tooMany.failure?.code == .invalidArgument)
            let bound = String(repeating: "x", count: 2000)
            let tooLong = try await delete(client, [Self.deletion("A", "_sys/" + bound)])
            #expect(tooLong.failure?.code == .invalidArgument)
        }
    }

    @Test(.timeLimit(.minutes(1))) func aBoundedStaleReadIsNewEnoughOrRefused() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let client = try await cluster.client(of: cluster.ids[2])
        _ = try await client.put("k", [1]).get()
        var body = Aspen_Client_V1_ReadKeyRequest()
        body.key = Data("k".utf8)
        body.consistency = .stale
        body.stalenessMaxMs = 1
        #expect(try await client.ask(.readKey(body)).readKey.entry.value == Data([1]))
        for id in cluster.ids.prefix(2) { try await cluster.kill(id) }
        let refused = try await client.ask(.readKey(body))
        #expect(refused.failure?.code == .unavailable && refused.failure?.retry == .safe)
        body.stalenessMaxMs = 3_600_000
        #expect(try await client.ask(.readKey(body)).readKey.entry.value == Data([1]))
        body.stalenessMaxMs = 0
        #expect(try await client.ask(.readKey(body)).readKey.entry.value == Data([1]))
        try await cluster.stop()
    }
}
