// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimFaults

/// What the committed entries and their results say about leases and history, written down once,
/// beside the state machine: when a lease may end, which keys go with it, and what can be read at
/// the compacted revision. Whichever node applies an entry first is held against it; the others by
/// the hash of their states.
struct LeaseBook {
    private struct Lease {
        var ttl: UInt64
        var deadline: UInt64
    }

    private struct Request: Hashable {
        var session: SessionID
        var number: UInt64
    }

    /// Leases that ended because their time was up, and how late the latest of them, in cluster time.
    private(set) var expired = 0
    private(set) var latenessMax = Duration.zero

    private var applied = LogIndex.zero
    private var time: UInt64 = 0
    private var leases: [LeaseID: Lease] = [:]
    private var attached: [[UInt8]: LeaseID] = [:]
    private var answered: Set<Request> = []
    /// When each key was changed, and whether that removed it. At what revision a lease ended is seen
    /// only when the batch has been applied: nil until then.
    private var changes: [[UInt8]: [(revision: Revision?, isRemoval: Bool)]] = [:]
    /// Leases that ended in this batch, and where in `changes` that stands of each of their keys.
    private var ended: [(lease: LeaseID, keys: [(key: [UInt8], place: Int)])] = []
    private var checkedCompaction = Revision.zero
    private var concernsLeases = false
    private let bounds: KVBounds

    init(_ bounds: KVBounds) { self.bounds = bounds }

    mutating func applied(
        _ node: Int, _ entries: [Entry], _ results: [CommandResult], _ state: MemoryState
    ) throws(Violation) {
        guard let last = entries.last, last.index > applied else { return }
        guard let first = entries.first, first.index <= applied.next else { return }
        ended = []
        concernsLeases = false
        for (entry, result) in zip(entries, results) where entry.index > applied {
            time = max(time, entry.time.milliseconds)
            applied = entry.index
            guard entry.kind == .command, let command = try? CommandCodec.decode(entry.payload)
            else { continue }
            write(command, result)
        }
        if concernsLeases { try checkLeases(node, state) }
        try checkHistory(node, state)
    }

    private mutating func write(_ command: Command, _ result: CommandResult) {
        if let request = command.sessionRequest {
            if case .failed = result { return }
            // The answer to a retry is that of the first time, and nothing happens.
            let key = Request(session: request.session, number: request.number)
            guard answered.insert(key).inserted else { return }
        }
        switch (command, result) {
        case (_, .leaseGranted(let id, let ttl)):
            concernsLeases = true
            leases[id] = Lease(ttl: ttl, deadline: time + ttl)
        case (.keepLeaseAlive(let id), .leaseKept(let ttl)):
            concernsLeases = true
            leases[id]?.deadline = time + ttl
        case (.revokeLease(let id, _), .leaseRevoked): end(id)
        case (.expireLeases, .done):
            for (id, deadline) in nextToExpire() {
                latenessMax = max(latenessMax, .milliseconds(Int64(time - deadline)))
                expired += 1
                end(id)
            }
        case (.transaction(let transaction, _), .transaction(let succeeded, let revision, let made)):
            let operations = succeeded ? transaction.success : transaction.failure
            for (operation, result) in zip(operations, made) {
                write(operation, result, revision)
            }
        default: break
        }
    }

    /// As many as one entry ends.
    private func nextToExpire() -> [(id: LeaseID, deadline: UInt64)] {
        var due = leases.filter { $0.value.deadline <= time }.map { ($0.key, $0.value.deadline) }
        due.sort { ($0.1, $0.0) < ($1.1, $1.0) }
        due = Array(due.prefix(bounds.leasesExpiredPerEntry))
        var room = bounds.leaseKeysExpiredPerEntry
        for (place, lease) in due.enumerated() {
            let keys = attached.values.count { $0 == lease.0 }
            if place > 0, keys > room { return Array(due[..<place]) }
            room = max(0, room - keys)
        }
        return due
    }

    private mutating func write(
        _ operation: Operation, _ result: OperationResult, _ revision: Revision
    ) {
        switch (operation, result) {
        case (.put(let key, _, let lease), .put):
            attached[key] = lease == .none ? nil : lease
            changes[key, default: []].append((revision, false))
        case (.delete(let key), .deleted(let count)) where count > 0:
            attached[key] = nil
            changes[key, default: []].append((revision, true))
        case (.deleteRange(let from, let to), .deleted(let count)) where count > 0:
            let range = KeyRange(from: from, to: to)
            for key in changes.keys.filter(range.contains)
            where changes[key]?.last?.isRemoval == false {
                attached[key] = nil
                changes[key]?.append((revision, true))
            }
        default: break
        }
    }

    private mutating func end(_ lease: LeaseID) {
        concernsLeases = true
        leases[lease] = nil
        let keys = attached.filter { $0.value == lease }.map(\.key)
            .sorted { $0.lexicographicallyPrecedes($1) }
        for key in keys {
            attached[key] = nil
            changes[key, default: []].append((nil, true))
        }
        ended.append((lease, keys.map { ($0, (changes[$0]?.count ?? 1) - 1) }))
    }

    // MARK: - Checks

    private mutating func checkLeases(_ node: Int, _ state: MemoryState) throws(Violation) {
        for id in leases.keys.sorted() {
            guard let row = state.lease(id) else {
                throw breach("leases never end early", "n\(node + 1) has no lease \(id) any more")
            }
            guard row.deadline.milliseconds == leases[id]?.deadline else {
                throw breach(
                    "leases never end early",
                    "n\(node + 1) lets lease \(id) end at \(row.deadline.milliseconds)")
            }
        }
        for (lease, keys) in ended {
            // It may have been granted anew since, under the number that it had.
            let isGone = state.lease(lease) == nil && state.keys(of: lease, limit: 1).isEmpty
            guard isGone || leases[lease] != nil else {
                throw breach("leases end", "n\(node + 1) still has lease \(lease)")
            }
            var common: Revision?
            for (key, place) in keys {
                guard let revision = try revisionOfEnd(node, lease, key, place, state) else {
                    continue
                }
                changes[key]?[place].revision = revision
                if let common, common != revision {
                    throw breach(
                        "keys go with their lease",
                        "keys of lease \(lease) went at \(common) and at \(revision)")
                }
                common = revision
            }
        }
        // Of what came before a removal that is compacted away already nothing is looked at any more.
        for key in ended.flatMap(\.keys).map(\.key) {
            guard let unknown = changes[key]?.lastIndex(where: { $0.revision == nil }) else {
                continue
            }
            changes[key]?.removeFirst(unknown + 1)
        }
    }

    /// When a key went with its lease. The batch may have written it again, and that may have gone
    /// with another lease.
    /// - Returns: nil if that is compacted away.
    private func revisionOfEnd(
        _ node: Int, _ lease: LeaseID, _ key: [UInt8], _ place: Int, _ state: MemoryState
    ) throws(Violation) -> Revision? {
        guard let known = changes[key], place > 0, let put = known[place - 1].revision else {
            return nil
        }
        let next = known.indices.contains(place + 1) ? known[place + 1].revision : nil
        guard next != nil || state.get(key, at: nil) == nil else {
            throw breach(
                "keys go with their lease", "n\(node + 1) still has a key of lease \(lease)")
        }
        let event = state.history(of: key, before: next, limit: 1).events.first
        if let event, event.number.revision > put {
            guard event.isRemoval else {
                throw breach(
                    "keys go with their lease",
                    "n\(node + 1) writes a key of lease \(lease) at \(event.number.revision)")
            }
            return event.number.revision
        }
        guard put < state.meta.compacted else {
            throw breach(
                "keys go with their lease",
                "n\(node + 1) does not say when a key of lease \(lease) went")
        }
        return nil
    }

    /// Once all that may go is gone, what must stay is looked at.
    private mutating func checkHistory(_ node: Int, _ state: MemoryState) throws(Violation) {
        let compacted = state.meta.compacted
        guard compacted > checkedCompaction, !state.meta.isSweeping else { return }
        checkedCompaction = compacted
        for key in changes.keys.sorted(by: { $0.lexicographicallyPrecedes($1) }) {
            guard
                let newest = changes[key]?.last(where: { change in
                    change.revision.map { $0 <= compacted } ?? false
                })
            else { continue }
            let found = state.get(key, at: compacted)
            let expected = newest.isRemoval ? nil : newest.revision
            if found?.modRevision != expected {
                throw breach(
                    "what is not compacted can be read",
                    "n\(node + 1) compacted to \(compacted) and shows there "
                        + "\(found?.modRevision ?? .zero), not \(expected ?? .zero)")
            }
        }
    }

    private func breach(_ name: String, _ detail: String) -> Violation {
        Violation(.safety, name, detail)
    }
}
