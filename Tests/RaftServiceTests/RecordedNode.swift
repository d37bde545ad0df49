// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import Glibc
import KVCore
import Logging
import NIOCore
import RaftCore
import RaftStorage
import Synchronization
import Testing

@testable import RaftService

/// What clients have been told, noted in the recordings of all nodes that answer for it.
final class PromiseLedger: Sendable {
    private struct State {
        var acknowledged: [String: Int] = [:]
        var recorders: [WriteRecorder] = []
    }
    private let state = Mutex(State())

    /// `key` holds version `version` or a later one from now on; the entry `index` says so.
    func acknowledged(_ key: String, _ version: Int, at index: UInt64) {
        state.withLock { state in
            state.acknowledged[key] = version
            for recorder in state.recorders { recorder.note("\(key) \(version) \(index)") }
        }
    }

    /// From here on the node of this recording answers for all that was ever acknowledged: no
    /// quorum goes without it.
    func binds(_ recorder: WriteRecorder) {
        state.withLock { state in
            for (key, version) in state.acknowledged { recorder.note("\(key) \(version)") }
            state.recorders.append(recorder)
        }
    }
}

/// Many clients at once, each writing its own keys over and over.
struct Load {
    static let chains = 16

    let ledger: PromiseLedger
    /// Writes of one chain so far.
    private var done = 0

    init(_ ledger: PromiseLedger) { self.ledger = ledger }

    /// The version stands before the filling, which is long enough now and then for pages of its own.
    static func value(_ version: Int) -> [UInt8] {
        let filling = version % 37 == 0 ? 9000 : 40 + version % 400
        return Array("\(version):".utf8) + [UInt8](repeating: UInt8(version & 0xff), count: filling)
    }

    static func version(_ value: some Collection<UInt8>) -> Int? {
        guard let colon = value.firstIndex(of: UInt8(ascii: ":")) else { return nil }
        return Int(String(decoding: value[..<colon], as: UTF8.self))
    }

    mutating func run(_ client: TestClient, writes: Int) async throws {
        let (first, ledger) = (done, ledger)
        done += writes
        try await withThrowingTaskGroup(of: Void.self) { group in
            for chain in 0..<Self.chains {
                group.addTask {
                    for version in first + 1...first + writes {
                        let key = "c\(chain)-\(version % 11)"
                        let answer = try await client.put(key, Self.value(version)).get()
                        if answer.failure == nil {
                            ledger.acknowledged(key, version, at: answer.writeKey.logID.index)
                        }
                    }
                }
            }
            try await group.waitForAll()
        }
    }
}

/// What a node did to its data directory, and what was promised meanwhile.
struct NodeRecording {
    var events: [WriteEvent]

    /// The same with the syncs of some files left out, as if the call had been forgotten.
    func omittingSyncs(of isOmitted: (String) -> Bool) -> NodeRecording {
        var names: [UInt32: String] = [:]
        var omitted: Set<UInt64> = []
        let kept = events.filter { event in
            switch event {
            case .create(let name, let file), .baseline(let name, let file, _): names[file] = name
            case .syncBegan(let file, let sync):
                if isOmitted(names[file] ?? "") { omitted.insert(sync) }
                return !omitted.contains(sync)
            case .directorySyncBegan(let directory, let sync):
                if isOmitted(directory + "/") { omitted.insert(sync) }
                return !omitted.contains(sync)
            case .syncEnded(let sync): return !omitted.contains(sync)
            default: break
            }
            return true
        }
        return NodeRecording(events: kept)
    }

    func syncs(of isMeant: (String) -> Bool) -> Int {
        events.count - omittingSyncs(of: isMeant).events.count
    }

    /// Power cuts at `count` random moments, not before event `first`: each image with what had been promised by then.
    func forEachCut(
        count: Int, seed: UInt64, from first: Int = 0,
        _ body: (Int, DiskImage, [String: Int]) async throws -> Void
    ) async throws {
        var random = RandomSource(seed: seed)
        var replay = PowerCutReplay(events: events)
        var promised: [String: Int] = [:]
        var seen = 0
        let cuts = (0..<count).map { _ in random.uniform(first..<events.count + 1) }.sorted()
        for cut in cuts {
            replay.advance(to: cut)
            while seen < cut {
                if case .note(let text) = events[seen] { Self.take(text, &promised) }
                seen += 1
            }
            try await body(cut, replay.image(using: &random), promised)
        }
    }

    /// - Returns: the index of the entry that was acknowledged, if the note names it.
    @discardableResult
    static func take(_ note: String, _ promised: inout [String: Int]) -> UInt64 {
        let words = note.split(separator: " ")
        guard words.count >= 2, let version = Int(words[1]) else { return 0 }
        promised[String(words[0])] = max(version, promised[String(words[0])] ?? 0)
        return words.count > 2 ? UInt64(words[2]) ?? 0 : 0
    }
}

/// An image of a power cut, started from as `aspend-raft` would.
struct CutNode {
    let directory: MemoryDirectory
    let node: NodeID
    private let image: DiskImage

    init(_ image: DiskImage, _ node: NodeID) throws {
        directory = try MemoryDirectory()
        self.node = node
        self.image = image
        try image.write(toDirectory: directory.path)
    }

    static func adjust(_ settings: inout RaftSettings) {
        settings.options.logTailEntries = 0
        settings.log.segmentBytes = 32 << 10
        settings.state.checkpointPages = 40
        settings.state.commitEntries = 200
    }

    func open(recorder: WriteRecorder? = nil) throws -> OpenedStorage {
        var settings = try TestCluster.settings(node, directory: nil)
        Self.adjust(&settings)
        settings.backend = .persistent
        settings.stateDirectory = directory.path
        var logger = Logger(label: "cut")
        logger.logLevel = .critical
        return try OpenedStorage.open(settings, logger: logger, recorder: recorder)
    }

    /// What is wrong with the node after the power cut; nil if nothing is.
    func complaint(_ promised: [String: Int], recorder: WriteRecorder? = nil) -> String? {
        do {
            // All that is there counts as durable before the node starts.
            for name in image.files.keys.sorted() {
                recorder?.record(baseline: name, bytes: image.files[name] ?? [])
            }
            let storage = try open(recorder: recorder)
            defer { storage.close() }
            // Its preconditions are the ones that must not fail.
            var random = RandomSource(seed: 1)
            let core = RaftCore(
                configuration: RaftConfiguration(node: node), recovery: storage.recovery,
                now: .zero, random: &random)
            if !core.isTailTrusted {
                return "not trusted: log \(storage.log.firstIndex)...\(storage.log.lastIndex), "
                    + "applied \(storage.state.appliedIndex)"
            }
            var next = storage.recovery.appliedIndex.next
            while next <= storage.log.lastIndex {
                let entries = try storage.log.read(
                    from: next, upTo: storage.log.lastIndex, bytesMax: 1 << 20)
                guard let last = entries.last else { return "the log has no entry \(next)" }
                _ = try storage.state.apply(entries)
                next = last.index.next
            }
            if recorder != nil { _ = try storage.state.checkpoint() }
            for (key, version) in promised {
                let found = try storage.state.get(Array(key.utf8), at: nil)
                guard let found, let there = Load.version(found.value), there >= version,
                    found.value == Load.value(there)
                else {
                    let there = found.flatMap { Load.version($0.value) } ?? -1
                    return "\(key): \(version) was acknowledged, \(there) is there"
                }
            }
            return nil
        } catch {
            return "\(error)"
        }
    }
}

/// A directory in memory, where syncs cost nothing; gone when the value is.
final class MemoryDirectory: Sendable {
    let path: String

    init() throws {
        let parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp"
        var template = Array("\(parent)/aspen-cut-XXXXXX".utf8CString)
        let made = template.withUnsafeMutableBufferPointer {
            $0.baseAddress.flatMap { mkdtemp($0) }
        }
        path = String(cString: try #require(made))
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}
