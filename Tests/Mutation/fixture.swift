// SPDX-License-Identifier: GPL-2.0-or-later

/// What test_mutants.py rewrites: one of each kind, and what must stay as it is.
struct Sample: CustomStringConvertible {
    var count = 5
    var known: Int?

    func isBelow(_ limit: Int) -> Bool { count < limit && known == nil }

    mutating func grow(by step: Int) {
        guard step > 0 else { return }
        count += step
        if count > 20 { count = 20 }
        precondition(count > 1, "3 < 4")
        note("a < b && c")
    }

    func differs(from other: Int) -> Bool { !isBelow(other) || count != other - 1 }

    private func note(_ text: String) {}

    var description: String {
        "\(count + 1)"
    }
}
