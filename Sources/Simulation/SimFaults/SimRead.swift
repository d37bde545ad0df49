// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftStorage

/// What a client wants to see, all of it at one revision.
package struct SimRead: Equatable, Sendable {
    package enum What: Equatable, Sendable {
        case keys([[UInt8]])
        case range(from: [UInt8], to: [UInt8]?, limit: Int)
        /// The newest changes of a key.
        case history([UInt8], limit: Int)
    }

    package var what: What
    /// Nil: now. The later pages of a range are read at the revision of the first.
    package var at: Revision?
    /// It may be so old; nil: it shows everything acknowledged before it.
    package var staleness: Duration?

    package init(_ what: What, at: Revision? = nil) {
        self.what = what
        self.at = at
    }

    static let nothing = SimRead(.keys([]))
}

package struct SimReadAnswer: Equatable, Sendable {
    package var revision: Revision
    package var entries: [KeyValue?] = []
    /// Of a range: there are keys beyond the last one.
    package var more = false
    /// Of a history, and what was compacted when it was read.
    package var events: [ChangeEvent] = []
    package var compacted = Revision.zero

    package init(
        revision: Revision, entries: [KeyValue?] = [], more: Bool = false,
        events: [ChangeEvent] = [], compacted: Revision = .zero
    ) {
        self.revision = revision
        self.entries = entries
        self.more = more
        self.events = events
        self.compacted = compacted
    }
}

extension SimRead {
    /// - Returns: nil if its revision is compacted away.
    func answer(from state: MemoryState) -> SimReadAnswer? {
        do { return try answer(from: state as any StateStore) } catch {
            preconditionFailure("memory does not fail: \(error)")
        }
    }

    /// - Returns: nil if its revision is compacted away.
    func answer(from state: any StateStore) throws(StorageError) -> SimReadAnswer? {
        switch what {
        case .keys(let keys):
            guard case .value(let page) = try state.get(keys, at: at) else { return nil }
            return SimReadAnswer(revision: page.revision, entries: page.entries)
        case .range(let from, let to, let limit):
            let request = RangeRequest(from: from, to: to, limit: limit, at: at)
            guard case .page(let page) = try state.range(request) else { return nil }
            return SimReadAnswer(revision: page.revision, entries: page.entries, more: page.more)
        case .history(let key, let limit):
            let page = try state.history(of: key, before: nil, limit: limit)
            return SimReadAnswer(
                revision: page.revision, more: page.more, events: page.events,
                compacted: page.compacted)
        }
    }

    /// What is left of a range behind an answer.
    func rest(after answer: SimReadAnswer) -> SimRead? {
        guard answer.more, case .range(_, let to, let limit) = what,
            let last = answer.entries.last ?? nil
        else { return nil }
        return SimRead(.range(from: last.key + [0], to: to, limit: limit), at: answer.revision)
    }
}
