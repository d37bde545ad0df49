// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// A page of keys.
package struct RangeRequest: Equatable, Sendable {
    package var from: [UInt8]
    /// Exclusive; nil means to the end.
    package var to: [UInt8]?
    /// At most `Limits.batchCountMax`.
    package var limit: Int
    /// Nil: now.
    package var at: Revision?
    package var keysOnly: Bool
    /// From the last key to the first; the next page ends before the last key of this one.
    package var descending: Bool
    /// Leaves out every key that begins with this; empty: nothing is left out. See
    /// `ReservedNamespace`.
    package var excluding: [UInt8]

    package init(
        from: [UInt8], to: [UInt8]?, limit: Int, at: Revision? = nil, keysOnly: Bool = false,
        descending: Bool = false, excluding: [UInt8] = []
    ) {
        self.from = from
        self.to = to
        self.limit = limit
        self.at = at
        self.keysOnly = keysOnly
        self.descending = descending
        self.excluding = excluding
    }

    /// What is left of the range, in the order in which it is read: none, one or two pieces.
    var pieces: [KeyRange] {
        let pieces = KeyRange(from: from, to: to).excluding(prefix: excluding)
        return descending ? pieces.reversed() : pieces
    }
}

package struct RangePage: Equatable, Sendable {
    package var entries: [KeyValue]
    /// True when keys beyond the last one returned were left out (limit or page bytes).
    package var more: Bool
    /// The revision the page shows.
    package var revision: Revision

    package init(entries: [KeyValue], more: Bool, revision: Revision) {
        self.entries = entries
        self.more = more
        self.revision = revision
    }
}

/// What `KVMachine.visit` knows in the end.
package struct RangeEnd: Equatable, Sendable {
    /// See `RangePage`.
    package var more: Bool
    package var revision: Revision

    package init(more: Bool, revision: Revision) {
        self.more = more
        self.revision = revision
    }
}

/// How many keys there are in a range, without a limit: one answer looks at
/// `KVLimits.countRowsMax` rows and says where to go on.
package struct CountRequest: Equatable, Sendable {
    package var from: [UInt8]
    /// Exclusive; nil means to the end.
    package var to: [UInt8]?
    /// Nil: now.
    package var at: Revision?
    package var excluding: [UInt8]

    package init(
        from: [UInt8], to: [UInt8]?, at: Revision? = nil, excluding: [UInt8] = []
    ) {
        self.from = from
        self.to = to
        self.at = at
        self.excluding = excluding
    }
}

package struct CountPage: Equatable, Sendable {
    package var count: UInt64
    /// Ask again from here, at `revision`, and add up; nil: that was all.
    package var next: [UInt8]?
    /// The revision that was counted.
    package var revision: Revision

    package init(count: UInt64, next: [UInt8]?, revision: Revision) {
        self.count = count
        self.next = next
        self.revision = revision
    }
}

/// Several keys at one revision.
package struct KeysPage: Equatable, Sendable {
    /// One for each key asked for, in that order; fewer when the next one would not have fit into
    /// `Limits.scanPageBytesMax`. There is at least one.
    package var entries: [KeyValue?]
    package var revision: Revision

    package init(entries: [KeyValue?], revision: Revision) {
        self.entries = entries
        self.revision = revision
    }
}

/// Every change of every key between two points, for those who follow what happens.
package struct ChangesRequest: Equatable, Sendable {
    /// The last change that is known already. Changes can be followed from the compacted revision
    /// on: `ChangeNumber.last(of: compacted)` is the least that is answered.
    package var after: ChangeNumber
    /// Nothing of a later revision; nil: up to now.
    package var upTo: Revision?
    /// A page ends with the revision that reaches one of these two: it has at least one revision,
    /// and never a part of one.
    package var count: Int
    package var bytesMax: Int
    /// The entry that each change replaced comes with it.
    package var withPrevious: Bool

    package init(
        after: ChangeNumber, upTo: Revision? = nil, count: Int, bytesMax: Int,
        withPrevious: Bool = false
    ) {
        self.after = after
        self.upTo = upTo
        self.count = count
        self.bytesMax = bytesMax
        self.withPrevious = withPrevious
    }
}

/// One change of one key.
package struct ChangeEvent: Equatable, Sendable {
    package var number: ChangeNumber
    /// As it was after the change; of a removal, only key and modRevision say something.
    package var entry: KeyValue
    package var isRemoval: Bool
    /// Before the change; nil if the key did not exist, nobody asked, or it does not fit (see
    /// `KVLimits.changePageBytesMax`).
    package var previous: KeyValue?

    package init(
        number: ChangeNumber, entry: KeyValue, isRemoval: Bool, previous: KeyValue? = nil
    ) {
        self.number = number
        self.entry = entry
        self.isRemoval = isRemoval
        self.previous = previous
    }

    package var byteCount: Int {
        entry.byteCount + (previous?.byteCount ?? 0)
    }
}

package struct ChangesPage: Equatable, Sendable {
    package var events: [ChangeEvent]
    /// All changes up to and with this revision have been told: go on from
    /// `ChangeNumber.last(of:)` of it.
    package var revision: Revision
    /// There are changes beyond `revision` that were asked for.
    package var more: Bool

    package init(events: [ChangeEvent], revision: Revision, more: Bool) {
        self.events = events
        self.revision = revision
        self.more = more
    }
}

/// What became of one key, newest first, as far back as history is kept.
package struct HistoryPage: Equatable, Sendable {
    package var events: [ChangeEvent]
    package var more: Bool
    package var revision: Revision
    /// History below this is compacted away; zero: none is.
    package var compacted: Revision

    package init(events: [ChangeEvent], more: Bool, revision: Revision, compacted: Revision) {
        self.events = events
        self.more = more
        self.revision = revision
        self.compacted = compacted
    }
}

package struct LeasesPage: Equatable, Sendable {
    /// Ascending by number.
    package var leases: [LeaseRow]
    /// There are leases beyond the last one.
    package var more: Bool

    package init(leases: [LeaseRow], more: Bool) {
        self.leases = leases
        self.more = more
    }
}

/// Keys from `from`, before `to`; nil: to the end.
package struct KeyRange: Equatable, Sendable {
    package var from: [UInt8]
    package var to: [UInt8]?

    package init(from: [UInt8], to: [UInt8]?) {
        self.from = from
        self.to = to
    }

    /// Every key that begins with `prefix`.
    package init(prefix: [UInt8]) {
        from = prefix
        var end = prefix
        while let last = end.popLast() {
            if last < 0xff {
                end.append(last + 1)
                to = end
                return
            }
        }
        to = nil
    }

    package var isEmpty: Bool {
        guard let to else { return false }
        return !bytesPrecede(from, to)
    }

    package func contains(_ key: [UInt8]) -> Bool {
        if bytesPrecede(key, from) { return false }
        guard let to else { return true }
        return bytesPrecede(key, to)
    }

    /// What is left without the keys that begin with `prefix`, in order: none, one or two ranges.
    package func excluding(prefix: [UInt8]) -> [KeyRange] {
        guard !prefix.isEmpty else { return isEmpty ? [] : [self] }
        let hole = KeyRange(prefix: prefix)
        var pieces: [KeyRange] = []
        var below = self
        if below.to.map({ bytesPrecede(hole.from, $0) }) ?? true { below.to = hole.from }
        if !below.isEmpty { pieces.append(below) }
        if let end = hole.to {
            var above = self
            if bytesPrecede(above.from, end) { above.from = end }
            if !above.isEmpty { pieces.append(above) }
        }
        return pieces
    }
}

extension ReservedNamespace {
    /// Whether any key of the range is reserved.
    package static func overlaps(from: [UInt8], to: [UInt8]?) -> Bool {
        let range = KeyRange(from: from, to: to)
        return !range.isEmpty && range.excluding(prefix: prefix) != [range]
    }
}

extension Transaction {
    /// Whether it names a reserved key or a range with one in it.
    package var touchesReservedNamespace: Bool {
        compares.contains { ReservedNamespace.contains($0.key) }
            || success.contains(where: \.touchesReservedNamespace)
            || failure.contains(where: \.touchesReservedNamespace)
    }
}

extension Operation {
    fileprivate var touchesReservedNamespace: Bool {
        switch self {
        case .put(let key, _, _), .delete(let key), .get(let key): ReservedNamespace.contains(key)
        case .deleteRange(let from, let to): ReservedNamespace.overlaps(from: from, to: to)
        }
    }
}
