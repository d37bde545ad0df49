// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import SwiftProtobuf

package typealias FakeRequest = Aspen_Client_V1_ClientRequest
package typealias FakeResponse = Aspen_Client_V1_ClientResponse

/// A key-value state as the protocol promises it, in one map: revisions, versions, history, sessions.
struct FakeStore {
    struct Stored {
        var value: Data?
        var create: UInt64
        var mod: UInt64
        var version: UInt64
        var lease: UInt64 = 0
    }

    struct Lease {
        var ttlMs: UInt64
        var keys: Set<Data> = []
    }

    /// Each key's past, oldest first.
    var history: [Data: [Stored]] = [:]
    var revision: UInt64 = 0
    var index: UInt64 = 1
    var leases: [UInt64: Lease] = [:]
    private var sessions: [UInt64: [UInt64: FakeResponse]] = [:]
    private var acknowledged: [UInt64: UInt64] = [:]
    /// Writes carried out, retries not counted.
    private(set) var appliedCount = 0
    private(set) var isInitialized = true
    var voters: [UInt64] = [1]
    var learners: [UInt64] = []

    mutating func expireSessions() {
        sessions = [:]
        acknowledged = [:]
    }

    var sessionCount: Int { sessions.count }

    mutating func answer(_ request: FakeRequest) -> FakeResponse {
        switch request.request {
        case .writeKey(let write):
            underSession(write.hasSession ? write.session : nil) { $0.write(write) }
        case .deleteKey(let delete):
            underSession(delete.hasSession ? delete.session : nil) { $0.delete(delete) }
        case .transaction(let transaction):
            underSession(transaction.hasSession ? transaction.session : nil) {
                $0.carryOut(transaction)
            }
        case .grantLease(let grant):
            underSession(grant.hasSession ? grant.session : nil) { $0.grant(grant) }
        case .revokeLease(let revoke):
            underSession(revoke.hasSession ? revoke.session : nil) { $0.revoke(revoke) }
        case .keepLeaseAlive, .leaseTimeToLive, .listLeases: answerLease(request)
        case .batchRead(let batch): self.batch(batch)
        case .keyHistory(let history): self.keyHistory(history)
        case .cancelWatch: .with { $0.cancelWatch = .init() }
        case .readKey(let read): self.read(read)
        case .scanKeys(let scan): self.scan(scan)
        case .openSession: openSession()
        case .keepSessionAlive(let request):
            sessions[request.session] == nil
                ? .failed(.sessionExpired, "the session has expired")
                : .with { $0.keepSessionAlive = .init() }
        case .closeSession(let request): closeSession(request.session)
        default: administer(request)
        }
    }

    // MARK: - Sessions

    private mutating func openSession() -> FakeResponse {
        index += 1
        sessions[index] = [:]
        acknowledged[index] = 1
        return .with {
            $0.openSession.session = index
            $0.openSession.timeoutMs = 60_000
        }
    }

    private mutating func closeSession(_ id: UInt64) -> FakeResponse {
        index += 1
        sessions[id] = nil
        return .with { $0.closeSession = .init() }
    }

    private mutating func underSession(
        _ session: Aspen_Client_V1_SessionRequest?, _ apply: (inout FakeStore) -> FakeResponse
    ) -> FakeResponse {
        guard let session else {
            appliedCount += 1
            return apply(&self)
        }
        guard let answers = sessions[session.session] else {
            return .failed(.sessionExpired, "the session has expired")
        }
        if let answer = answers[session.number] { return answer }
        let below = max(acknowledged[session.session] ?? 1, session.acknowledgedBelow)
        guard session.number >= below else {
            return .failed(.sessionExpired, "that number is no longer known")
        }
        acknowledged[session.session] = below
        sessions[session.session] = answers.filter { $0.key >= below }
        guard sessions[session.session]?.count ?? 0 < Limits.sessionWindowMax else {
            return .failed(.resourceExhausted, "the session's window is full")
        }
        appliedCount += 1
        let answer = apply(&self)
        sessions[session.session]?[session.number] = answer
        return answer
    }

    // MARK: - Keys

    func current(_ key: Data, at revision: UInt64 = .max) -> Stored? {
        guard let found = history[key]?.last(where: { $0.mod <= revision }), found.value != nil
        else { return nil }
        return found
    }

    private mutating func put(
        _ key: Data, _ value: Data, at revision: UInt64, lease: UInt64 = 0
    ) -> Stored {
        if let old = current(key)?.lease { leases[old]?.keys.remove(key) }
        leases[lease]?.keys.insert(key)
        let before = current(key)
        let stored = Stored(
            value: value, create: before?.create ?? revision, mod: revision,
            version: (before?.version ?? 0) + 1, lease: lease)
        history[key, default: []].append(stored)
        return stored
    }

    mutating func remove(_ key: Data, at revision: UInt64) -> Bool {
        guard let found = current(key) else { return false }
        leases[found.lease]?.keys.remove(key)
        history[key]?.append(Stored(value: nil, create: 0, mod: revision, version: 0))
        return true
    }

    var logID: Aspen_Client_V1_LogID {
        .with {
            $0.term = 1
            $0.index = index
        }
    }

    private mutating func write(_ request: Aspen_Client_V1_WriteKeyRequest) -> FakeResponse {
        guard request.key.count <= Limits.keyBytesMax, !request.key.isEmpty,
            request.value.count <= Limits.valueBytesMax
        else { return .failed(.invalidArgument, "the key or the value breaks its limit") }
        index += 1
        guard request.lease == 0 || leases[request.lease] != nil else {
            return Self.noLease(request.lease)
        }
        revision += 1
        let stored = put(request.key, request.value, at: revision, lease: request.lease)
        return .with {
            $0.writeKey.revision = revision
            $0.writeKey.logID = logID
            $0.writeKey.version = stored.version
        }
    }

    private mutating func delete(_ request: Aspen_Client_V1_DeleteKeyRequest) -> FakeResponse {
        index += 1
        let deleted = remove(request.key, at: revision + 1)
        if deleted { revision += 1 }
        return .with {
            $0.deleteKey.deleted = deleted
            $0.deleteKey.revision = revision
            $0.deleteKey.logID = logID
        }
    }

    func entry(_ key: Data, _ stored: Stored) -> Aspen_Client_V1_KeyValue {
        .with {
            $0.key = key
            $0.value = stored.value ?? Data()
            $0.createRevision = stored.create
            $0.modRevision = stored.mod
            $0.version = stored.version
            $0.lease = stored.lease
        }
    }

    private func read(_ request: Aspen_Client_V1_ReadKeyRequest) -> FakeResponse {
        guard request.revision <= revision else {
            return .failed(
                .invalidArgument,
                "revision \(request.revision) is in the future: the store is at \(revision)")
        }
        let at = request.revision == 0 ? UInt64.max : request.revision
        return .with {
            $0.readKey.revision = revision
            if let found = current(request.key, at: at) {
                $0.readKey.entry = entry(request.key, found)
            }
        }
    }

    /// The continuation is the revision of the first page (8 bytes, big-endian) and the last key.
    private func scan(_ request: Aspen_Client_V1_ScanKeysRequest) -> FakeResponse {
        var pinned = request.revision == 0 ? revision : request.revision
        guard pinned <= revision else {
            return .failed(
                .invalidArgument,
                "revision \(pinned) is in the future: the store is at \(revision)")
        }
        var after: Data?
        if !request.continuation.isEmpty {
            guard request.continuation.count >= 8 else {
                return .failed(.invalidArgument, "the continuation token is damaged")
            }
            pinned = request.continuation.prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
            after = Data(request.continuation.dropFirst(8))
        }
        let limit = request.limit == 0 ? Limits.batchCountMax : Int(request.limit)
        let keys = history.keys.filter { key in
            key.starts(with: request.prefix) && current(key, at: pinned) != nil
                && Self.isIn(key, request.from, request.to)
                && (after.map {
                    request.descending
                        ? key.lexicographicallyPrecedes($0) : $0.lexicographicallyPrecedes(key)
                } ?? true)
        }.sorted {
            request.descending
                ? $1.lexicographicallyPrecedes($0) : $0.lexicographicallyPrecedes($1)
        }
        return .with { response in
            response.scanKeys.revision = pinned
            guard !request.countOnly else {
                response.scanKeys.count = UInt64(keys.count)
                return
            }
            for key in keys.prefix(limit) {
                guard let found = current(key, at: pinned) else { continue }
                var entry = entry(key, found)
                if request.keysOnly { entry.value = Data() }
                response.scanKeys.entries.append(entry)
            }
            if keys.count > limit, let last = response.scanKeys.entries.last {
                response.scanKeys.continuation =
                    Data((0..<8).map { UInt8(truncatingIfNeeded: pinned >> UInt64(56 - 8 * $0)) })
                    + last.key
            }
        }
    }

    private func holds(_ compare: Aspen_Client_V1_Compare) -> Bool {
        let found = current(compare.key)
        func check<Value: Comparable>(_ left: Value, _ right: Value) -> Bool {
            switch compare.relation {
            case .equal: left == right
            case .notEqual: left != right
            case .less: left < right
            case .greater: left > right
            case .UNRECOGNIZED: false
            }
        }
        switch compare.target {
        case .value(let value):
            guard let mine = found?.value else { return false }
            return mine == value ? compare.relation == .equal : compare.relation == .notEqual
        case .version(let version): return check(found?.version ?? 0, version)
        case .createRevision(let revision): return check(found?.create ?? 0, revision)
        case .modRevision(let revision): return check(found?.mod ?? 0, revision)
        case .exists(let exists): return ((found != nil) == exists) == (compare.relation == .equal)
        case nil: return false
        }
    }

    /// Whether there is nothing in its range but keys of the reserved namespace.
    private static func deletesReserved(_ operation: Aspen_Client_V1_Operation) -> Bool {
        guard case .deleteRange(let range) = operation.operation else { return false }
        return ReservedNamespace.contains(Array(range.from))
            && !range.to.isEmpty && !Data("_sys0".utf8).lexicographicallyPrecedes(range.to)
    }

    private mutating func carryOut(
        _ request: Aspen_Client_V1_TransactionRequest
    ) -> FakeResponse {
        guard !(request.success + request.failure).contains(where: Self.deletesReserved) else {
            return .failed(.permissionDenied, "keys that begin with _sys/ belong to the cluster")
        }
        index += 1
        let succeeded = request.compares.allSatisfy { holds($0) }
        var results: [Aspen_Client_V1_OperationResult] = []
        var isChanged = false
        for operation in succeeded ? request.success : request.failure {
            var result = Aspen_Client_V1_OperationResult()
            switch operation.operation {
            case .put(let put):
                result.existed = current(put.key) != nil
                _ = self.put(put.key, put.value, at: revision + 1, lease: put.lease)
                isChanged = true
            case .delete(let delete):
                result.existed = remove(delete.key, at: revision + 1)
                result.deleted = result.existed ? 1 : 0
                isChanged = isChanged || result.existed
            case .deleteRange(let range):
                for key in history.keys.sorted(by: { $0.lexicographicallyPrecedes($1) })
                where Self.isIn(key, range.from, range.to)
                    && !ReservedNamespace.contains(Array(key)) && remove(key, at: revision + 1)
                {
                    result.deleted += 1
                }
                isChanged = isChanged || result.deleted > 0
            case .get(let get):
                if let found = current(get.key) { result.entry = entry(get.key, found) }
            case nil: break
            }
            results.append(result)
        }
        if isChanged { revision += 1 }
        return .with {
            $0.transaction.succeeded = succeeded
            $0.transaction.revision = revision
            $0.transaction.logID = logID
            $0.transaction.results = results
        }
    }
}

extension FakeResponse {
    package static func failed(
        _ code: AspenErrorCode, _ message: String, retry: AspenError.Retry = .never
    ) -> FakeResponse {
        .with {
            $0.error.code = UInt32(code.rawValue)
            $0.error.message = message
            $0.error.retry = UInt32(retry.rawValue)
        }
    }
}

// MARK: - Administration

extension FakeStore {
    static let clusterID = "kv3nq2zjd5wm6yplhbf4xgtoea"

    fileprivate mutating func administer(_ request: FakeRequest) -> FakeResponse {
        switch request.request {
        case .getHealth:
            return .with {
                $0.getHealth.status = voters.count < 3 ? "degraded" : "healthy"
                $0.getHealth.detail = "\(voters.count) of \(voters.count) voters reachable"
                $0.getHealth.nodeID = 1
            }
        case .getLeader:
            return .with {
                $0.getLeader.leaderID = 1
                $0.getLeader.term = 1
            }
        case .getNodeInfo:
            return .with {
                $0.getNodeInfo.node = status(of: 1)
                $0.getNodeInfo.clusterID = Self.clusterID
                $0.getNodeInfo.commit = index
                $0.getNodeInfo.lastLogIndex = index
            }
        case .getClusterStatus:
            return .with {
                $0.getClusterStatus.clusterID = Self.clusterID
                $0.getClusterStatus.term = 1
                $0.getClusterStatus.leaderID = 1
                $0.getClusterStatus.revision = revision
                $0.getClusterStatus.nodes = (voters + learners).map { status(of: $0) }
            }
        case .getClusterTicket:
            return .with { $0.getClusterTicket.ticket = Self.ticket }
        case .triggerSnapshot:
            return .with { $0.triggerSnapshot.index = index }
        default: return changeCluster(request)
        }
    }

    private mutating func changeCluster(_ request: FakeRequest) -> FakeResponse {
        switch request.request {
        case .initCluster:
            return .failed(
                .alreadyInitialized,
                "this node is a member of cluster \(Self.clusterID): nothing to do")
        case .addLearner(let add):
            guard !voters.contains(add.nodeID) else {
                return .failed(.preconditionFailed, "node \(add.nodeID) is a voter already")
            }
            index += 1
            if !learners.contains(add.nodeID) { learners.append(add.nodeID) }
            return .with { $0.addLearner.logID = logID }
        case .changeMembership(let change):
            let unknown = change.voters.filter { !voters.contains($0) && !learners.contains($0) }
            if let first = unknown.first {
                return .failed(
                    .preconditionFailed,
                    "node \(first) is no member: add it first with "
                        + "`aspen-cli cluster add-learner --node-id \(first)`")
            }
            index += 2
            learners = (voters + learners).filter { !change.voters.contains($0) }.sorted()
            voters = change.voters.sorted()
            return .with {
                $0.changeMembership.logID = logID
                $0.changeMembership.voters = voters
                $0.changeMembership.learners = learners
            }
        default: return FakeLife.answer(request, &self)
        }
    }

    mutating func entered(_ count: UInt64) -> Aspen_Client_V1_LogID {
        index += count
        return logID
    }

    private func status(of node: UInt64) -> Aspen_Client_V1_NodeStatus {
        .with {
            $0.nodeID = node
            $0.role = learners.contains(node) ? "learner" : node == 1 ? "leader" : "follower"
            $0.term = 1
            $0.applied = index
            $0.endpointID = String(repeating: "abcdefgh\(node + 1)", count: 6).prefix(52) + ""
            $0.addresses = ["127.0.0.1:\(7000 + node)"]
            $0.version = "1.0.0"
            $0.dataBytes = 1024 * 1024 * node
            $0.isVoter = voters.contains(node)
            $0.reachable = true
        }
    }

    private static var ticket: String {
        guard let endpoint = EndpointID(bytes: Array(repeating: 7, count: 32)) else { return "" }
        return Ticket(
            cluster: ClusterID(42),
            endpoints: [.init(endpoint: endpoint, addresses: ["127.0.0.1:7001"])]
        ).encoded()
    }
}
