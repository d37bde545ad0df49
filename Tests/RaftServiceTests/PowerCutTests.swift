// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import Logging
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit
import Synchronization
import Testing

@testable import RaftService

/// Power cuts of whole running nodes: all that a node under load writes and syncs, log and database
/// in one order, is recorded; from images that a power cut would permit, the real storage is opened
/// and must have everything that a client was told is there.
///
/// ASPEN_POWER_CUT_IMAGES multiplies the number of images.
@Suite(.serialized) struct PowerCutTests {
    private static let factor = Environment["ASPEN_POWER_CUT_IMAGES"].flatMap { Int($0) } ?? 1

    private func start(
        _ cluster: TestCluster, _ id: NodeID, _ directory: String, _ recorder: WriteRecorder,
        diskSpace: (@Sendable () -> DiskSpace?)? = nil
    ) async throws -> TestClient {
        try await cluster.start(
            id,
            storage: { settings in
                var settings = settings
                settings.backend = .persistent
                settings.stateDirectory = "\(directory)/\(settings.node)"
                settings.diskSpace = diskSpace
                return try OpenedStorage.open(
                    settings, logger: Logger(label: "test"), recorder: recorder)
            }, adjust: CutNode.adjust)
        return try await cluster.client(of: id)
    }

    /// One voter, whose word is its own: nothing but its disk has what it acknowledged. It is
    /// stopped and started twice.
    private func recordAlone(
        diskSpace: (@Sendable () -> DiskSpace?)? = nil
    ) async throws -> NodeRecording {
        let directory = try MemoryDirectory()
        let recorder = WriteRecorder()
        let cluster = TestCluster(1)
        let ledger = PromiseLedger()
        ledger.binds(recorder)
        var load = Load(ledger)
        for life in 0..<3 {
            let client = try await start(
                cluster, NodeID(1), directory.path, recorder, diskSpace: diskSpace)
            if life == 0 { try await cluster.found() }
            try await load.run(client, writes: 120)
            try await cluster.kill(NodeID(1))
        }
        try await cluster.stop()
        return NodeRecording(events: recorder.events)
    }

    private func complaints(
        _ recording: NodeRecording, _ node: UInt64 = 1, images: Int, seed: UInt64
    ) async throws -> [String] {
        var result: [String] = []
        try await recording.forEachCut(count: images, seed: seed) { cut, image, promised in
            let complaint = try CutNode(image, NodeID(node)).complaint(promised)
            if let complaint { result.append("cut at \(cut): \(complaint)") }
        }
        return result
    }

    /// That the load made the storage do all that it can do.
    private func isThorough(_ recording: NodeRecording, checkpoints: Int) {
        var removedOrRenamed = 0
        for case .rename(let name, _) in recording.events where name.hasPrefix("log/") {
            removedOrRenamed += 1
        }
        #expect(removedOrRenamed > 20, "segments are recycled")
        #expect(recording.syncs { $0 == "state/state.db" } >= checkpoints)
        #expect(recording.syncs { $0.hasPrefix("log/") } > 200)
    }

    @Test(.timeLimit(.minutes(3 + factor))) func aNodeAloneLosesNothing() async throws {
        let recording = try await recordAlone()
        isThorough(recording, checkpoints: 10)
        let complaints = try await complaints(recording, images: 500 * Self.factor, seed: 1)
        #expect(complaints.isEmpty, "\(complaints.count): \(complaints.prefix(3))")
        try await cutAgain(recording)
        try await serve(recording)
        for omission in Omission.allCases {
            let faulty = recording.omittingSyncs(of: omission.isMeant)
            #expect(faulty.events.count < recording.events.count)
            let found = try await self.complaints(faulty, images: 80, seed: 2)
            #expect(found.count > 0, "nobody misses the syncs of: \(omission)")
            print("syncs left out, \(omission): \(found.count) of 80 images have lost something")
        }
    }

    /// The log is cut to the last checkpoint, history is compacted and the database gives back pages
    /// all the time; now and then puts are refused.
    @Test(.timeLimit(.minutes(3 + factor))) func aNodeShortOfSpaceLosesNothing() async throws {
        let looks = Atomic<Int>(0)
        let recording = try await recordAlone(diskSpace: {
            let look = looks.add(1, ordering: .relaxed).newValue
            return DiskSpace(capacity: 64 << 20, available: look % 8 < 2 ? 0 : 20 << 20)
        })
        #expect(looks.load(ordering: .relaxed) > 16)
        let complaints = try await complaints(recording, images: 200 * Self.factor, seed: 3)
        #expect(complaints.isEmpty, "\(complaints.count): \(complaints.prefix(3))")
    }

    /// Syncs whose absence must be noticed.
    private enum Omission: CaseIterable {
        case log, database, writeAheadLog, logDirectory

        var isMeant: (String) -> Bool {
            switch self {
            case .log: { $0.hasPrefix("log/") && $0 != "log/" }
            case .database: { $0 == "state/state.db" }
            case .writeAheadLog: { $0 == "state/state.db-wal" }
            case .logDirectory: { $0 == "log/" }
            }
        }
    }

    /// The power fails again while the node recovers, or soon after.
    private func cutAgain(_ recording: NodeRecording) async throws {
        var seed: UInt64 = 0
        try await recording.forEachCut(count: 50 * Self.factor, seed: 3) { cut, image, promised in
            let recorder = WriteRecorder()
            let first = try CutNode(image, NodeID(1)).complaint(promised, recorder: recorder)
            #expect(first == nil, "cut at \(cut)")
            seed += 1
            let second = NodeRecording(events: recorder.events)
            try await second.forEachCut(
                count: 4, seed: seed, from: image.files.count
            ) { again, image, _ in
                let complaint = try CutNode(image, NodeID(1)).complaint(promised)
                #expect(complaint == nil, "cut at \(cut), and at \(again) of the recovery")
            }
        }
    }

    /// A whole node starts from the image and answers clients.
    private func serve(_ recording: NodeRecording) async throws {
        let cluster = TestCluster(1)
        let id = NodeID(1)
        try await recording.forEachCut(count: 25, seed: 4) { _, image, promised in
            guard !promised.isEmpty else { return }
            let cut = try CutNode(image, id)
            try await cluster.start(
                id, storage: { _ in try cut.open() },
                adjust: {
                    CutNode.adjust(&$0)
                    $0.options.raft.heartbeatInterval = .milliseconds(20)
                })
            let client = try await cluster.client(of: id)
            #expect(try await client.put("after", [1]).get().failure == nil)
            for (key, version) in promised.sorted(by: { $0.key < $1.key }).prefix(20) {
                let read = try await client.get(key)
                let found = Load.version(Array(read.readKey.entry.value)) ?? -1
                #expect(found >= version, "\(key): \(read.failure.map { "\($0)" } ?? "")")
            }
            try await cluster.kill(id)
        }
        try await cluster.stop()
    }

    /// Two voters: each has to have everything. The second one joins late, is filled by a snapshot
    /// while clients write, and is stopped and started.
    @Test(.timeLimit(.minutes(3 + factor))) func neitherOfTwoLosesAnything() async throws {
        let directory = try MemoryDirectory()
        let recorders = [WriteRecorder(), WriteRecorder()]
        let cluster = TestCluster(2)
        let ledger = PromiseLedger()
        ledger.binds(recorders[0])
        var load = Load(ledger)
        let one = try await start(cluster, NodeID(1), directory.path, recorders[0])
        #expect(try await one.ask(.initCluster(.init())).failure == nil)
        try await load.run(one, writes: 60)
        #expect(try await one.ask(.triggerSnapshot(.init())).failure == nil)
        while try await one.ask(.getNodeInfo(.init())).getNodeInfo.firstLogIndex < 500 {}
        _ = try await start(cluster, NodeID(2), directory.path, recorders[1])
        #expect(try await one.addLearner(2).failure == nil)
        try await load.run(one, writes: 40)
        var voters = Aspen_Client_V1_ChangeMembershipRequest()
        voters.voters = [1, 2]
        #expect(try await one.ask(.changeMembership(voters)).failure == nil)
        ledger.binds(recorders[1])
        try await load.run(one, writes: 60)
        try await cluster.kill(NodeID(2))
        let two = try await start(cluster, NodeID(2), directory.path, recorders[1])
        try await load.run(two, writes: 60)
        try await cluster.stop()
        let recordings = recorders.map { NodeRecording(events: $0.events) }
        for recording in recordings { isThorough(recording, checkpoints: 5) }
        #expect(
            recordings[1].events.contains(
                .rename(from: "state/state.db.incoming", to: "state/state.db")),
            "a snapshot was installed")
        for (place, images) in [150, 250].enumerated() {
            let complaints = try await complaints(
                recordings[place], UInt64(place + 1), images: images * Self.factor, seed: 5)
            #expect(complaints.isEmpty, "node \(place + 1): \(complaints.prefix(3))")
        }
    }
}
