// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import Glibc
import KVCore
import RaftCore
import RaftStorage
import Testing

/// History trims itself and the space comes back, with no command given: here the leader's part, to
/// ask the policy and propose what it says, is played by the test.
@Suite struct StateSpaceTests {
    private struct Plan {
        var overwrites: Int
        var keys: Int
        var valueBytes: Range<Int>
        var policy = CompactionPolicy()
        var options = SQLiteState.Options()
        /// Above four times the live data.
        var slackBytes: UInt64
    }

    /// - Returns: the largest size of the directory after a checkpoint, and the live data.
    private func run(_ plan: Plan, _ directory: StateDirectory) throws -> (UInt64, UInt64) {
        let state = try SQLiteState(directory: directory.path, options: plan.options)
        var source = EntrySource(seed: 1)
        _ = try state.apply([source.membership(), source.command(.activateVersion(2))])
        var largest: UInt64 = 0
        let value = source.bytes(plan.valueBytes.upperBound)
        var done = 0
        while done < plan.overwrites {
            var batch: [Entry] = []
            for _ in 0..<64 {
                let key = Array("key/\(source.random.uniform(0..<plan.keys))".utf8)
                let count = source.random.uniform(plan.valueBytes)
                batch.append(source.put(key, Array(value.prefix(count))))
            }
            done += batch.count
            if let revision = plan.policy.decision(state.meta) {
                batch.append(source.command(.compact(revision)))
            }
            _ = try state.apply(batch)
            if try state.checkpointIfDue() != nil { largest = max(largest, state.byteCount) }
        }
        #expect(state.meta.figures.liveCount == UInt64(plan.keys))
        #expect(state.meta.compacted > .zero)
        let figures = state.meta.figures
        _ = try state.checkpoint()
        largest = max(largest, state.byteCount)
        #expect(largest < 4 * figures.liveBytes + plan.slackBytes)
        state.close()
        return (largest, figures.liveBytes)
    }

    /// A fiftieth of five million overwrites of ten thousand keys, everything scaled alike.
    @Test func overwritesDoNotFillTheDisk() throws {
        var plan = Plan(
            overwrites: 100_000, keys: 200, valueBytes: 50..<1000, slackBytes: 134_217_728 / 50)
        plan.policy.revisionsKept = 2000
        plan.policy.historyBytesMax = 25_165_824 / 50
        plan.policy.revisionsKeptMin = 100
        plan.options.checkpointPages = 100
        plan.options.commitEntries = 256
        let (largest, live) = try run(plan, StateDirectory())
        print("largest \(largest), live \(live)")
    }

    /// However many pages the last checkpoint had to copy, the next is due at as many as ever.
    @Test func aLongWALDoesNotPutOffTheNextCheckpoint() throws {
        let directory = StateDirectory()
        var options = SQLiteState.Options()
        options.checkpointPages = 40
        options.commitEntries = 1
        let state = try SQLiteState(directory: directory.path, options: options)
        var source = EntrySource(seed: 2)
        _ = try state.apply([source.membership(), source.command(.activateVersion(2))])
        let value = source.bytes(1000)
        for round in 0..<60 {
            // Now and then many pages at once.
            let batch = (0..<(round % 5 == 0 ? 300 : 30)).map { _ in
                source.put(Array("key/\(source.random.uniform(0..<1000))".utf8), value)
            }
            _ = try state.apply(batch)
            _ = try state.checkpointIfDue()
            let pages = StateDirectory.read(directory.path + "/state.db-wal").count / 4096
            #expect(pages <= options.checkpointPages, "round \(round)")
        }
        state.close()
    }

    /// The whole of it, by hand: ASPEN_LARGE_TESTS=1.
    @Test(.enabled(if: getenv("ASPEN_LARGE_TESTS") != nil), arguments: [100, 1000])
    func fiveMillionOverwrites(valueBytes: Int) throws {
        let plan = Plan(
            overwrites: 5_000_000, keys: 10_000, valueBytes: valueBytes / 2..<valueBytes,
            slackBytes: 134_217_728)
        let (largest, live) = try run(plan, StateDirectory())
        print("values up to \(valueBytes) bytes: largest \(largest), live \(live)")
    }
}
