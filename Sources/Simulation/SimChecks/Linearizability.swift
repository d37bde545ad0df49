// SPDX-License-Identifier: GPL-2.0-or-later

import SimFaults

/// Is there an order of the operations, consistent with who finished before whom began, in which a
/// simple register gives the answers that the clients got?
///
/// The search of Wing and Gong (1993) with the memory of Lowe (2017); see `LinearizabilitySearch`.
/// Linearizability is local (Herlihy and Wing 1990), so each key is searched by itself. An operation
/// with unknown outcome may have happened at any moment after it began, or never.
package enum Linearizability {
    package enum Verdict: Equatable, Sendable {
        case linearizable
        /// No order explains the answers; the operation named is the first (by end) that cannot be
        /// placed whatever came before.
        case violated(key: Int, culprit: ClientOperation)
        /// The search was given up after `stepsMax` steps.
        case undecided(key: Int)
    }

    /// What one key holds: `version` counts writes since it was last created.
    struct Register: Hashable {
        var value: UInt64?
        var version: UInt64

        static let absent = Register(value: nil, version: 0)

        /// The state afterwards, or nil if `answer` contradicts this state. A nil answer agrees
        /// with everything.
        func apply(_ call: ClientOperation.Call, _ answer: ClientOperation.Answer?) -> Register? {
            switch call {
            case .get:
                guard let answer else { return self }
                return answer == .value(value, version: version) ? self : nil
            case .put(let new):
                if let answer, answer != .stored(previousVersion: version) { return nil }
                return Register(value: new, version: version + 1)
            case .swap(let expected, let new):
                let matches = expected == value
                if let answer, answer != .swapped(matches) { return nil }
                return matches ? Register(value: new, version: version + 1) : self
            case .delete:
                if let answer, answer != .deleted(value != nil) { return nil }
                return .absent
            }
        }
    }

    /// - Parameter stepsMax: most operations placed in the search, for each key.
    package static func check(
        _ history: [ClientOperation], stepsMax: Int = 1_000_000
    ) -> Verdict {
        for operation in history {
            precondition(
                (operation.end == nil) == (operation.answer == nil), "an answer has a time")
        }
        for key in Set(history.map(\.key)).sorted() {
            var search = LinearizabilitySearch(history.filter { $0.key == key })
            let verdict = search.run(key: key, stepsMax: stepsMax)
            if verdict != .linearizable { return verdict }
        }
        return .linearizable
    }
}
