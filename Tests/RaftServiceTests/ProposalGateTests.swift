// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import Testing

@testable import RaftService

/// When proposals are gathered, and that nothing keeps them longer than the gate's patience or its linger.
@Suite struct ProposalGateTests {
    private let start = MonotonicInstant(nanoseconds: 1_000_000_000)

    /// One batch on its way, of which nobody is waited for when it has landed: `last` is its last number.
    private func busy(_ last: UInt64 = 1, count: Int = ProposalGate.lingeringBatchMax + 1)
        -> ProposalGate
    {
        var gate = ProposalGate()
        #expect(gate.waits(start, count: count, bytes: 0) == nil)
        gate.passed(last, count: count, start)
        return gate
    }

    @Test func gathersBehindABatchUntilItIsAnswered() {
        var gate = busy()
        #expect(gate.waits(start, count: 1, bytes: 0) == start + ProposalGate.patience)
        gate.landed(1, gathered: 1, start)
        #expect(gate.waits(start, count: 1, bytes: 0) == nil)
    }

    @Test func anAnswerSettlesWhatWasProposedBefore() {
        var gate = busy()
        gate.passed(2, count: 100, start)
        gate.landed(2, gathered: 0, start)
        #expect(gate.isOpen)
        gate.passed(10, count: 100, start)
        #expect(gate.waits(start, count: 1, bytes: 0) != nil)
    }

    @Test func patienceCountsFromTheFirstThatWaits() {
        var gate = busy()
        let later = start + .milliseconds(1)
        #expect(gate.waits(start, count: 1, bytes: 0) == start + ProposalGate.patience)
        #expect(gate.waits(later, count: 2, bytes: 0) == start + ProposalGate.patience)
        #expect(gate.waits(start + ProposalGate.patience, count: 2, bytes: 0) == nil)
        // The next ones have the whole of it again, although nothing was answered.
        gate.passed(100, count: 2, later)
        #expect(gate.waits(later, count: 1, bytes: 0) == later + ProposalGate.patience)
    }

    @Test func anotherLeadershipForgetsWhatIsOnItsWay() {
        var gate = busy()
        gate.reset()
        #expect(gate.waits(start, count: 1, bytes: 0) == nil)
        // And whom it waited for.
        gate.passed(2, count: 10, start)
        gate.landed(2, gathered: 0, start)
        #expect(gate.waits(start, count: 1, bytes: 0) != nil)
        gate.reset()
        #expect(gate.waits(start, count: 1, bytes: 0) == nil)
    }

    @Test func aBatchHasLandedWhenItsLastProposalHas() {
        var gate = busy(17)
        #expect(!gate.isOpen)
        gate.landed(16, gathered: 0, start)
        #expect(!gate.isOpen)
        gate.landed(17, gathered: 0, start)
        #expect(gate.isOpen)
    }

    @Test func muchIsNotKeptWaiting() {
        var gate = busy()
        #expect(gate.waits(start, count: 1, bytes: ProposalGate.gatheredBytesMax - 1) != nil)
        #expect(gate.waits(start, count: 1, bytes: ProposalGate.gatheredBytesMax) == nil)
        gate = busy(1, count: 10)
        gate.landed(1, gathered: 0, start)
        #expect(gate.waits(start, count: 1, bytes: ProposalGate.gatheredBytesMax - 1) != nil)
        #expect(gate.waits(start, count: 1, bytes: ProposalGate.gatheredBytesMax) == nil)
    }

    // MARK: - The linger

    @Test func waitsForThoseWhoWereAnswered() {
        var gate = busy(10, count: 10)
        let landed = start + .milliseconds(1)
        gate.landed(10, gathered: 5, landed)
        // Nine of ten, besides the five.
        #expect(gate.waits(landed, count: 5, bytes: 0) == landed + ProposalGate.lingerMax)
        #expect(gate.waits(landed, count: 13, bytes: 0) == landed + ProposalGate.lingerMax)
        #expect(gate.waits(landed, count: 14, bytes: 0) == nil)
    }

    @Test func waitsNoLongerThanItsLinger() {
        var gate = busy(10, count: 10)
        gate.landed(10, gathered: 5, start)
        let end = start + ProposalGate.lingerMax
        #expect(gate.waits(start + .milliseconds(3), count: 5, bytes: 0) == end)
        #expect(gate.waits(end, count: 5, bytes: 0) == nil)
    }

    @Test func aClientAloneWaitsForNobody() {
        var gate = busy(1, count: 1)
        gate.landed(1, gathered: 0, start)
        #expect(gate.waits(start, count: 1, bytes: 0) == nil)
    }

    @Test func nobodyIsWaitedForBehindWhatOthersForwarded() {
        var gate = busy(10, count: 0)
        gate.landed(10, gathered: 0, start)
        #expect(gate.waits(start, count: 0, bytes: 0) == nil)
    }

    /// Closed loops of `clients` who come back within a fifth of a millisecond, half of them after the other half:
    /// one batch holds all of them soon, and stays so.
    @Test(arguments: [2, 3, 16, 64]) func clientsWhoWaitForAnswersComeTogether(clients: Int) {
        var gate = ProposalGate()
        let flight = Duration.milliseconds(1)
        let back = Duration.microseconds(200)
        var now = start
        var gathered = clients / 2
        var away = clients - gathered
        var number: UInt64 = 0
        var sizes: [Int] = []
        for _ in 0..<100 {
            #expect(gate.waits(now, count: gathered, bytes: 0) == nil)
            let batch = gathered
            number += UInt64(batch)
            gate.passed(number, count: batch, now)
            sizes.append(batch)
            // Those who are away come while the batch is on its way.
            gathered = away
            now = now + flight
            gate.landed(number, gathered: gathered, now)
            away = batch
            if gathered == 0 || gate.waits(now, count: gathered, bytes: 0) != nil {
                now = now + back
                gathered += away
                away = 0
            }
        }
        #expect(sizes.dropFirst(2).allSatisfy { $0 == clients })
    }

    /// Whoever was not waited for by mistake is waited for again before long.
    @Test func theLingerComesBackWhenItPays() {
        var gate = ProposalGate()
        var number: UInt64 = 0
        var now = start
        /// A batch of ten, in whose flight of a millisecond `came` others come.
        func isLingering(came: Int) -> Bool {
            number += 10
            gate.passed(number, count: 10, now)
            now = now + .milliseconds(1)
            gate.landed(number, gathered: came, now)
            return gate.waits(now, count: came, bytes: 0) != nil
        }
        for _ in 0..<1_000 { _ = isLingering(came: 10) }
        var without = 0
        while !isLingering(came: 0) { without += 1 }
        #expect(without <= ProposalGate.pauseMax)
        for _ in 0..<ProposalGate.paidMin { #expect(isLingering(came: 0)) }
        // One that does not pay costs no more than one batch now.
        #expect(!isLingering(came: 10))
        #expect(isLingering(came: 0))
    }

    /// Requests every tenth of a millisecond, whoever was answered: few batches linger.
    @Test func whoDoesNotWaitForAnswersIsNotWaitedFor() {
        var gate = ProposalGate()
        let flight = Duration.milliseconds(1)
        let apart = Duration.microseconds(100)
        var now = start
        var next = start
        var gathered = 0
        func come(until: MonotonicInstant) {
            while next <= until {
                gathered += 1
                next = next + apart
            }
        }
        var number: UInt64 = 0
        var lingers = 0
        for _ in 0..<2_000 {
            come(until: now)
            if let until = gate.waits(now, count: gathered, bytes: 0) {
                lingers += 1
                while now < until, gate.waits(now, count: gathered, bytes: 0) != nil {
                    now = min(next, until)
                    come(until: now)
                }
            }
            number += UInt64(gathered)
            gate.passed(number, count: gathered, now)
            gathered = 0
            now = now + flight
            come(until: now)
            gate.landed(number, gathered: gathered, now)
        }
        // While the pause doubles, and then one in each.
        #expect(lingers <= 8 + 2_000 / ProposalGate.pauseMax)
    }
}
