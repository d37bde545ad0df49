// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

// The past of a key: from each change back to the one before it.

extension SQLiteTables {
    /// One change in so many is a milestone: a search for the past of a key steps over so many changes, on
    /// average, wherever it leads.
    static let changesPerMilestone = 64
    private static let milestoneShift: UInt64 = 58

    /// A key may be written at every second revision, or every hundredth: the product of the number with the
    /// golden ratio hits some of them all the same, evenly (Knuth, The Art of Computer Programming,
    /// volume 3, section 6.4). The first change of a key has no past.
    static func isMilestone(_ number: ChangeNumber, after previous: ChangeNumber) -> Bool {
        guard previous != .zero else { return false }
        return (number.rawValue &* 0x9e37_79b9_7f4a_7c15) >> milestoneShift == 0
    }

    /// The newest version of `key` not above `limit`, and how many changes were looked at to find it.
    ///
    /// What is not there any more was swept, and so is all that is older: it ends the search.
    ///
    /// - Parameter newest: a change of the key that is above `limit`.
    func past(
        of key: [UInt8], _ newest: ChangeNumber, upTo limit: ChangeNumber
    ) throws(SQLiteError) -> (row: VersionRow?, steps: Int) {
        try pending.write()
        var change = newest
        var steps = 0
        var hasJumped = false
        while change != .zero {
            if !hasJumped, steps == Self.changesPerMilestone {
                hasJumped = true
                if let milestone = try milestone(of: key, above: limit) {
                    change = min(change, milestone)
                }
            }
            guard let found = try self.past(change) else {
                if change == newest { throw Self.hasNoChange }
                break
            }
            steps += 1
            if found.row.change <= limit { return (found.row, steps) }
            change = found.previous
        }
        return (nil, steps)
    }

    func history(
        of key: [UInt8], upTo limit: ChangeNumber, count: Int
    ) throws(SQLiteError) -> [VersionRow] {
        try pending.write()
        guard count > 0, let newest = try version(of: key, upTo: limit) else { return [] }
        var found: [VersionRow] = []
        var change = newest.change
        while change != .zero, found.count < count {
            guard let next = try past(change) else {
                if found.isEmpty { throw Self.hasNoChange }
                break
            }
            found.append(next.row)
            change = next.previous
        }
        return found
    }

    /// A change, and the one before it of the same key.
    private func past(
        _ change: ChangeNumber
    ) throws(SQLiteError) -> (row: VersionRow, previous: ChangeNumber)? {
        selectPast.bind(1, Int64(bitPattern: change.rawValue))
        defer { selectPast.reset() }
        guard try selectPast.step() else { return nil }
        return (
            Self.versionRow(selectPast, at: 0),
            ChangeNumber(UInt64(bitPattern: selectPast.integer(5)))
        )
    }

    /// The oldest one of `key` that is above `limit`.
    private func milestone(
        of key: [UInt8], above limit: ChangeNumber
    ) throws(SQLiteError) -> ChangeNumber? {
        try withUnsafeBytes(key) { key throws(SQLiteError) in
            nextMilestone.bind(1, unowned: key)
            nextMilestone.bind(2, Int64(bitPattern: limit.rawValue))
            defer { nextMilestone.reset() }
            guard try nextMilestone.step() else { return nil }
            return ChangeNumber(UInt64(bitPattern: nextMilestone.integer(0)))
        }
    }
}
