// SPDX-License-Identifier: GPL-2.0-or-later

import AspenClient
import AspenTypes
import AspenWire
import FakeRaftServer
import Testing

/// A server and a client on it, both closed afterwards.
func withServer(
    options: AspenClient.Options = .init(),
    _ body: (FakeRaftServer, AspenClient) async throws -> Void
) async throws {
    let server = FakeRaftServer()
    try await server.start()
    do {
        let client = try await AspenClient.connect(.socket(server.path), options: options)
        try await body(server, client)
        await client.close()
    } catch {
        await server.stop()
        throw error
    }
    await server.stop()
}

@Suite struct KeyValueTests {
    @Test func writtenIsRead() async throws {
        try await withServer { _, client in
            let first = try await client.set("greeting", to: "hello")
            #expect(first.version == 1)
            let second = try await client.set("greeting", to: "hello world")
            #expect(second.version == 2)
            #expect(second.revision > first.revision)
            let now = try await client.get("greeting")
            #expect(now.entry?.value == Array("hello world".utf8))
            #expect(now.entry?.createRevision == first.revision)
            #expect(now.entry?.modRevision == second.revision)
            let before = try await client.get("greeting", at: first.revision)
            #expect(before.entry?.value == Array("hello".utf8))
            #expect(try await client.get("nothing").entry == nil)
        }
    }

    // By length, because a failure prints the argument.
    @Test(arguments: [0, 1, 4, 70_000, Limits.valueBytesMax])
    func bytesAreBytes(count: Int) async throws {
        try await withServer { _, client in
            let pattern: [UInt8] = [0xff, 0, 0xc3, 0x80, 0x0a]
            let value = (0..<count).map { pattern[$0 % pattern.count] }
            let key: [UInt8] = [0, 0xff, 0x0a]
            try await client.set(key, to: value)
            let isEqual = try await client.get(key).entry?.value == value
            #expect(isEqual)
        }
    }

    @Test func deletedIsGone() async throws {
        try await withServer { _, client in
            try await client.set("k", to: "v")
            #expect(try await client.delete("k").deleted)
            #expect(try await client.get("k").entry == nil)
            #expect(try await client.delete("k").deleted == false)
        }
    }

    @Test func limitsAreCheckedBeforeSending() async throws {
        try await withServer { server, client in
            let sent = server.requests.count
            let tooMuch: [UInt8] = Array(repeating: 1, count: Limits.valueBytesMax + 1)
            let tooLong: [UInt8] = Array(repeating: 1, count: Limits.keyBytesMax + 1)
            for attempt in [
                { _ = try await client.set("k".utf8, to: tooMuch) },
                { _ = try await client.set(tooLong, to: "v".utf8) },
                { _ = try await client.get(tooLong) },
                { _ = try await client.delete([UInt8]()) },
                { _ = try await client.scanPage(prefix: "".utf8, limit: 1001) },
            ] as [() async throws -> Void] {
                let error = await #expect(throws: AspenError.self) { try await attempt() }
                #expect(error?.code == .invalidArgument)
                #expect(error?.retry == .never)
            }
            #expect(server.requests.count == sent)
        }
    }

    @Test func scanFollowsItsPages() async throws {
        try await withServer { _, client in
            for number in 0..<25 { try await client.set("a\(number + 100)", to: "\(number)") }
            try await client.set("b", to: "other")
            var keys: [String] = []
            var pages = 0
            for try await page in client.scan(prefix: "a".utf8, pageLimit: 10) {
                pages += 1
                keys += page.entries.map { String(decoding: $0.key, as: UTF8.self) }
                // What is written meanwhile is not shown: the first page pinned the revision.
                try await client.set("a999", to: "late")
            }
            #expect(pages == 3)
            #expect(keys == (100..<125).map { "a\($0)" })
        }
    }

    @Test func transactionsCompare() async throws {
        try await withServer { _, client in
            let create = try await client.transaction(
                if: [Compare("lock".utf8, .equal, .exists(false))],
                then: [.put(key: Array("lock".utf8), value: [1])],
                else: [.get(key: Array("lock".utf8))])
            #expect(create.succeeded)
            let again = try await client.transaction(
                if: [Compare("lock".utf8, .equal, .exists(false))],
                then: [.put(key: Array("lock".utf8), value: [2])],
                else: [.get(key: Array("lock".utf8))])
            #expect(!again.succeeded)
            #expect(again.results.first?.entry?.value == [1])
            #expect(again.revision == create.revision)
        }
    }

    @Test func administrationAnswers() async throws {
        try await withServer { server, client in
            #expect(try await client.leader().node == NodeID(1))
            #expect(try await client.health().status == .degraded)
            #expect(try await client.nodeInfo().status.role == "leader")
            #expect(try await Ticket(client.ticket()).endpoints.count == 1)
            _ = try await client.addLearner(NodeID(2), addresses: ["127.0.0.1:7002"])
            let change = try await client.changeMembership(voters: [NodeID(1), NodeID(2)])
            #expect(change.voters == [NodeID(1), NodeID(2)])
            #expect(try await client.clusterStatus().nodes.map(\.role) == ["leader", "follower"])
            let error = await #expect(throws: AspenError.self) { try await client.initCluster() }
            #expect(error?.code == .alreadyInitialized)
            #expect(server.appliedCount == 0)
        }
    }
}
