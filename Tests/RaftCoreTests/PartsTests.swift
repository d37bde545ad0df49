// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import Testing

@testable import RaftCore

@Suite struct RaftLogTests {
    private func entry(_ index: UInt64, _ term: UInt64, bytes: Int = 4) -> Entry {
        Entry(
            index: LogIndex(index), term: Term(term), kind: .command, origin: nil, time: .zero,
            payload: [UInt8](repeating: 0, count: bytes))
    }

    /// Against a plain array of terms, through any sequence of appends, cuts and discards.
    @Test func behavesLikeAnArray() {
        for seed in UInt64(0)..<200 {
            var random = RandomSource(seed: seed)
            var log = RaftLog(recovery: RaftRecovery(), cacheBytesMax: 1500)
            var model: [Term] = [.zero]
            var base = 0
            for _ in 0..<300 {
                switch random.uniform(0..<20) {
                case 0:
                    let cut = random.uniform(base..<model.count)
                    log.truncate(after: LogIndex(UInt64(cut)))
                    model.removeSubrange((cut + 1)...)
                case 1:
                    base = random.uniform(base..<model.count)
                    log.discard(upTo: LogIndex(UInt64(base)), term: model[base])
                default:
                    let last = model[model.count - 1].rawValue
                    let term = max(1, last + (random.chance(1, in: 8) ? 1 : 0))
                    let settled = LogIndex(UInt64(random.uniform(0..<model.count)))
                    log.append(entry(UInt64(model.count), term), settled: settled)
                    model.append(Term(term))
                }
                log.checkInvariants()
                #expect(log.lastIndex == LogIndex(UInt64(model.count - 1)))
                for index in 0..<model.count + 2 {
                    let expected = index >= base && index < model.count ? model[index] : nil
                    #expect(log.term(at: LogIndex(UInt64(index))) == expected)
                }
                agreement(log, model, base: base, &random)
            }
        }
    }

    private func agreement(
        _ log: RaftLog, _ model: [Term], base: Int, _ random: inout RandomSource
    ) {
        let start = random.uniform(base..<model.count)
        let term = Term(random.uniform(0..<(model[model.count - 1].rawValue + 2)))
        var index = start
        while index > base, model[index] > term { index -= 1 }
        #expect(
            log.agreement(atMost: LogIndex(UInt64(start)), term: term)
                == Position(LogIndex(UInt64(index)), model[index]))
    }

    @Test func memoryIsBoundedByWhatIsSettled() {
        var log = RaftLog(recovery: RaftRecovery(), cacheBytesMax: 1000)
        for index in UInt64(1)...100 { log.append(entry(index, 1), settled: .zero) }
        #expect(log.cacheFirst == LogIndex(1), "what is still to be applied stays in memory")
        for index in UInt64(101)...200 { log.append(entry(index, 1), settled: LogIndex(150)) }
        #expect(log.cacheFirst == LogIndex(151))
        for index in UInt64(201)...300 { log.append(entry(index, 1), settled: LogIndex(index - 1)) }
        #expect(log.cacheBytes <= 1000)
        #expect(log.cached(from: LogIndex(150), bytesMax: 100) == nil)
        #expect(log.cached(from: LogIndex(300), bytesMax: 1)?.count == 1, "at least one entry")
        #expect(log.cached(from: LogIndex(301), bytesMax: 100) == nil)
    }
}

@Suite struct WriteLedgerTests {
    private func issue(
        _ ledger: inout WriteLedger, _ last: UInt64, cut: UInt64? = nil, state: Bool = false
    ) -> DurabilityTicket {
        ledger.issue(
            lastIndex: LogIndex(last), truncateAfter: cut.map { LogIndex($0) },
            hasHardState: state)
    }

    @Test func entriesAreCoveredByTheirWrite() {
        var ledger = WriteLedger(durableIndex: LogIndex(2))
        #expect(ledger.ticket(covering: LogIndex(2)) == nil)
        let first = issue(&ledger, 4), second = issue(&ledger, 6)
        #expect(ledger.ticket(covering: LogIndex(4)) == first)
        #expect(ledger.ticket(covering: LogIndex(5)) == second)
        ledger.settle(first)
        #expect(ledger.durableIndex == LogIndex(4))
        #expect(ledger.ticket(covering: LogIndex(4)) == nil)
        ledger.settle(second)
        #expect(ledger.durableIndex == LogIndex(6))
        #expect(ledger.newest == nil)
    }

    @Test func durabilityOfWhatWasCutMeansNothing() {
        var ledger = WriteLedger(durableIndex: LogIndex(2))
        let first = issue(&ledger, 8)
        let second = issue(&ledger, 5, cut: 3)
        ledger.settle(first)
        #expect(ledger.durableIndex == LogIndex(3), "4 and 5 are other entries by now")
        #expect(ledger.ticket(covering: LogIndex(5)) == second)
        ledger.settle(second)
        #expect(ledger.durableIndex == LogIndex(5))
        _ = issue(&ledger, 4, cut: 1)
        #expect(ledger.durableIndex == LogIndex(1))
    }

    @Test func aTermIsWaitedForToo() {
        var ledger = WriteLedger(durableIndex: LogIndex(2))
        let state = issue(&ledger, 2, state: true)
        #expect(ledger.ticket(covering: LogIndex(1)) == state)
        ledger.settle(state)
        #expect(ledger.ticket(covering: LogIndex(1)) == nil)
    }
}

@Suite struct ForwardLedgerTests {
    private func id(_ number: UInt64, incarnation: UInt64 = 1, node: UInt64 = 1) -> ProposalID {
        ProposalID(node: NodeID(node), incarnation: incarnation, number: number)
    }

    /// Against a plain set.
    @Test func remembersExactlyWhatIsInTheWindow() {
        for seed in UInt64(0)..<20 {
            var random = RandomSource(seed: seed)
            let bits = seed % 2 == 0 ? ForwardLedger.bits : 128
            var ledger = ForwardLedger(bits: bits)
            var seen: Set<UInt64> = []
            var greatest: UInt64 = 0
            for _ in 0..<5000 {
                let reach = random.chance(1, in: 100) ? 9000 : 20
                // What is too old is never recorded: it counts as seen.
                let back = bits * 3 / 4
                let low = greatest > back ? greatest - back : 0
                let number = random.uniform(low..<(greatest + UInt64(reach)))
                let isTooOld = greatest >= bits + number
                #expect(ledger.hasSeen(id(number)) == (seen.contains(number) || isTooOld))
                ledger.record(id(number))
                seen.insert(number)
                greatest = max(greatest, number)
                #expect(ledger.hasSeen(id(number)))
            }
        }
    }

    @Test func keepsProposersApart() {
        var ledger = ForwardLedger()
        ledger.record(id(5))
        #expect(!ledger.hasSeen(id(5, node: 2)))
        #expect(!ledger.hasSeen(id(5, incarnation: 2)))
        ledger.record(id(1, incarnation: 2))
        #expect(!ledger.hasSeen(id(5, incarnation: 2)))
    }
}
