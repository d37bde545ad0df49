// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import DequeModule

/// What the core remembers of its log: the term of every entry (as runs), and the newest entries
/// themselves, up to `cacheBytesMax`. Older ones are fetched from the store when a peer needs them.
struct RaftLog {
    private struct Run {
        var first: LogIndex
        var term: Term
    }

    /// Counted for each cached entry besides its payload.
    static let entryOverheadBytes = 96

    /// Index and term just before the first entry.
    private(set) var base: Position
    private(set) var lastIndex: LogIndex
    private var runs: Deque<Run>
    /// Contiguous, ending at `lastIndex`.
    private var cache: Deque<Entry> = []
    private(set) var cacheBytes = 0
    private let cacheBytesMax: Int

    init(recovery: RaftRecovery, cacheBytesMax: Int) {
        base = Position(recovery.snapshotIndex, recovery.snapshotTerm)
        lastIndex = recovery.lastIndex
        runs = Deque(recovery.termStarts.lazy.map { Run(first: $0.index, term: $0.term) })
        self.cacheBytesMax = cacheBytesMax
        if let first = runs.first {
            promise(first.first == base.index.next, "the runs must start the log")
        } else {
            promise(lastIndex == base.index, "entries of unknown term")
        }
    }

    var firstIndex: LogIndex { base.index.next }
    var lastTerm: Term { runs.last?.term ?? base.term }
    var end: Position { Position(lastIndex, lastTerm) }
    /// The first entry in memory; one past the end if none is.
    var cacheFirst: LogIndex { LogIndex(lastIndex.rawValue + 1 - UInt64(cache.count)) }

    /// Nil outside `base.index...lastIndex`.
    func term(at index: LogIndex) -> Term? {
        guard index >= base.index, index <= lastIndex else { return nil }
        // Almost every question is about the newest run.
        if let last = runs.last, index >= last.first { return last.term }
        guard let run = run(at: index) else { return base.term }
        return runs[run].term
    }

    private func run(at index: LogIndex) -> Int? {
        var (low, high) = (0, runs.count)
        while low < high {
            let middle = (low + high) / 2
            if runs[middle].first <= index { low = middle + 1 } else { high = middle }
        }
        return low == 0 ? nil : low - 1
    }

    /// The last index, at most `index`, whose term is at most `term`: where two logs may agree at
    /// best. An index before the log is returned as it is.
    func agreement(atMost index: LogIndex, term: Term) -> Position {
        var index = min(index, lastIndex)
        while index > base.index, let run = run(at: index) {
            if runs[run].term <= term { return Position(index, runs[run].term) }
            index = runs[run].first.previous
        }
        return Position(index, index == base.index ? base.term : .zero)
    }

    /// - Parameter settled: entries up to here may leave the memory; later ones are still to be
    ///   handed to the state, and are bounded by what a leader may have uncommitted.
    mutating func append(_ entry: Entry, settled: LogIndex) {
        promise(entry.index == lastIndex.next, "a log has no holes")
        promise(entry.term >= lastTerm, "terms never fall along a log")
        if runs.isEmpty || entry.term > lastTerm {
            runs.append(Run(first: entry.index, term: entry.term))
        }
        lastIndex = entry.index
        cacheBytes += entry.payload.count + Self.entryOverheadBytes
        cache.append(entry)
        while cacheBytes > cacheBytesMax, let first = cache.first, first.index <= settled {
            evictFirst()
        }
    }

    private mutating func evictFirst() {
        let entry = cache.removeFirst()
        cacheBytes -= entry.payload.count + Self.entryOverheadBytes
    }

    mutating func truncate(after index: LogIndex) {
        promise(index >= base.index, "what a snapshot stands for is never truncated")
        while lastIndex > index {
            lastIndex = lastIndex.previous
            if let entry = cache.popLast() {
                cacheBytes -= entry.payload.count + Self.entryOverheadBytes
            } else {
                lastIndex = index
            }
        }
        while let run = runs.last, run.first > index { runs.removeLast() }
    }

    /// Entries `from...upTo` as far as `bytesMax` goes, at least one; nil if `from` is not in
    /// memory.
    func cached(from: LogIndex, upTo: LogIndex? = nil, bytesMax: Int = .max) -> [Entry]? {
        let first = cacheFirst
        let stop = min(upTo ?? lastIndex, lastIndex)
        guard from >= first, from <= stop else { return nil }
        let start = Int(from.rawValue - first.rawValue)
        let limit = start + Int(stop.rawValue - from.rawValue) + 1
        var (end, bytes) = (start, 0)
        while end < limit {
            bytes += cache[end].payload.count + Self.entryOverheadBytes
            if bytes > bytesMax, end > start { break }
            end += 1
        }
        return Array(cache[start..<end])
    }

    mutating func discard(upTo index: LogIndex, term: Term) {
        promise(index <= lastIndex, "what is not there cannot be discarded")
        guard index > base.index else { return }
        promise(self.term(at: index) == term, "a snapshot of another history")
        while let entry = cache.first, entry.index <= index { evictFirst() }
        while runs.count > 1, runs[1].first <= index.next { runs.removeFirst() }
        if index == lastIndex {
            runs.removeAll()
        } else if !runs.isEmpty {
            runs[0].first = index.next
        }
        base = Position(index, term)
    }

    /// Nothing but what a snapshot stands for.
    mutating func reset(to position: Position) {
        base = position
        lastIndex = position.index
        runs.removeAll()
        cache.removeAll()
        cacheBytes = 0
    }

    func checkInvariants() {
        promise(base.index <= lastIndex, "the log ends before it starts")
        promise(runs.isEmpty == (base.index == lastIndex), "runs and length disagree")
        promise(cacheFirst > base.index || cache.isEmpty, "the cache reaches behind the log")
        var previous = Position(base.index, base.term)
        for run in runs {
            promise(run.first > previous.index, "runs must ascend")
            promise(
                run.term > previous.term || run.first == firstIndex, "each run has a newer term")
            previous = Position(run.first, run.term)
        }
        promise(previous.index <= lastIndex, "a run beyond the end")
        promise(cache.last.map { $0.index == lastIndex } ?? true, "the cache ends elsewhere")
    }
}
