// SPDX-License-Identifier: GPL-2.0-or-later

import AspenClient
import AspenTypes
import AspenWire
import FakeRaftServer
import Testing

private let isWatch: @Sendable (FakeRequest) -> Bool = {
    if case .watch = $0.request { true } else { false }
}
private let isCancel: @Sendable (FakeRequest) -> Bool = {
    if case .cancelWatch = $0.request { true } else { false }
}

@Suite struct WatchTests {
    /// The revisions of the next `count` events.
    private func take(
        _ count: Int, _ updates: inout WatchUpdates.AsyncIterator
    ) async throws -> [UInt64] {
        var revisions: [UInt64] = []
        while revisions.count < count, let update = try await updates.next() {
            revisions += update.events.map(\.entry.modRevision.rawValue)
        }
        return revisions
    }

    @Test func aWatchTellsWhatHappens() async throws {
        try await withServer { _, client in
            try await client.set("a", to: "1")
            var updates = client.watch(KeyRange(prefix: "a"), from: Revision(1)).makeAsyncIterator()
            #expect(try await take(1, &updates) == [1])
            try await client.set("b", to: "2")
            try await client.set("ab", to: "3")
            try await client.delete("a")
            #expect(try await take(2, &updates) == [3, 4])
        }
    }

    @Test func aLostConnectionLosesAndRepeatsNothing() async throws {
        try await withServer { server, client in
            var updates = client.watch(.all, from: Revision(1)).makeAsyncIterator()
            var heard: [UInt64] = []
            for round in 0..<20 {
                for number in 0..<5 { try await client.set("k\(number)", to: "\(round)") }
                // Fewer than there are: the rest is on its way when the connection goes.
                heard += try await take(3, &updates)
                server.dropConnections()
            }
            heard += try await take(100 - heard.count, &updates)
            #expect(heard == (1...100).map { $0 })
            #expect(server.requests.filter(isWatch).count > 1)
        }
    }

    @Test func anErrorThatStaysEndsTheWatch() async throws {
        try await withServer { server, client in
            server.faults(
                [.fail(.unavailable, .safe), .fail(.compacted, .never)], for: isWatch)
            var updates = client.watch(.all).makeAsyncIterator()
            do {
                _ = try await updates.next()
                Issue.record("compacted is for good")
            } catch let error as AspenError {
                #expect(error.code == .compacted)
            }
            let end = try await updates.next()
            #expect(end == nil)
            #expect(server.requests.filter(isWatch).count == 2)
        }
    }

    @Test func cancellationEndsItOnTheServer() async throws {
        try await withServer { server, client in
            try await client.set("k", to: "1")
            let task = Task { () -> Int in
                var count = 0
                for try await update in client.watch(.all, from: Revision(1)) {
                    count += update.events.count
                }
                return count
            }
            while server.watchCount == 0 { await Task.yield() }
            task.cancel()
            #expect(try await task.value <= 1)
            while server.watchCount > 0 { await Task.yield() }
            #expect(server.requests.filter(isCancel).count == 1)
        }
    }

    @Test func aSlowConsumerGrowsNothingAndMissesNothing() async throws {
        try await withServer { server, client in
            var updates = client.watch(.all, from: Revision(1)).makeAsyncIterator()
            try await client.set("k", to: "first")
            var heard = try await take(1, &updates)
            let value = [UInt8](repeating: 7, count: 250_000)
            for _ in 0..<30 { try await client.set("k".utf8, to: value) }
            // It has been told to stop meanwhile.
            while server.requests.filter(isCancel).isEmpty { await Task.yield() }
            heard += try await take(30, &updates)
            #expect(heard == (1...31).map { $0 })
            #expect(server.requests.filter(isWatch).count > 1)
        }
    }

    /// What a connection carries may be all for others, for long: that is no silence.
    @Test func aWatchThatHearsNothingStaysWhileItsConnectionSpeaks() async throws {
        var options = AspenClient.Options()
        options.watchSilenceMax = .milliseconds(200)
        try await withServer(options: options) { server, client in
            var updates = client.watch(KeyRange(prefix: "quiet"), from: Revision(1))
                .makeAsyncIterator()
            let began = ContinuousClock.now
            async let heard = updates.next()
            while server.watchCount == 0 { await Task.yield() }
            while ContinuousClock.now - began < options.watchSilenceMax * 4 {
                _ = try await client.get("k")
            }
            #expect(server.requests.filter(isWatch).count == 1)
            try await client.set("quiet", to: "no more")
            #expect(try await heard?.events.count == 1)
        }
    }

    /// There is one server only, and it may speak again: it must not serve the watch twice.
    @Test func aWatchGivenUpInSilenceEndsOnTheServer() async throws {
        var options = AspenClient.Options()
        options.watchSilenceMax = .milliseconds(50)
        try await withServer(options: options) { server, client in
            let task = Task {
                for try await update in client.watch(.all, from: Revision(1))
                where !update.events.isEmpty { return update.events.count }
                return 0
            }
            while server.requests.filter(isWatch).count < 3 { await Task.yield() }
            #expect(server.watchCount <= 2)
            #expect(server.requests.filter(isCancel).count >= 2)
            try await client.set("k", to: "at last")
            #expect(try await task.value == 1)
        }
    }

    @Test func aClosedClientEndsItsWatches() async throws {
        try await withServer { _, client in
            var updates = client.watch(.all).makeAsyncIterator()
            async let closed: Void = client.close()
            do {
                while try await updates.next() != nil {}
            } catch let error as AspenError {
                #expect(error.code == .unavailable)
            }
            await closed
        }
    }
}

@Suite struct LeaseTests {
    @Test func aLeaseFromGrantToRevoke() async throws {
        try await withServer { server, client in
            let lease = try await client.grantLease(ttl: .seconds(30)).lease
            try await client.set("k", to: "v", lease: lease)
            #expect(try await client.get("k").entry?.lease == lease)
            #expect(try await client.keepLeaseAlive(lease) == .seconds(30))
            let (info, keys) = try await client.leaseTimeToLive(lease, withKeys: true)
            #expect(info.attachedKeys == 1 && keys == [Array("k".utf8)])
            #expect(try await client.leases().leases.map(\.lease) == [lease])
            #expect(try await client.revokeLease(lease).deletedCount == 1)
            #expect(try await client.get("k").entry == nil)
            await #expect(throws: AspenError.self) {
                _ = try await client.keepLeaseAlive(lease)
            }
        }
    }

    @Test func aLostAnswerGrantsOneLease() async throws {
        try await withServer { server, client in
            server.faults([.dropAfter]) { if case .grantLease = $0.request { true } else { false } }
            let lease = try await client.grantLease(ttl: .seconds(1)).lease
            #expect(try await client.leases().leases.map(\.lease) == [lease])
        }
    }

    @Test func holdingEndsWithTheLease() async throws {
        try await withServer { _, client in
            let lease = try await client.grantLease(ttl: .seconds(1)).lease
            let task = Task { () -> AspenErrorCode? in
                do {
                    try await client.holdLease(lease)
                    return nil
                } catch {
                    return (error as? AspenError)?.code
                }
            }
            try await client.revokeLease(lease)
            #expect(await task.value == .notFound)
        }
    }

    @Test func batchesCountsAndHistory() async throws {
        try await withServer { _, client in
            for value in ["1", "2"] { try await client.set("a", to: value) }
            try await client.set("b", to: "3")
            let batch = try await client.batchGet([Array("b".utf8), Array("c".utf8)])
            #expect(batch.entries.map { $0?.value } == [Array("3".utf8), nil])
            #expect(try await client.count(.all).count == 2)
            let history = try await client.history(of: "a".utf8)
            #expect(history.events.map(\.entry.value) == [Array("2".utf8), Array("1".utf8)])
            let page = try await client.scanPage(.all, ScanOptions(isDescending: true))
            #expect(page.entries.map(\.key) == [Array("b".utf8), Array("a".utf8)])
            let visible = KeyRange(from: Array("a".utf8), to: Array("c".utf8))
            let removed = try await client.transaction(if: [], then: [.deleteRange(visible)])
            #expect(removed.results.first?.deletedCount == 2)
        }
    }
}
