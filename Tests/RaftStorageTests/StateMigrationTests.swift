// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import KVCore
import RaftCore
import RaftStorage
import SQLiteKit
import Testing

/// Files that programs of older schema versions wrote, which is why they are checked in. Of version 1: a
/// database after 59 entries, and the snapshot of it.
@Suite struct StateMigrationTests {
    private static let directory =
        "/" + #filePath.split(separator: "/").dropLast().joined(separator: "/") + "/Fixtures"
    /// What that program said of it.
    private static let hash: UInt64 = 0x7cfb_9df6_8164_66a0
    private static let (index, revision, term) = (LogIndex(59), Revision(47), Term(2))

    private func old() throws -> StateDirectory {
        let directory = StateDirectory()
        let bytes = StateDirectory.read(Self.directory + "/state-v1.db")
        try #require(bytes.count > 10_000)
        StateDirectory.write(bytes, to: directory.path + "/state.db")
        return directory
    }

    private func expectAsItWas(_ state: any StateStore) throws {
        #expect(state.appliedIndex == Self.index && state.appliedTerm == Self.term)
        #expect(state.revision == Self.revision)
        #expect(state.meta.activeVersion == 1 && !state.meta.needsCounting)
        #expect(try state.contentHash() == Self.hash)
        #expect(try state.recomputeContentHash() == Self.hash)
        #expect(try state.get([100, 3], at: nil)?.value == [9])
        #expect(try state.get([100, 4], at: nil)?.lease == LeaseID.none)
    }

    private func snapshot() -> (meta: SnapshotMeta, bytes: [UInt8]) {
        let meta = SnapshotMeta(
            index: Self.index, term: Self.term, membership: EntrySource.membership,
            time: ClusterTime(milliseconds: 1_053_426))
        return (meta, StateDirectory.read(Self.directory + "/snapshot-v1.bin"))
    }

    private func install(into state: any StateStore) throws {
        let (meta, bytes) = snapshot()
        let writer = try state.receiveSnapshot(meta)
        try writer.append(bytes)
        try writer.finish()
    }

    /// Version 3 had a row for each version of a key, and garbage among them: a database after 301
    /// entries, in the middle of a generation and of a round of the hand. Version 2 had no garbage.
    @Test(arguments: [2, 3]) func aDatabaseWithARowForEachVersionIsTakenOver(version: Int) throws {
        let directory = StateDirectory()
        let bytes = StateDirectory.read(Self.directory + "/state-v3.db")
        try #require(bytes.count > 10_000)
        StateDirectory.write(bytes, to: directory.path + "/state.db")
        do {
            let database = try Database(path: directory.path + "/state.db")
            #expect(try database.integer("SELECT count(*) FROM garbage") ?? 0 > 10)
            if version == 2 {
                try database.execute(
                    """
                    DELETE FROM versions WHERE number IN (SELECT number FROM garbage);
                    DELETE FROM versions WHERE number NOT IN (SELECT number FROM changes);
                    DELETE FROM changes WHERE number IN (SELECT number FROM garbage);
                    DROP TABLE garbage; DROP TABLE hand; PRAGMA user_version = 2
                    """)
            }
        }
        // What had been applied to it.
        var source = EntrySource(seed: 4)
        let memory = MemoryState()
        _ = try memory.apply([source.membership()])
        for _ in 0..<12 {
            _ = try memory.apply(source.batch(25, revision: memory.revision))
        }
        var state = try SQLiteState(directory: directory.path)
        #expect(try state.contentHash() == memory.contentHash())
        try expectEqual(state, memory)
        #expect(try state.recomputeContentHash() == memory.contentHash())
        for _ in 0..<20 {
            let entries = source.batch(20, revision: memory.revision)
            #expect(try state.apply(entries) == memory.apply(entries))
            try expectEqual(state, memory)
        }
        state.close()
        state = try SQLiteState(directory: directory.path)
        #expect(try state.recomputeContentHash() == memory.contentHash())
        state.close()
    }

    @Test func anOldDatabaseIsTakenOver() throws {
        let directory = try old()
        var state = try SQLiteState(directory: directory.path)
        try expectAsItWas(state)
        // Migrated once, and for good.
        state.close()
        state = try SQLiteState(directory: directory.path)
        try expectAsItWas(state)
        // The same in memory: the snapshot of version 1 counts to the same figures.
        let memory = MemoryState()
        try install(into: memory)
        try expectAsItWas(memory)
        try expectEqual(state, memory)
        let fresh = StateDirectory()
        let other = try SQLiteState(directory: fresh.path)
        try install(into: other)
        try expectEqual(other, memory)
        // What it sends while version 1 is active, a program of version 1 understands.
        let reader = try state.makeSnapshot()
        var sent: [UInt8] = []
        while let piece = try reader.next() { sent += piece }
        #expect(sent == snapshot().bytes)
        reader.close()
        // And on from there, leases and all, like any other.
        var source = EntrySource(seed: 78)
        source.next = Self.index.next
        source.term = Self.term
        source.time = 1_053_426
        for _ in 0..<20 {
            let batch = source.batch(30, revision: memory.revision)
            let results = try memory.apply(batch)
            #expect(try state.apply(batch) == results)
            #expect(try other.apply(batch) == results)
            try expectEqual(state, memory)
            try expectEqual(other, memory)
        }
        #expect(memory.meta.activeVersion == 2)
        #expect(try state.recomputeContentHash() == memory.recomputeContentHash())
        try transfer(from: state, to: other)
        try expectEqual(other, memory)
        state.close()
        other.close()
    }

    /// A process that dies while it migrates leaves the old database.
    @Test func killedWhileMigrating() throws {
        let directory = try old()
        let database = try Database(path: directory.path + "/state.db")
        try database.execute(
            "BEGIN IMMEDIATE; ALTER TABLE changes ADD COLUMN lease INTEGER NOT NULL DEFAULT 0")
        let copy = directory.copy()
        try database.execute("ROLLBACK")
        let state = try SQLiteState(directory: copy.path)
        try expectAsItWas(state)
        state.close()
    }
}
