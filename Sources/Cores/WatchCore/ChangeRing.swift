// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import DequeModule
import KVCore

/// The newest changes, all of them in order and bounded: what watches that are nearly up to date are
/// fed from.
struct ChangeRing {
    private let bytesMax: Int
    private var changes: Deque<Change> = []
    private var byteCount = 0
    /// Everything after this revision and up to `end` is here.
    private(set) var start = Revision.zero
    private(set) var end = Revision.zero

    init(bytesMax: Int) { self.bytesMax = bytesMax }

    var count: Int { changes.count }
    subscript(_ place: Int) -> Change { changes[place] }

    /// Nothing is known of what was before `revision`.
    mutating func restart(at revision: Revision) {
        self = ChangeRing(bytesMax: bytesMax)
        start = revision
        end = revision
    }

    mutating func append(_ added: [Change], upTo revision: Revision) {
        precondition(revision >= end, "revisions never fall")
        end = revision
        for change in added {
            byteCount += ChangeRecording.bytes(of: change)
            changes.append(change)
        }
        trim()
    }

    /// Whole revisions go.
    private mutating func trim() {
        while byteCount > bytesMax, let oldest = changes.first?.header.number.revision {
            while let change = changes.first, change.header.number.revision == oldest {
                byteCount -= ChangeRecording.bytes(of: change)
                changes.removeFirst()
            }
            start = oldest
        }
    }

    /// Where the changes after `revision` begin.
    func place(after revision: Revision) -> Int {
        let limit = ChangeNumber.last(of: revision)
        var low = 0
        var high = changes.count
        while low < high {
            let middle = (low + high) / 2
            if changes[middle].header.number <= limit { low = middle + 1 } else { high = middle }
        }
        return low
    }
}
