// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials

// The public types and their messages. Every answer is total: a message that lacks what the
// protocol promises gives an `internal` error, never a trap.

typealias WireRequest = Aspen_Client_V1_ClientRequest
typealias WireResponse = Aspen_Client_V1_ClientResponse

extension AspenError {
    init(wire: Aspen_Client_V1_ErrorStatus) {
        let code = UInt16(exactly: wire.code).flatMap(AspenErrorCode.init(rawValue:))
        let retry = UInt8(exactly: wire.retry).flatMap(Retry.init(rawValue:))
        guard let code else {
            self.init(
                .internal,
                "\(wire.message) (the server's error code \(wire.code) is unknown to this "
                    + "version of the client: upgrade it)",
                retry: retry ?? .never)
            return
        }
        self.init(code, wire.message, retry: retry ?? .never)
        if wire.oldestRevision > 0 { oldestRevision = Revision(wire.oldestRevision) }
    }

    /// The server answered another question than the one asked.
    static var mismatchedAnswer: AspenError {
        AspenError(
            .internal,
            "the server's answer does not belong to the request: client and server speak "
                + "different versions, or one of them has a bug")
    }
}

extension KeyValue {
    init(wire: Aspen_Client_V1_KeyValue) {
        self.init(
            key: Array(wire.key), value: Array(wire.value),
            createRevision: Revision(wire.createRevision),
            modRevision: Revision(wire.modRevision), version: wire.version,
            lease: LeaseID(wire.lease))
    }
}

extension LogID {
    init(wire: Aspen_Client_V1_LogID) {
        self.init(term: Term(wire.term), index: LogIndex(wire.index))
    }
}

extension Consistency {
    var wire: Aspen_Client_V1_Consistency { self == .linearizable ? .linearizable : .stale }

    /// 0: however old.
    var stalenessMaxMs: UInt32 {
        guard case .staleAtMost(let bound) = self else { return 0 }
        let (seconds, attoseconds) = bound.components
        return UInt32(clamping: max(1, seconds * 1000 + attoseconds / 1_000_000_000_000_000))
    }
}

extension Compare {
    var wire: Aspen_Client_V1_Compare {
        var message = Aspen_Client_V1_Compare()
        message.key = Data(key)
        message.relation =
            switch relation {
            case .equal: .equal
            case .notEqual: .notEqual
            case .less: .less
            case .greater: .greater
            }
        message.target =
            switch target {
            case .value(let value): .value(Data(value))
            case .version(let version): .version(version)
            case .createRevision(let revision): .createRevision(revision.rawValue)
            case .modRevision(let revision): .modRevision(revision.rawValue)
            case .exists(let exists): .exists(exists)
            }
        return message
    }
}

extension Operation {
    var wire: Aspen_Client_V1_Operation {
        var message = Aspen_Client_V1_Operation()
        switch self {
        case .put(let key, let value, let lease):
            message.put.key = Data(key)
            message.put.value = Data(value)
            message.put.lease = lease.rawValue
        case .deleteRange(let range):
            message.deleteRange.from = Data(range.from)
            message.deleteRange.to = Data(range.to ?? [])
        case .delete(let key): message.delete.key = Data(key)
        case .get(let key): message.get.key = Data(key)
        }
        return message
    }

    /// Nil of a range.
    var key: [UInt8]? {
        switch self {
        case .put(let key, _, _), .delete(let key), .get(let key): key
        case .deleteRange: nil
        }
    }
}

extension TransactionResult {
    init(wire: Aspen_Client_V1_TransactionResponse) {
        self.init(
            succeeded: wire.succeeded, revision: Revision(wire.revision),
            logID: LogID(wire: wire.logID),
            results: wire.results.map {
                OperationResult(
                    existed: $0.existed, entry: $0.hasEntry ? KeyValue(wire: $0.entry) : nil,
                    deletedCount: Int(clamping: $0.deleted))
            })
    }
}

extension NodeStatus {
    init(wire: Aspen_Client_V1_NodeStatus) {
        self.init(
            node: NodeID(wire.nodeID), role: wire.role, term: Term(wire.term),
            applied: LogIndex(wire.applied), lag: wire.lag, endpointID: wire.endpointID,
            addresses: wire.addresses, version: wire.version, dataBytes: wire.dataBytes,
            isVoter: wire.isVoter, isReachable: wire.reachable)
    }
}

extension ScanPage {
    init(wire: Aspen_Client_V1_ScanKeysResponse) {
        self.init(
            entries: wire.entries.map(KeyValue.init(wire:)),
            continuation: Array(wire.continuation), revision: Revision(wire.revision))
    }
}
