// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import Glibc
import NIOCore
import RaftCore
import RaftStorage
import Testing

@testable import RaftService

/// A snapshot goes on where it was when the daemon that takes it in has died on the way.
@Suite(.serialized) struct SnapshotResumeTests {
    private struct Source: Sendable {
        var meta: SnapshotMeta
        var pieces: [[UInt8]]
        var hash: UInt64

        /// What a leader would send, from piece `first` on.
        func messages(_ range: Range<Int>, transfer id: UInt64 = 77) -> [Message] {
            range.map { place in
                let offset = pieces[..<place].reduce(0) { $0 + $1.count }
                return Message(
                    from: NodeID(1), to: NodeID(2), term: meta.term,
                    body: .snapshotChunk(
                        SnapshotChunk(
                            id: id, meta: meta, offset: UInt64(offset), bytes: pieces[place],
                            isLast: place == pieces.count - 1)))
            }
        }

        func bytes(_ range: Range<Int>) -> UInt64 {
            pieces[range].reduce(0) { $0 + UInt64($1.count) }
        }
    }

    /// A snapshot of five pieces or so, of a node that is gone.
    private func source(_ cluster: TestCluster) async throws -> Source {
        let running = try await cluster.start(NodeID(1))
        let client = try await cluster.client(of: NodeID(1))
        #expect(try await client.ask(.initCluster(.init())).failure == nil)
        for count in 0..<45 {
            _ = try await client.put("big-\(count)", [UInt8](repeating: 7, count: 100_000)).get()
        }
        let promise = running.loop.makePromise(of: Source.self)
        running.loop.execute {
            running.server.node.state.perform { store in
                let reader = try store.makeSnapshot()
                var source = Source(
                    meta: reader.meta, pieces: [], hash: try store.contentHash())
                while let piece = try reader.next() { source.pieces.append(piece) }
                source.pieces.append([])
                reader.close()
                return { [source] in promise.succeed(source) }
            }
        }
        let source = try await promise.futureResult.get()
        try #require(source.pieces.count >= 5)
        try await cluster.kill(NodeID(1))
        return source
    }

    private func give(_ messages: [Message], to node: TestCluster.Running) async throws {
        try await node.loop.submit {
            for message in messages { node.server.node.received(message) }
        }.get()
    }

    /// Bytes taken in of the transfer under way; nil if there is none.
    private func written(_ node: TestCluster.Running) async throws -> UInt64? {
        try await node.loop.submit { node.server.node.snapshots.incoming?.written }.get()
    }

    @Test(.timeLimit(.minutes(1))) func goesOnAfterARestart() async throws {
        let scratch = try ScratchDirectory()
        let storage = PersistenceTests.persistent(scratch.path)
        let cluster = TestCluster(2)
        let source = try await source(cluster)
        var node = try await cluster.start(NodeID(2), storage: storage)
        try await give(source.messages(0..<3), to: node)
        while try await written(node) != source.bytes(0..<3) {}
        try await cluster.kill(NodeID(2))

        node = try await cluster.start(NodeID(2), storage: storage)
        // The acknowledgement of the third piece was lost, and the link broke once more.
        try await give(source.messages(2..<4) + source.messages(2..<source.pieces.count), to: node)
        let client = try await cluster.client(of: NodeID(2))
        let info = try await client.nodeInfo(applied: source.meta.index.rawValue)
        #expect(info.node.applied == source.meta.index.rawValue)
        #expect(info.stateHash == source.hash)
        let again = try await node.loop.submit { [node] in
            node.server.node.metrics.snapshotBytesReceived
        }.get()
        #expect(again == source.bytes(3..<source.pieces.count), "what it had was not sent again")
        let path = "\(scratch.path)/2/state/snapshot.partial"
        #expect(!FileManager.default.fileExists(atPath: path))
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func beginsAnewWhereWhatItHasIsOfNoUse() async throws {
        let scratch = try ScratchDirectory()
        let storage = PersistenceTests.persistent(scratch.path)
        let cluster = TestCluster(2)
        let source = try await source(cluster)
        var node = try await cluster.start(NodeID(2), storage: storage)
        try await give(source.messages(0..<3), to: node)
        while try await written(node) != source.bytes(0..<3) {}
        try await cluster.kill(NodeID(2))

        node = try await cluster.start(NodeID(2), storage: storage)
        // Another transfer: nothing of that one is here.
        try await give(source.messages(2..<4, transfer: 78), to: node)
        while try await written(node) != nil {}
        // This one, but a power cut has taken some of what was acknowledged.
        let path = "\(scratch.path)/2/state/snapshot.partial"
        #expect(truncate(path, 1_500_000) == 0)
        try await give(source.messages(3..<4), to: node)
        while try await written(node) != nil {}
        try await give(source.messages(0..<source.pieces.count), to: node)
        let client = try await cluster.client(of: NodeID(2))
        let info = try await client.nodeInfo(applied: source.meta.index.rawValue)
        #expect(info.stateHash == source.hash)
        try await cluster.stop()
    }

    /// The place it takes is given back when nobody goes on with it.
    @Test(.timeLimit(.minutes(1))) func whatNobodyGoesOnWithIsRemoved() async throws {
        let scratch = try ScratchDirectory()
        let storage = PersistenceTests.persistent(scratch.path)
        let cluster = TestCluster(2)
        let source = try await source(cluster)
        var node = try await cluster.start(NodeID(2), storage: storage)
        try await give(source.messages(0..<3), to: node)
        while try await written(node) != source.bytes(0..<3) {}
        try await cluster.kill(NodeID(2))
        let path = "\(scratch.path)/2/state/snapshot.partial"
        #expect(FileManager.default.fileExists(atPath: path))

        node = try await cluster.start(
            NodeID(2), storage: storage,
            adjust: { $0.options.snapshots.partialKept = .milliseconds(1) })
        while FileManager.default.fileExists(atPath: path) {}
        try await give(source.messages(3..<4), to: node)
        while try await written(node) != nil {}
        try await give(source.messages(0..<source.pieces.count, transfer: 79), to: node)
        let client = try await cluster.client(of: NodeID(2))
        let info = try await client.nodeInfo(applied: source.meta.index.rawValue)
        #expect(info.stateHash == source.hash)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(1))) func damageIsNotPutInForce() async throws {
        let scratch = try ScratchDirectory()
        let storage = PersistenceTests.persistent(scratch.path)
        let cluster = TestCluster(2)
        let source = try await source(cluster)
        var node = try await cluster.start(NodeID(2), storage: storage)
        try await give(source.messages(0..<3), to: node)
        while try await written(node) != source.bytes(0..<3) {}
        try await cluster.kill(NodeID(2))
        let path = "\(scratch.path)/2/state/snapshot.partial"
        var bytes = try Data(contentsOf: URL(filePath: path))
        bytes[1_700_000] ^= 1
        try bytes.write(to: URL(filePath: path))

        node = try await cluster.start(NodeID(2), storage: storage)
        try await give(source.messages(3..<source.pieces.count), to: node)
        while try await written(node) != nil {}
        let client = try await cluster.client(of: NodeID(2))
        #expect(try await client.nodeInfo().node.applied == 0)
        try await give(source.messages(0..<source.pieces.count, transfer: 79), to: node)
        _ = try await client.nodeInfo(applied: source.meta.index.rawValue)
        try await cluster.stop()
    }
}
