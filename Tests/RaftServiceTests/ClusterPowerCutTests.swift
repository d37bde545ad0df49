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
import Testing

@testable import RaftService

/// The power fails everywhere at once under load, each disk loses something else of what was not
/// synced, and besides each log is damaged near its end. All three are started from what is left:
/// everything acknowledged that a majority still holds must be there, and the cluster must serve. In one
/// half of the images a majority of the logs is whole as far as anything was agreed upon; in the other no
/// log is, but each lacks another entry.
///
/// ASPEN_CLUSTER_CUTS: images, each of three disks.
@Suite(.serialized) struct ClusterPowerCutTests {
    private static let images = Environment["ASPEN_CLUSTER_CUTS"].flatMap { Int($0) } ?? 6
    private static let seed = Environment["ASPEN_CLUSTER_CUTS_SEED"].flatMap { UInt64($0) } ?? 1

    /// All three nodes write into one recorder: one order of events, and so one moment for the cut.
    private func record() async throws -> [WriteEvent] {
        let directory = try MemoryDirectory()
        let recorder = WriteRecorder()
        let cluster = TestCluster(3)
        @Sendable func start(_ id: NodeID) async throws {
            try await cluster.start(
                id,
                storage: { settings in
                    var settings = settings
                    settings.backend = .persistent
                    settings.stateDirectory = "\(directory.path)/\(id)"
                    return try OpenedStorage.open(
                        settings, logger: Logger(label: "test"), recorder: recorder, as: "\(id)")
                }, adjust: CutNode.adjust)
        }
        for id in cluster.ids { try await start(id) }
        try await cluster.found()
        let ledger = PromiseLedger()
        ledger.binds(recorder)
        var load = Load(ledger)
        try await load.run(try await cluster.client(of: NodeID(1)), writes: 60)
        // One is away for a while, and then a little behind.
        try await cluster.kill(NodeID(2))
        try await load.run(try await cluster.client(of: NodeID(3)), writes: 30)
        try await start(NodeID(2))
        try await load.run(try await cluster.client(of: NodeID(2)), writes: 60)
        try await cluster.stop()
        return recorder.events
    }

    @Test(.timeLimit(.minutes(2 + images / 10))) func aMajorityKeepsWhatWasAcknowledged()
        async throws
    {
        let events = try await record()
        var random = RandomSource(seed: Self.seed)
        var replay = PowerCutReplay(events: events)
        let first = try #require(events.firstIndex { if case .note = $0 { true } else { false } })
        // All logs are damaged where all of them are long enough for that: late.
        let late = events.count - (events.count - first) / 4
        let cuts = (0..<Self.images).map { number in
            let isApart = number % 2 == 1
            return (cut: random.uniform((isApart ? late : first)..<events.count + 1), isApart)
        }.sorted { $0.cut < $1.cut }
        var (promised, acknowledged, seen) = ([String: Int](), UInt64(0), 0)
        var (damaged, untrusted, apart) = (0, 0, 0)
        for (cut, isApart) in cuts {
            replay.advance(to: cut)
            while seen < cut {
                if case .note(let note) = events[seen] {
                    acknowledged = max(acknowledged, NodeRecording.take(note, &promised))
                }
                seen += 1
            }
            var disks = try ClusterDisks(
                replay.image(using: &random), acknowledged: LogIndex(acknowledged))
            if isApart, disks.damageApart(using: &random) {
                apart += 1
            } else {
                disks.damage(using: &random)
                #expect(disks.holders >= 2, "that is what a majority is")
            }
            untrusted += disks.untrusted
            damaged += disks.hits
            let complaint = try await start(disks, promised)
            #expect(complaint == nil, "seed \(Self.seed), cut at \(cut) of \(events.count)")
        }
        print(
            "\(Self.images) power cuts of three nodes, \(promised.count) keys, \(damaged) logs damaged, "
                + "\(untrusted) of which an end that was not to be trusted, \(apart) times all of them"
        )
        #expect(apart > 0)
        // What is found is compared with what was promised: a promise that nobody gave is missed.
        let last = try ClusterDisks(replay.currentImage, acknowledged: .zero)
        promised["c0-0"] = 1_000_000
        #expect(try await start(last, promised) != nil)
    }

    /// - Returns: what is missing.
    private func start(_ disks: ClusterDisks, _ promised: [String: Int]) async throws -> String? {
        let cluster = TestCluster(3)
        var clients: [TestClient] = []
        let cuts = try zip(cluster.ids, disks.images).map { try CutNode($1, $0) }
        // Their directories live as long as they do.
        defer { withExtendedLifetime(cuts) {} }
        for (id, cut) in zip(cluster.ids, cuts) {
            try await cluster.start(
                id, storage: { _ in try cut.open() },
                adjust: {
                    CutNode.adjust(&$0)
                    $0.options.raft.heartbeatInterval = .milliseconds(30)
                    $0.options.raft.electionTimeoutMin = .milliseconds(150)
                    $0.options.raft.electionTimeoutMax = .milliseconds(300)
                })
            clients.append(try await cluster.client(of: id))
        }
        for client in clients {
            while try await client.put("after", [1]).get().failure != nil {
                try Task.checkCancellation()
            }
        }
        var complaint: String?
        for (place, (key, version)) in promised.sorted(by: { $0.key < $1.key }).enumerated() {
            var read = try await clients[place % 3].get(key)
            while read.failure != nil {
                try Task.checkCancellation()
                read = try await clients[place % 3].get(key)
            }
            let value = Array(read.readKey.entry.value)
            let found = Load.version(value) ?? -1
            if found < version || value != Load.value(found) {
                complaint = "\(key): \(version) was acknowledged, \(found) is there"
            }
        }
        // All of them are whole again, and equal.
        var standings: Set<[UInt64]> = []
        repeat {
            try Task.checkCancellation()
            standings = []
            for client in clients {
                let info = try await client.ask(.getNodeInfo(.init())).getNodeInfo
                standings.insert([info.node.applied, info.stateHash])
            }
        } while standings.count > 1
        try await cluster.stop()
        return complaint
    }
}

/// What a power cut has left of three nodes' disks.
struct ClusterDisks {
    /// By node, as its data directory.
    private(set) var images: [DiskImage]
    /// The last entry of which these disks, or a client, know that it was agreed upon. Clients hear a
    /// little later than the states: what two of three have lost of that is lost, told or not.
    private let agreed: LogIndex
    /// Nodes whose log has all that was agreed upon, those that know theirs to be damaged, and those
    /// in which something was damaged.
    private(set) var holders = 0
    private(set) var untrusted = 0
    private(set) var hits = 0

    init(_ image: DiskImage, acknowledged: LogIndex) throws {
        images = (1...3).map { node in Self.part("\(node)/", of: image) }
        var agreed = acknowledged
        for (place, image) in images.enumerated() {
            let node = try CutNode(image, NodeID(UInt64(place + 1)))
            let storage = try node.open()
            agreed = max(agreed, storage.state.appliedIndex)
            storage.close()
            withExtendedLifetime(node) {}
        }
        self.agreed = agreed
    }

    private static func part(_ prefix: String, of image: DiskImage) -> DiskImage {
        var part = DiskImage()
        for (name, bytes) in image.files where name.hasPrefix(prefix) {
            part.files[String(name.dropFirst(prefix.count))] = bytes
        }
        return part
    }

    /// Damages every log near its end: on a minority wherever that is; on the others only what was
    /// never agreed upon. (That entry may be on two of the three only: then these are the others.)
    mutating func damage(using random: inout RandomSource) {
        let holding = images.indices.filter { standing(images[$0]).holds }
        let loser =
            holding.count == 3
            ? random.uniform(0..<3) : images.indices.first { !holding.contains($0) }
        for place in images.indices {
            for _ in 0..<40 {
                let damaged = damaged(images[place], using: &random)
                if place != loser, !standing(damaged).holds { continue }
                images[place] = damaged
                hits += 1
                break
            }
            let standing = standing(images[place])
            holders += standing.holds ? 1 : 0
            untrusted += standing.isTrusted ? 0 : 1
        }
    }

    /// Damages each log at another entry, of those that all three have: none is whole, and two hold each.
    ///
    /// - Returns: false, and changes nothing, where there are no such entries.
    mutating func damageApart(using random: inout RandomSource) -> Bool {
        let logs = images.map { SegmentImage(Self.part("log/", of: $0)) }
        let last = min(logs.map(\.last).min() ?? .zero, agreed)
        guard last > LogIndex(30) else { return false }
        for _ in 0..<20 {
            var indexes = (0..<12).map { LogIndex(last.rawValue - $0) }
            var damaged = images
            for place in images.indices {
                let index = indexes.remove(at: random.uniform(0..<indexes.count))
                guard let record = logs[place].record(index) else { continue }
                let offset = record.offset + random.uniform(0..<56)
                damaged[place].files["log/" + record.file]?[offset] ^=
                    1 << UInt8(random.uniform(0..<8))
            }
            // Of its very last batch a log may not know that it was there.
            if damaged.contains(where: { standing($0).isTrusted }) { continue }
            (images, hits, untrusted) = (damaged, images.count, images.count)
            return true
        }
        return false
    }

    private func standing(_ image: DiskImage) -> (holds: Bool, isTrusted: Bool) {
        let disk = MemoryDisk(image: Self.part("log/", of: image))
        var configuration = LogConfiguration()
        configuration.segmentBytes = 32 << 10
        guard let log = try? SegmentedLog(disk: disk, configuration: configuration, salt: 1) else {
            return (false, false)
        }
        defer { log.close() }
        return (log.lastIndex >= agreed, log.recovery.isTailTrusted)
    }

    private func damaged(_ image: DiskImage, using random: inout RandomSource) -> DiskImage {
        var image = image
        let segments = image.files.keys.filter { $0.hasPrefix("log/log-") }.sorted()
        // The last one that is written to; now and then the one before.
        let used = segments.filter { image.files[$0]?.contains { $0 != 0 } == true }
        guard let newest = used.last else { return image }
        let name = used.count > 1 && random.chance(1, in: 6) ? used[used.count - 2] : newest
        guard var bytes = image.files[name], let end = bytes.lastIndex(where: { $0 != 0 }) else {
            return image
        }
        let place = random.uniform(max(0, end - 12_000)..<end + 1)
        if random.chance(1, in: 4) {
            // A sector that reads as anything.
            let start = place & ~511
            for byte in start..<min(start + 512, bytes.count) {
                bytes[byte] = UInt8(truncatingIfNeeded: random.next())
            }
        } else {
            bytes[place] ^= 1 << UInt8(random.uniform(0..<8))
        }
        image.files[name] = bytes
        return image
    }
}

/// Where the entries of a log stand.
private struct SegmentImage {
    private var places: [LogIndex: (file: String, offset: Int)] = [:]
    private(set) var last = LogIndex.zero

    init(_ image: DiskImage) {
        var configuration = LogConfiguration()
        configuration.segmentBytes = 32 << 10
        let disk = MemoryDisk(image: image)
        guard let log = try? SegmentedLog(disk: disk, configuration: configuration, salt: 1),
            log.lastIndex >= log.firstIndex
        else { return }
        last = log.lastIndex
        for number in log.firstIndex.rawValue...last.rawValue {
            places[LogIndex(number)] = log.place(of: LogIndex(number))
        }
        log.close()
    }

    func record(_ index: LogIndex) -> (file: String, offset: Int)? { places[index] }
}
