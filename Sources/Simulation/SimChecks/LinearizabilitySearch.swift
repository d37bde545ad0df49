// SPDX-License-Identifier: GPL-2.0-or-later

import SimFaults

/// The search for one key.
///
/// Operations with a known outcome stand in a doubly linked list of their begins and ends, in the
/// order in which these happened; placing one takes both marks out, giving it up puts them back. Any
/// operation that begins before the first end still in the list may be the next. Those of unknown
/// outcome have no end and are tried after the others.
///
/// Three things keep the search small:
/// - what was reached once is not tried again: the same known operations taken and the same register,
///   with all the unknown ones spent that were spent then (or more: fewer left can't help);
/// - of unknown operations that nobody could tell apart, only the first is tried;
/// - values that nobody ever saw or asked for count as one value.
struct LinearizabilitySearch {
    typealias Register = Linearizability.Register

    private enum Mark {
        case begin(Int)
        case end(Int)
    }

    private struct Reached: Hashable {
        var known: BitSet
        var register: Register
    }

    private struct Choice {
        var operation: Int
        var isKnown: Bool
        var before: Register
    }

    /// Where the search stands among the candidates for the next place.
    private enum Cursor {
        /// A position in the list of known marks.
        case known(Int)
        /// A place in `unknown`.
        case unknown(Int)
    }

    private static let anyUnseen = UInt64.max

    private let known: [ClientOperation]
    private let unknown: [ClientOperation]
    /// For each unknown operation the one before it that looks the same, or -1.
    private let twin: [Int]
    private let unseen: Set<UInt64>
    private let marks: [Mark]
    private var beginMark: [Int]
    private var endMark: [Int]
    /// Position 0 is the head, mark `i` is at position `i + 1`, the last is the tail.
    private var next: [Int]
    private var previous: [Int]
    private var takenKnown: BitSet
    private var takenUnknown: BitSet
    private var reached: [Reached: [BitSet]] = [:]
    private var register = Register.absent
    private var stack: [Choice] = []
    /// Operations placed so far, those given up again included.
    private(set) var steps = 0

    init(_ operations: [ClientOperation]) {
        known = operations.filter { $0.end != nil }
        // An unanswered read tells nothing and changes nothing.
        unknown = operations.filter { $0.end == nil && $0.call != .get }
            .sorted { $0.begin < $1.begin }
        unseen = Self.unseenValues(operations)
        twin = Self.twins(unknown, unseen: unseen)
        marks = Self.timeline(known)
        beginMark = Array(repeating: 0, count: known.count)
        endMark = beginMark
        for (position, mark) in marks.enumerated() {
            switch mark {
            case .begin(let number): beginMark[number] = position + 1
            case .end(let number): endMark[number] = position + 1
            }
        }
        next = Array(1...marks.count + 2)
        previous = Array(-1...marks.count)
        takenKnown = BitSet(count: known.count)
        takenUnknown = BitSet(count: unknown.count)
    }

    mutating func run(key: Int, stepsMax: Int) -> Linearizability.Verdict {
        let tail = marks.count + 1
        var cursor = Cursor.known(next[0])
        /// The furthest end that could not be passed: where the explanation breaks down.
        var wall = 0
        while next[0] != tail {
            if steps > stepsMax { return .undecided(key: key) }
            switch cursor {
            case .known(let position):
                guard position != tail, case .begin(let number) = marks[position - 1] else {
                    wall = max(wall, position)
                    cursor = .unknown(0)
                    continue
                }
                cursor = placeKnown(number) ? .known(next[0]) : .known(next[position])
            case .unknown(let number):
                if number < unknown.count, unknown[number].begin <= firstEnd() {
                    cursor = placeUnknown(number) ? .known(next[0]) : .unknown(number + 1)
                } else if let choice = stack.popLast() {
                    cursor = giveUp(choice)
                } else {
                    guard case .end(let culprit) = marks[wall - 1] else {
                        preconditionFailure("a search that fails has met an end")
                    }
                    return .violated(key: key, culprit: known[culprit])
                }
            }
        }
        return .linearizable
    }

    // MARK: - Placing

    private mutating func placeKnown(_ number: Int) -> Bool {
        guard let after = register.apply(known[number].call, known[number].answer) else {
            return false
        }
        takenKnown.insert(number)
        guard isNew(after) else {
            takenKnown.remove(number)
            return false
        }
        stack.append(Choice(operation: number, isKnown: true, before: register))
        register = blurred(after)
        unlink(beginMark[number])
        unlink(endMark[number])
        return true
    }

    private mutating func placeUnknown(_ number: Int) -> Bool {
        if takenUnknown.contains(number) { return false }
        if twin[number] >= 0, !takenUnknown.contains(twin[number]) { return false }
        guard let after = register.apply(unknown[number].call, nil), after != register else {
            return false
        }
        takenUnknown.insert(number)
        guard isNew(after) else {
            takenUnknown.remove(number)
            return false
        }
        stack.append(Choice(operation: number, isKnown: false, before: register))
        register = blurred(after)
        return true
    }

    private mutating func giveUp(_ choice: Choice) -> Cursor {
        register = choice.before
        guard choice.isKnown else {
            takenUnknown.remove(choice.operation)
            return .unknown(choice.operation + 1)
        }
        takenKnown.remove(choice.operation)
        relink(endMark[choice.operation])
        relink(beginMark[choice.operation])
        return .known(next[beginMark[choice.operation]])
    }

    private mutating func isNew(_ after: Register) -> Bool {
        let place = Reached(known: takenKnown, register: blurred(after))
        var spent = reached[place, default: []]
        if spent.contains(where: { $0.isSubset(of: takenUnknown) }) { return false }
        spent.append(takenUnknown)
        reached[place] = spent
        steps += 1
        return true
    }

    private func blurred(_ register: Register) -> Register {
        guard let value = register.value, unseen.contains(value) else { return register }
        return Register(value: Self.anyUnseen, version: register.version)
    }

    /// The step of the first end not yet passed.
    private func firstEnd() -> UInt64 {
        var position = next[0]
        while position <= marks.count {
            if case .end(let number) = marks[position - 1] { return known[number].end ?? .max }
            position = next[position]
        }
        return .max
    }

    private mutating func unlink(_ position: Int) {
        next[previous[position]] = next[position]
        previous[next[position]] = previous[position]
    }

    private mutating func relink(_ position: Int) {
        next[previous[position]] = position
        previous[next[position]] = position
    }
}

extension LinearizabilitySearch {
    private static func timeline(_ known: [ClientOperation]) -> [Mark] {
        var timed: [(at: UInt64, isEnd: Bool, mark: Mark)] = []
        for (number, operation) in known.enumerated() {
            timed.append((operation.begin, false, .begin(number)))
            if let end = operation.end { timed.append((end, true, .end(number))) }
        }
        // At one step a begin stands before an end: they overlap, which allows more orders.
        timed.sort { $0.at != $1.at ? $0.at < $1.at : !$0.isEnd && $1.isEnd }
        return timed.map(\.mark)
    }

    /// Values that were written, but never read nor expected.
    private static func unseenValues(_ operations: [ClientOperation]) -> Set<UInt64> {
        var written: Set<UInt64> = []
        var seen: Set<UInt64> = []
        for operation in operations {
            switch operation.call {
            case .put(let new): written.insert(new)
            case .swap(let expected, let new):
                written.insert(new)
                if let expected { seen.insert(expected) }
            case .get, .delete: break
            }
            if case .value(let value?, _) = operation.answer { seen.insert(value) }
        }
        return written.subtracting(seen)
    }

    private static func twins(_ unknown: [ClientOperation], unseen: Set<UInt64>) -> [Int] {
        unknown.indices.map { number in
            unknown[..<number].lastIndex { other in
                looks(other.call, like: unknown[number].call, unseen: unseen)
            } ?? -1
        }
    }

    private static func looks(
        _ left: ClientOperation.Call, like right: ClientOperation.Call, unseen: Set<UInt64>
    ) -> Bool {
        switch (left, right) {
        case (.delete, .delete): true
        case (.put(let one), .put(let other)): unseen.contains(one) && unseen.contains(other)
        case (.swap(let from, let one), .swap(let also, let other)):
            from == also && unseen.contains(one) && unseen.contains(other)
        default: false
        }
    }
}

/// A set of small numbers.
struct BitSet: Hashable {
    private var words: [UInt64]

    init(count: Int) { words = Array(repeating: 0, count: (count + 63) / 64) }

    func contains(_ member: Int) -> Bool { words[member / 64] & (1 << UInt64(member % 64)) != 0 }
    mutating func insert(_ member: Int) { words[member / 64] |= 1 << UInt64(member % 64) }
    mutating func remove(_ member: Int) { words[member / 64] &= ~(1 << UInt64(member % 64)) }

    func isSubset(of other: BitSet) -> Bool {
        for (mine, theirs) in zip(words, other.words) where mine & ~theirs != 0 { return false }
        return true
    }
}
