// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import Testing

/// One step beyond what the state machine takes or gives at once.
@Suite struct LimitTests {
    private func run(_ machine: inout MemoryMachine, _ success: [Operation]) -> CommandResult {
        machine.run(.transaction(Transaction(success: success), nil))
    }

    private func code(_ result: CommandResult) -> AspenErrorCode? {
        if case .failed(let code, _) = result { code } else { nil }
    }

    private func key(_ number: Int) -> [UInt8] {
        [UInt8(number >> 16 & 255), UInt8(number >> 8 & 255), UInt8(number & 255)]
    }

    private func fill(_ machine: inout MemoryMachine, _ count: Int) {
        for start in stride(from: 0, to: count, by: Limits.transactionOperationsMax) {
            let numbers = start..<min(start + Limits.transactionOperationsMax, count)
            #expect(code(run(&machine, numbers.map { .put(key: key($0), value: []) })) == nil)
        }
    }

    /// The simulator has others; programs have those that are documented.
    @Test func boundsAreThoseOfTheMomentWhenAMachineIsMade() {
        #expect(KVBounds.current == KVBounds())
        #expect(KVBounds().transactionDeletesMax == KVLimits.transactionDeletesMax)
        var low = KVBounds()
        low.transactionDeletesMax = 2
        var lowered = KVBounds.$current.withValue(low) { MemoryMachine() }
        var usual = MemoryMachine()
        fill(&lowered, 3)
        fill(&usual, 3)
        let all = [Operation.deleteRange(from: [], to: nil)]
        #expect(code(run(&lowered, all)) == .resourceExhausted)
        #expect(code(run(&usual, all)) == nil)
    }

    @Test func comparesAndOperationsAreCounted() {
        var machine = MemoryMachine()
        let most = Limits.transactionOperationsMax
        let compare = Compare(key: [1], target: .exists(false), relation: .equal)
        for extra in 0...1 {
            let gets = [Operation](repeating: .get(key: [1]), count: most + extra)
            let compares = [Compare](repeating: compare, count: most + extra)
            let transactions = [
                Transaction(success: gets), Transaction(success: [], failure: gets),
                Transaction(compares: compares, success: []),
            ]
            for transaction in transactions {
                let refused = code(machine.run(.transaction(transaction, nil)))
                #expect(refused == (extra == 0 ? nil : .invalidArgument))
            }
        }
    }

    @Test func rangeDeletesAreCounted() {
        var machine = MemoryMachine()
        fill(&machine, KVLimits.transactionDeletesMax + 1)
        let before = machine.meta
        #expect(code(run(&machine, [.deleteRange(from: [], to: nil)])) == .resourceExhausted)
        #expect(machine.meta.revision == before.revision)
        #expect(machine.meta.figures.liveCount == before.figures.liveCount)
        #expect(code(run(&machine, [.delete(key: key(0))])) == nil)
        #expect(code(run(&machine, [.deleteRange(from: [], to: nil)])) == nil)
        #expect(machine.meta.figures.liveCount == 0)
    }

    @Test func historyComesInPages() {
        var machine = MemoryMachine()
        let changes = KVLimits.historyCountMax + 2
        for number in 0..<changes { machine.put("k", "\(number)") }
        let first = machine.history(of: [107], before: nil, limit: changes + 1000)
        #expect(first.events.count == KVLimits.historyCountMax && first.more)
        let oldest = first.events.last?.entry.modRevision
        let rest = machine.history(of: [107], before: oldest, limit: changes)
        #expect(rest.events.count == 2 && !rest.more)
    }

    @Test func aCountGoesOnInSteps() {
        var machine = MemoryMachine()
        fill(&machine, KVLimits.countRowsMax + 1)
        var request = CountRequest(from: [0], to: nil)
        guard case .value(let first) = machine.count(request) else {
            Issue.record("no count")
            return
        }
        #expect(first.count == UInt64(KVLimits.countRowsMax))
        request.from = first.next ?? []
        request.at = first.revision
        guard case .value(let rest) = machine.count(request) else {
            Issue.record("no rest")
            return
        }
        #expect(rest.count == 1 && rest.next == nil)
    }

    @Test func previousValuesOfOneRevisionHaveABound() {
        var machine = MemoryMachine()
        let value = [UInt8](repeating: 7, count: Limits.valueBytesMax)
        for number in 0..<18 { _ = run(&machine, [.put(key: key(number), value: value)]) }
        let before = machine.meta.revision
        _ = run(&machine, [.deleteRange(from: [], to: nil)])
        let request = ChangesRequest(
            after: .last(of: before), count: 256, bytesMax: 262_144, withPrevious: true)
        guard case .value(let page) = machine.changes(request) else {
            Issue.record("no changes")
            return
        }
        #expect(page.events.count == 18, "no event is left out")
        let bytes = page.events.reduce(0) { $0 + ($1.previous?.value.count ?? 0) }
        #expect(bytes <= KVLimits.changePageBytesMax && bytes > 12 << 20)
        #expect(page.events.contains { $0.previous == nil })
    }
}
