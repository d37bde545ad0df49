// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// What the replicated state machine can be told. Encoded by `CommandCodec` into the payload of a
/// log entry; the first byte is the state-machine version that is needed to understand it.
package enum Command: Equatable, Sendable {
    /// The session id is the index of this entry.
    case openSession
    /// A sign of life; also what every request under a session is.
    case keepSessionAlive(SessionID)
    case closeSession(SessionID)
    /// Proposed by the leader: sessions silent for `Limits.sessionTimeout` of cluster time end here.
    case expireSessions
    case transaction(Transaction, SessionRequest?)
    /// `id` none: the index of this entry. The lease ends `ttlMilliseconds` of cluster time after
    /// this entry's time, or after that of the last `keepLeaseAlive`.
    case grantLease(id: LeaseID, ttlMilliseconds: UInt64, SessionRequest?)
    /// Ends a lease, and removes the keys attached to it in one revision.
    case revokeLease(LeaseID, SessionRequest?)
    /// Begins the lease's time anew. Carrying it out twice is the same as once.
    case keepLeaseAlive(LeaseID)
    /// Proposed by the leader: leases whose time has passed end here, each in a revision of its own;
    /// at most `KVLimits.leasesExpiredPerEntry`.
    case expireLeases
    /// Proposed by policy: history below `revision` may go.
    case compact(Revision)
    /// From here on entries may use state-machine version `version`.
    case activateVersion(UInt16)
}

extension Command {
    /// Nil for what is not under a session.
    package var sessionRequest: SessionRequest? {
        switch self {
        case .transaction(_, let request), .grantLease(_, _, let request),
            .revokeLease(_, let request):
            request
        case .openSession, .keepSessionAlive, .closeSession, .expireSessions, .keepLeaseAlive,
            .expireLeases, .compact, .activateVersion:
            nil
        }
    }

    /// The lowest state-machine version that understands it. Only commands up to
    /// `StateMeta.activeVersion` may be proposed; beyond, the state machine refuses them.
    package var version: UInt8 {
        switch self {
        case .openSession, .keepSessionAlive, .closeSession, .expireSessions, .compact,
            .activateVersion:
            KVVersion.first
        case .transaction(let transaction, _):
            transaction.namesLease ? KVVersion.leases : KVVersion.first
        case .grantLease, .revokeLease, .keepLeaseAlive, .expireLeases: KVVersion.leases
        }
    }
}

extension Transaction {
    fileprivate var namesLease: Bool {
        success.contains(where: \.namesLease) || failure.contains(where: \.namesLease)
    }
}

extension Operation {
    fileprivate var namesLease: Bool {
        if case .put(_, _, let lease) = self { lease != .none } else { false }
    }
}

/// Makes a retried request apply once: the number grows by one with each request of the session;
/// answers below `acknowledgedBelow` are no longer needed by the client.
package struct SessionRequest: Equatable, Sendable {
    package var session: SessionID
    package var number: UInt64
    package var acknowledgedBelow: UInt64

    package init(session: SessionID, number: UInt64, acknowledgedBelow: UInt64) {
        self.session = session
        self.number = number
        self.acknowledgedBelow = acknowledgedBelow
    }
}

/// etcd's shape: if all compares hold, `success` is carried out, else `failure`; all in one revision.
package struct Transaction: Equatable, Sendable {
    package var compares: [Compare]
    package var success: [Operation]
    package var failure: [Operation]

    package init(compares: [Compare] = [], success: [Operation], failure: [Operation] = []) {
        self.compares = compares
        self.success = success
        self.failure = failure
    }
}

package struct Compare: Equatable, Sendable {
    package enum Target: Equatable, Sendable {
        case value([UInt8])
        /// Per-key version: 0 = absent, 1 = just created, grows with each put.
        case version(UInt64)
        case createRevision(Revision)
        case modRevision(Revision)
        case exists(Bool)
    }
    package enum Relation: UInt8, Sendable { case equal = 0, notEqual, less, greater }

    package var key: [UInt8]
    package var target: Target
    package var relation: Relation

    package init(key: [UInt8], target: Target, relation: Relation = .equal) {
        self.key = key
        self.target = target
        self.relation = relation
    }
}

package enum Operation: Equatable, Sendable {
    /// Attaches the key to `lease`; with none, the default, the key belongs to no lease any more. A
    /// lease that does not exist refuses the whole transaction.
    case put(key: [UInt8], value: [UInt8], lease: LeaseID = .none)
    case delete(key: [UInt8])
    /// Removes every key in `from..<to`; at most `Limits.batchCountMax` keys, else the whole
    /// transaction is refused.
    case deleteRange(from: [UInt8], to: [UInt8]?)
    case get(key: [UInt8])
}

package struct KeyValue: Equatable, Sendable {
    package var key: [UInt8]
    package var value: [UInt8]
    package var createRevision: Revision
    package var modRevision: Revision
    package var version: UInt64
    /// None: the key stays until it is deleted.
    package var lease: LeaseID

    package var byteCount: Int { key.count + value.count }

    package init(
        key: [UInt8], value: [UInt8], createRevision: Revision, modRevision: Revision,
        version: UInt64, lease: LeaseID = .none
    ) {
        self.key = key
        self.value = value
        self.createRevision = createRevision
        self.modRevision = modRevision
        self.version = version
        self.lease = lease
    }
}

/// What applying one command gave; stored with the session so that a retry gets the same answer.
package enum CommandResult: Equatable, Sendable {
    case sessionOpened(SessionID)
    case done
    /// `revision`: the store's after the transaction (unchanged when it wrote nothing).
    case transaction(succeeded: Bool, revision: Revision, results: [OperationResult])
    case leaseGranted(LeaseID, ttlMilliseconds: UInt64)
    case leaseKept(ttlMilliseconds: UInt64)
    /// `revision`: the store's afterwards (unchanged when no key went); `deleted`: keys that went.
    case leaseRevoked(revision: Revision, deleted: UInt64)
    case failed(code: AspenErrorCode, message: String)
}

package enum OperationResult: Equatable, Sendable {
    /// `previousVersion` 0: the key did not exist.
    case put(previousVersion: UInt64)
    case deleted(count: UInt64)
    case got(KeyValue?)
}

extension Command {
    /// Carried out twice it is done once: a session recognises it, or it says only what is to be so. It
    /// may be proposed again while it is not known what became of the first proposal.
    package var isRepeatable: Bool {
        switch self {
        case .keepSessionAlive, .closeSession, .keepLeaseAlive: true
        default: sessionRequest != nil
        }
    }
}
