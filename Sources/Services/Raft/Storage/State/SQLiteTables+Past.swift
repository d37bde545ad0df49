// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

// The past of a key: from each change back to the one before it.

/// Changes from which a search for the past of a key may start. They are hints, a node's own affair: which
/// changes are chosen may differ from one version of the program to the next.
package enum Milestones {
    /// One change in so many is one.
    package static let interval = 64

    /// Keys are written in turn, or at every hundredth revision: a number must say nothing of the next
    /// ones, however far apart, so it is mixed (the finaliser of MurmurHash3). Of a key with many changes
    /// some hundreds may follow each other without a milestone, rarely more.
    package static func contains(_ number: ChangeNumber) -> Bool {
        var mixed = number.rawValue
        mixed ^= mixed >> 33
        mixed &*= 0xff51_afd7_ed55_8ccd
        mixed ^= mixed >> 33
        mixed &*= 0xc4ce_b9fe_1a85_ec53
        mixed ^= mixed >> 33
        return mixed % UInt64(interval) == 0
    }
}

extension SQLiteTables {
    /// The first change of a key has no past.
    static func isMilestone(_ number: ChangeNumber, after previous: ChangeNumber) -> Bool {
        previous != .zero && Milestones.contains(number)
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
            if !hasJumped, steps == Milestones.interval {
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
            guard found.previous < change else { throw Self.goesRound }
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
            guard next.previous < change else { throw Self.goesRound }
            change = next.previous
        }
        return found
    }

    func row(of change: ChangeNumber) throws(SQLiteError) -> VersionRow? {
        if change >= pending.first { try pending.write() }
        return try past(change)?.row
    }

    private static let goesRound = damaged("a change names a later one as the one before it")

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
