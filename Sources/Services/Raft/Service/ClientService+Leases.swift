// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import RaftCore

extension ClientService {
    func grantLease(_ body: Aspen_Client_V1_GrantLeaseRequest, _ origin: RequestOrigin) {
        let id = LeaseID(body.lease)
        if let refusal = LeaseRow.refusal(id: id, ttlMilliseconds: body.ttlMs) {
            return origin.fail(AspenError(refusal.code, refusal.message))
        }
        let session = SessionRequest(body.session, isPresent: body.hasSession)
        submit(
            .grantLease(id: id, ttlMilliseconds: body.ttlMs, session), .grantLease, origin)
    }

    func revokeLease(_ body: Aspen_Client_V1_RevokeLeaseRequest, _ origin: RequestOrigin) {
        guard let id = named(body.lease, origin) else { return }
        let session = SessionRequest(body.session, isPresent: body.hasSession)
        submit(.revokeLease(id, session), .revokeLease, origin)
    }

    func keepLeaseAlive(_ id: LeaseID, _ origin: RequestOrigin) {
        guard let id = named(id.rawValue, origin) else { return }
        submit(.keepLeaseAlive(id), .keepLeaseAlive, origin)
    }

    func leaseTimeToLive(
        _ body: Aspen_Client_V1_LeaseTimeToLiveRequest, _ origin: RequestOrigin
    ) {
        guard let id = named(body.lease, origin) else { return }
        let keys = body.withKeys ? Limits.batchCountMax : 0
        submit(PendingRead(origin: origin, query: .lease(id, keys: keys), shape: .lease(id)))
    }

    func listLeases(_ body: Aspen_Client_V1_ListLeasesRequest, _ origin: RequestOrigin) {
        submit(
            PendingRead(
                origin: origin,
                query: .leases(after: LeaseID(body.after), limit: Self.limit(body.limit)),
                shape: .leases))
    }

    private func named(_ lease: UInt64, _ origin: RequestOrigin) -> LeaseID? {
        guard lease > 0, lease <= UInt64(Int64.max) else {
            origin.fail(AspenError(.invalidArgument, "\(lease) is no lease's number"))
            return nil
        }
        return LeaseID(lease)
    }

    /// Cluster time is stamped by a leader; elsewhere the last entry's is the best there is.
    func info(_ row: LeaseRow, appliedTime: ClusterTime) -> Aspen_Client_V1_LeaseInfo {
        let now = max(appliedTime, node.core.clusterTime(now: RaftNode.now))
        var info = Aspen_Client_V1_LeaseInfo()
        info.lease = row.id.rawValue
        info.grantedTtlMs = row.ttlMilliseconds
        info.remainingTtlMs =
            row.deadline > now ? row.deadline.milliseconds - now.milliseconds : 0
        info.attachedKeys = row.keyCount
        return info
    }
}

extension WriteKind {
    func lease(_ answer: AppliedAnswer) -> WireResponse {
        switch answer.result {
        case .leaseGranted(let id, let ttlMilliseconds):
            var body = Aspen_Client_V1_GrantLeaseResponse()
            body.lease = id.rawValue
            body.ttlMs = ttlMilliseconds
            body.logID = Aspen_Client_V1_LogID(answer)
            return WireResponse(.grantLease(body))
        case .leaseRevoked(let revision, let deleted):
            var body = Aspen_Client_V1_RevokeLeaseResponse()
            body.deleted = deleted
            body.revision = revision.rawValue
            body.logID = Aspen_Client_V1_LogID(answer)
            return WireResponse(.revokeLease(body))
        case .leaseKept(let ttlMilliseconds):
            var body = Aspen_Client_V1_KeepLeaseAliveResponse()
            body.ttlMs = ttlMilliseconds
            return WireResponse(.keepLeaseAlive(body))
        default:
            return WireResponse(
                AspenError(.internal, "the state machine gave another answer than was asked for"))
        }
    }
}
