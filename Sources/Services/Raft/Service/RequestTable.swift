// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire

/// What a caller may do; each level includes those before it.
enum Permission: Int, Comparable, Sendable {
    case none = 0
    case read
    case use
    case admin

    static func < (left: Permission, right: Permission) -> Bool {
        left.rawValue < right.rawValue
    }

    var name: String {
        switch self {
        case .none: "nothing"
        case .read: "reading"
        case .use: "reading and writing"
        case .admin: "administration"
        }
    }
}

/// One row of the table of requests: everything about a request that is not what it does.
struct RequestRule: Sendable {
    /// As in the protocol, for logs and error texts.
    let name: String
    let permission: Permission
    /// Passed on to the leader when this node is another one. (Writes and reads are not: they reach
    /// the leader as proposals and read rounds.)
    let isForLeader: Bool
    let handler: @Sendable (ClientService, WireRequest.OneOf_Request, RequestOrigin) -> Void

    init(
        _ name: String, _ permission: Permission, isForLeader: Bool = false,
        handler:
            @escaping @Sendable (ClientService, WireRequest.OneOf_Request, RequestOrigin) -> Void
    ) {
        self.name = name
        self.permission = permission
        self.isForLeader = isForLeader
        self.handler = handler
    }
}

extension WireRequest.OneOf_Request {
    /// Its row in the table below.
    var row: Int {
        switch self {
        case .getHealth: 0
        case .getClusterStatus: 1
        case .getLeader: 2
        case .getNodeInfo: 3
        case .getClusterTicket: 4
        case .initCluster: 5
        case .addLearner: 6
        case .changeMembership: 7
        case .writeKey: 8
        case .readKey: 9
        case .deleteKey: 10
        case .scanKeys: 11
        case .openSession: 12
        case .keepSessionAlive: 13
        case .closeSession: 14
        case .transaction: 15
        case .triggerSnapshot: 16
        case .grantLease: 17
        case .revokeLease: 18
        case .keepLeaseAlive: 19
        case .leaseTimeToLive: 20
        case .listLeases: 21
        case .watch: 22
        case .cancelWatch: 23
        case .batchRead: 24
        case .keyHistory: 25
        case .promoteLearner: 26
        case .transferLeadership: 27
        case .leaveCluster: 28
        case .backup: 29
        case .restoreChunk: 30
        case .recoverQuorum: 31
        case .why: 32
        case .getMetrics: 33
        case .getRaftMetrics: 34
        case .addTokenRoot: 35
        case .removeTokenRoot: 36
        case .listTokenRoots: 37
        case .revokeToken: 38
        case .listRevokedTokens: 39
        }
    }
}

extension ClientService {
    /// In the order of `OneOf_Request.row`.
    static let requestTable: [RequestRule] = [
        RequestRule("GetHealth", .read) { service, _, origin in service.getHealth(origin) },
        RequestRule("GetClusterStatus", .read) { service, _, origin in
            service.getClusterStatus(origin)
        },
        RequestRule("GetLeader", .read) { service, _, origin in service.getLeader(origin) },
        RequestRule("GetNodeInfo", .read) { service, _, origin in service.getNodeInfo(origin) },
        RequestRule("GetClusterTicket", .read) { service, _, origin in
            service.getClusterTicket(origin)
        },
        RequestRule("InitCluster", .admin) { service, _, origin in service.initCluster(origin) },
        RequestRule("AddLearner", .admin, isForLeader: true) { service, request, origin in
            if case .addLearner(let body) = request { service.addLearner(body, origin) }
        },
        RequestRule("ChangeMembership", .admin, isForLeader: true) { service, request, origin in
            if case .changeMembership(let body) = request {
                service.changeMembership(body, origin)
            }
        },
        RequestRule("WriteKey", .use) { service, request, origin in
            if case .writeKey(let body) = request { service.writeKey(body, origin) }
        },
        RequestRule("ReadKey", .read) { service, request, origin in
            if case .readKey(let body) = request { service.readKey(body, origin) }
        },
        RequestRule("DeleteKey", .use) { service, request, origin in
            if case .deleteKey(let body) = request { service.deleteKey(body, origin) }
        },
        RequestRule("ScanKeys", .read) { service, request, origin in
            if case .scanKeys(let body) = request { service.scanKeys(body, origin) }
        },
        RequestRule("OpenSession", .use) { service, _, origin in service.openSession(origin) },
        RequestRule("KeepSessionAlive", .use) { service, request, origin in
            if case .keepSessionAlive(let body) = request {
                service.keepSessionAlive(SessionID(body.session), origin)
            }
        },
        RequestRule("CloseSession", .use) { service, request, origin in
            if case .closeSession(let body) = request {
                service.closeSession(SessionID(body.session), origin)
            }
        },
        RequestRule("Transaction", .use) { service, request, origin in
            if case .transaction(let body) = request { service.transaction(body, origin) }
        },
        RequestRule("TriggerSnapshot", .admin) { service, _, origin in
            service.triggerSnapshot(origin)
        },
        RequestRule("GrantLease", .use) { service, request, origin in
            if case .grantLease(let body) = request { service.grantLease(body, origin) }
        },
        RequestRule("RevokeLease", .use) { service, request, origin in
            if case .revokeLease(let body) = request { service.revokeLease(body, origin) }
        },
        RequestRule("KeepLeaseAlive", .use) { service, request, origin in
            if case .keepLeaseAlive(let body) = request {
                service.keepLeaseAlive(LeaseID(body.lease), origin)
            }
        },
        RequestRule("LeaseTimeToLive", .read) { service, request, origin in
            if case .leaseTimeToLive(let body) = request { service.leaseTimeToLive(body, origin) }
        },
        RequestRule("ListLeases", .read) { service, request, origin in
            if case .listLeases(let body) = request { service.listLeases(body, origin) }
        },
        RequestRule("Watch", .read) { service, request, origin in
            if case .watch(let body) = request { service.watch(body, origin) }
        },
        RequestRule("CancelWatch", .read) { service, request, origin in
            if case .cancelWatch(let body) = request { service.cancelWatch(body, origin) }
        },
        RequestRule("BatchRead", .read) { service, request, origin in
            if case .batchRead(let body) = request { service.batchRead(body, origin) }
        },
        RequestRule("KeyHistory", .read) { service, request, origin in
            if case .keyHistory(let body) = request { service.keyHistory(body, origin) }
        },
        RequestRule("PromoteLearner", .admin, isForLeader: true) { service, request, origin in
            if case .promoteLearner(let body) = request { service.promoteLearner(body, origin) }
        },
        RequestRule("TransferLeadership", .admin, isForLeader: true) { service, request, origin in
            if case .transferLeadership(let body) = request {
                service.transferLeadership(body, origin)
            }
        },
        RequestRule("LeaveCluster", .admin, isForLeader: true) { service, request, origin in
            if case .leaveCluster(let body) = request { service.leaveCluster(body, origin) }
        },
        RequestRule("Backup", .admin) { service, _, origin in
            guard service.node.membership != nil else {
                return origin.fail(service.outsideCluster)
            }
            BackupStream.start(service, origin)
        },
        RequestRule("RestoreChunk", .admin) { service, request, origin in
            if case .restoreChunk(let body) = request { service.restoreChunk(body, origin) }
        },
        RequestRule("RecoverQuorum", .admin) { service, request, origin in
            if case .recoverQuorum(let body) = request { service.recoverQuorum(body, origin) }
        },
        RequestRule("Why", .read) { service, request, origin in
            if case .why(let body) = request { service.why(body, origin) }
        },
        RequestRule("GetMetrics", .read) { service, _, origin in service.getMetrics(origin) },
        RequestRule("GetRaftMetrics", .read) { service, _, origin in
            service.getRaftMetrics(origin)
        },
        RequestRule("AddTokenRoot", .admin) { service, request, origin in
            if case .addTokenRoot(let body) = request { service.addTokenRoot(body, origin) }
        },
        RequestRule("RemoveTokenRoot", .admin) { service, request, origin in
            if case .removeTokenRoot(let body) = request { service.removeTokenRoot(body, origin) }
        },
        RequestRule("ListTokenRoots", .read) { service, _, origin in
            service.listTokens(.tokenRoots, origin)
        },
        RequestRule("RevokeToken", .admin) { service, request, origin in
            if case .revokeToken(let body) = request { service.revokeToken(body, origin) }
        },
        RequestRule("ListRevokedTokens", .read) { service, _, origin in
            service.listTokens(.revokedTokens, origin)
        },
    ]
}
