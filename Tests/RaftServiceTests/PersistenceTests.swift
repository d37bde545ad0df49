// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import AspenWire
import FoundationEssentials
import Glibc
import Logging
import NIOCore
import RaftStorage
import Testing

@testable import RaftService

/// A directory that is gone when the test is over.
final class ScratchDirectory: Sendable {
    let path: String

    init() throws {
        var template = Array("/tmp/aspen-raft-XXXXXX".utf8CString)
        let made = template.withUnsafeMutableBufferPointer {
            $0.baseAddress.flatMap { mkdtemp($0) }
        }
        path = String(cString: try #require(made))
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

@Suite(.serialized) struct PersistenceTests {
    static func persistent(
        _ directory: String
    ) -> @Sendable (RaftSettings) throws -> OpenedStorage {
        { settings in
            var settings = settings
            settings.backend = .persistent
            settings.stateDirectory = "\(directory)/\(settings.node)"
            return try OpenedStorage.open(settings, logger: Logger(label: "test"))
        }
    }

    @Test(.timeLimit(.minutes(1))) func survivesARestart() async throws {
        let scratch = try ScratchDirectory()
        let cluster = TestCluster(1)
        let id = NodeID(1)
        try await cluster.start(id, storage: Self.persistent(scratch.path))
        try await cluster.found()
        var client = try await cluster.client(of: id)
        for count in 0..<300 {
            _ = try await client.put("k\(count)", Array("\(count)".utf8)).get()
        }
        let before = try await client.ask(.getNodeInfo(.init())).getNodeInfo
        try await cluster.kill(id)
        try await cluster.start(id, storage: Self.persistent(scratch.path))
        client = try await cluster.client(of: id)
        for count in 0..<300 {
            let read = try await client.get("k\(count)").readKey
            #expect(read.entry.value == Data("\(count)".utf8))
        }
        let after = try await client.ask(.getNodeInfo(.init())).getNodeInfo
        #expect(after.replicaID == before.replicaID)
        #expect(after.clusterID == before.clusterID)
        try await cluster.stop()
    }

    /// Who waits for a killed node waits for its syncs: there is one, of the log.
    @Test(.timeLimit(.minutes(1))) func aRestartSyncsTheLogOnceAndNothingElse() async throws {
        let scratch = try ScratchDirectory()
        let cluster = TestCluster(1)
        let id = NodeID(1)
        let recorder = WriteRecorder()
        try await cluster.start(
            id,
            storage: { settings in
                var settings = settings
                settings.backend = .persistent
                settings.stateDirectory = "\(scratch.path)/\(settings.node)"
                return try OpenedStorage.open(
                    settings, logger: Logger(label: "test"), recorder: recorder)
            }, adjust: CutNode.adjust)
        try await cluster.found()
        let client = try await cluster.client(of: id)
        for count in 0..<500 { _ = try await client.put("k\(count)", [7]).get() }
        var killed = PowerCutReplay(events: recorder.events)
        try await cluster.stop()
        killed.advance(to: killed.events.count)
        let node = try CutNode(killed.currentImage, id)
        let restart = WriteRecorder()
        let storage = try node.open(recorder: restart)
        defer { storage.close() }
        #expect(storage.state.appliedIndex > .zero)
        #expect(storage.log.lastIndex >= LogIndex(500))
        let syncs = restart.events.count {
            switch $0 {
            case .syncBegan, .directorySyncBegan: true
            default: false
            }
        }
        #expect(syncs == 1)
        // A sync is two events: it begins and ends.
        #expect(NodeRecording(events: restart.events).syncs { $0.hasPrefix("log/log-") } == 2)
    }

    @Test(.timeLimit(.minutes(1))) func threeNodesAllKilledAtOnce() async throws {
        let scratch = try ScratchDirectory()
        let cluster = TestCluster(3)
        for id in cluster.ids {
            try await cluster.start(id, storage: Self.persistent(scratch.path))
        }
        try await cluster.found()
        let client = try await cluster.client(of: NodeID(2))
        for count in 0..<200 { _ = try await client.put("k\(count)", [7]).get() }
        for id in cluster.ids { try await cluster.kill(id) }
        for id in cluster.ids {
            try await cluster.start(id, storage: Self.persistent(scratch.path))
        }
        let reader = try await cluster.client(of: NodeID(3))
        for count in 0..<200 {
            #expect(try await reader.get("k\(count)").readKey.entry.value == Data([7]))
        }
        try await cluster.stop()
    }

    @Test func aDirectoryBelongsToOneNode() throws {
        let scratch = try ScratchDirectory()
        var settings = try RaftSettings(
            arguments: ["--node-id", "1", "--state-dir", scratch.path + "/d"])
        let logger = Logger(label: "test")
        let first = try OpenedStorage.open(settings, logger: logger)
        #expect(throws: (any Error).self) {
            _ = try OpenedStorage.open(settings, logger: logger)  // locked
        }
        first.close()
        settings.node = NodeID(2)
        #expect(throws: AspenError.self) { _ = try OpenedStorage.open(settings, logger: logger) }
    }
}
