// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import Glibc
import Logging
import NIOCore
import RaftStorage
import Testing

@testable import RaftService

@Suite(.serialized) struct BackupTests {
    /// All pieces of a backup, and what its first one says.
    private func backup(
        _ client: TestClient
    ) async throws -> (bytes: [UInt8], first: Aspen_Client_V1_BackupResponse) {
        let parts = try await client.stream(.backup(.init())) { response in
            response.failure != nil || response.backup.isLast
        }
        let failure = parts.compactMap(\.failure).first
        try #require(failure == nil, "\(String(describing: failure))")
        return (parts.flatMap { Array($0.backup.chunk) }, try #require(parts.first).backup)
    }

    private func restore(
        _ bytes: [UInt8], _ client: TestClient, piece: Int = 70_000
    ) async throws -> WireResponse {
        var offset = 0
        while true {
            var body = Aspen_Client_V1_RestoreChunkRequest()
            body.offset = UInt64(offset)
            body.chunk = Data(bytes[offset..<min(bytes.count, offset + piece)])
            body.isLast = offset + piece >= bytes.count
            let answer = try await client.ask(.restoreChunk(body), timeoutMs: 60_000)
            if answer.failure != nil || body.isLast { return answer }
            offset += piece
            #expect(answer.restoreChunk.received == UInt64(offset))
        }
    }

    private func everything(
        _ client: TestClient, at revision: UInt64 = 0
    ) async throws -> [Aspen_Client_V1_KeyValue] {
        var all: [Aspen_Client_V1_KeyValue] = []
        var scan = Aspen_Client_V1_ScanKeysRequest()
        scan.revision = revision
        repeat {
            let page = try await client.ask(.scanKeys(scan))
            try #require(page.failure == nil, "\(page)")
            all += page.scanKeys.entries
            scan.continuation = page.scanKeys.continuation
        } while !scan.continuation.isEmpty
        return all
    }

    private func storage(_ directory: String) -> @Sendable (RaftSettings) throws -> OpenedStorage {
        { settings in
            var settings = settings
            settings.backend = .persistent
            settings.stateDirectory = "\(directory)/\(settings.node)"
            return try OpenedStorage.open(settings, logger: Logger(label: "backup"))
        }
    }

    private func scratch() throws -> String {
        var template = Array("/tmp/aspen-backup-XXXXXX".utf8CString)
        return String(cString: try #require(mkdtemp(&template)))
    }

    @Test(.timeLimit(.minutes(2))) func whatIsRestoredIsWhatWasThere() async throws {
        let directory = try scratch()
        defer { _ = system("rm -r '\(directory)'") }
        let cluster = TestCluster(4)
        try await cluster.start(NodeID(1), storage: storage(directory))
        let client = try await cluster.client(of: NodeID(1))
        #expect(try await client.ask(.initCluster(.init())).failure == nil)
        _ = try await client.ask(.openSession(.init()))
        let large = [UInt8](repeating: 9, count: 300_000)
        for count in 0..<300 {
            _ = try await client.put("k-\(count % 200)", [UInt8(count % 250)]).get()
        }
        for count in 0..<8 { _ = try await client.put("large-\(count)", large).get() }
        let last = try await client.put("k-7", [77]).get().writeKey.revision
        let before = try await everything(client)
        // Writes go on while it is taken, and are not in it.
        async let taken = backup(client)
        for count in 0..<50 { _ = try await client.put("later-\(count)", [1]).get() }
        let (bytes, first) = try await taken
        #expect(first.revision >= last)
        #expect(bytes.count > 2_400_000)

        // Onto an empty node of another number, in memory and on a disk.
        for target in [NodeID(2), NodeID(3)] {
            try await cluster.start(
                target, storage: target == NodeID(3) ? storage(directory) : nil)
            let fresh = try await cluster.client(of: target)
            let restored = try await restore(bytes, fresh)
            #expect(restored.failure == nil, "\(restored)")
            #expect(restored.restoreChunk.revision == first.revision)
            #expect(restored.restoreChunk.clusterID != first.clusterID)
            #expect(
                try await everything(fresh).filter { !$0.key.starts(with: Data("later".utf8)) }
                    == before)
            #expect(try await fresh.get("k-7", revision: last - 1).failure == nil, "history too")
            // It goes on from there.
            let put = try await fresh.put("new", [1]).get()
            #expect(put.writeKey.revision == first.revision + 1)
            #expect(try await restore(bytes, fresh).failure?.code == .alreadyInitialized)
        }
        // After a restart it is all still there; and a learner gets all of it.
        try await cluster.kill(NodeID(3))
        try await cluster.start(NodeID(3), storage: storage(directory))
        let again = try await cluster.client(of: NodeID(3))
        let kept = try await everything(again)
        #expect(
            kept.count == before.count + 1
                + kept.filter { $0.key.starts(with: Data("later".utf8)) }.count)
        try await cluster.start(NodeID(4))
        #expect(try await again.addLearner(4).failure == nil)
        let learner = try await cluster.client(of: NodeID(4))
        while try await learner.get("new").failure != nil {}
        #expect(try await everything(learner) == kept)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(2))) func aDamagedBackupLeavesTheNodeEmpty() async throws {
        let cluster = TestCluster(2)
        for id in cluster.ids { try await cluster.start(id) }
        let client = try await cluster.client(of: NodeID(1))
        #expect(try await client.ask(.backup(.init())).failure?.code == .notInitialized)
        #expect(try await client.ask(.initCluster(.init())).failure == nil)
        for count in 0..<100 { _ = try await client.put("k-\(count)", [1, 2, 3]).get() }
        let (bytes, _) = try await backup(client)
        let fresh = try await cluster.client(of: NodeID(2))
        // One bit anywhere, and cut anywhere.
        for place in stride(from: 0, to: bytes.count, by: bytes.count / 60 + 1) {
            var damaged = bytes
            damaged[place] ^= 1
            let code = try await restore(damaged, fresh).failure?.code
            #expect(code == .corrupt || code == .unsupportedVersion, "\(place)")
            #expect(try await restore(Array(bytes[..<place]), fresh).failure?.code == .corrupt)
        }
        // A piece that does not follow.
        var body = Aspen_Client_V1_RestoreChunkRequest()
        body.offset = 5
        body.chunk = Data([1])
        #expect(try await fresh.ask(.restoreChunk(body)).failure?.code == .preconditionFailed)
        #expect(try await fresh.get("k-1").failure?.code == .notInitialized)
        #expect(try await restore(bytes, fresh).failure == nil)
        #expect(try await fresh.get("k-1").readKey.entry.value == Data([1, 2, 3]))
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(2))) func oneOfThreeGoesOnAlone() async throws {
        let cluster = TestCluster(4)
        for id in cluster.ids.prefix(3) { try await cluster.start(id) }
        let first = try await cluster.client(of: NodeID(1))
        #expect(try await first.ask(.initCluster(.init())).failure == nil)
        for node in UInt64(2)...3 {
            #expect(try await first.addLearner(node).failure == nil)
        }
        var change = Aspen_Client_V1_ChangeMembershipRequest()
        change.voters = [1, 2, 3]
        #expect(try await first.ask(.changeMembership(change)).failure == nil)
        for count in 0..<50 { _ = try await first.put("k-\(count)", [1]).get() }
        let survivor = try await cluster.client(of: NodeID(2))
        while try await survivor.get("k-49").readKey.hasEntry == false {}
        // A quorum has agreed without it, perhaps: one that knows nothing yet would rightly be taken.
        let stranger = try await cluster.client(of: NodeID(3))
        while try await stranger.get("k-49").readKey.hasEntry == false {}
        let old = try await survivor.ask(.getNodeInfo(.init())).getNodeInfo.clusterID
        var recover = Aspen_Client_V1_RecoverQuorumRequest()
        recover.clusterID = old
        // While there is a leader there is nothing to recover.
        #expect(
            try await survivor.ask(.recoverQuorum(recover)).failure?.code == .preconditionFailed)
        try await cluster.kill(NodeID(1))
        // Cut off, not dead: it must not matter.
        cluster.network.cut(NodeID(2), NodeID(3))
        while try await survivor.ask(.getLeader(.init())).getLeader.leaderID != 0 {}
        recover.clusterID = "0"
        #expect(
            try await survivor.ask(.recoverQuorum(recover)).failure?.code == .preconditionFailed)
        recover.clusterID = old
        let recovered = try await survivor.ask(.recoverQuorum(recover))
        #expect(recovered.failure == nil, "\(recovered)")
        #expect(try await survivor.put("after", [1]).get().failure == nil)
        #expect(try await everything(survivor).count == 51)
        let info = try await survivor.ask(.getNodeInfo(.init())).getNodeInfo
        #expect(info.clusterID != old)
        let term = info.node.term
        // The other old one comes back: it is neither led nor heard.
        cluster.network.mend(NodeID(2), NodeID(3))
        #expect(try await stranger.put("split", [1]).get().failure != nil)
        #expect(try await stranger.get("after", stale: true).readKey.hasEntry == false)
        #expect(try await survivor.ask(.getLeader(.init())).getLeader.term == term)
        let refused = try await survivor.addLearner(3)
        #expect(
            refused.failure?.code == .preconditionFailed
                || refused.failure?.code == .permissionDenied, "\(refused)")
        // A fresh one joins, through a log that speaks of the old cluster.
        try await cluster.start(NodeID(4))
        #expect(try await survivor.addLearner(4).failure == nil)
        let learner = try await cluster.client(of: NodeID(4))
        while try await learner.get("after").failure != nil {}
        #expect(try await everything(learner).count == 51)
        try await cluster.stop()
    }
}
