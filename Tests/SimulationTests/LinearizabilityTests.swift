// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import SimChecks
import SimFaults
import Testing

/// The judge is judged first: histories known to be good, known to be bad, and a slow but obvious
/// judge to compare with.
@Suite struct LinearizabilityTests {
    typealias Op = ClientOperation

    static func op(
        _ client: Int, _ begin: UInt64, _ end: UInt64?, _ call: Op.Call, _ answer: Op.Answer?,
        key: Int = 0
    ) -> Op {
        Op(client: client, key: key, call: call, begin: begin, end: end, answer: answer)
    }

    static let good: [(String, [Op])] = [
        ("nothing happened", []),
        ("read of what is not there", [op(0, 1, 2, .get, .value(nil, version: 0))]),
        (
            "a write, then a read",
            [
                op(0, 1, 2, .put(7), .stored(previousVersion: 0)),
                op(1, 3, 4, .get, .value(7, version: 1)),
            ]
        ),
        (
            "reads beside a write may see either side",
            [
                op(0, 1, 10, .put(7), .stored(previousVersion: 0)),
                op(1, 2, 3, .get, .value(nil, version: 0)),
                op(1, 4, 5, .get, .value(7, version: 1)),
            ]
        ),
        (
            "an unknown write that happened much later",
            [
                op(0, 1, nil, .put(7), nil),
                op(1, 2, 3, .get, .value(nil, version: 0)),
                op(1, 20, 21, .get, .value(7, version: 1)),
            ]
        ),
        (
            "an unknown write that never happened",
            [
                op(0, 1, nil, .put(7), nil),
                op(1, 2, 3, .put(8), .stored(previousVersion: 0)),
                op(1, 20, 21, .get, .value(8, version: 1)),
            ]
        ),
        (
            "of two swaps one wins",
            [
                op(0, 1, 9, .swap(expected: nil, new: 7), .swapped(true)),
                op(1, 1, 9, .swap(expected: nil, new: 8), .swapped(false)),
                op(2, 10, 11, .get, .value(7, version: 1)),
            ]
        ),
        (
            "deleted and born again: the version starts anew",
            [
                op(0, 1, 2, .put(7), .stored(previousVersion: 0)),
                op(0, 3, 4, .put(8), .stored(previousVersion: 1)),
                op(0, 5, 6, .delete, .deleted(true)),
                op(0, 7, 8, .put(9), .stored(previousVersion: 0)),
                op(1, 9, 10, .get, .value(9, version: 1)),
            ]
        ),
        (
            "keys are judged one by one",
            [
                op(0, 1, 2, .put(7), .stored(previousVersion: 0), key: 0),
                op(0, 3, 4, .get, .value(nil, version: 0), key: 1),
            ]
        ),
    ]

    static let bad: [(String, [Op])] = [
        (
            "stale read",
            [
                op(0, 1, 2, .put(7), .stored(previousVersion: 0)),
                op(0, 3, 4, .put(8), .stored(previousVersion: 1)),
                op(1, 5, 6, .get, .value(7, version: 1)),
            ]
        ),
        (
            "lost write",
            [
                op(0, 1, 2, .put(7), .stored(previousVersion: 0)),
                op(1, 3, 4, .get, .value(nil, version: 0)),
            ]
        ),
        ("read of what nobody wrote", [op(0, 1, 2, .get, .value(9, version: 1))]),
        (
            "read from the future",
            [
                op(1, 1, 2, .get, .value(7, version: 1)),
                op(0, 3, 4, .put(7), .stored(previousVersion: 0)),
            ]
        ),
        (
            "reads that go back",
            [
                op(0, 1, 20, .put(7), .stored(previousVersion: 0)),
                op(1, 2, 3, .get, .value(7, version: 1)),
                op(2, 4, 5, .get, .value(nil, version: 0)),
            ]
        ),
        (
            "lost update: both swaps from the same value win",
            [
                op(0, 1, 2, .put(1), .stored(previousVersion: 0)),
                op(0, 3, 9, .swap(expected: 1, new: 7), .swapped(true)),
                op(1, 4, 8, .swap(expected: 1, new: 8), .swapped(true)),
            ]
        ),
        (
            "an update that overwrote one it had not seen",
            [
                op(0, 1, 2, .put(1), .stored(previousVersion: 0)),
                op(0, 3, 4, .put(2), .stored(previousVersion: 1)),
                op(1, 3, 4, .put(3), .stored(previousVersion: 1)),
            ]
        ),
        (
            "a retried write that was applied twice",
            [
                op(0, 1, 9, .put(7), .stored(previousVersion: 0)),
                op(1, 10, 11, .get, .value(7, version: 2)),
            ]
        ),
        (
            "a deleted key is back",
            [
                op(0, 1, 2, .put(7), .stored(previousVersion: 0)),
                op(0, 3, 4, .delete, .deleted(true)),
                op(1, 5, 6, .get, .value(7, version: 1)),
            ]
        ),
        (
            "a swap refused although nothing else had happened",
            [
                op(0, 1, 2, .put(7), .stored(previousVersion: 0)),
                op(0, 3, 4, .swap(expected: 7, new: 8), .swapped(false)),
            ]
        ),
        (
            "an unknown write seen, then unseen",
            [
                op(0, 1, nil, .put(7), nil),
                op(1, 2, 3, .get, .value(7, version: 1)),
                op(1, 4, 5, .get, .value(nil, version: 0)),
            ]
        ),
        (
            "an unknown write happens once",
            [
                op(0, 1, nil, .put(7), nil),
                op(1, 2, 3, .get, .value(7, version: 1)),
                op(1, 4, 5, .put(8), .stored(previousVersion: 1)),
                op(1, 6, 7, .get, .value(7, version: 3)),
            ]
        ),
    ]

    @Test(arguments: good) func accepts(name: String, history: [Op]) {
        #expect(Linearizability.check(history) == .linearizable, "\(name)")
        #expect(Obvious.isLinearizable(history), "\(name): the obvious judge disagrees")
    }

    @Test(arguments: bad) func refuses(name: String, history: [Op]) {
        guard case .violated = Linearizability.check(history) else {
            Issue.record("\(name) was accepted")
            return
        }
        #expect(!Obvious.isLinearizable(history), "\(name): the obvious judge disagrees")
    }

    /// Small random histories, half of them nonsense: both judges must agree on each.
    @Test func agreesWithTheObviousJudge() {
        var random = RandomSource(seed: 1)
        var verdicts = [false: 0, true: 0]
        for _ in 0..<4000 {
            let history = Self.scribble(&random)
            let expected = Obvious.isLinearizable(history)
            verdicts[expected, default: 0] += 1
            let found = Linearizability.check(history) == .linearizable
            #expect(found == expected, "\(history)")
            if found != expected { return }
        }
        #expect(verdicts[true, default: 0] > 400 && verdicts[false, default: 0] > 400)
    }

    /// A real register under concurrent clients, long, with unknown outcomes: always accepted; and
    /// with one answered read falsified: never.
    @Test(arguments: 0..<20) func longHistories(seed: UInt64) {
        var random = RandomSource(seed: seed)
        var history = Self.live(&random, operations: 400, clients: 6)
        #expect(Linearizability.check(history) == .linearizable)
        let reads = history.indices.filter { history[$0].call == .get && history[$0].end != nil }
        guard let victim = reads.last else {
            Issue.record("no read to falsify")
            return
        }
        history[victim].answer = .value(999_999, version: 1)
        let verdict = Linearizability.check(history)
        guard case .violated(_, let culprit) = verdict else {
            Issue.record("a read of what nobody wrote: \(verdict)")
            return
        }
        #expect(culprit.answer == history[victim].answer)
    }

    // MARK: - Makers of histories

    /// Any calls, any answers.
    static func scribble(_ random: inout RandomSource) -> [Op] {
        (0..<random.uniform(2..<6)).map { number in
            let begin = random.uniform(1..<UInt64(10))
            let isKnown = random.chance(4, in: 5)
            let value = UInt64(number + 1)
            let call: Op.Call
            let answer: Op.Answer
            switch random.uniform(0..<4) {
            case 0:
                let version = random.uniform(0..<UInt64(3))
                call = .get
                answer = .value(
                    version == 0 ? nil : random.uniform(1..<UInt64(6)), version: version)
            case 1:
                call = .put(value)
                answer = .stored(previousVersion: random.uniform(0..<UInt64(2)))
            case 2:
                call = .swap(
                    expected: random.chance(1, in: 2) ? nil : random.uniform(1..<UInt64(6)),
                    new: value)
                answer = .swapped(random.chance(1, in: 2))
            default:
                call = .delete
                answer = .deleted(random.chance(1, in: 2))
            }
            return op(
                number, begin, isKnown ? begin + random.uniform(1..<UInt64(10)) : nil, call,
                isKnown ? answer : nil)
        }
    }

    /// What clients of a true register see: each call takes effect at one moment between its begin
    /// and its end; some never learn the outcome, some of those never take effect.
    static func live(_ random: inout RandomSource, operations: Int, clients: Int) -> [Op] {
        var value: UInt64?
        var version: UInt64 = 0
        var history: [Op] = []
        var open: [(client: Int, call: Op.Call, begin: UInt64, answer: Op.Answer?)] = []
        var time: UInt64 = 0
        func effect(_ call: Op.Call) -> Op.Answer {
            switch call {
            case .get: return .value(value, version: version)
            case .put(let new):
                defer { (value, version) = (new, version + 1) }
                return .stored(previousVersion: version)
            case .swap(let expected, let new):
                guard expected == value else { return .swapped(false) }
                (value, version) = (new, version + 1)
                return .swapped(true)
            case .delete:
                defer { (value, version) = (nil, 0) }
                return .deleted(value != nil)
            }
        }
        while history.count < operations {
            time += 1
            let client = random.uniform(0..<clients)
            guard let slot = open.firstIndex(where: { $0.client == client }) else {
                let new = UInt64(history.count + open.count + 1) * 100 + UInt64(client)
                let calls: [Op.Call] = [
                    .get, .get, .put(new), .swap(expected: value, new: new), .delete,
                ]
                open.append((client, calls[random.uniform(0..<calls.count)], time, nil))
                continue
            }
            var mine = open[slot]
            if mine.answer == nil {
                mine.answer = effect(mine.call)
                open[slot] = mine
            } else {
                open.remove(at: slot)
                let isKnown = random.chance(9, in: 10)
                history.append(
                    op(
                        client, mine.begin, isKnown ? time : nil, mine.call,
                        isKnown ? mine.answer : nil))
            }
        }
        for rest in open { history.append(op(rest.client, rest.begin, nil, rest.call, nil)) }
        return history
    }
}

/// Tries every order of every choice of the operations with unknown outcome.
enum Obvious {
    static func isLinearizable(_ history: [ClientOperation]) -> Bool {
        Set(history.map(\.key)).allSatisfy { key in
            search(history.filter { $0.key == key }, value: nil, version: 0)
        }
    }

    private static func search(
        _ left: [ClientOperation], value: UInt64?, version: UInt64
    ) -> Bool {
        if left.allSatisfy({ $0.end == nil }) { return true }
        for (position, candidate) in left.enumerated() {
            let isFirst = left.allSatisfy { other in
                guard let end = other.end else { return true }
                return end >= candidate.begin
            }
            guard isFirst else { continue }
            guard let (newValue, newVersion) = step(candidate, value, version) else { continue }
            var rest = left
            rest.remove(at: position)
            if search(rest, value: newValue, version: newVersion) { return true }
        }
        return false
    }

    private static func step(
        _ operation: ClientOperation, _ value: UInt64?, _ version: UInt64
    ) -> (UInt64?, UInt64)? {
        let answer: ClientOperation.Answer
        let after: (UInt64?, UInt64)
        switch operation.call {
        case .get: (answer, after) = (.value(value, version: version), (value, version))
        case .put(let new):
            (answer, after) = (.stored(previousVersion: version), (new, version + 1))
        case .swap(let expected, let new) where expected == value:
            (answer, after) = (.swapped(true), (new, version + 1))
        case .swap: (answer, after) = (.swapped(false), (value, version))
        case .delete: (answer, after) = (.deleted(value != nil), (nil, 0))
        }
        return operation.answer == nil || operation.answer == answer ? after : nil
    }
}
