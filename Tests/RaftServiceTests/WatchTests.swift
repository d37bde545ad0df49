// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import RaftService

/// What one watch heard, and a way to wait for it.
final class WatchLog: Sendable {
    private struct State {
        var responses: [WireResponse] = []
        var waiting: [(@Sendable ([WireResponse]) -> Bool, CheckedContinuation<Void, Never>)] = []
    }
    private let state = Mutex(State())

    func add(_ response: WireResponse) {
        let ready = state.withLock { state in
            state.responses.append(response)
            let responses = state.responses
            let ready = state.waiting.filter { $0.0(responses) }
            state.waiting.removeAll { $0.0(responses) }
            return ready
        }
        for (_, continuation) in ready { continuation.resume() }
    }

    func wait(until holds: @escaping @Sendable ([WireResponse]) -> Bool) async {
        await withCheckedContinuation { continuation in
            let isReady = state.withLock { state in
                if holds(state.responses) { return true }
                state.waiting.append((holds, continuation))
                return false
            }
            if isReady { continuation.resume() }
        }
    }

    /// Until everything up to `revision` has been told.
    func wait(for revision: UInt64) async {
        await wait { ($0.last { $0.failure == nil }?.watch.revision ?? 0) >= revision }
    }

    var responses: [WireResponse] { state.withLock { $0.responses } }
    var events: [Aspen_Client_V1_Event] { responses.flatMap(\.watch.events) }
    var failure: AspenError? { responses.compactMap(\.failure).first }
}

@Suite(.serialized) struct WatchTests {
    static func request(
        prefix: String = "", from: UInt64 = 0,
        _ adjust: (inout Aspen_Client_V1_WatchRequest) -> Void = { _ in }
    ) -> WireRequest.OneOf_Request {
        var body = Aspen_Client_V1_WatchRequest()
        let range = KeyRange(prefix: Array(prefix.utf8))
        body.from = Data(range.from)
        body.to = Data(range.to ?? [])
        body.startRevision = from
        adjust(&body)
        return .watch(body)
    }

    static func start(
        _ client: TestClient, _ request: WireRequest.OneOf_Request
    ) async throws -> (log: WatchLog, id: UInt64) {
        let log = WatchLog()
        let id = try await client.follow(request) { log.add($0) }
        await log.wait { !$0.isEmpty }
        return (log, id)
    }

    private func put(_ client: TestClient, _ count: Int, key: (Int) -> String) async throws
        -> UInt64
    {
        var last: UInt64 = 0
        var waiting: [EventLoopFuture<WireResponse>] = []
        for number in 0..<count {
            waiting.append(client.put(key(number), [UInt8(truncatingIfNeeded: number)]))
            guard waiting.count == 500 || number == count - 1 else { continue }
            for answer in waiting { last = max(last, try await answer.get().writeKey.revision) }
            waiting.removeAll()
        }
        return last
    }

    @Test(.timeLimit(.minutes(1))) func eachNodeTellsEveryChangeOnceAndInOrder() async throws {
        try await RequestTests.withNode(3) { cluster, client in
            var logs: [WatchLog] = []
            for id in cluster.ids {
                let watcher = try await cluster.client(of: id)
                let (log, _) = try await Self.start(watcher, Self.request(prefix: "a"))
                #expect(log.events.isEmpty)
                logs.append(log)
            }
            let last = try await put(client, 1000) { $0 % 2 == 0 ? "a\($0)" : "b\($0)" }
            let other = try await put(client, 1) { _ in "a-last" }
            #expect(other == last + 1)
            for log in logs {
                await log.wait(for: other)
                let revisions = log.events.map(\.entry.modRevision)
                #expect(log.events.count == 501)
                #expect(revisions == revisions.sorted() && Set(revisions).count == 501)
                #expect(log.events.allSatisfy { $0.entry.key.first == UInt8(ascii: "a") })
            }
        }
    }

    @Test(.timeLimit(.minutes(1))) func aWatchBeginsAnywhereInHistory() async throws {
        try await RequestTests.withNode { _, client in
            let last = try await put(client, 2000) { "k\($0 % 10)" }
            let first = last - 1999
            for start in [first, first + 777, last, last + 1] {
                let (log, _) = try await Self.start(client, Self.request(from: start))
                await log.wait(for: last)
                let revisions = log.events.map(\.entry.modRevision)
                #expect(revisions == (start..<(last + 1)).map { $0 })
            }
        }
    }

    @Test(.timeLimit(.minutes(1))) func aStartInTheFutureWaits() async throws {
        try await RequestTests.withNode { _, client in
            let now = try await client.put("k", [1]).get().writeKey.revision
            let (log, _) = try await Self.start(client, Self.request(from: now + 3))
            for value in 2...4 {
                #expect(try await client.put("k", [UInt8(value)]).get().failure == nil)
            }
            await log.wait { !$0.flatMap(\.watch.events).isEmpty }
            #expect(log.events.map(\.entry.modRevision) == [now + 3])
        }
    }

    @Test(.timeLimit(.minutes(1))) func filtersAndPreviousValues() async throws {
        try await RequestTests.withNode { _, client in
            let (puts, _) = try await Self.start(
                client, Self.request(prefix: "k") { $0.noDeletes = true })
            let (deletes, _) = try await Self.start(
                client, Self.request(prefix: "k") { $0.noPuts = true })
            let (all, _) = try await Self.start(
                client, Self.request(prefix: "k") { $0.previousValues = true })
            _ = try await client.put("k", [1]).get()
            _ = try await client.put("k", [2]).get()
            let last = try await client.delete("k").deleteKey.revision
            await all.wait(for: last)
            await deletes.wait(for: last)
            #expect(puts.events.map(\.entry.value) == [Data([1]), Data([2])])
            #expect(deletes.events.map(\.kind) == [.delete])
            #expect(deletes.events.first?.entry.key == Data("k".utf8))
            #expect(all.events.map(\.hasPrevious) == [false, true, true])
            #expect(all.events.map(\.previous.value) == [Data(), Data([1]), Data([2])])
        }
    }

    @Test(.timeLimit(.minutes(1))) func aTransactionIsOneUpdate() async throws {
        try await RequestTests.withNode { _, client in
            let (log, _) = try await Self.start(client, Self.request())
            var body = Aspen_Client_V1_TransactionRequest()
            for number in 0..<100 {
                var put = Aspen_Client_V1_Operation()
                put.put.key = Data("t\(number)".utf8)
                put.put.value = Data(repeating: 7, count: 80_000)
                body.success.append(put)
            }
            for _ in 0..<2 {
                let answer = try await client.ask(.transaction(body))
                #expect(answer.failure == nil)
                let revision = answer.transaction.revision
                await log.wait(for: revision)
                let update = log.responses.last { !$0.watch.events.isEmpty }
                #expect(update?.watch.events.count == 100)
                #expect(
                    update?.watch.events.allSatisfy { $0.entry.modRevision == revision } == true)
            }
            // Twice the bytes do not fit a message: then without the previous values.
            let (previous, _) = try await Self.start(
                client, Self.request(from: 1) { $0.previousValues = true })
            await previous.wait { $0.flatMap(\.watch.events).count >= 200 }
            let updates = previous.responses.filter { !$0.watch.events.isEmpty }
            #expect(updates.last?.watch.events.count == 100)
            #expect(updates.last?.watch.events.contains { $0.hasPrevious } == false)
        }
    }

    @Test(.timeLimit(.minutes(1))) func aCancelledWatchIsSilent() async throws {
        try await RequestTests.withNode { _, client in
            let (log, id) = try await Self.start(client, Self.request())
            _ = try await client.put("k", [1]).get()
            var cancel = Aspen_Client_V1_CancelWatchRequest()
            cancel.watch = id
            #expect(try await client.ask(.cancelWatch(cancel)).failure == nil)
            let heard = log.responses.count
            _ = try await client.put("k", [2]).get()
            _ = try await client.get("k")
            #expect(log.responses.count == heard)
            // Unknown now: nothing to do.
            #expect(try await client.ask(.cancelWatch(cancel)).failure == nil)
        }
    }

    @Test(.timeLimit(.minutes(1))) func whoDoesNotReadDisturbsNobodyAndMissesNothing() async throws
    {
        try await RequestTests.withNode { cluster, client in
            let slow = try await cluster.client(of: cluster.ids[0])
            let (stuck, _) = try await Self.start(slow, Self.request(prefix: "k"))
            try await slow.setReading(false)
            let (log, _) = try await Self.start(client, Self.request(prefix: "k"))
            // Far more than its connection and the ring hold.
            let value = [UInt8](repeating: 9, count: 100_000)
            var last: UInt64 = 0
            var first: UInt64 = 0
            for number in 0..<300 {
                last = try await client.put("k\(number)", value).get().writeKey.revision
                if first == 0 { first = last }
            }
            await log.wait(for: last)
            #expect(log.events.count == 300)
            #expect(stuck.events.count < 300)
            try await slow.setReading(true)
            await stuck.wait(for: last)
            #expect(stuck.events.map(\.entry.modRevision) == (first...last).map { $0 })
        }
    }

    @Test(.timeLimit(.minutes(1))) func limitsAreAnswered() async throws {
        try await RequestTests.withNode { _, client in
            for number in 0..<Limits.watchesPerConnectionMax {
                _ = try await Self.start(client, Self.request(prefix: "k\(number % 3)"))
            }
            let (log, _) = try await Self.start(client, Self.request(prefix: "one too many"))
            #expect(log.failure?.code == .resourceExhausted)
            // They do not count as requests that wait.
            #expect(try await client.put("k1", [1]).get().failure == nil)
        }
    }

    @Test(.timeLimit(.minutes(1))) func whatIsReservedIsNotSeen() async throws {
        try await RequestTests.withNode { _, client in
            for request in [Self.request(prefix: "_sys/"), Self.request(prefix: "_sys/x")] {
                let (log, _) = try await Self.start(client, request)
                #expect(log.failure?.code == .permissionDenied)
            }
            let (empty, _) = try await Self.start(
                client, Self.request { ($0.from, $0.to) = (Data("b".utf8), Data("a".utf8)) })
            #expect(empty.failure?.code == .invalidArgument)
        }
    }
}
