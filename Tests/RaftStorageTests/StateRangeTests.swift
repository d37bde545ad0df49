// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
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
