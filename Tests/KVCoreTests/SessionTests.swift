// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import Testing

@Suite struct SessionTests {
    private func add(_ key: UInt8, _ session: SessionID, _ number: UInt64, _ below: UInt64 = 0)
        -> Command
    {
        .transaction(
            Transaction(success: [.put(key: [key], value: [key])]),
            SessionRequest(session: session, number: number, acknowledgedBelow: below))
    }

    private func open(_ machine: inout MemoryMachine, time: UInt64 = 0) -> SessionID {
        guard case .sessionOpened(let id) = machine.run(.openSession, time: time) else {
            Issue.record("no session")
            return SessionID(0)
        }
        #expect(id.rawValue == machine.meta.appliedIndex.rawValue)
        return id
    }

    private func isFailed(_ result: CommandResult, _ code: AspenErrorCode) -> Bool {
        if case .failed(code, _) = result { true } else { false }
    }

    @Test func aRetryIsAppliedOnceAndAnsweredAlike() {
        var machine = MemoryMachine()
        let session = open(&machine)
        let first = machine.run(add(1, session, 5))
        #expect(
            first
                == .transaction(
                    succeeded: true, revision: Revision(1), results: [.put(previousVersion: 0)]))
        _ = machine.run(add(1, session, 6))
        #expect(machine.run(add(1, session, 5)) == first)
        #expect(machine.meta.revision == Revision(2))
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
    }

    @Test func failuresAreAnswersToo() {
        var machine = MemoryMachine()
        let session = open(&machine)
        let request = SessionRequest(session: session, number: 1, acknowledgedBelow: 0)
        let compare = Compare(key: [1], target: .exists(true))
        let wins = Transaction(
            compares: [compare], success: [], failure: [.put(key: [1], value: [])])
        let first = machine.run(.transaction(wins, request))
        // Run again, the compare would hold now.
        #expect(machine.run(.transaction(wins, request)) == first)
        let bad = Transaction(success: [.put(key: [], value: [])])
        let second = SessionRequest(session: session, number: 2, acknowledgedBelow: 1)
        #expect(isFailed(machine.run(.transaction(bad, second)), .invalidArgument))
        let good = Transaction(success: [.put(key: [3], value: [])])
        #expect(isFailed(machine.run(.transaction(good, second)), .invalidArgument))
    }

    @Test func theWindowSlides() {
        var machine = MemoryMachine()
        let session = open(&machine)
        let window = UInt64(Limits.sessionWindowMax)
        #expect(!isFailed(machine.run(add(1, session, window - 1)), .resourceExhausted))
        #expect(isFailed(machine.run(add(1, session, window)), .resourceExhausted))
        #expect(!isFailed(machine.run(add(1, session, window, 1)), .resourceExhausted))
        #expect(isFailed(machine.run(add(1, session, 0)), .invalidArgument), "below the mark")
        #expect(isFailed(machine.run(add(1, session, 9, 10)), .invalidArgument))
        #expect(machine.meta.revision == Revision(2))
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
    }

    @Test func silentSessionsExpire() {
        var machine = MemoryMachine()
        let timeout = UInt64(Limits.sessionTimeout.components.seconds) * 1000
        let silent = open(&machine, time: 1000)
        let busy = open(&machine, time: 1000)
        #expect(machine.nextSessionExpiry() == ClusterTime(milliseconds: 1000 + timeout + 1))
        #expect(machine.run(.keepSessionAlive(busy), time: 1000 + timeout) == .done)
        _ = machine.run(.expireSessions, time: 1000 + timeout)
        #expect(machine.sessionCount == 2, "not yet")
        _ = machine.run(.expireSessions, time: 1000 + timeout + 1)
        #expect(machine.sessionCount == 1)
        #expect(isFailed(machine.run(add(1, silent, 1)), .sessionExpired))
        #expect(isFailed(machine.run(.keepSessionAlive(silent)), .sessionExpired))
        #expect(!isFailed(machine.run(add(1, busy, 1)), .sessionExpired))
        #expect(machine.run(.closeSession(busy)) == .done)
        #expect(isFailed(machine.run(add(1, busy, 1)), .sessionExpired))
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
        #expect(machine.nextSessionExpiry() == nil)
    }

    @Test func theNumberOfSessionsIsLimited() {
        var machine = MemoryMachine()
        for _ in 0..<Limits.sessionsMax { _ = machine.run(.openSession) }
        #expect(isFailed(machine.run(.openSession), .resourceExhausted))
        #expect(machine.run(.closeSession(SessionID(1))) == .done)
        #expect(!isFailed(machine.run(.openSession), .resourceExhausted))
    }

    @Test func largeAnswersAreStoredAndForgotten() {
        var machine = MemoryMachine()
        let session = open(&machine)
        let value = [UInt8](repeating: 3, count: Limits.valueBytesMax)
        _ = machine.run(.transaction(Transaction(success: [.put(key: [1], value: value)]), nil))
        func get(_ number: UInt64, _ below: UInt64) -> CommandResult {
            machine.run(
                .transaction(
                    Transaction(success: [.get(key: [1]), .get(key: [1]), .get(key: [1])]),
                    SessionRequest(session: session, number: number, acknowledgedBelow: below)))
        }
        let first = get(1, 0)
        _ = machine.run(
            .transaction(Transaction(success: [.put(key: [1], value: [])]), nil))
        #expect(get(1, 0) == first, "the answer of then")
        _ = machine.run(.transaction(Transaction(success: [.put(key: [1], value: value)]), nil))
        #expect(!isFailed(get(2, 0), .resourceExhausted))
        #expect(isFailed(get(3, 0), .resourceExhausted), "nine megabytes of answers")
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
        #expect(!isFailed(get(4, 4), .resourceExhausted))
        #expect(machine.run(.closeSession(session)) == .done)
        #expect(machine.meta.storedAnswerBytes == 0)
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
    }
}
