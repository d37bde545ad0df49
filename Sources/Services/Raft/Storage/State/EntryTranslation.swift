// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import KVCore
import RaftCore

extension CommittedEntry {
    /// - Throws: `newerVersion` for an entry that this program does not know. The whole batch is
    ///   understood before any of it is applied.
    static func translate(_ entries: [Entry]) throws(StorageError) -> [CommittedEntry] {
        var translated: [CommittedEntry] = []
        translated.reserveCapacity(entries.count)
        for entry in entries {
            let body: Body
            switch entry.kind {
            case .noop: body = .noop
            case .membership:
                // What raft took into force it has decoded; anything else is refused everywhere.
                body =
                    Membership(payload: entry.payload) == nil
                    ? .malformed : .membership(entry.payload)
            case .command:
                do {
                    body = try CommittedEntry.body(ofCommand: entry.payload, at: entry.index)
                } catch {
                    throw .newerVersion(error.description)
                }
            }
            translated.append(
                CommittedEntry(index: entry.index, term: entry.term, time: entry.time, body: body))
        }
        return translated
    }
}

extension RangeOutcome {
    init(_ outcome: ReadOutcome<RangePage>) {
        switch outcome {
        case .value(let page): self = .page(page)
        case .compacted(let oldest): self = .compacted(oldest: oldest)
        case .future(let current): self = .future(current: current)
        }
    }
}

extension StateMeta {
    /// - Throws: `corrupt` if the stored bytes are no membership.
    func decodedMembership() throws(StorageError) -> (index: LogIndex, membership: Membership)? {
        guard membershipIndex > .zero else { return nil }
        guard let decoded = Membership(payload: membership) else {
            throw .corrupt("the membership in the state cannot be read")
        }
        return (membershipIndex, decoded)
    }
}
