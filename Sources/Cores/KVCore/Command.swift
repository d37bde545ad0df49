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
    /// Proposed by policy: history below `revision` may go.
    case compact(Revision)
    /// From here on entries may use state-machine version `version`.
    case activateVersion(UInt16)
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
    case put(key: [UInt8], value: [UInt8])
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

    package init(
        key: [UInt8], value: [UInt8], createRevision: Revision, modRevision: Revision,
        version: UInt64
    ) {
        self.key = key
        self.value = value
        self.createRevision = createRevision
        self.modRevision = modRevision
        self.version = version
    }
}

/// What applying one command gave; stored with the session so that a retry gets the same answer.
package enum CommandResult: Equatable, Sendable {
    case sessionOpened(SessionID)
    case done
    /// `revision`: the store's after the transaction (unchanged when it wrote nothing).
    case transaction(succeeded: Bool, revision: Revision, results: [OperationResult])
    case failed(code: AspenErrorCode, message: String)
}

package enum OperationResult: Equatable, Sendable {
    /// `previousVersion` 0: the key did not exist.
    case put(previousVersion: UInt64)
    case deleted(count: UInt64)
    case got(KeyValue?)
}

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

    package init(
        from: [UInt8], to: [UInt8]?, limit: Int, at: Revision? = nil, keysOnly: Bool = false
    ) {
        self.from = from
        self.to = to
        self.limit = limit
        self.at = at
        self.keysOnly = keysOnly
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
