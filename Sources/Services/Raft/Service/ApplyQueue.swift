// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import DequeModule
import RaftCore

/// What is committed and waits to be applied, in log order and bounded: when the state falls far
/// behind, entries are let go and read from the log again later.
struct ApplyQueue {
    /// Payload bytes given to the state and not yet applied.
    static let applyingBytesMax = 32_000_000
    /// Payload bytes of entries kept here.
    static let waitingBytesMax = 64_000_000

    private enum Committed {
        case entries([Entry], bytes: Int)
        case range(from: LogIndex, upTo: LogIndex)
    }

    enum Action {
        case apply([Entry], bytes: Int)
        /// Read these from the log, then say `fetched`.
        case fetch(from: LogIndex, upTo: LogIndex)
    }

    private var waiting: Deque<Committed> = []
    private var waitingBytes = 0
    private var applying: Deque<(last: LogIndex, bytes: Int)> = []
    private var applyingBytes = 0
    private var isFetching = false

    mutating func append(_ entries: [Entry]) {
        guard let first = entries.first, let last = entries.last else { return }
        var bytes = 0
        for entry in entries { bytes += entry.payload.count }
        if waitingBytes + bytes > Self.waitingBytesMax {
            return append(from: first.index, upTo: last.index)
        }
        waitingBytes += bytes
        waiting.append(.entries(entries, bytes: bytes))
    }

    mutating func append(from: LogIndex, upTo: LogIndex) {
        guard from <= upTo else { return }
        if waiting.count > (isFetching ? 1 : 0), case .range(let first, let last)? = waiting.last,
            last.next == from
        {
            waiting.removeLast()
            return waiting.append(.range(from: first, upTo: upTo))
        }
        waiting.append(.range(from: from, upTo: upTo))
    }

    /// What to do next; nil while there is nothing or enough is under way.
    mutating func next() -> Action? {
        guard !isFetching, applyingBytes < Self.applyingBytesMax else { return nil }
        var batch: [Entry] = []
        var bytes = 0
        while let first = waiting.first {
            guard case .entries(let entries, let count) = first else { break }
            if !batch.isEmpty, bytes + count > Self.applyingBytesMax { break }
            waiting.removeFirst()
            waitingBytes -= count
            bytes += count
            if batch.isEmpty { batch = entries } else { batch += entries }
        }
        if !batch.isEmpty { return started(batch, bytes) }
        guard case .range(let from, let upTo)? = waiting.first else { return nil }
        isFetching = true
        return .fetch(from: from, upTo: upTo)
    }

    /// - Returns: what to apply, or nil if the log did not have the entries it was asked for.
    mutating func fetched(_ entries: [Entry], from: LogIndex) -> Action? {
        guard isFetching, case .range(from, let upTo)? = waiting.first, let last = entries.last
        else { return nil }
        isFetching = false
        waiting.removeFirst()
        if last.index < upTo { waiting.prepend(.range(from: last.index.next, upTo: upTo)) }
        var bytes = 0
        for entry in entries { bytes += entry.payload.count }
        return started(entries, bytes)
    }

    private mutating func started(_ entries: [Entry], _ bytes: Int) -> Action {
        if let last = entries.last {
            applying.append((last.index, bytes))
            applyingBytes += bytes
        }
        return .apply(entries, bytes: bytes)
    }

    /// - Returns: payload bytes that the state has now stored.
    mutating func applied(_ index: LogIndex) -> Int {
        let before = applyingBytes
        while let first = applying.first, first.last <= index {
            applyingBytes -= first.bytes
            applying.removeFirst()
        }
        return before - applyingBytes
    }

    /// A snapshot has overtaken everything here.
    mutating func clear() { self = ApplyQueue() }
}
