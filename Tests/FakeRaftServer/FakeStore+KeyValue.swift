// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import SwiftProtobuf

// Leases (which never end by themselves here), batches, history, and what watches are told.
extension FakeStore {
    static func isIn(_ key: Data, _ from: Data, _ to: Data) -> Bool {
        !key.lexicographicallyPrecedes(from) && (to.isEmpty || key.lexicographicallyPrecedes(to))
    }

    static func noLease(_ lease: UInt64) -> FakeResponse {
        .failed(.notFound, "lease \(lease) has ended or never was; grant a new one")
    }

    mutating func grant(_ request: Aspen_Client_V1_GrantLeaseRequest) -> FakeResponse {
        guard
            (Limits.leaseTTLMillisecondsMin...Limits.leaseTTLMillisecondsMax).contains(
                request.ttlMs)
        else {
            return .failed(
                .invalidArgument,
                "a lease lives \(Limits.leaseTTLMillisecondsMin) to "
                    + "\(Limits.leaseTTLMillisecondsMax) milliseconds, not \(request.ttlMs)")
        }
        index += 1
        let lease = request.lease == 0 ? index : request.lease
        guard leases[lease] == nil else {
            return .failed(.preconditionFailed, "lease \(lease) exists already")
        }
        leases[lease] = Lease(ttlMs: request.ttlMs)
        return .with {
            $0.grantLease.lease = lease
            $0.grantLease.ttlMs = request.ttlMs
            $0.grantLease.logID = logID
        }
    }

    mutating func revoke(_ request: Aspen_Client_V1_RevokeLeaseRequest) -> FakeResponse {
        index += 1
        guard let lease = leases[request.lease] else { return Self.noLease(request.lease) }
        for key in lease.keys { _ = remove(key, at: revision + 1) }
        if !lease.keys.isEmpty { revision += 1 }
        leases[request.lease] = nil
        return .with {
            $0.revokeLease.deleted = UInt64(lease.keys.count)
            $0.revokeLease.revision = revision
            $0.revokeLease.logID = logID
        }
    }

    func answerLease(_ request: FakeRequest) -> FakeResponse {
        switch request.request {
        case .keepLeaseAlive(let keep):
            guard let lease = leases[keep.lease] else { return Self.noLease(keep.lease) }
            return .with { $0.keepLeaseAlive.ttlMs = lease.ttlMs }
        case .leaseTimeToLive(let wanted):
            guard let lease = leases[wanted.lease] else { return Self.noLease(wanted.lease) }
            return .with {
                $0.leaseTimeToLive.lease = info(wanted.lease, lease)
                guard wanted.withKeys else { return }
                $0.leaseTimeToLive.keys = lease.keys.sorted { $0.lexicographicallyPrecedes($1) }
            }
        case .listLeases(let wanted):
            let limit = wanted.limit == 0 ? Limits.batchCountMax : Int(wanted.limit)
            let found = leases.filter { $0.key > wanted.after }.sorted { $0.key < $1.key }
            return .with {
                $0.listLeases.leases = found.prefix(limit).map { info($0.key, $0.value) }
                $0.listLeases.more = found.count > limit
            }
        default: return .failed(.internal, "no request for a lease")
        }
    }

    private func info(_ id: UInt64, _ lease: Lease) -> Aspen_Client_V1_LeaseInfo {
        .with {
            $0.lease = id
            $0.grantedTtlMs = lease.ttlMs
            $0.remainingTtlMs = lease.ttlMs
            $0.attachedKeys = UInt64(lease.keys.count)
        }
    }

    func batch(_ request: Aspen_Client_V1_BatchReadRequest) -> FakeResponse {
        .with { response in
            response.batchRead.revision = request.revision == 0 ? revision : request.revision
            response.batchRead.results = request.keys.map { key in
                .with {
                    let at = request.revision == 0 ? UInt64.max : request.revision
                    if let found = current(key, at: at) { $0.entry = entry(key, found) }
                }
            }
        }
    }

    func keyHistory(_ request: Aspen_Client_V1_KeyHistoryRequest) -> FakeResponse {
        let limit = request.limit == 0 ? 100 : Int(request.limit)
        let below = request.beforeRevision == 0 ? UInt64.max : request.beforeRevision
        let events = changes(of: request.key).filter { $0.entry.modRevision < below }
        return .with {
            $0.keyHistory.events = Array(events.reversed().prefix(limit))
            $0.keyHistory.more = events.count > limit
            $0.keyHistory.revision = revision
        }
    }

    private func changes(of key: Data) -> [Aspen_Client_V1_Event] {
        var previous: Stored?
        return (history[key] ?? []).map { stored in
            defer { previous = stored.value == nil ? nil : stored }
            return .with {
                $0.kind = stored.value == nil ? .delete : .put
                if let before = previous { $0.previous = entry(key, before) }
                $0.entry = entry(key, stored)
                if stored.value == nil {
                    $0.entry.key = key
                    $0.entry.modRevision = stored.mod
                }
            }
        }
    }

    /// What a watch that knows everything up to `told` is told now.
    func update(
        _ request: Aspen_Client_V1_WatchRequest, after told: UInt64
    ) -> FakeResponse {
        var events: [Aspen_Client_V1_Event] = []
        for key in history.keys where Self.isIn(key, request.from, request.to) {
            events += changes(of: key).filter {
                $0.entry.modRevision > told
                    && !($0.kind == .put ? request.noPuts : request.noDeletes)
            }
        }
        events.sort {
            ($0.entry.modRevision, Array($0.entry.key).description)
                < ($1.entry.modRevision, Array($1.entry.key).description)
        }
        return .with {
            $0.watch.revision = max(revision, told)
            $0.watch.events = events.map { event in
                var event = event
                if !request.previousValues { event.clearPrevious() }
                return event
            }
        }
    }
}
