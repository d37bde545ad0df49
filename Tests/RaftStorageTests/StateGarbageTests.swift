// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SQLiteKit
import Testing

/// What is swept of history stays in the file for a while: nobody may see it, and it must go.
@Suite struct StateGarbageTests {
    /// Rows that the file has, garbage and all.
    private struct Rows {
        var changes: Int
        var newest: Int
        var milestones: Int

        init(_ directory: StateDirectory) throws {
            let database = try Database(path: directory.path + "/state.db")
            changes = Int(try database.integer("SELECT count(*) FROM changes") ?? 0)
            newest = Int(try database.integer("SELECT count(*) FROM newest") ?? 0)
            milestones = Int(try database.integer("SELECT count(*) FROM milestones") ?? 0)
        }
    }

    /// What changes keep of those that they have replaced is what these are.
    private func checkReplaced(_ directory: StateDirectory) throws {
        let database = try Database(path: directory.path + "/state.db")
        let rows = try database.prepare(
            """
            SELECT p.number, p.create_revision, p.version, p.previous, p.lease, p.key, p.value,
                c.replaced_hash, c.replaced_bytes, n.hash
            FROM changes p LEFT JOIN changes c ON c.previous = p.number
                LEFT JOIN newest n ON n.number = p.number
            """)
        func number(_ column: Int32) -> UInt64 { UInt64(bitPattern: rows.integer(column)) }
        while try rows.step() {
            let change = Change(
                header: ChangeHeader(
                    number: ChangeNumber(number(0)), key: rows.bytes(5),
                    createRevision: Revision(number(1)), version: number(2),
                    previous: ChangeNumber(number(3)), lease: LeaseID(number(4))),
                value: rows.bytes(6))
            let hash = RowHash.ofRows(change)
            if !rows.isNull(9) { #expect(number(9) == hash) }
            guard !rows.isNull(7) else { continue }
            #expect(number(7) == (change.header.isTombstone ? 0 : hash))
            #expect(number(8) == (change.header.isTombstone ? 0 : UInt64(change.value.count)))
        }
    }

    private func options(_ countMin: Int) -> SQLiteState.Options {
        var options = SQLiteState.Options()
        options.garbageCountMin = countMin
        return options
    }

    /// One batch after the other into both, and the same to be seen in both after each.
    @Test(arguments: [1, 3, 20, 5000], [1, 2, 3] as [UInt64])
    func nobodySeesGarbage(countMin: Int, seed: UInt64) throws {
        let directory = StateDirectory()
        var source = EntrySource(seed: 700 + seed)
        let memory = MemoryState()
        var state = try SQLiteState(directory: directory.path, options: options(countMin))
        _ = try memory.apply([source.membership()])
        source.next = LogIndex(1)
        _ = try state.apply([source.membership()])
        var most = 0
        for round in 0..<80 {
            let entries = source.batch(
                source.random.uniform(1..<30), revision: memory.revision)
            #expect(try state.apply(entries) == memory.apply(entries))
            try expectEqual(state, memory)
            guard round % 10 == 9 else { continue }
            #expect(try state.recomputeContentHash() == memory.contentHash())
            let copy = MemoryState()
            try transfer(from: state, to: copy)
            try expectEqual(copy, memory)
            _ = try round % 20 == 9 ? state.checkpoint() : state.trim().durable
            state.close()
            try checkReplaced(directory)
            let rows = try Rows(directory)
            most = max(most, rows.changes - Int(memory.meta.figures.changeCount))
            state = try SQLiteState(directory: directory.path, options: options(countMin))
            try expectEqual(state, memory)
        }
        state.close()
        // Or there was nothing to see.
        #expect(most > 0 || countMin < 20)
    }

    /// Older versions of a key that was removed are garbage when the removal itself is swept, and must
    /// not be its newest version then.
    @Test func aRemovedKeyStaysRemoved() throws {
        let directory = StateDirectory()
        var source = EntrySource(seed: 1)
        let memory = MemoryState()
        let state = try SQLiteState(directory: directory.path)
        _ = try memory.apply([source.membership()])
        source.next = LogIndex(1)
        var entries = [source.membership()]
        for value in [1, 2, 3] as [UInt8] { entries.append(source.put([7], [value])) }
        entries.append(
            source.command(.transaction(Transaction(success: [.delete(key: [7])]), nil)))
        entries.append(source.put([8], [1]))
        entries.append(source.command(.compact(Revision(5))))
        _ = try memory.apply(Array(entries[1...]))
        _ = try state.apply(entries)
        #expect(state.meta.swept == .last(of: Revision(5)))
        #expect(try state.get([7], at: nil) == nil)
        try expectEqual(state, memory)
        entries = [source.put([7], [4])]
        #expect(try state.apply(entries) == memory.apply(entries))
        #expect(try state.get([7], at: nil)?.version == 1)
        #expect(try state.get([7], at: Revision(5)) == nil)
        try expectEqual(state, memory)
        #expect(try state.recomputeContentHash() == memory.contentHash())
        _ = try state.checkpoint()
        state.close()
        #expect(try Rows(directory).newest == 2)
    }

    /// 40,000 overwrites of 2,000 keys with all history but the last 1,000 revisions let go on the way.
    @Test func garbageIsBounded() throws {
        let directory = StateDirectory()
        var source = EntrySource(seed: 1)
        let state = try SQLiteState(directory: directory.path, options: options(100))
        _ = try state.apply([source.membership()])
        let keys = 2000
        for round in 0..<420 {
            var entries: [Entry] = []
            for place in 0..<100 {
                let number =
                    round * 100 < keys ? round * 100 + place : source.random.uniform(0..<keys)
                entries.append(source.put(Array("key-\(number)".utf8), source.bytes(100)))
            }
            if state.revision > Revision(1000) {
                entries.append(
                    source.command(.compact(Revision(state.revision.rawValue - 1000))))
            }
            _ = try state.apply(entries)
            guard round % 20 == 19 else { continue }
            _ = try state.checkpoint()
            let rows = try Rows(directory)
            let wanted = Int(state.meta.figures.changeCount)
            #expect(rows.changes <= wanted + wanted / 4 * 3 / 2 + 200, "round \(round)")
            #expect(rows.newest == min(keys, (round + 1) * 100), "round \(round)")
            #expect(rows.milestones <= wanted / 20, "round \(round)")
        }
        // All goes: nothing is written any more, so it is taken out at rest.
        let entries = (0..<keys).map { number in
            source.command(
                .transaction(
                    Transaction(success: [.delete(key: Array("key-\(number)".utf8))]), nil))
        }
        _ = try state.apply(entries)
        _ = try state.apply(
            (0..<20).map { _ in source.command(.compact(state.revision)) })
        #expect(state.meta.figures.liveCount == 0 && state.meta.figures.changeCount == 0)
        while try state.trim().hasMore {}
        state.close()
        let rows = try Rows(directory)
        #expect(rows.newest == 0 && rows.milestones == 0)
        #expect(rows.changes <= 100)
    }
}
