// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import RaftCore

/// One segment in use. Of its entries only the places are in memory: four bytes each.
final class LogSegment {
    let generation: UInt64
    let file: any DiskFile
    /// Size of the file; it changes only for a record that no segment could hold.
    var byteCount: Int
    /// Where the next record goes.
    var end: Int
    /// The first entry that has its valid place here.
    private(set) var firstEntry = LogIndex.zero
    private(set) var offsets: [UInt32] = []

    init(generation: UInt64, file: any DiskFile, byteCount: Int) {
        self.generation = generation
        self.file = file
        self.byteCount = byteCount
        end = SegmentHeader.byteCount
    }

    /// The last entry that has its valid place here.
    var lastEntry: LogIndex? {
        offsets.isEmpty ? nil : firstEntry.advanced(by: offsets.count - 1)
    }

    func append(_ index: LogIndex, at offset: Int) {
        if offsets.isEmpty { firstEntry = index }
        precondition(
            firstEntry.advanced(by: offsets.count) == index && offset <= Int(UInt32.max),
            "entries of a segment are consecutive")
        offsets.append(UInt32(offset))
    }

    func removeEntries(after index: LogIndex) {
        guard let last = lastEntry, last > index else { return }
        offsets.removeLast(
            index < firstEntry ? offsets.count : Int(last.rawValue - index.rawValue))
    }

    func offset(of index: LogIndex) -> Int {
        Int(offsets[Int(index.rawValue - firstEntry.rawValue)])
    }
}

/// Where every entry of the log lies, and under which term.
struct LogMap {
    /// The entry just before the first one; its term.
    private(set) var base: LogIndex
    private(set) var baseTerm: Term
    private(set) var lastIndex: LogIndex
    /// Runs of entries of one term: first index and term, ascending.
    private(set) var termStarts: [(index: LogIndex, term: Term)] = []
    /// Ascending by generation; the last one is written to.
    private(set) var segments: [LogSegment] = []

    init(base: LogIndex, term: Term) {
        self.base = base
        baseTerm = term
        lastIndex = base
    }

    var lastTerm: Term { termStarts.last?.term ?? baseTerm }

    mutating func add(_ segment: LogSegment) { segments.append(segment) }

    /// - Precondition: the next index, and a term that is not lower than the last one.
    mutating func append(_ index: LogIndex, term: Term, at offset: Int) {
        precondition(index == lastIndex.next, "entry \(index) does not follow \(lastIndex)")
        precondition(term >= lastTerm, "term \(term) of entry \(index) is below \(lastTerm)")
        if termStarts.isEmpty || term > lastTerm { termStarts.append((index, term)) }
        segments[segments.count - 1].append(index, at: offset)
        lastIndex = index
    }

    /// - Parameter term: that of the entry at `index`; tells what is before the log when entries
    ///   that have been discarded are void, too.
    mutating func truncate(after index: LogIndex, term: Term) {
        precondition(index <= lastIndex, "there is nothing to cut after \(index)")
        for segment in segments.reversed() {
            guard let last = segment.lastEntry else { continue }
            if last <= index { break }
            segment.removeEntries(after: index)
        }
        while let last = termStarts.last, last.index > index { termStarts.removeLast() }
        lastIndex = index
        if index <= base {
            (base, baseTerm) = (index, term)
            precondition(termStarts.isEmpty, "an empty log has no terms")
        }
    }

    /// Nil for an index that the log does not know about.
    func term(at index: LogIndex) -> Term? {
        if index == base { return baseTerm }
        guard index > base, index <= lastIndex else { return nil }
        var (low, high) = (0, termStarts.count)
        while low < high {
            let middle = (low + high) / 2
            if termStarts[middle].index <= index { low = middle + 1 } else { high = middle }
        }
        return low == 0 ? nil : termStarts[low - 1].term
    }

    /// The segment in which the entry has its place.
    /// - Precondition: base < index ≤ lastIndex.
    func segment(of index: LogIndex) -> LogSegment {
        precondition(index > base && index <= lastIndex, "entry \(index) is not in the log")
        for segment in segments.reversed() {
            if !segment.offsets.isEmpty, segment.firstEntry <= index { return segment }
        }
        preconditionFailure("entry \(index) has no place")
    }

    /// Takes out the first segment if all its entries are at most `index`, and another one follows.
    mutating func removeFirstSegment(ifUpTo index: LogIndex) -> LogSegment? {
        guard segments.count > 1, let first = segments.first else { return nil }
        if let last = first.lastEntry {
            guard last <= index, let term = term(at: last) else { return nil }
            (base, baseTerm) = (last, term)
            while termStarts.count > 1, termStarts[1].index <= last.next {
                termStarts.removeFirst()
            }
            if last == lastIndex {
                termStarts.removeAll()
            } else if termStarts[0].index <= last {
                termStarts[0].index = last.next
            }
        }
        return segments.removeFirst()
    }
}
