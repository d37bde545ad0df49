// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import SQLiteKit

/// Takes out of the file what history has lost.
///
/// A change that is swept is gone at once as far as anybody can see, but its row lies wherever the writes
/// of long ago have put it. Taken out one by one, each would cost a page written, beside those that a put
/// costs. So rows stay where they are for a while and are taken out in the order in which they lie, many
/// to a page, as a garbage collector does that lets a share of its heap be garbage: the numbers of what is
/// swept are collected, in the order in which they come, in the table `garbage`, many to a row. When there
/// are enough, they make a generation, which is sorted and taken out in the order of numbers while the
/// next one is collected.
///
/// Nothing of this is part of the replicated state: each node has its own garbage, and snapshots, backups
/// and hashes leave it out (see `SQLiteRows`).
final class GarbageCollector {
    static let schema = """
        CREATE TABLE garbage(
            place INTEGER PRIMARY KEY, numbers BLOB NOT NULL, bytes INTEGER NOT NULL);
        """

    /// Rows of `changes` of the generation taken out for each that is swept: it is through before the
    /// next one is complete.
    static let takenPerSwept = 2
    /// Bytes of a key and its value from which on a row has a page, or nearly, for itself: nothing is
    /// gained by leaving it there.
    static let rowBytesMax = 1024
    /// Numbers of a generation: at least, at most (eight bytes of memory each), and as a part of all
    /// changes that are not garbage. The larger it is, the more of them lie on one page.
    static let countMin = 1024
    static let countMax = 524_288
    static let parts: UInt64 = 4
    /// Bytes of a generation that make it complete, however few changes there are.
    static let bytesMin: UInt64 = 1_048_576
    /// Rows taken out at a time when nothing is written, and when space is tight besides.
    static let restStep = 1024
    static let tightStep = 64
    /// Numbers in a row of `garbage`, eight bytes each: about a page.
    static let numbersPerRow = 480
    /// Rows of `garbage` removed at a time.
    static let rowsRemoved: Int64 = 8

    private let countMin: Int
    private let insertGarbage: Statement
    private let deleteGarbage: Statement
    private let deleteChange: Statement
    private let deleteMilestones: Statement

    /// Of the generation that is taken out, ascending; those from `taken` on are still there.
    private var generation: [Int64] = []
    private var taken = 0
    private var generationBytes: UInt64 = 0
    /// The last row of `garbage` that belongs to it.
    private var generationEnd: Int64 = 0
    /// Of the next one; those from `stored` on are in no row of `garbage` yet.
    private var collected: [Int64] = []
    private var stored = 0
    private var collectedBytes: UInt64 = 0
    private var storedBytes: UInt64 = 0
    /// Rows of `garbage`: the first there is, and the next there will be.
    private var first: Int64 = 1
    private var next: Int64 = 1
    /// Changes swept since `collect` was called.
    private var swept = 0

    /// - Parameter countMin: see there.
    init(_ database: Database, countMin: Int) throws(SQLiteError) {
        self.countMin = countMin
        insertGarbage = try database.prepare("INSERT INTO garbage VALUES (?1, ?2, ?3)")
        deleteGarbage = try database.prepare("DELETE FROM garbage WHERE place <= ?1")
        deleteChange = try database.prepare("DELETE FROM changes WHERE number = ?1")
        deleteMilestones = try database.prepare("DELETE FROM milestones WHERE number <= ?1")
        let rows = try database.prepare("SELECT place, bytes, numbers FROM garbage ORDER BY place")
        // What a generation had been through with before is there as well: to take it out again
        // costs a look-up.
        while try rows.step() {
            if collected.isEmpty { first = rows.integer(0) }
            next = rows.integer(0) + 1
            collectedBytes += UInt64(clamping: rows.integer(1))
            Self.append(rows, 2, to: &collected)
        }
        stored = collected.count
        storedBytes = collectedBytes
    }

    /// Rows of `changes` that are garbage.
    var count: Int { collected.count + generation.count - taken }

    /// A change that is swept, and no tombstone. True: its row stays for the time being.
    func leave(_ number: ChangeNumber, bytes: Int) throws(SQLiteError) -> Bool {
        guard bytes <= Self.rowBytesMax else { return false }
        collected.append(Int64(bitPattern: number.rawValue))
        collectedBytes += UInt64(bytes)
        if collected.count - stored == Self.numbersPerRow { try store() }
        return true
    }

    /// One more change is swept.
    func noteSwept() { swept += 1 }

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
        deleteMilestones.bind(1, Int64(bitPattern: limit.rawValue))
        try deleteMilestones.run()
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

    /// Stores the numbers that are in no row yet. To be called before a transaction is committed.
    func store() throws(SQLiteError) {
        while stored < collected.count {
            let end = min(stored + Self.numbersPerRow, collected.count)
            let isLast = end == collected.count
            let numbers = Self.bytes(collected[stored..<end])
            try withUnsafeBytes(numbers) { numbers throws(SQLiteError) in
                insertGarbage.bind(1, next)
                insertGarbage.bind(2, unowned: numbers)
                insertGarbage.bind(3, isLast ? Int64(clamping: collectedBytes - storedBytes) : 0)
                try insertGarbage.run()
            }
            next += 1
            stored = end
        }
        storedBytes = collectedBytes
    }

    /// The numbers of garbage in a database, ascending.
    static func numbers(_ database: Database) throws(SQLiteError) -> [Int64] {
        let rows = try database.prepare("SELECT numbers FROM garbage")
        var numbers: [Int64] = []
        while try rows.step() { append(rows, 0, to: &numbers) }
        numbers.sort()
        return numbers
    }

    // MARK: Rows of garbage

    /// Into an empty table.
    static func fill(
        _ database: Database, _ numbers: [Int64], bytes: Int64
    ) throws(SQLiteError) {
        let insert = try database.prepare("INSERT INTO garbage VALUES (?1, ?2, ?3)")
        for (row, start) in stride(from: 0, to: numbers.count, by: numbersPerRow).enumerated() {
            let end = min(start + numbersPerRow, numbers.count)
            try withUnsafeBytes(Self.bytes(numbers[start..<end])) { numbers throws(SQLiteError) in
                insert.bind(1, Int64(row + 1))
                insert.bind(2, unowned: numbers)
                insert.bind(3, row == 0 ? bytes : 0)
                try insert.run()
            }
        }
    }

    /// Little-endian.
    private static func bytes(_ numbers: ArraySlice<Int64>) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: 8 * numbers.count) { buffer, count in
            for (place, number) in numbers.enumerated() {
                UnsafeMutableRawBufferPointer(buffer).storeBytes(
                    of: number.littleEndian, toByteOffset: 8 * place, as: Int64.self)
            }
            count = 8 * numbers.count
        }
    }

    private static func append(
        _ rows: borrowing Statement, _ column: Int32, to numbers: inout [Int64]
    ) {
        rows.withBytes(column) { bytes in
            for place in stride(from: 0, to: bytes.count - 7, by: 8) {
                numbers.append(
                    Int64(
                        littleEndian: bytes.loadUnaligned(fromByteOffset: place, as: Int64.self)))
            }
        }
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
            let share = figures.changeCount / parts
            count = min(max(Int(clamping: share), countMin), countMax)
            bytes = max(bytesMin, figures.changeBytes / parts)
        }
    }

    private func isMore(than allowance: Allowance) -> Bool {
        count > allowance.count || collectedBytes + generationBytes > allowance.bytes
    }

    private func takeOut(_ count: Int, _ allowance: Allowance) throws(SQLiteError) {
        if generation.isEmpty, !collected.isEmpty,
            collected.count >= allowance.count || collectedBytes >= allowance.bytes
        {
            try store()
            swap(&generation, &collected)
            generation.sort()
            generationBytes = collectedBytes
            (stored, collectedBytes, storedBytes) = (0, 0, 0)
            generationEnd = next - 1
        }
        let end = min(taken + count, generation.count)
        while taken < end {
            deleteChange.bind(1, generation[taken])
            try deleteChange.run()
            taken += 1
        }
        guard taken == generation.count, taken > 0 else { return }
        let last = min(first + Self.rowsRemoved - 1, generationEnd)
        deleteGarbage.bind(1, last)
        try deleteGarbage.run()
        first = last + 1
        guard last == generationEnd else { return }
        generation = []
        generationBytes = 0
        taken = 0
    }
}
