// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore
import SimKit

/// What an entry is, besides its place: two entries with the same mark say the same.
struct EntryMark: Equatable {
    var term: Term
    var digest: UInt64

    init(_ entry: Entry) {
        term = entry.term
        var hash = TraceHash()
        hash.fold(UInt64(entry.kind.rawValue))
        hash.fold(entry.time.milliseconds)
        hash.fold(entry.origin?.node.rawValue ?? 0)
        hash.fold(entry.origin?.incarnation ?? 0)
        hash.fold(entry.origin?.number ?? 0)
        hash.fold(entry.payload)
        digest = hash.value
    }
}

/// A node's log as an outsider knows it: marks instead of entries.
struct ShadowLog {
    /// Everything up to here has been given up for a snapshot.
    private(set) var base = LogIndex.zero
    private(set) var baseTerm = Term.zero
    private var marks: [EntryMark] = []

    var lastIndex: LogIndex { base.advanced(by: marks.count) }
    var lastTerm: Term { marks.last?.term ?? baseTerm }

    /// Nil outside of what the log holds.
    subscript(index: LogIndex) -> EntryMark? {
        guard index > base, index <= lastIndex else { return nil }
        return marks[Int(index.rawValue - base.rawValue) - 1]
    }

    func term(at index: LogIndex) -> Term? { index == base ? baseTerm : self[index]?.term }

    mutating func restart(after index: LogIndex, term: Term) {
        base = index
        baseTerm = term
        marks.removeAll()
    }

    mutating func truncate(after index: LogIndex) {
        guard index < lastIndex else { return }
        marks.removeLast(Int(lastIndex.rawValue - max(index, base).rawValue))
    }

    /// Where it would end.
    func end(truncatedAfter cut: LogIndex?) -> (index: LogIndex, term: Term) {
        guard let cut, cut < lastIndex else { return (lastIndex, lastTerm) }
        let index = max(cut, base)
        return (index, self[index]?.term ?? baseTerm)
    }

    mutating func append(_ mark: EntryMark) { marks.append(mark) }

    /// Everything up to `index` may be gone now.
    mutating func discard(upTo index: LogIndex) {
        guard let term = term(at: index), index > base else { return }
        marks.removeFirst(Int(index.rawValue - base.rawValue))
        base = index
        baseTerm = term
    }
}

/// A `LogWrite` as an outsider remembers it.
struct ShadowWrite {
    var ticket: DurabilityTicket
    var truncateAfter: LogIndex?
    var marks: [EntryMark]
    var hardState: HardState?
}

/// One node's disk, as an outsider knows it.
struct ShadowDisk {
    /// As the daemon sees it.
    var written = ShadowLog()
    /// As a power cut at this moment would leave it at the least.
    var durable = ShadowLog()
    var durableHardState = HardState()
    /// What was durable before damage took some of it: what it has acknowledged counts as on a lost disk.
    var beforeDamage = ShadowLog()
    /// Not durable yet, in order.
    var pending: [ShadowWrite] = []
    /// Where the log was about to start anew, behind a snapshot: it was not said to be done.
    var restart: (index: LogIndex, term: Term)?
    /// What the core has handed out as committed, in this life.
    var committed = LogIndex.zero
    var standing: RaftStanding?
    /// The newest two memberships in force.
    var memberships: [Membership] = []
    /// Those in force since the newest one that is applied, and that one, each with the entry that it
    /// came with. The same one may come again much later: only the entry tells which it is.
    var membershipsSinceApplied: [(index: LogIndex, membership: Membership)] = []
    /// The last term for which it has called an election, as a voter.
    var campaign: Term?
    /// The one in force has changed and was not yet held against the log.
    var isMembershipNew = false
    /// What was committed when each waiting read came.
    var reads: [UInt64: LogIndex] = [:]

    mutating func write(_ write: ShadowWrite) {
        Self.carryOut(write, on: &written)
        pending.append(write)
    }

    mutating func sync(upTo ticket: DurabilityTicket) {
        while let write = pending.first, write.ticket <= ticket {
            Self.carryOut(write, on: &durable)
            if let state = write.hardState { durableHardState = state }
            pending.removeFirst()
        }
    }

    static func carryOut(_ write: ShadowWrite, on log: inout ShadowLog) {
        if let cut = write.truncateAfter { log.truncate(after: cut) }
        for mark in write.marks { log.append(mark) }
    }

    /// Where the log may end after a crash, and which hard state may be found: everything durable,
    /// and then any beginning of what was pending.
    func possibleEnds() -> [(index: LogIndex, term: Term)] {
        var log = durable
        var ends = [(log.lastIndex, log.lastTerm)]
        for write in pending {
            if let cut = write.truncateAfter {
                log.truncate(after: cut)
                ends.append((log.lastIndex, log.lastTerm))
            }
            for mark in write.marks {
                log.append(mark)
                ends.append((log.lastIndex, log.lastTerm))
            }
        }
        if let restart { ends.append(restart) }
        return ends
    }

    func possibleHardStates() -> [HardState] {
        [durableHardState] + pending.compactMap(\.hardState)
    }
}

/// What stands at each place in any log, and the term of what stands before it: one entry for each
/// term that ever had one at an index, which are few.
struct KnownPlaces {
    typealias Known = (mark: EntryMark, previousTerm: Term)

    /// By index from 1.
    private var places: [[Known]] = []

    subscript(index: LogIndex, term: Term) -> Known? {
        guard index > .zero, index.rawValue <= UInt64(places.count) else { return nil }
        return places[Int(index.rawValue) - 1].first { $0.mark.term == term }
    }

    mutating func add(_ index: LogIndex, _ mark: EntryMark, previousTerm: Term) {
        while UInt64(places.count) < index.rawValue { places.append([]) }
        places[Int(index.rawValue) - 1].append((mark, previousTerm))
    }
}
