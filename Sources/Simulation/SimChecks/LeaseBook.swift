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
    /// When each key was changed, and whether that removed it.
    private var changes: [[UInt8]: [(revision: Revision, isRemoval: Bool)]] = [:]
    private var ended: [(lease: LeaseID, keys: [[UInt8]])] = []
    private var checkedCompaction = Revision.zero
    private var concernsLeases = false

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
            for id in leases.keys.sorted() where (leases[id]?.deadline ?? .max) <= time {
                let late = time - (leases[id]?.deadline ?? time)
                latenessMax = max(latenessMax, .milliseconds(Int64(late)))
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
        for key in keys { attached[key] = nil }
        ended.append((lease, keys))
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
            guard state.lease(lease) == nil, state.keys(of: lease, limit: 1).isEmpty else {
                throw breach("leases end", "n\(node + 1) still has lease \(lease)")
            }
            var revision: Revision?
            for key in keys {
                if let entry = state.get(key, at: nil) {
                    guard entry.lease != lease else {
                        throw breach(
                            "keys go with their lease",
                            "n\(node + 1) still has a key of lease \(lease)")
                    }
                    // Written again in the same batch: what was before is not looked at any more.
                    changes[key] = [(entry.modRevision, false)]
                    continue
                }
                guard let newest = state.history(of: key, before: nil, limit: 1).events.first else {
                    continue
                }
                if changes[key]?.last?.revision == newest.number.revision {
                    // Written and removed again in the same batch.
                    changes[key] = [(newest.number.revision, true)]
                    continue
                }
                changes[key, default: []].append((newest.number.revision, true))
                if let revision, revision != newest.number.revision {
                    throw breach(
                        "keys go with their lease",
                        "keys of lease \(lease) went at \(revision) and at "
                            + "\(newest.number.revision)")
                }
                revision = newest.number.revision
            }
        }
    }

    /// Once all that may go is gone, what must stay is looked at.
    private mutating func checkHistory(_ node: Int, _ state: MemoryState) throws(Violation) {
        let compacted = state.meta.compacted
        guard compacted > checkedCompaction, !state.meta.isSweeping else { return }
        checkedCompaction = compacted
        for key in changes.keys.sorted(by: { $0.lexicographicallyPrecedes($1) }) {
            guard let newest = changes[key]?.last(where: { $0.revision <= compacted }) else {
                continue
            }
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
