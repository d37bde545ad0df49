// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

/// Takes out of the file what history has lost.
///
/// A change that is swept is gone at once as far as anybody can see, but its two rows lie wherever the
/// keys of users and the writes of long ago have put them. Taken out one by one, each would cost two
/// pages written, beside the one that a put costs. So they stay where they are for a while and are taken
/// out in the order in which they lie, many to a page, as a garbage collector does that lets a share of
/// its heap be garbage:
///
/// - Rows of `changes`: their numbers are collected, in the order in which they come, in the table
///   `garbage`. When there are enough, they make a generation, which is sorted and taken out in the order
///   of numbers while the next one is collected.
/// - Rows of `versions`: a hand goes round the tree in the order of keys and takes out what is dead, which
///   the rows tell by themselves: what is older than the newest version of its key at or below the last
///   change swept. It goes on by `rowsPerSwept` rows for each change that is swept, so that never more
///   than a third as many rows as others are garbage.
///
/// Where a tombstone goes, what is older of its key goes with it: it would be the newest version.
/// Nothing of this is part of the replicated state: each node has its own garbage, and snapshots, backups
/// and hashes leave it out (see `SQLiteRows`).
final class GarbageCollector {
    static let schema = """
        CREATE TABLE garbage(
            place INTEGER PRIMARY KEY, number INTEGER NOT NULL, bytes INTEGER NOT NULL);
        CREATE TABLE hand(
            id INTEGER PRIMARY KEY CHECK (id = 1), key BLOB NOT NULL, number INTEGER NOT NULL);
        """

    /// Rows of `versions` that the hand looks at for each change that is swept.
    static let rowsPerSwept = 4
    /// Rows of `changes` of the generation taken out for each that is swept: it is through before the
    /// next one is complete.
    static let takenPerSwept = 2
    /// Bytes of a key and its value from which on a row has a page, or nearly, for itself: nothing is
    /// gained by leaving it there.
    static let rowBytesMax = 1024
    /// Numbers of a generation: at least, at most (eight bytes of memory each), and as a part of the
    /// live keys.
    static let countMin = 1024
    static let countMax = 524_288
    static let liveParts: UInt64 = 4
    /// Bytes of a generation that make it complete, however few live keys there are.
    static let bytesMin: UInt64 = 1_048_576
    /// Rows taken out at a time when nothing is written, and when space is tight besides.
    static let restStep = 1024
    static let tightStep = 64

    private let countMin: Int
    private let insertGarbage: Statement
    private let deleteGarbage: Statement
    private let replaceHand: Statement
    private let versionsBelow: Statement
    private let versionsAfter: Statement
    private let deleteChange: Statement
    private let deleteVersion: Statement

    /// Of the generation that is taken out, ascending; those from `taken` on are still there.
    private var generation: [Int64] = []
    private var taken = 0
    private var generationBytes: UInt64 = 0
    /// The last row of `garbage` that belongs to it.
    private var generationEnd: Int64 = 0
    /// Of the next one.
    private var collected: [Int64] = []
    private var collectedBytes: UInt64 = 0
    /// Rows of `garbage`: the first there is, and the next there will be.
    private var first: Int64 = 1
    private var next: Int64 = 1
    /// The row of `versions` that was looked at last; an empty key: none.
    private var handKey: [UInt8] = []
    private var handNumber: Int64 = 0
    private var isHandMoved = false
    /// Changes swept since `collect` was called.
    private var swept = 0

    /// - Parameter countMin: see there.
    init(_ database: Database, countMin: Int) throws(SQLiteError) {
        self.countMin = countMin
        insertGarbage = try database.prepare("INSERT INTO garbage VALUES (?1, ?2, ?3)")
        deleteGarbage = try database.prepare("DELETE FROM garbage WHERE place <= ?1")
        replaceHand = try database.prepare("REPLACE INTO hand VALUES (1, ?1, ?2)")
        versionsBelow = try database.prepare(
            "SELECT key, number FROM versions WHERE key = ?1 AND number < ?2 ORDER BY number DESC")
        versionsAfter = try database.prepare(
            "SELECT key, number FROM versions WHERE key > ?1 ORDER BY key, number DESC")
        deleteChange = try database.prepare("DELETE FROM changes WHERE number = ?1")
        deleteVersion = try database.prepare("DELETE FROM versions WHERE key = ?1 AND number = ?2")
        let hand = try database.prepare("SELECT key, number FROM hand")
        if try hand.step() { (handKey, handNumber) = (hand.bytes(0), hand.integer(1)) }
        let rows = try database.prepare("SELECT place, number, bytes FROM garbage ORDER BY place")
        // What a generation had been through with before is there as well: to take it out again
        // costs a look-up.
        while try rows.step() {
            if collected.isEmpty { first = rows.integer(0) }
            next = rows.integer(0) + 1
            collected.append(rows.integer(1))
            collectedBytes += UInt64(clamping: rows.integer(2))
        }
    }

    /// Rows of `changes` that are garbage.
    var count: Int { collected.count + generation.count - taken }

    /// A change that is swept. True: both its rows stay for the time being.
    func leave(_ change: Change) throws(SQLiteError) -> Bool {
        swept += 1
        let bytes = change.header.key.count + change.value.count
        guard !change.header.isTombstone, bytes <= Self.rowBytesMax else { return false }
        let number = Int64(bitPattern: change.header.number.rawValue)
        insertGarbage.bind(1, next)
        insertGarbage.bind(2, number)
        insertGarbage.bind(3, Int64(bytes))
        try insertGarbage.run()
        next += 1
        collected.append(number)
        collectedBytes += UInt64(bytes)
        return true
    }

    /// Takes out as much as goes with what was swept since the last call.
    /// - Parameters:
    ///   - limit: the last change swept.
    ///   - isSpaceTight: no garbage is wanted.
    func collect(
        upTo limit: ChangeNumber, _ figures: StateFigures, isSpaceTight: Bool
    ) throws(SQLiteError) {
        guard swept > 0 else { return }
        let due = swept
        swept = 0
        try turnHand(Self.rowsPerSwept * due, Int64(bitPattern: limit.rawValue))
        try takeOut(Self.takenPerSwept * due, isSpaceTight ? .none : Allowance(figures, countMin))
    }

    /// There is more than is allowed.
    func isOverdue(_ figures: StateFigures, isSpaceTight: Bool) -> Bool {
        isMore(than: isSpaceTight ? .none : Allowance(figures, countMin))
    }

    /// Takes out so many rows of what is more than is allowed. Nothing is being written.
    /// - Returns: whether there is more.
    func collectAtRest(
        _ rows: Int, _ figures: StateFigures, isSpaceTight: Bool
    ) throws(SQLiteError) -> Bool {
        try takeOut(rows, isSpaceTight ? .none : Allowance(figures, countMin))
        return isOverdue(figures, isSpaceTight: isSpaceTight)
    }

    /// To be called before a transaction is committed.
    func storeHand() throws(SQLiteError) {
        guard isHandMoved else { return }
        isHandMoved = false
        try withUnsafeBytes(handKey) { key throws(SQLiteError) in
            replaceHand.bind(1, unowned: key)
            replaceHand.bind(2, handNumber)
            try replaceHand.run()
        }
    }

    /// The numbers of garbage in a database, ascending.
    static func numbers(_ database: Database) throws(SQLiteError) -> [Int64] {
        let rows = try database.prepare("SELECT number FROM garbage")
        var numbers: [Int64] = []
        while try rows.step() { numbers.append(rows.integer(0)) }
        numbers.sort()
        return numbers
    }

    // MARK: Changes

    /// What may wait in `changes`.
    private struct Allowance {
        static let none = Allowance(count: 0, bytes: 0)
        var count: Int
        var bytes: UInt64

        init(count: Int, bytes: UInt64) {
            self.count = count
            self.bytes = bytes
        }

        init(_ figures: StateFigures, _ countMin: Int) {
            let share = figures.liveCount / liveParts
            count = min(max(Int(clamping: share), countMin), countMax)
            bytes = max(bytesMin, figures.liveBytes / liveParts)
        }
    }

    private func isMore(than allowance: Allowance) -> Bool {
        count > allowance.count || collectedBytes + generationBytes > allowance.bytes
    }

    private func takeOut(_ count: Int, _ allowance: Allowance) throws(SQLiteError) {
        if generation.isEmpty, !collected.isEmpty,
            collected.count >= allowance.count || collectedBytes >= allowance.bytes
        {
            swap(&generation, &collected)
            generation.sort()
            (generationBytes, collectedBytes) = (collectedBytes, 0)
            generationEnd = next - 1
        }
        let end = min(taken + count, generation.count)
        while taken < end {
            deleteChange.bind(1, generation[taken])
            try deleteChange.run()
            taken += 1
        }
        guard taken == generation.count, taken > 0 else { return }
        let last = min(first + Int64(max(count, Self.restStep)), generationEnd)
        deleteGarbage.bind(1, last)
        try deleteGarbage.run()
        first = last + 1
        guard last == generationEnd else { return }
        generation = []
        generationBytes = 0
        taken = 0
    }

    // MARK: Versions

    private func turnHand(_ rowsMax: Int, _ limit: Int64) throws(SQLiteError) {
        var rows = 0
        var dead: [(key: [UInt8], number: Int64)] = []
        // Whether the newest version at or below the limit has been passed: all others are dead.
        var isCovered = handNumber <= limit
        var key = handKey
        var number = handNumber
        func take(_ statement: borrowing Statement) throws(SQLiteError) {
            while rows < rowsMax, try statement.step() {
                rows += 1
                if statement.withBytes(0, { !$0.elementsEqual(key) }) {
                    key = statement.bytes(0)
                    isCovered = false
                }
                number = statement.integer(1)
                if isCovered {
                    dead.append((key, number))
                } else {
                    isCovered = number <= limit
                }
            }
        }
        if !key.isEmpty {
            try withUnsafeBytes(handKey) { handKey throws(SQLiteError) in
                versionsBelow.bind(1, unowned: handKey)
                versionsBelow.bind(2, handNumber)
                defer { versionsBelow.reset() }
                try take(versionsBelow)
            }
        }
        if rows < rowsMax {
            try withUnsafeBytes(handKey) { handKey throws(SQLiteError) in
                versionsAfter.bind(1, unowned: handKey)
                defer { versionsAfter.reset() }
                try take(versionsAfter)
            }
        }
        // At the end it begins anew.
        (handKey, handNumber) = rows < rowsMax ? ([], 0) : (key, number)
        isHandMoved = true
        for row in dead {
            try withUnsafeBytes(row.key) { key throws(SQLiteError) in
                deleteVersion.bind(1, unowned: key)
                deleteVersion.bind(2, row.number)
                try deleteVersion.run()
            }
        }
    }
}
