// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import AspenWire
import FoundationEssentials
import Glibc
import Logging
import NIOCore
import RaftStorage
import SQLiteKit
import Synchronization
import Testing

@testable import RaftService

/// A directory that counts as a small file system: what is free is its capacity less what is in it
/// and what others have taken.
private final class SmallDisk: Sendable {
    static let capacity = 64 << 20
    let directory: MemoryDirectory
    let taken = Mutex(0)

    init() throws { directory = try MemoryDirectory() }

    var space: DiskSpace {
        var used = 0
        for name in ["", "log/", "state/"] {
            let path = directory.path + "/" + name
            for file in (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? [] {
                var status = stat()
                if stat(path + file, &status) == 0, status.st_mode & S_IFMT == S_IFREG {
                    used += Int(status.st_blocks) * 512
                }
            }
        }
        let free = Self.capacity - used - taken.withLock { $0 }
        return DiskSpace(capacity: Self.capacity, available: max(0, free))
    }

    /// Once the node has kept back what it keeps back on a disk of this size.
    func fill() {
        awaitReserve()
        taken.withLock { $0 = Self.capacity }
    }

    /// Leaves that much, the reserve included, once that is whole.
    func leave(_ byteCount: Int) {
        awaitReserve()
        let room = space.available + Self.capacity / 8
        taken.withLock { $0 += room - byteCount }
    }

    private func awaitReserve() {
        var status = stat()
        while stat(directory.path + "/" + StorageSpace.fileName, &status) != 0
            || status.st_size < Self.capacity / 8
        {}
    }

    func empty() { taken.withLock { $0 = 0 } }

    func start(
        _ cluster: TestCluster, _ id: NodeID,
        adjust: @escaping @Sendable (inout RaftSettings) -> Void = { _ in }
    ) async throws {
        try await cluster.start(id, storage: { try self.open($0) }, adjust: adjust)
    }

    func open(_ settings: RaftSettings) throws -> OpenedStorage {
        var settings = settings
        settings.backend = .persistent
        settings.stateDirectory = directory.path
        settings.diskSpace = { self.space }
        var logger = Logger(label: "full")
        logger.logLevel = .critical
        return try OpenedStorage.open(settings, logger: logger)
    }

    /// What a kill would leave.
    func copy() throws -> SmallDisk {
        let copy = try SmallDisk()
        for name in try FileManager.default.contentsOfDirectory(atPath: directory.path) {
            try FileManager.default.copyItem(
                atPath: directory.path + "/" + name, toPath: copy.directory.path + "/" + name)
        }
        return copy
    }

    var walByteCount: Int {
        var status = stat()
        return stat(directory.path + "/state/state.db-wal", &status) == 0 ? status.st_size : 0
    }
}

/// The state's files cannot be written to while `isFull`.
private final class FullState: Sendable {
    private let standing = Mutex((isFull: false, refused: 0))

    var isFull: Bool {
        get { standing.withLock { $0.isFull } }
        set { standing.withLock { $0.isFull = newValue } }
    }

    var refused: Int { standing.withLock { $0.refused } }

    func observer(of disk: SmallDisk) -> VFSObserver {
        VFSObserver(
            prefix: disk.directory.path + "/state/",
            before: { event in
                self.standing.withLock { standing in
                    guard standing.isFull, event.kind == .write || event.kind == .allocate else {
                        return 0
                    }
                    standing.refused += 1
                    return ENOSPC
                }
            })
    }
}

@Suite(.serialized) struct FullDiskTests {
    private static func isRefused(_ response: WireResponse) -> Bool {
        response.failure?.code == .resourceExhausted
            && response.failure?.message.contains("no space left on node") == true
    }

    /// Until it is, for as long as a test may take.
    private static func untilPut(
        _ client: TestClient, isRefused wanted: Bool
    ) async throws -> Duration {
        let began = ContinuousClock.now
        while true {
            let response = try await client.put("probe", [1]).get()
            if Self.isRefused(response) == wanted { return ContinuousClock.now - began }
        }
    }

    @Test(.timeLimit(.minutes(2)))
    func deletesFreeWhatPutsHaveFilled() async throws {
        let cluster = TestCluster(1)
        let disk = try SmallDisk()
        try await disk.start(cluster, cluster.ids[0])
        try await cluster.found()
        let client = try await cluster.client(of: cluster.ids[0])
        let value = [UInt8](repeating: 7, count: 500_000)
        var count = 0
        while true {
            let response = try await client.put("k\(count)", value).get()
            if response.failure != nil {
                #expect(Self.isRefused(response), "\(response)")
                break
            }
            count += 1
            try #require(count < 200, "64 MB take more than 100 MB")
        }
        #expect(count > 20)
        #expect(disk.space.available > 0)
        #expect(try await client.get("k0").failure == nil)
        for number in 0..<count {
            let response = try await client.delete("k\(number)")
            #expect(response.failure == nil, "\(response)")
        }
        #expect(try await Self.untilPut(client, isRefused: false) < .seconds(5))
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(2)))
    func aFullFollowerDoesNotStopTheOthers() async throws {
        let cluster = TestCluster(3)
        let disks = try (0..<3).map { _ in try SmallDisk() }
        for (id, disk) in zip(cluster.ids, disks) { try await disk.start(cluster, id) }
        try await cluster.found()
        let leader = try await cluster.leader()
        let place = try #require(cluster.ids.firstIndex { $0 != leader })
        let full = cluster.ids[place]
        let client = try await cluster.client(of: leader)
        disks[place].fill()
        // The reserve is there, so that it still follows.
        for number in 0..<20 {
            let response = try await client.put("k\(number)", [1, 2, 3]).get()
            #expect(response.failure == nil, "\(response)")
        }
        let other = try await cluster.client(of: full)
        #expect(try await other.get("k19").failure == nil)
        // With two that are full nobody could take a put; a delete is small.
        let second = try #require(cluster.ids.firstIndex { $0 != leader && $0 != full })
        disks[second].fill()
        _ = try await Self.untilPut(client, isRefused: true)
        _ = try await Self.untilPut(other, isRefused: true)
        #expect(try await other.delete("k3").failure == nil)
        disks[second].empty()
        disks[place].empty()
        #expect(try await Self.untilPut(client, isRefused: false) < .seconds(5))
        #expect(try await Self.untilPut(other, isRefused: false) < .seconds(5))
        try await cluster.stop()
    }

    /// A follower whose state cannot keep up takes no more than it can still store: what waits for the
    /// state's thread will want space too, though the log has it already.
    @Test(.timeLimit(.minutes(2)))
    func whatIsNotStoredYetCountsAsWell() async throws {
        let cluster = TestCluster(3)
        let disks = try (0..<3).map { _ in try SmallDisk() }
        for (id, disk) in zip(cluster.ids, disks) { try await disk.start(cluster, id) }
        try await cluster.found()
        let leader = try await cluster.leader()
        let place = try #require(cluster.ids.firstIndex { $0 != leader })
        let full = try cluster.running(cluster.ids[place])
        let client = try await cluster.client(of: leader)
        disks[place].fill()

        try await full.whileStateStandsStill {
            let value = [UInt8](repeating: 7, count: 200_000)
            // A quarter of its reserve, which is wanted twice by the state: half of it must stay.
            for number in 0..<12 {
                let response = try await client.put("k\(number)", value).get()
                #expect(response.failure == nil, "\(response)")
            }
            let node = full.server.node
            while try await full.loop.submit({ node.space.level }).get() != .exhausted {}
        }
        disks[place].empty()
        let other = try await cluster.client(of: cluster.ids[place])
        #expect(try await Self.untilPut(other, isRefused: false) < .seconds(5))
        #expect(try await other.get("k11").failure == nil)
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(2)))
    func aFullLeaderHandsOver() async throws {
        let cluster = TestCluster(3)
        let disks = try (0..<3).map { _ in try SmallDisk() }
        for (id, disk) in zip(cluster.ids, disks) { try await disk.start(cluster, id) }
        try await cluster.found()
        let leader = try await cluster.leader()
        let place = try #require(cluster.ids.firstIndex(of: leader))
        disks[place].fill()
        let client = try await cluster.client(of: leader)
        // It hands over when it looks at its disk next.
        // In between there is none.
        while true {
            if let now = try? await cluster.leader(), now != leader { break }
            await Task.yield()
        }
        #expect(try await Self.untilPut(client, isRefused: false) < .seconds(5))
        disks[place].empty()
        try await cluster.stop()
    }

    @Test(.timeLimit(.minutes(2)))
    func aNodeStartsOnAFullDisk() async throws {
        let disk = try SmallDisk()
        let cluster = TestCluster(1)
        try await disk.start(cluster, cluster.ids[0])
        try await cluster.found()
        var client = try await cluster.client(of: cluster.ids[0])
        for number in 0..<10 { _ = try await client.put("k\(number)", [1]).get() }
        disk.fill()
        _ = try await Self.untilPut(client, isRefused: true)
        try await cluster.kill(cluster.ids[0])
        try await disk.start(cluster, cluster.ids[0])
        client = try await cluster.client(of: cluster.ids[0])
        #expect(try await client.get("k9").failure == nil)
        #expect(try await client.delete("k9").failure == nil)
        #expect(Self.isRefused(try await client.put("k9", [1]).get()))
        disk.empty()
        #expect(try await Self.untilPut(client, isRefused: false) < .seconds(5))
        try await cluster.stop()
    }

    /// The room that a WAL takes comes back by a checkpoint. Where there is little, a start does not wait
    /// until one is due: entries to be applied again may need that room, and who stops for want of it
    /// would be started again and again.
    @Test(.timeLimit(.minutes(2)))
    func aStartWithLittleRoomBeginsWithACheckpoint() async throws {
        let disk = try SmallDisk()
        let cluster = TestCluster(1)
        try await disk.start(cluster, cluster.ids[0])
        try await cluster.found()
        let client = try await cluster.client(of: cluster.ids[0])
        // Less than makes a checkpoint due; a quiet node has it in its WAL.
        let value = [UInt8](repeating: 7, count: 200_000)
        for number in 0..<4 { _ = try await client.put("k\(number)", value).get() }
        while disk.walByteCount < 800_000 { _ = try await client.get("k0", stale: true) }
        let killed = try disk.copy()
        try await cluster.stop()
        let settings = try TestCluster.settings(cluster.ids[0], directory: nil)
        try killed.open(settings).close()
        #expect(killed.walByteCount >= 800_000, "elsewhere a start does not wait for that")
        killed.taken.withLock { $0 = SmallDisk.capacity }
        let opened = try killed.open(settings)
        #expect(killed.walByteCount == 0)
        #expect(opened.state.appliedIndex > .zero)
        opened.close()
    }

    /// The log prepares no segment from the half of the reserve that the state lives on.
    @Test(.timeLimit(.minutes(2)))
    func aSegmentLeavesTheStateItsHalfOfTheReserve() async throws {
        let cluster = TestCluster(1)
        let disk = try SmallDisk()
        try await disk.start(cluster, cluster.ids[0])
        try await cluster.found()
        let running = try cluster.running(cluster.ids[0])
        let node = running.server.node
        // What is left is the reserve, 8 MB.
        disk.fill()
        while try await running.loop.submit({ node.space.level }).get() != .short {}
        let answers = try await running.loop.submit {
            [5 << 20, 2 << 20, 0].map { node.space.hasRoom(forSegment: $0) }
        }.get()
        #expect(answers == [false, true, true])
        try await cluster.stop()
    }

    /// When not even the reserve is left, what is committed waits until it can be applied: the daemon
    /// does not stop, stale reads go on, and everything is answered in the end.
    @Test(.timeLimit(.minutes(2)))
    func whatFindsNoRoomIsAppliedLater() async throws {
        let (disk, state) = (try SmallDisk(), FullState())
        let observer = state.observer(of: disk)
        let cluster = TestCluster(1)
        try await disk.start(cluster, cluster.ids[0])
        try await cluster.found()
        var client = try await cluster.client(of: cluster.ids[0])
        _ = try await client.put("before", [1]).get()
        let running = try cluster.running(cluster.ids[0])
        let node = running.server.node
        disk.leave(20 << 20)
        while try await running.loop.submit({ node.space.level }).get() != .tight {}
        // What it does then is done.
        try await running.whileStateStandsStill {}
        _ = try await client.put("tight", [1]).get()
        state.isFull = true
        let waiting = (0..<40).map { client.put("k\($0)", [UInt8](repeating: 7, count: 10_000)) }
        while state.refused < 3 {}
        #expect(try await client.get("before", stale: true).failure == nil)
        // Tried again, in vain.
        let refused = state.refused
        while state.refused < refused + 2 {}
        #expect(try await client.get("tight", stale: true).failure == nil)
        state.isFull = false
        for future in waiting {
            let response = try await future.get()
            #expect(response.failure == nil, "\(response)")
        }
        try await cluster.kill(cluster.ids[0])
        try await disk.start(cluster, cluster.ids[0])
        client = try await cluster.client(of: cluster.ids[0])
        for number in 0..<40 { #expect(try await client.get("k\(number)").failure == nil) }
        try await cluster.stop()
        withExtendedLifetime(observer) {}
    }

    /// What was applied, and finds the disk full all at once when it is written, waits for room.
    @Test(.timeLimit(.minutes(2)))
    func whatIsAppliedWaitsForRoom() async throws {
        let (disk, state) = (try SmallDisk(), FullState())
        let observer = state.observer(of: disk)
        let cluster = TestCluster(1)
        let adjust: @Sendable (inout RaftSettings) -> Void = { $0.state.commitEntries = 20 }
        try await disk.start(cluster, cluster.ids[0], adjust: adjust)
        try await cluster.found()
        var client = try await cluster.client(of: cluster.ids[0])
        // From its first checkpoint on it puts its writing off.
        let node = try cluster.running(cluster.ids[0])
        while try await node.loop.submit({ node.server.node.metrics.checkpoints }).get() == 0 {
            #expect(try await client.put("before", [1]).get().failure == nil)
        }
        state.isFull = true
        for number in 0..<100 {
            let response = try await client.put("k\(number)", [UInt8](repeating: 7, count: 2000))
                .get()
            #expect(response.failure == nil, "\(response)")
        }
        while state.refused < 3 {}
        #expect(try await client.get("k99").failure == nil)
        // Killed now, it has all of it in its log.
        let killed = try disk.copy()
        state.isFull = false
        #expect(try await client.put("after", [1]).get().failure == nil)
        try await cluster.kill(cluster.ids[0])
        for disk in [disk, killed] {
            try await disk.start(cluster, cluster.ids[0], adjust: adjust)
            client = try await cluster.client(of: cluster.ids[0])
            for number in 0..<100 {
                #expect(try await client.get("k\(number)").failure == nil)
            }
            try await cluster.kill(cluster.ids[0])
        }
        try await cluster.stop()
        withExtendedLifetime(observer) {}
    }

    /// A state larger than what is free of its leader's disk reaches a new member all the same.
    @Test(.timeLimit(.minutes(2)))
    func aSnapshotNeedsLessRoomThanItsState() async throws {
        let disk = try SmallDisk()
        let cluster = TestCluster(2)
        try await disk.start(cluster, NodeID(1), adjust: { $0.options.logTailEntries = 0 })
        let client = try await cluster.client(of: NodeID(1))
        #expect(try await client.ask(.initCluster(.init())).failure == nil)
        let value = [UInt8](repeating: 7, count: 500_000)
        for number in 0..<36 {
            let response = try await client.put("k\(number)", value).get()
            #expect(response.failure == nil, "\(response)")
        }
        #expect(try await client.ask(.triggerSnapshot(.init())).failure == nil)
        while try await client.nodeInfo().firstLogIndex < 30 {}
        // Not short of anything: three reserves and a little.
        disk.leave(26 << 20)
        let leader = try cluster.running(NodeID(1))
        while try await leader.loop.submit({ leader.server.node.space.spoolBytesMax }).get()
            .map({ $0 > 9 << 20 }) ?? false
        {}
        try await cluster.start(NodeID(2))
        #expect(try await client.addLearner(2).failure == nil)
        let applied = try await client.nodeInfo().node.applied
        let reader = try await cluster.client(of: NodeID(2))
        let info = try await reader.nodeInfo(applied: applied)
        #expect(info.stateHash == (try await client.nodeInfo().stateHash))
        try await cluster.stop()
    }

    /// A WAL that was written to is not left lying there when nobody writes any more.
    @Test(.timeLimit(.minutes(2)))
    func aQuietNodeGivesItsWALBack() async throws {
        let disk = try SmallDisk()
        let cluster = TestCluster(1)
        // However long the writes take, they are one transaction, which ends with the quiet: nothing is
        // left over for a second one.
        try await disk.start(
            cluster, cluster.ids[0], adjust: { $0.state.commitInterval = .seconds(600) })
        try await cluster.found()
        let client = try await cluster.client(of: cluster.ids[0])
        let node = try cluster.running(cluster.ids[0])
        let before = try await node.loop.submit { node.server.node.metrics.checkpoints }.get()
        // Bytes and entries of less than ends a transaction, pages of more than make a checkpoint due:
        // of such rows each has a page for itself.
        let value = [UInt8](repeating: 7, count: 3000)
        for number in 0..<280 { _ = try await client.put("k\(number)", value).get() }
        while try await node.loop.submit({ node.server.node.metrics.checkpoints }).get() == before {
        }
        #expect(disk.walByteCount == 0)
        try await cluster.stop()
    }
}
