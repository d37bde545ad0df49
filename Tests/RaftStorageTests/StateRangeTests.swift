// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SQLiteKit
import Testing

/// Pages out of SQLite, beyond what all states promise.
@Suite struct StateRangeTests {
    /// A value that is gone is never an empty one, wherever in a page it was.
    @Test(arguments: [0, 5, 11, 29]) func aVersionWithoutItsChangeIsDamage(place: Int) throws {
        let directory = StateDirectory()
        var source = EntrySource(seed: 6)
        let state = try SQLiteState(directory: directory.path)
        _ = try state.apply([source.membership()])
        for number in 0..<30 as Range<UInt8> { _ = try state.apply([source.put([number], [1])]) }
        _ = try state.checkpoint()
        state.close()
        do {
            let database = try Database(path: directory.path + "/state.db")
            try database.execute(
                "DELETE FROM changes WHERE number = (SELECT number FROM changes "
                    + "ORDER BY number LIMIT 1 OFFSET \(place))")
        }
        let damaged = try SQLiteState(directory: directory.path)
        defer { damaged.close() }
        let keys = try damaged.range(
            RangeRequest(from: [], to: nil, limit: 100, keysOnly: true))
        guard case .page(let page) = keys else { throw StorageError.disk("no page") }
        #expect(page.entries.count == 30)
        do throws(StorageError) {
            _ = try damaged.range(RangeRequest(from: [], to: nil, limit: 100))
            Issue.record("a page was read")
        } catch {
            guard case .corrupt = error else { throw error }
        }
    }

    /// A key that was written thousands of times, and removed now and then, is read at any revision of its
    /// past, also once a part of that is compacted.
    @Test func aLongPastIsFound() throws {
        let directory = StateDirectory()
        var source = EntrySource(seed: 8)
        let memory = MemoryState()
        var state = try SQLiteState(directory: directory.path)
        _ = try memory.apply([source.membership()])
        source.next = LogIndex(1)
        _ = try state.apply([source.membership()])
        let keys: [[UInt8]] = [[1], [2], [3]]
        for round in 0..<60 {
            var entries: [Entry] = []
            for place in 0..<100 {
                // The first at every second revision, the others here and there.
                let key = place % 2 == 0 ? keys[0] : keys[source.random.uniform(1..<3)]
                entries.append(
                    place == 50
                        ? source.command(
                            .transaction(Transaction(success: [.delete(key: key)]), nil))
                        : source.put(key, [UInt8(round), UInt8(place)]))
            }
            if round == 40 { entries.append(source.command(.compact(Revision(1234)))) }
            #expect(try state.apply(entries) == memory.apply(entries))
            guard round % 20 == 19 else { continue }
            _ = try state.checkpoint()
            let oldest = max(memory.meta.compacted.rawValue, 1)
            for _ in 0..<200 {
                let revision = Revision(
                    source.random.uniform(oldest..<memory.revision.rawValue + 1))
                for key in keys {
                    #expect(
                        try state.lookUp(key, at: revision) == memory.lookUp(key, at: revision))
                    #expect(
                        try state.history(of: key, before: revision, limit: 3)
                            == memory.history(of: key, before: revision, limit: 3))
                }
                for descending in [false, true] {
                    let all = RangeRequest(
                        from: [], to: nil, limit: 10, at: revision, descending: descending)
                    #expect(try state.range(all) == memory.range(all))
                }
            }
        }
        #expect(try state.recomputeContentHash() == memory.contentHash())
        state.close()
        let database = try Database(path: directory.path + "/state.db")
        let milestones = try #require(try database.integer("SELECT count(*) FROM milestones"))
        let changes = try #require(try database.integer("SELECT count(*) FROM changes"))
        #expect((changes / 100...changes / 40).contains(milestones), "\(milestones) of \(changes)")
        // All of them as far as they can be of use to somebody.
        #expect(
            try database.integer("SELECT min(number) FROM milestones").map {
                ChangeNumber(UInt64($0)).revision > Revision(1234)
            } == true)
        state = try SQLiteState(directory: directory.path)
        try expectEqual(state, memory)
        state.close()
    }

    /// However far apart the changes of a key are, and wherever they begin.
    @Test(arguments: [1, 2, 55, 61, 89, 122, 233, 348, 1000] as [UInt64])
    func milestonesAreNeverFar(stride: UInt64) {
        for start in Swift.stride(from: 1, through: stride, by: max(1, Int(stride) / 16)) {
            var (gap, longest, found) = (0, 0, 0)
            for turn in 0..<5000 as Range<UInt64> {
                let number = ChangeNumber(Revision(1_000_000 + start + turn * stride), place: 0)
                gap += 1
                guard Milestones.contains(number) else { continue }
                longest = max(longest, gap)
                gap = 0
                found += 1
            }
            #expect(max(longest, gap) < 15 * Milestones.interval, "\(stride) from \(start)")
            #expect((40...130).contains(found), "\(stride) from \(start)")
        }
    }

    /// Values that lie in the page of the tree and over many pages, read one after another.
    @Test func valuesOfAnySizeComeInOnePage() throws {
        let directory = StateDirectory()
        var source = EntrySource(seed: 7)
        let state = try SQLiteState(directory: directory.path)
        defer { state.close() }
        _ = try state.apply([source.membership()])
        var values: [[UInt8]] = []
        for number in 0..<60 as Range<UInt8> {
            let value = source.bytes([0, 1, 100, 3000, 5000, 60_000][Int(number) % 6])
            values.append(value)
            _ = try state.apply([source.put([number], source.bytes(10))])
            _ = try state.apply([source.put([number], value)])
        }
        for descending in [false, true] {
            let request = RangeRequest(from: [], to: [100], limit: 60, descending: descending)
            guard case .page(let page) = try state.range(request) else { continue }
            #expect(page.entries.map(\.value) == (descending ? values.reversed() : values))
            #expect(page.entries.allSatisfy { $0.version == 2 } && !page.more)
            // And of what an open transaction holds, with writes between the pages.
            _ = try state.apply([source.put([200], [1])])
        }
    }
}
