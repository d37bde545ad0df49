// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import Testing

@testable import RaftService

/// When proposals are gathered, and that nothing keeps them longer than the gate's patience.
@Suite struct ProposalGateTests {
    private let start = MonotonicInstant(nanoseconds: 1_000_000_000)

    /// As many batches on their way as there may be, numbered 1, 2, …
    private func full() -> ProposalGate {
        var gate = ProposalGate()
        for number in 1...UInt64(ProposalGate.batchesMax) {
            #expect(gate.waits(start) == nil)
            gate.passed(number)
        }
        return gate
    }

    @Test func gathersBehindFullBatchesUntilOneIsAnswered() {
        var gate = full()
        #expect(gate.waits(start) == start + ProposalGate.patience)
        gate.landed(1)
        #expect(gate.waits(start) == nil)
    }

    @Test func anAnswerSettlesWhatWasProposedBefore() {
        var gate = full()
        gate.landed(UInt64(ProposalGate.batchesMax))
        for number in 10..<10 + UInt64(ProposalGate.batchesMax) {
            #expect(gate.waits(start) == nil)
            gate.passed(number)
        }
        #expect(gate.waits(start) != nil)
    }

    @Test func patienceCountsFromTheFirstThatWaits() {
        var gate = full()
        let later = start + .milliseconds(1)
        #expect(gate.waits(start) == start + ProposalGate.patience)
        #expect(gate.waits(later) == start + ProposalGate.patience)
        #expect(gate.waits(start + ProposalGate.patience) == nil)
        // The next ones have the whole of it again, although nothing was answered.
        gate.passed(100)
        #expect(gate.waits(later) == later + ProposalGate.patience)
    }

    @Test func anotherLeadershipForgetsWhatIsOnItsWay() {
        var gate = full()
        gate.reset()
        #expect(gate.waits(start) == nil)
    }

    @Test func aLeaderAppendsOneBatchAtATime() {
        var gate = ProposalGate(batchesMax: ProposalGate.appendedBatchesMax)
        #expect(gate.waits(start) == nil)
        gate.passed(17)
        #expect(!gate.isOpen)
        #expect(gate.waits(start) == start + ProposalGate.patience)
        // Committed, but not all of it.
        gate.landed(16)
        #expect(!gate.isOpen)
        gate.landed(17)
        #expect(gate.isOpen)
        #expect(gate.waits(start) == nil)
    }

    @Test func muchIsNotKeptWaiting() {
        var gate = full()
        #expect(gate.waits(start, bytes: ProposalGate.gatheredBytesMax - 1) != nil)
        #expect(gate.waits(start, bytes: ProposalGate.gatheredBytesMax) == nil)
    }
}
