// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import KVCore
import RaftCore
import RaftStorage
import SQLiteKit
import Synchronization
import Testing

/// A disk with so much room for the files of a state, and no more.
private final class RoomOnDisk: Sendable {
    private struct Room {
        var free: Int
        /// Up to where each file owns its blocks.
        var ends: [String: Int] = [:]
        var refused = 0
    }

    private let room = Mutex(Room(free: .max / 2))

    var free: Int {
        get { room.withLock { $0.free } }
        set { room.withLock { $0.free = newValue } }
    }

    var refused: Int { room.withLock { $0.refused } }

    func observer(of directory: StateDirectory) -> VFSObserver {
        VFSObserver(prefix: directory.path, before: { self.before($0) })
    }

    private func before(_ event: VFSEvent) -> Int32 {
        room.withLock { room in
            let end = Int(event.offset + event.count)
            let owned = room.ends[event.path] ?? 0
            switch event.kind {
            case .write, .allocate:
                let growth = max(0, end - owned)
                guard growth <= room.free else {
                    room.refused += 1
                    return ENOSPC
                }
                room.free -= growth
                room.ends[event.path] = max(owned, end)
            case .truncate, .delete:
                let left = event.kind == .delete ? 0 : Int(event.offset)
                room.free += max(0, owned - left)
                room.ends[event.path] = min(owned, left)
            case .read, .sync, .create, .rename, .syncDirectory: break
            }
            return 0
        }
    }
}

/// A disk without room makes the state wait, not fail: but for a commit that nothing was kept for.
@Suite struct StateFullDiskTests {
    private static func filled(
        _ directory: StateDirectory, _ source: inout EntrySource, _ memory: MemoryState
    ) throws -> SQLiteState {
        var options = SQLiteState.Options()
        options.checkpointPages = 64
        let state = try SQLiteState(directory: directory.path, options: options)
        let batch = [source.membership(), source.command(.activateVersion(2))]
        _ = try state.apply(batch)
        _ = try memory.apply(batch)
        return state
    }

    private static func puts(_ source: inout EntrySource, _ count: Int, bytes: Int) -> [Entry] {
        (0..<count).map { number in
            source.put(Array("key/\(number)/\(source.next)".utf8), source.bytes(bytes))
        }
    }

    /// What a killed process leaves is the same state.
    private static func check(_ directory: StateDirectory, _ memory: MemoryState) throws {
        let copy = directory.copy()
        let state = try SQLiteState(directory: copy.path)
        #expect(state.appliedIndex == memory.appliedIndex)
        #expect(try state.recomputeContentHash() == memory.contentHash())
        state.close()
    }

    /// However little of it fits: the WAL has all of it still.
    @Test func aCheckpointThatDoesNotFitChangesNothing() throws {
        var partial = 0
        for room in stride(from: 0, to: 500_000, by: 60_000) {
            let (directory, disk) = (StateDirectory(), RoomOnDisk())
            let observer = disk.observer(of: directory)
            var source = EntrySource(seed: 5)
            let memory = MemoryState()
            let state = try Self.filled(directory, &source, memory)
            let before = try state.checkpoint()
            let batch = Self.puts(&source, 40, bytes: 10_000)
            _ = try state.apply(batch)
            _ = try memory.apply(batch)
            try state.setSpaceTight(true)
            disk.free = room
            let durable = try state.checkpoint()
            #expect(durable == before || durable == memory.appliedIndex)
            if durable == before { partial += 1 }
            try Self.check(directory, memory)
            #expect(try state.trim().durable == durable)
            try expectEqual(state, memory)
            disk.free = .max / 2
            #expect(try state.checkpoint() == memory.appliedIndex)
            try Self.check(directory, memory)
            state.close()
            withExtendedLifetime(observer) {}
        }
        #expect(partial > 4, "\(partial)")
    }

    /// Garbage is taken out where there is room for what that writes, and stays elsewhere.
    @Test func garbageThatHasNoRoomToGoStays() throws {
        for room in [0, 30_000, 120_000, 500_000, 2_000_000] {
            let (directory, disk) = (StateDirectory(), RoomOnDisk())
            let observer = disk.observer(of: directory)
            var source = EntrySource(seed: 3)
            let memory = MemoryState()
            let state = try Self.filled(directory, &source, memory)
            for _ in 0..<2 {
                let batch = (0..<900).map { number in
                    source.put(Array("key/\(number)".utf8), source.bytes(300))
                }
                _ = try state.apply(batch)
                _ = try memory.apply(batch)
            }
            // Each sweeps as much as one entry may.
            let sweep = (0..<4).map { _ in source.command(.compact(memory.revision)) }
            _ = try state.apply(sweep)
            _ = try memory.apply(sweep)
            #expect(try state.checkpoint() == memory.appliedIndex)
            try state.setSpaceTight(true)
            disk.free = room
            while try state.trim().hasMore {}
            try Self.check(directory, memory)
            try expectEqual(state, memory)
            disk.free = .max / 2
            while try state.trim().hasMore {}
            try Self.check(directory, memory)
            try expectEqual(state, memory)
            state.close()
            withExtendedLifetime(observer) {}
            let database = try Database(path: directory.path + "/state.db")
            #expect(try database.integer("SELECT count(*) FROM changes") == 900)
        }
    }

    /// Whatever room there is when space becomes tight: entries wait, nothing fails, reads go on, and
    /// once there is room all of it is applied.
    @Test(arguments: [(64, 100), (16, 3000), (4, 120_000)])
    func whatHasNoRoomWaits(count: Int, bytes: Int) throws {
        var waited = 0
        for room in [0, 30_000, 60_000, 120_000, 250_000, 500_000, 1_000_000] {
            let (directory, disk) = (StateDirectory(), RoomOnDisk())
            let observer = disk.observer(of: directory)
            var source = EntrySource(seed: UInt64(room))
            let memory = MemoryState()
            let state = try Self.filled(directory, &source, memory)
            try state.setSpaceTight(true)
            disk.free = room
            var entries = Self.puts(&source, count, bytes: bytes)
            let all = entries
            func applyWhatFits() throws {
                while !entries.isEmpty {
                    let fitting = state.fitting(entries)
                    guard fitting > 0 else { return }
                    let batch = Array(entries.prefix(fitting))
                    entries.removeFirst(fitting)
                    _ = try state.apply(batch)
                    _ = try memory.apply(batch)
                }
            }
            try applyWhatFits()
            if !entries.isEmpty { waited += 1 }
            try Self.check(directory, memory)
            try expectEqual(state, memory)
            _ = try state.trim()
            disk.free = .max / 2
            try applyWhatFits()
            #expect(state.appliedIndex == all.last?.index)
            #expect(try state.checkpoint() == state.appliedIndex)
            try expectEqual(state, memory)
            state.close()
            withExtendedLifetime(observer) {}
        }
        #expect(waited > 1, "\(waited)")
    }

    /// The room that was kept for a transaction is not kept beyond the checkpoint.
    @Test func roomThatWasKeptComesBack() throws {
        let directory = StateDirectory()
        var source = EntrySource(seed: 3)
        let state = try Self.filled(directory, &source, MemoryState())
        try state.setSpaceTight(true)
        let batch = Self.puts(&source, 8, bytes: 1000)
        #expect(state.fitting(batch) == 8)
        var status = stat()
        #expect(stat(directory.path + "/state.db-wal", &status) == 0)
        let kept = Int(status.st_blocks) * 512
        #expect(kept > 500_000 && kept > Int(status.st_size), "\(kept)")
        _ = try state.apply(batch)
        _ = try state.checkpoint()
        #expect(stat(directory.path + "/state.db-wal", &status) == 0)
        #expect(status.st_blocks == 0)
        state.close()
    }

    /// What early checkpoints have made durable the log may let go of at once.
    @Test func earlyCheckpointsAreReported() throws {
        let directory = StateDirectory()
        var source = EntrySource(seed: 4)
        let state = try Self.filled(directory, &source, MemoryState())
        #expect(try state.checkpointIfDue() == nil)
        try state.setSpaceTight(true)
        _ = try state.apply(Self.puts(&source, 16, bytes: 9000))
        #expect(try state.checkpointIfDue() == state.appliedIndex)
        #expect(try state.checkpointIfDue() == nil)
        state.close()
    }

    /// A snapshot that does not fit leaves the state as it was, and none of its own bytes on the disk.
    @Test func aSnapshotThatDoesNotFitLeavesNothing() throws {
        let origin = MemoryState()
        var source = EntrySource(seed: 9)
        let first = [source.membership(), source.command(.activateVersion(2))]
        _ = try origin.apply(first + Self.puts(&source, 60, bytes: 10_000))
        var refused = 0
        for room in stride(from: 0, to: 1_500_000, by: 170_000) {
            let (directory, disk) = (StateDirectory(), RoomOnDisk())
            let observer = disk.observer(of: directory)
            var own = EntrySource(seed: 1)
            let memory = MemoryState()
            let state = try Self.filled(directory, &own, memory)
            let batch = Self.puts(&own, 8, bytes: 10_000)
            _ = try state.apply(batch)
            _ = try memory.apply(batch)
            try state.setSpaceTight(true)
            disk.free = room
            var writer: (any SnapshotWriter)?
            do {
                let reader = try origin.makeSnapshot()
                let made = try state.receiveSnapshot(reader.meta)
                writer = made
                while let piece = try reader.next() { try made.append(piece) }
                try made.finish()
                try expectEqual(state, origin)
            } catch {
                refused += 1
                #expect("\(error)".contains("no space left"), "\(error)")
                writer?.abandon()
                let names = StateDirectory.names(in: directory.path)
                #expect(writer == nil || !names.contains { $0.contains("incoming") }, "\(names)")
                try expectEqual(state, memory)
                disk.free = .max / 2
                #expect(try state.checkpoint() == memory.appliedIndex)
                try transfer(from: origin, to: state)
                try expectEqual(state, origin)
            }
            state.close()
            withExtendedLifetime(observer) {}
        }
        #expect(refused > 2, "\(refused)")
    }
}
