// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import Glibc
import Logging
import NIOCore
import RaftStorage
import Synchronization
import Testing

@testable import RaftService

/// What can happen to a state whose log has been cut.
enum StateDamage: String, CaseIterable, Sendable {
    case databaseGone, allGone, headerFlipped, everyPageFlipped, replacedByText, truncated

    func inflict(on directory: String) throws {
        let database = directory + "/state.db"
        switch self {
        case .databaseGone: unlink(database)
        case .allGone: try FileManager.default.removeItem(atPath: directory)
        case .headerFlipped: try Self.flip(database, everyPage: false)
        case .everyPageFlipped: try Self.flip(database, everyPage: true)
        case .replacedByText:
            try Data("this is no database".utf8).write(to: URL(fileURLWithPath: database))
        case .truncated: #expect(truncate(database, 5000) == 0)
        }
        // The checkpoint of the stop has put all of it into the database.
        if self != .allGone { unlink(database + "-wal") }
    }

    /// Flips a bit of one page, or of that and all behind it but some.
    static func flip(
        _ path: String, from first: Int = 0, everyPage: Bool, sparingLast spared: Int = 0
    ) throws {
        let descriptor = open(path, O_RDWR)
        try #require(descriptor >= 0)
        defer { close(descriptor) }
        let count = lseek(descriptor, 0, SEEK_END) - spared * 4096
        let start = first * 4096
        for page in stride(from: start, to: everyPage ? count : start + 1, by: 4096) {
            var byte: UInt8 = 0
            #expect(pread(descriptor, &byte, 1, page + 40) == 1)
            byte ^= 0x20
            #expect(pwrite(descriptor, &byte, 1, page + 40) == 1)
        }
    }
}

/// Why a node stopped by itself.
private final class Stop: Sendable {
    private let reason = Mutex<StorageError?>(nil)
    var isCorruption: Bool {
        if case .corrupt? = reason.withLock({ $0 }) { true } else { false }
    }
    func record(_ error: StorageError) { reason.withLock { $0 = error } }
}

/// A corrupt input must never become a crash loop.
@Suite(.serialized) struct DamageTests {
    /// Small segments, no tail: the log is cut soon and right behind the checkpoint.
    static let shortLog: @Sendable (inout RaftSettings) -> Void = { settings in
        settings.options.logTailEntries = 0
        settings.log.segmentBytes = 16 << 10
    }

    private func start(
        _ cluster: TestCluster, _ id: NodeID, _ directory: String, _ stop: Stop? = nil
    ) async throws {
        try await cluster.start(
            id, storage: PersistenceTests.persistent(directory), adjust: Self.shortLog,
            onFatal: { error in
                if let stop { stop.record(error) } else { Issue.record("stopped: \(error)") }
            })
    }

    private static func value(_ number: Int) -> [UInt8] {
        Array("v\(number)".utf8) + [UInt8](repeating: 0xff, count: 200)
    }

    /// Writes through the first, and cuts the log of every node that has a client here.
    private func fill(_ clients: [TestClient]) async throws {
        var waiting: [EventLoopFuture<WireResponse>] = []
        for number in 0..<400 {
            waiting.append(clients[0].put("k\(number)", Self.value(number)))
        }
        for answer in waiting { #expect(try await answer.get().failure == nil) }
        for client in clients {
            // Linearizable: applied here by the time it is answered.
            _ = try await client.get("k0")
            #expect(try await client.ask(.triggerSnapshot(.init())).failure == nil)
            while try await client.ask(.getNodeInfo(.init())).getNodeInfo.firstLogIndex < 300 {}
        }
    }

    private func threeNodes(_ directory: String) async throws -> (TestCluster, [TestClient]) {
        let cluster = TestCluster(3)
        for id in cluster.ids { try await start(cluster, id, directory) }
        try await cluster.found()
        var clients: [TestClient] = []
        for id in cluster.ids { clients.append(try await cluster.client(of: id)) }
        try await fill(clients)
        return (cluster, clients)
    }

    /// The node answers "not now" until it has everything that the cluster has.
    private func isWhole(_ cluster: TestCluster, _ id: NodeID, like other: TestClient) async throws
    {
        let client = try await cluster.client(of: id)
        while let failure = try await client.get("k1").failure {
            #expect(failure.code == .unavailable, "\(failure)")
        }
        for number in 0..<400 {
            let read = try await client.get("k\(number)", stale: true)
            #expect(read.readKey.entry.value == Data(Self.value(number)))
        }
        let left = try await client.ask(.getNodeInfo(.init())).getNodeInfo
        let right = try await other.ask(.getNodeInfo(.init())).getNodeInfo
        #expect(left.node.applied == right.node.applied)
        #expect(left.stateHash == right.stateHash)
        #expect(left.node.isVoter)
    }

    @Test(.timeLimit(.minutes(1)), arguments: StateDamage.allCases)
    func aLostStateIsFilledByTheOthers(damage: StateDamage) async throws {
        let scratch = try ScratchDirectory()
        let (cluster, clients) = try await threeNodes(scratch.path)
        let victim = NodeID(3)
        try await cluster.kill(victim)
        try damage.inflict(on: scratch.path + "/3/state")
        // Again: what the first start left behind is a start's input, too.
        for _ in 0..<2 {
            try await start(cluster, victim, scratch.path)
            try await isWhole(cluster, victim, like: clients[0])
            try await cluster.kill(victim)
        }
        // It votes again: with another one gone, the two of them go on.
        try await start(cluster, victim, scratch.path)
        try await isWhole(cluster, victim, like: clients[0])
        try await cluster.kill(NodeID(1))
        let put = try await cluster.client(of: victim).put("after", [1]).get()
        #expect(put.failure == nil, "\(put)")
        try await cluster.stop()
    }

    /// Pages that opening does not look at (it looks for the last change): nothing of them is
    /// served, the daemon stops once, and the next start makes the state anew.
    @Test(.timeLimit(.minutes(1))) func aPageFoundDamagedLaterStopsTheNodeOnce() async throws {
        let scratch = try ScratchDirectory()
        let (cluster, clients) = try await threeNodes(scratch.path)
        let victim = NodeID(3)
        try await cluster.kill(victim)
        try StateDamage.flip(
            scratch.path + "/3/state/state.db", from: 13, everyPage: true, sparingLast: 8)
        unlink(scratch.path + "/3/state/state.db-wal")
        let stop = Stop()
        try await start(cluster, victim, scratch.path, stop)
        let client = try await cluster.client(of: victim)
        for number in 0..<400 where !stop.isCorruption {
            var body = Aspen_Client_V1_ReadKeyRequest()
            body.key = Data("k\(number)".utf8)
            body.consistency = .stale
            let answer = Mutex<WireResponse?>(nil)
            client.send(.readKey(body)).whenSuccess { response in answer.withLock { $0 = response }
            }
            while answer.withLock({ $0 }) == nil, !stop.isCorruption { await Task.yield() }
            guard let read = answer.withLock({ $0 }) else { break }
            #expect(read.readKey.entry.value == Data(Self.value(number)), "\(read)")
        }
        #expect(stop.isCorruption)
        try await cluster.kill(victim)
        try await start(cluster, victim, scratch.path)
        try await isWhole(cluster, victim, like: clients[0])
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1)), arguments: StateDamage.allCases)
    func aloneItSaysWhyAndStaysUp(damage: StateDamage) async throws {
        let scratch = try ScratchDirectory()
        let cluster = TestCluster(1)
        let id = NodeID(1)
        try await start(cluster, id, scratch.path)
        try await cluster.found()
        try await fill([try await cluster.client(of: id)])
        try await cluster.kill(id)
        try damage.inflict(on: scratch.path + "/1/state")
        for _ in 0..<3 {
            try await start(cluster, id, scratch.path)
            let client = try await cluster.client(of: id)
            for stale in [true, false] {
                let failure = try #require(try await client.get("k1", stale: stale).failure)
                #expect(failure.code == .unavailable)
                #expect(failure.message.contains("lost its state"), "\(failure)")
            }
            #expect(try await client.put("k1", [1]).get().failure?.code == .unavailable)
            let again = try await client.ask(.initCluster(.init()))
            #expect(again.failure?.message.contains("lost its state") == true, "\(again)")
            #expect(try await client.ask(.getHealth(.init())).getHealth.status == "unavailable")
            try await cluster.kill(id)
        }
        // What was found is still there for whoever wants to look at it.
        let kept = access(scratch.path + "/1/state/state.db.set-aside", F_OK) == 0
        #expect(kept == (damage != .databaseGone && damage != .allGone))
        try await cluster.stop()
    }
}
