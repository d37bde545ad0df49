// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import DequeModule
import RaftCore

/// The log of the `inmemory` backend: gone with the process.
package final class MemoryLog: LogStore {
    package let recovery = RaftRecovery()
    private var base = LogIndex.zero
    private var entries: Deque<Entry> = []
    private var hardState = HardState()

    package init() {}

    package var firstIndex: LogIndex { base.next }
    package var lastIndex: LogIndex { base.advanced(by: entries.count) }

    package func write(_ write: LogWrite) throws(StorageError) {
        if let cut = write.truncateAfter, cut < lastIndex {
            precondition(cut >= base, "entry \(cut) has been discarded: it cannot be in conflict")
            entries.removeLast(Int(lastIndex.rawValue - cut.rawValue))
        }
        for entry in write.entries {
            precondition(
                entry.index == lastIndex.next, "\(entry.index) does not follow \(lastIndex)")
            precondition(entry.term >= entries.last?.term ?? .zero, "terms do not go back")
            entries.append(entry)
        }
        if let state = write.hardState {
            precondition(state.term >= hardState.term, "terms do not go back")
            hardState = state
        }
    }

    package func sync() throws(StorageError) {}

    package func read(
        from: LogIndex, upTo: LogIndex, bytesMax: Int
    ) throws(StorageError) -> [Entry] {
        guard from > base, from <= upTo, from <= lastIndex else { return [] }
        var result: [Entry] = []
        var byteCount = 0
        for index in from.rawValue...min(upTo, lastIndex).rawValue {
            let entry = entries[Int(index - base.rawValue - 1)]
            byteCount += entry.payload.count
            if !result.isEmpty, byteCount > bytesMax { break }
            result.append(entry)
        }
        return result
    }

    package func discard(upTo index: LogIndex, term: Term) throws(StorageError) {
        guard index > base else { return }
        let end = min(index, lastIndex)
        entries.removeFirst(Int(end.rawValue - base.rawValue))
        base = end
    }

    package func reset(to index: LogIndex, term: Term) throws(StorageError) {
        entries.removeAll()
        base = index
    }

    package func close() {}
}
