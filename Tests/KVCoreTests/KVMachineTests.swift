// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import Testing

typealias MemoryMachine = KVMachine<MemoryTables>

extension KVMachine where Tables == MemoryTables {
    init() { self.init(tables: MemoryTables(), meta: StateMeta()) }

    /// Applies one command in a batch of its own.
    mutating func run(_ command: Command, time: UInt64 = 0) -> CommandResult {
        apply([
            CommittedEntry(
                index: meta.appliedIndex.next, term: Term(1),
                time: ClusterTime(milliseconds: time), body: .command(command))
        ])[0]
    }

    mutating func put(_ key: String, _ value: String) {
        _ = run(
            .transaction(
                Transaction(success: [.put(key: Array(key.utf8), value: Array(value.utf8))]), nil))
    }

    func recomputedRowHash() -> UInt64 {
        var rows = tables.rows()
        return Self.rowHash(of: &rows)
    }
}

@Suite struct KVMachineTests {
    @Test(arguments: 0..<24 as Range<UInt64>) func behavesLikeTheModel(seed: UInt64) {
        var source = CommandSource(random: RandomSource(seed: seed))
        var machine = MemoryMachine()
        var model = KVModel()
        for _ in 0..<300 {
            if source.random.chance(1, in: 12) {
                let revision = source.random.uniform(0..<model.revision.rawValue + 2)
                let result = machine.run(.compact(Revision(revision)))
                if revision <= model.revision.rawValue {
                    #expect(result == .done)
                    model.compacted = max(model.compacted, Int(revision))
                } else {
                    #expect(result != .done)
                }
                continue
            }
            let transaction = source.transaction()
            #expect(machine.run(.transaction(transaction, nil)) == model.apply(transaction))
            #expect(machine.meta.revision == model.revision)
            compareReads(machine, model, &source)
        }
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
        #expect(machine.meta.rowHash != 0)
    }

    private func compareReads(
        _ machine: MemoryMachine, _ model: KVModel, _ source: inout CommandSource
    ) {
        let (from, to) = source.bounds()
        let request = RangeRequest(
            from: from, to: to, limit: source.random.uniform(1..<30),
            at: source.random.chance(1, in: 2)
                ? nil : Revision(source.random.uniform(0..<model.revision.rawValue + 2)))
        switch (machine.range(request), model.range(request)) {
        case (.value(let page), .value(let expected)):
            #expect(page.entries == Array(expected.prefix(request.limit)))
            #expect(page.more == (expected.count > request.limit))
            #expect(page.revision == request.at ?? model.revision)
            for entry in expected {
                #expect(machine.get(entry.key, at: request.at) == .value(entry))
            }
        case (.compacted(let oldest), .compacted(let expected)): #expect(oldest == expected)
        case (.future(let current), .future(let expected)): #expect(current == expected)
        default: Issue.record("machine and model disagree on \(request)")
        }
    }

    /// Replicas group the same entries into different batches.
    @Test func batchesDoNotMatter() {
        var source = CommandSource(random: RandomSource(seed: 7))
        var entries: [CommittedEntry] = []
        for index in 1...400 as ClosedRange<UInt64> {
            let command: Command =
                switch source.random.uniform(0..<12) {
                case 0: .openSession
                case 1: .compact(Revision(index / 3))
                case 2: .expireSessions
                case 3...5:
                    .transaction(
                        source.transaction(),
                        SessionRequest(
                            session: SessionID(source.random.uniform(1..<index + 1)),
                            number: source.random.uniform(0..<6 as Range<UInt64>),
                            acknowledgedBelow: 0))
                default: .transaction(source.transaction(), nil)
                }
            entries.append(
                CommittedEntry(
                    index: LogIndex(index), term: Term(1),
                    time: ClusterTime(milliseconds: index * 1000), body: .command(command)))
        }
        var single = MemoryMachine()
        var results: [CommandResult] = []
        for entry in entries { results += single.apply([entry]) }
        for size in [2, 17, 400] {
            var batched = MemoryMachine()
            var batchedResults: [CommandResult] = []
            for start in stride(from: 0, to: entries.count, by: size) {
                batchedResults += batched.apply(
                    Array(entries[start..<min(start + size, entries.count)]))
            }
            #expect(batchedResults == results)
            #expect(batched.meta == single.meta)
            #expect(batched.recomputedRowHash() == batched.meta.rowHash)
        }
    }

    @Test func sweepingLeavesOnlyWhatCanBeRead() {
        var machine = MemoryMachine()
        for round in 0..<100 { machine.put("hot", "value \(round)") }
        _ = machine.run(
            .transaction(Transaction(success: [.delete(key: Array("hot".utf8))]), nil))
        machine.put("cold", "x")
        #expect(machine.run(.compact(machine.meta.revision)) == .done)
        var rows = machine.tables.rows()
        var left: [StateRow] = []
        while let row = rows.next() { left.append(row) }
        #expect(left.count == 2, "one change and one version of the only key alive")
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
        #expect(
            machine.get(Array("hot".utf8), at: Revision(5))
                == .compacted(oldest: machine.meta.revision))
    }

    @Test func aFailedTransactionLeavesNothing() {
        var machine = MemoryMachine()
        for first in 0..<4 {
            let puts = (0..<100).map {
                Operation.put(key: [1, UInt8(first), UInt8($0)], value: [UInt8($0)])
            }
            for _ in 0..<1 { _ = machine.run(.transaction(Transaction(success: puts), nil)) }
        }
        for extra in 0..<7 {
            let puts = (0..<100).map {
                Operation.put(key: [2, UInt8(extra), UInt8($0)], value: [])
            }
            _ = machine.run(.transaction(Transaction(success: puts), nil))
        }
        let before = machine.meta
        let tooMany = Transaction(success: [
            .put(key: [9], value: [9]), .deleteRange(from: [], to: nil),
        ])
        guard case .failed(.resourceExhausted, _) = machine.run(.transaction(tooMany, nil)) else {
            Issue.record("1101 keys were removed at once")
            return
        }
        #expect(machine.meta.revision == before.revision)
        #expect(machine.meta.rowHash == before.rowHash)
        let fits = Transaction(success: [
            .deleteRange(from: [2], to: nil), .delete(key: [1, 0, 0]),
        ])
        #expect(
            machine.run(.transaction(fits, nil))
                == .transaction(
                    succeeded: true, revision: before.revision.next,
                    results: [.deleted(count: 700), .deleted(count: 1)]))
    }

    @Test func sizesAreChecked() {
        var machine = MemoryMachine()
        func put(_ key: [UInt8], _ value: [UInt8]) -> CommandResult {
            machine.run(.transaction(Transaction(success: [.put(key: key, value: value)]), nil))
        }
        func isRefused(_ result: CommandResult) -> Bool {
            if case .failed(.invalidArgument, _) = result { true } else { false }
        }
        let key = [UInt8](repeating: 0xff, count: Limits.keyBytesMax)
        let value = [UInt8](repeating: 0, count: Limits.valueBytesMax)
        #expect(!isRefused(put(key, value)))
        #expect(isRefused(put(key + [0], [])))
        #expect(isRefused(put([1], value + [0])))
        #expect(isRefused(put([], [1])))
        #expect(!isRefused(put([0], [])))
        #expect(machine.meta.revision == Revision(2))
        guard case .value(let found?) = machine.get(key, at: nil) else {
            Issue.record("the largest value is not there")
            return
        }
        #expect(found.value == value)
    }

    @Test func pagesAreHonest() {
        var machine = MemoryMachine()
        let value = [UInt8](repeating: 7, count: Limits.valueBytesMax)
        for number in 0..<6 as Range<UInt8> {
            _ = machine.run(
                .transaction(Transaction(success: [.put(key: [number], value: value)]), nil))
        }
        var from: [UInt8] = []
        var seen: [[UInt8]] = []
        var pages = 0
        while true {
            guard
                case .value(let page) = machine.range(
                    RangeRequest(from: from, to: nil, limit: 1000, at: Revision(6)))
            else { break }
            pages += 1
            seen += page.entries.map(\.key)
            guard page.more, let last = page.entries.last else { break }
            from = last.key + [0]
        }
        #expect(seen == (0..<6).map { [$0] })
        #expect(pages == 2, "four megabytes and a bit are two pages")
        let keys = machine.range(RangeRequest(from: [], to: nil, limit: 1000, keysOnly: true))
        guard case .value(let page) = keys else { return }
        #expect(page.entries.count == 6 && !page.more)
    }

    @Test func answersOfTransactionsAreBounded() {
        var machine = MemoryMachine()
        let value = [UInt8](repeating: 7, count: Limits.valueBytesMax)
        _ = machine.run(.transaction(Transaction(success: [.put(key: [1], value: value)]), nil))
        let gets = [Operation](repeating: .get(key: [1]), count: 5)
        let result = machine.run(
            .transaction(Transaction(success: [.put(key: [2], value: [])] + gets), nil))
        guard case .failed(.resourceExhausted, _) = result else {
            Issue.record("five megabytes were returned")
            return
        }
        #expect(machine.meta.revision == Revision(1))
    }

    @Test func entriesOfUnknownVersionsStopTheNode() {
        #expect(throws: CommittedEntry.UnknownVersion(index: LogIndex(4), version: 9)) {
            try CommittedEntry.body(ofCommand: [9, 1], at: LogIndex(4))
        }
        #expect(throws: CommittedEntry.UnknownVersion(index: LogIndex(4), version: 300)) {
            try CommittedEntry.body(
                ofCommand: CommandCodec.encode(.activateVersion(300)), at: LogIndex(4))
        }
    }

    @Test func malformedEntriesAreRefusedAlike() throws {
        for payload: [UInt8] in [[], [0], [1], [1, 99], [1, 2, 3]] {
            guard case .malformed = try CommittedEntry.body(ofCommand: payload, at: LogIndex(1))
            else {
                Issue.record("\(payload) was understood")
                continue
            }
        }
        var machine = MemoryMachine()
        let results = machine.apply([
            CommittedEntry(index: LogIndex(1), term: Term(1), time: .zero, body: .malformed)
        ])
        #expect(results == [.failed(code: .invalidArgument, message: "malformed command")])
    }
}
