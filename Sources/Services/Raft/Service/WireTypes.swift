// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import NIOCore
import RaftCore
import SwiftProtobuf

typealias WireRequest = Aspen_Client_V1_ClientRequest
typealias WireResponse = Aspen_Client_V1_ClientResponse
typealias WireNodeStatus = Aspen_Client_V1_NodeStatus

// Between the messages of the client protocol and the types of the cores.

extension WireResponse {
    init(_ error: AspenError) {
        self.init()
        self.error.code = UInt32(error.code.rawValue)
        self.error.message = error.message
        self.error.retry = UInt32(error.retry.rawValue)
        self.error.oldestRevision = error.oldestRevision?.rawValue ?? 0
    }

    init(_ response: OneOf_Response) {
        self.init()
        self.response = response
    }

    init(_ page: ScanPage, _ scope: ScanToken.Scope) {
        let (head, tail) = page.ends(scope)
        var bytes = ByteBuffer(bytes: head)
        bytes.writeImmutableBuffer(page.body)
        bytes.writeBytes(tail)
        do { try self.init(serializedBytes: FrameBytes(bytes)) } catch {
            self.init(AspenError(.internal, "a page of keys cannot be put into a message"))
        }
    }

    /// The error it carries, as ours.
    var failure: AspenError? {
        guard hasError else { return nil }
        var failure = AspenError(
            AspenErrorCode(rawValue: UInt16(clamping: error.code)) ?? .internal, error.message,
            retry: AspenError.Retry(rawValue: UInt8(clamping: error.retry)) ?? .never)
        if error.oldestRevision > 0 { failure.oldestRevision = Revision(error.oldestRevision) }
        return failure
    }
}

extension Aspen_Client_V1_LogID {
    init(_ answer: AppliedAnswer) {
        self.init()
        term = answer.term.rawValue
        index = answer.index.rawValue
    }
}

extension Aspen_Client_V1_KeyValue {
    init(_ entry: KeyValue) {
        self.init()
        key = Data(entry.key)
        value = Data(entry.value)
        createRevision = entry.createRevision.rawValue
        modRevision = entry.modRevision.rawValue
        version = entry.version
        lease = entry.lease.rawValue
    }
}

extension SessionRequest {
    init?(_ wire: Aspen_Client_V1_SessionRequest, isPresent: Bool) {
        guard isPresent else { return nil }
        self.init(
            session: SessionID(wire.session), number: wire.number,
            acknowledgedBelow: wire.acknowledgedBelow)
    }
}

extension Compare {
    /// - Throws: `invalidArgument` for what this program does not know.
    init(_ wire: Aspen_Client_V1_Compare) throws(AspenError) {
        let target: Target
        switch wire.target {
        case .value(let value)?: target = .value(Array(value))
        case .version(let version)?: target = .version(version)
        case .createRevision(let revision)?: target = .createRevision(Revision(revision))
        case .modRevision(let revision)?: target = .modRevision(Revision(revision))
        case .exists(let exists)?: target = .exists(exists)
        case nil: throw AspenError(.invalidArgument, "a compare says what to compare with")
        }
        guard let relation = UInt8(exactly: wire.relation.rawValue).flatMap(Relation.init) else {
            throw AspenError(.invalidArgument, "a compare has a relation unknown here")
        }
        self.init(key: Array(wire.key), target: target, relation: relation)
    }
}

extension Operation {
    /// - Throws: `invalidArgument` for what this program does not know.
    init(_ wire: Aspen_Client_V1_Operation) throws(AspenError) {
        switch wire.operation {
        case .put(let put)?:
            self = .put(
                key: Array(put.key), value: Array(put.value), lease: LeaseID(put.lease))
        case .delete(let delete)?: self = .delete(key: Array(delete.key))
        case .deleteRange(let range)?:
            self = .deleteRange(
                from: Array(range.from), to: range.to.isEmpty ? nil : Array(range.to))
        case .get(let get)?: self = .get(key: Array(get.key))
        case nil: throw AspenError(.invalidArgument, "an operation unknown here")
        }
    }
}

extension Transaction {
    /// - Throws: `invalidArgument`.
    init(_ wire: Aspen_Client_V1_TransactionRequest) throws(AspenError) {
        let max = Limits.transactionOperationsMax
        guard wire.compares.count <= max, wire.success.count <= max, wire.failure.count <= max
        else {
            throw AspenError(
                .invalidArgument, "a transaction has at most \(max) compares and operations")
        }
        self.init(success: [])
        for compare in wire.compares { compares.append(try Compare(compare)) }
        for operation in wire.success { success.append(try Operation(operation)) }
        for operation in wire.failure { failure.append(try Operation(operation)) }
    }
}

extension Aspen_Client_V1_OperationResult {
    init(_ result: OperationResult) {
        self.init()
        switch result {
        case .put(let previousVersion): existed = previousVersion > 0
        case .deleted(let count):
            existed = count > 0
            deleted = count
        case .got(let found): if let found { entry = Aspen_Client_V1_KeyValue(found) }
        }
    }
}

/// What a write was, so that its result can be put into words.
enum WriteKind: Sendable {
    case writeKey
    case deleteKey
    case transaction
    case openSession
    case keepSessionAlive
    case closeSession
    case grantLease
    case revokeLease
    case keepLeaseAlive
    case initCluster(ClusterID)
    case addLearner
    case changeMembership
    case promoteLearner
    case leaveCluster
    case recoverQuorum
    case addTokenRoot
    case removeTokenRoot
    case revokeToken
    /// Nobody waits for it.
    case housekeeping
}

extension WriteKind {
    func response(
        _ answer: AppliedAnswer, node: NodeID, membership: Membership?
    ) -> WireResponse {
        if case .failed(let code, let message) = answer.result {
            return WireResponse(AspenError(code, message))
        }
        switch (self, answer.result) {
        case (.writeKey, .transaction(_, let revision, let results)):
            var body = Aspen_Client_V1_WriteKeyResponse()
            body.revision = revision.rawValue
            body.logID = Aspen_Client_V1_LogID(answer)
            if case .put(let previous)? = results.first { body.version = previous + 1 }
            return WireResponse(.writeKey(body))
        case (.deleteKey, .transaction(_, let revision, let results)):
            var body = Aspen_Client_V1_DeleteKeyResponse()
            body.revision = revision.rawValue
            body.logID = Aspen_Client_V1_LogID(answer)
            if case .deleted(let count)? = results.first { body.deleted = count > 0 }
            return WireResponse(.deleteKey(body))
        case (.transaction, .transaction(let succeeded, let revision, let results)):
            var body = Aspen_Client_V1_TransactionResponse()
            body.succeeded = succeeded
            body.revision = revision.rawValue
            body.logID = Aspen_Client_V1_LogID(answer)
            body.results = results.map { Aspen_Client_V1_OperationResult($0) }
            return WireResponse(.transaction(body))
        case (.openSession, .sessionOpened(let session)):
            var body = Aspen_Client_V1_OpenSessionResponse()
            body.session = session.rawValue
            body.timeoutMs = UInt64(Limits.sessionTimeout.milliseconds)
            return WireResponse(.openSession(body))
        case (.keepSessionAlive, _):
            return WireResponse(.keepSessionAlive(Aspen_Client_V1_KeepSessionAliveResponse()))
        case (.closeSession, _):
            return WireResponse(.closeSession(Aspen_Client_V1_CloseSessionResponse()))
        case (.grantLease, _), (.revokeLease, _), (.keepLeaseAlive, _):
            return lease(answer)
        case (.initCluster, _), (.addLearner, _), (.changeMembership, _), (.promoteLearner, _),
            (.leaveCluster, _), (.recoverQuorum, _):
            return administrative(answer, node, membership)
        case (.addTokenRoot, .transaction(let succeeded, _, _)):
            var body = Aspen_Client_V1_AddTokenRootResponse()
            body.added = succeeded
            body.logID = Aspen_Client_V1_LogID(answer)
            return WireResponse(.addTokenRoot(body))
        case (.removeTokenRoot, .transaction(_, _, let results)):
            var body = Aspen_Client_V1_RemoveTokenRootResponse()
            body.logID = Aspen_Client_V1_LogID(answer)
            if case .deleted(let count)? = results.first { body.removed = count > 0 }
            return WireResponse(.removeTokenRoot(body))
        case (.revokeToken, .transaction):
            var body = Aspen_Client_V1_RevokeTokenResponse()
            body.logID = Aspen_Client_V1_LogID(answer)
            return WireResponse(.revokeToken(body))
        default:
            return WireResponse(
                AspenError(.internal, "the state machine gave another answer than was asked for"))
        }
    }

    private func administrative(
        _ answer: AppliedAnswer, _ node: NodeID, _ membership: Membership?
    ) -> WireResponse {
        switch self {
        case .initCluster(let cluster):
            var body = Aspen_Client_V1_InitClusterResponse()
            body.clusterID = cluster.text
            body.nodeID = node.rawValue
            return WireResponse(.initCluster(body))
        case .addLearner:
            var body = Aspen_Client_V1_AddLearnerResponse()
            body.logID = Aspen_Client_V1_LogID(answer)
            return WireResponse(.addLearner(body))
        case .promoteLearner:
            var body = Aspen_Client_V1_PromoteLearnerResponse()
            body.logID = Aspen_Client_V1_LogID(answer)
            body.voters = membership?.voters.map(\.rawValue) ?? []
            body.learners = membership?.learners.map(\.rawValue) ?? []
            return WireResponse(.promoteLearner(body))
        case .recoverQuorum:
            var body = Aspen_Client_V1_RecoverQuorumResponse()
            body.logID = Aspen_Client_V1_LogID(answer)
            return WireResponse(.recoverQuorum(body))
        case .leaveCluster:
            var body = Aspen_Client_V1_LeaveClusterResponse()
            body.logID = Aspen_Client_V1_LogID(answer)
            body.voters = membership?.voters.map(\.rawValue) ?? []
            body.learners = membership?.learners.map(\.rawValue) ?? []
            return WireResponse(.leaveCluster(body))
        default:
            var body = Aspen_Client_V1_ChangeMembershipResponse()
            body.logID = Aspen_Client_V1_LogID(answer)
            body.voters = membership?.voters.map(\.rawValue) ?? []
            body.learners = membership?.learners.map(\.rawValue) ?? []
            return WireResponse(.changeMembership(body))
        }
    }
}

extension ClusterID {
    /// 32 hexadecimal digits.
    var text: String {
        let digits = String(rawValue, radix: 16)
        return String(repeating: "0", count: 32 - digits.count) + digits
    }
}
