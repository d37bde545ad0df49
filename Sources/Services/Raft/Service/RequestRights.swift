// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import TokenCore

/// Keys that a request touches: one, or a range.
struct KeySpan {
    var access: CapabilitySet.Access
    var from: Data
    /// Before this key; nil: to the end. Of one key: see `isOneKey`.
    var to: Data?
    var isOneKey = false

    static func key(_ access: CapabilitySet.Access, _ key: Data) -> KeySpan {
        KeySpan(access: access, from: key, isOneKey: true)
    }

    /// - Parameter to: empty: to the end.
    static func range(_ access: CapabilitySet.Access, _ from: Data, _ to: Data) -> KeySpan {
        KeySpan(access: access, from: from, to: to.isEmpty ? nil : to)
    }

    static func prefix(_ access: CapabilitySet.Access, _ prefix: Data) -> KeySpan {
        KeySpan(
            access: access, from: prefix, to: KeyRange(prefix: Array(prefix)).to.map { Data($0) })
    }

    func isAllowed(by rights: CapabilitySet) -> Bool {
        isOneKey
            ? rights.allows(access, key: Array(from))
            : rights.allows(access, from: Array(from), to: to.map { Array($0) })
    }

    /// The capability that would have allowed it, in words.
    var capability: String {
        let verb = access == .read ? "kv:read:" : "kv:write:"
        let name = KeyPattern.escape(from)
        if isOneKey { return verb + name }
        if to.map({ Array($0) }) == KeyRange(prefix: Array(from)).to { return "\(verb)\(name)*" }
        let end = to.map { "before " + KeyPattern.escape($0) } ?? "to the end"
        return "\(verb)… for all keys from '\(name)' \(end)"
    }
}

/// Which capability a request of a client with a token needs.
enum RequestNeed {
    case cluster(Capability)
    /// For each key it touches: see `eachSpan`.
    case keys
    /// Sessions, and what ends with the connection: any key will do.
    case anyKey(CapabilitySet.Access)
    /// It may concern keys that it does not name.
    case allKeys(CapabilitySet.Access)
}

extension WireRequest.OneOf_Request {
    var need: RequestNeed {
        switch self {
        case .getHealth, .getClusterStatus, .getLeader, .getNodeInfo, .getClusterTicket, .why,
            .getMetrics, .getRaftMetrics, .listTokenRoots, .listRevokedTokens:
            .cluster(.clusterRead)
        case .initCluster, .addLearner, .changeMembership, .triggerSnapshot, .promoteLearner,
            .transferLeadership, .leaveCluster, .backup, .restoreChunk, .recoverQuorum,
            .addTokenRoot, .removeTokenRoot, .revokeToken:
            .cluster(.clusterAdmin)
        case .writeKey, .readKey, .deleteKey, .scanKeys, .transaction, .watch, .batchRead,
            .keyHistory:
            .keys
        case .openSession, .keepSessionAlive, .closeSession, .grantLease: .anyKey(.write)
        case .cancelWatch: .anyKey(.read)
        // Keys go, or stay, with a lease, whoever attached them.
        case .revokeLease, .keepLeaseAlive: .allKeys(.write)
        case .leaseTimeToLive, .listLeases: .allKeys(.read)
        }
    }

    /// Calls `body` with each key and range that is touched, until it says no.
    /// - Returns: the span that it said no to.
    func firstSpan(where isRefused: (KeySpan) -> Bool) -> KeySpan? {
        func check(_ span: KeySpan) -> KeySpan? { isRefused(span) ? span : nil }
        switch self {
        case .writeKey(let body): return check(.key(.write, body.key))
        case .deleteKey(let body): return check(.key(.write, body.key))
        case .readKey(let body): return check(.key(.read, body.key))
        case .keyHistory(let body): return check(.key(.read, body.key))
        case .batchRead(let body):
            for key in body.keys {
                if let refused = check(.key(.read, key)) { return refused }
            }
            return nil
        case .scanKeys(let body):
            let hasBounds = !body.from.isEmpty || !body.to.isEmpty
            if !body.prefix.isEmpty || !hasBounds,
                let refused = check(.prefix(.read, body.prefix))
            {
                return refused
            }
            return hasBounds ? check(.range(.read, body.from, body.to)) : nil
        case .watch(let body): return check(.range(.read, body.from, body.to))
        case .transaction(let body):
            for compare in body.compares {
                if let refused = check(.key(.read, compare.key)) { return refused }
            }
            for operation in body.success + body.failure {
                if let span = operation.span, let refused = check(span) { return refused }
            }
            return nil
        default: return nil
        }
    }
}

extension Aspen_Client_V1_Operation {
    fileprivate var span: KeySpan? {
        switch operation {
        case .put(let put)?: .key(.write, put.key)
        case .delete(let delete)?: .key(.write, delete.key)
        case .get(let get)?: .key(.read, get.key)
        case .deleteRange(let range)?: .range(.write, range.from, range.to)
        case nil: nil
        }
    }
}
