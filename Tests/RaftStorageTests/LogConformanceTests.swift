// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import AspenTypes
import RaftCore
import RaftStorage
import Testing

/// What every `LogStore` must do, whatever it stands on.
@Suite struct LogConformanceTests {
    @Test(arguments: Backend.allCases)
    func beginsEmpty(_ backend: Backend) throws {
        let bench = try LogBench(backend)
        #expect(bench.log.firstIndex == index(1))
        #expect(bench.log.lastIndex == .zero)
        #expect(try bench.log.read(from: index(1), upTo: index(9), bytesMax: .max).isEmpty)
        #expect(bench.log.recovery.isTailTrusted)
        #expect(bench.log.recovery.lastIndex == .zero)
        #expect(bench.log.recovery.hardState == HardState())
    }

    @Test(arguments: Backend.allCases)
    func keepsEntriesOfEveryShape(_ backend: Backend) throws {
        let bench = try LogBench(backend)
        var written = [
            Entry(
                index: index(1), term: Term(3), kind: .noop, origin: nil, time: .zero, payload: []),
            entry(2, term: 3, []),
            entry(3, term: 4, [0]),
            entry(4, term: 4, [UInt8](repeating: 0xff, count: 1_048_576)),
            Entry(
                index: index(5), term: Term(.max), kind: .command,
                origin: ProposalID(node: NodeID(.max), incarnation: .max, number: .max),
                time: ClusterTime(milliseconds: .max), payload: Array(0...255)),
        ]
        for size in 0..<40 {
            let number = UInt64(6 + size)
            written.append(entry(number, term: .max, [UInt8](repeating: 9, count: size)))
        }
        try bench.log.write(write(written))
        #expect(try bench.log.all() == written)
        try bench.log.sync()
        #expect(try bench.log.all() == written)
        guard try bench.reopen() else { return }
        #expect(try bench.log.all() == written)
        let recovery = bench.log.recovery
        #expect(recovery.lastIndex == index(45) && recovery.isTailTrusted)
        #expect(recovery.termStarts.map(\.index) == [index(1), index(3), index(5)])
        #expect(recovery.termStarts.map(\.term) == [Term(3), Term(4), Term(.max)])
        #expect(recovery.lastTime == ClusterTime(milliseconds: .max))
    }

    @Test(arguments: Backend.allCases)
    func truncatesAndGoesOn(_ backend: Backend) throws {
        let bench = try LogBench(backend)
        try bench.log.write(write(entries(1...10, term: 1)))
        try bench.log.write(write(cut: 6, entries(7...8, term: 2)))
        try bench.log.write(write(cut: 8))
        try bench.log.sync()
        let expected = entries(1...6, term: 1) + entries(7...8, term: 2)
        #expect(try bench.log.all() == expected)
        #expect(bench.log.lastIndex == index(8))
        if try bench.reopen() {
            #expect(try bench.log.all() == expected)
            #expect(bench.log.recovery.termStarts.map(\.term) == [Term(1), Term(2)])
        }
        try bench.log.write(write(cut: 0, entries(1...3, term: 5)))
        try bench.log.sync()
        try bench.reopen()
        #expect(try bench.log.all() == entries(1...3, term: 5))
    }

    @Test(arguments: Backend.allCases)
    func readsWithinLimits(_ backend: Backend) throws {
        let bench = try LogBench(backend)
        try bench.log.write(write(entries(1...200, byteCount: 100)))
        try bench.log.sync()
        let log = bench.log
        #expect(try log.read(from: index(5), upTo: index(9), bytesMax: .max).count == 5)
        #expect(
            try log.read(from: index(5), upTo: index(9), bytesMax: 0).map(\.index) == [index(5)])
        #expect(try log.read(from: index(5), upTo: index(9), bytesMax: 299).count == 2)
        #expect(try log.read(from: index(5), upTo: index(9), bytesMax: 300).count == 3)
        #expect(try log.read(from: index(1), upTo: index(200), bytesMax: 15_000).count == 150)
        #expect(try log.read(from: index(199), upTo: index(999), bytesMax: .max).count == 2)
        #expect(try log.read(from: index(201), upTo: index(999), bytesMax: .max).isEmpty)
        #expect(try log.read(from: index(9), upTo: index(8), bytesMax: .max).isEmpty)
    }

    @Test(arguments: Backend.allCases)
    func discardsWhatIsNotNeeded(_ backend: Backend) throws {
        let bench = try LogBench(backend)
        for number in UInt64(1)...400 {
            try bench.log.write(
                write(entries(number...number, term: number / 100 + 1, byteCount: 200)))
        }
        try bench.log.sync()
        try bench.log.discard(upTo: index(250), term: Term(3))
        let first = bench.log.firstIndex
        #expect(first > index(150) && first <= index(251))
        #expect(try bench.log.read(from: first.previous, upTo: first, bytesMax: .max).isEmpty)
        #expect(try bench.log.all().map(\.index) == (first.rawValue...400).map { index($0) })
        if try bench.reopen() {
            #expect(bench.log.firstIndex == first)
            #expect(bench.log.recovery.snapshotIndex == first.previous)
            #expect(bench.log.recovery.snapshotTerm == Term(first.previous.rawValue / 100 + 1))
            #expect(bench.log.recovery.termStarts.first?.index == first)
            #expect(try bench.log.all().count == 401 - Int(first.rawValue))
        }
    }

    @Test(arguments: Backend.allCases)
    func startsAnewAfterASnapshot(_ backend: Backend) throws {
        let bench = try LogBench(backend)
        let state = HardState(term: Term(9), votedFor: NodeID(3))
        try bench.log.write(write(entries(1...300, byteCount: 100), state: state))
        try bench.log.reset(to: index(1000), term: Term(8))
        #expect(bench.log.firstIndex == index(1001) && bench.log.lastIndex == index(1000))
        #expect(try bench.log.all().isEmpty)
        if try bench.reopen() {
            let recovery = bench.log.recovery
            #expect(recovery.snapshotIndex == index(1000) && recovery.snapshotTerm == Term(8))
            #expect(recovery.lastIndex == index(1000) && recovery.hardState == state)
        }
        try bench.log.write(write(entries(1001...1003, term: 9)))
        try bench.log.sync()
        try bench.reopen()
        #expect(try bench.log.all() == entries(1001...1003, term: 9))
    }

    @Test(arguments: Backend.allCases)
    func remembersTermAndVote(_ backend: Backend) throws {
        let bench = try LogBench(backend)
        let states = [
            HardState(term: Term(1), votedFor: NodeID(2)), HardState(term: Term(2)),
            HardState(term: Term(2), votedFor: NodeID(0)),
        ]
        for state in states {
            try bench.log.write(write(state: state))
            try bench.log.sync()
            if try bench.reopen() { #expect(bench.log.recovery.hardState == state) }
        }
    }

    @Test(arguments: Backend.allCases)
    func agreesWithAModel(_ backend: Backend) throws {
        for seed in UInt64(1)...20 {
            var random = RandomSource(seed: seed)
            let bench = try LogBench(backend)
            var model = LogModel()
            for _ in 0..<150 {
                let operation = model.draw(&random)
                try operation.perform(on: bench.log)
                model.apply(operation)
                if random.chance(1, in: 12) {
                    try bench.log.sync()
                    if try bench.reopen() {
                        #expect(model.disagreement(with: bench.log.recovery) == nil, "seed \(seed)")
                    }
                }
                try #require(try model.disagreement(with: bench.log) == nil, "seed \(seed)")
            }
        }
    }
}
