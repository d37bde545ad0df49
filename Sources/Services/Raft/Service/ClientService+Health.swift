// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import NIOCore
import RaftCore
import ServiceKit
import SwiftProtobuf

// Whether the cluster can serve, as its leader sees it.

extension ClientService {
    typealias Health = (status: String, detail: String)

    /// Only the leader knows who answers: an open stream to a node says nothing, when its process
    /// is stopped or its machine has just lost its power. So the others ask the leader.
    func getHealth(_ origin: RequestOrigin) {
        guard let membership = node.membership else {
            return reply(("unavailable", outsideCluster.message), origin)
        }
        guard let leader = node.standing.leader else {
            return reply(("unavailable", "no leader in term \(node.standing.term)"), origin)
        }
        if isLeader { return reply(health(of: membership), origin) }
        if origin.isFromPeer {
            return reply(("unavailable", "node \(options.raft.node) leads no more"), origin)
        }
        // Whoever has not answered for so long leads no more; and the client is to hear of it.
        let patience = min(
            options.raft.electionTimeoutMin, (origin.deadline - RaftNode.now) / 2)
        var request = WireRequest()
        request.timeoutMs = UInt32(clamping: max(1, patience.milliseconds))
        request.getHealth = Aspen_Client_V1_GetHealthRequest()
        let bytes: [UInt8] = (try? request.serializedBytes()) ?? []
        let timeout = TimeAmount.nanoseconds(max(1, patience.nanoseconds))
        links.request(bytes, to: leader, timeout: timeout) { [self] answer in
            let response = answer.flatMap { try? WireResponse(serializedBytes: $0) }
            switch response?.response {
            case .getHealth(let told): reply((told.status, told.detail), origin)
            // A leader of an earlier version, which does not tell its peers.
            case .some: reply(healthByLinks(membership), origin)
            case nil:
                reply(
                    (
                        "unavailable",
                        "the leader, node \(leader), does not answer node "
                            + "\(options.raft.node)"
                    ), origin)
            }
        }
    }

    private func reply(_ health: Health, _ origin: RequestOrigin) {
        var body = Aspen_Client_V1_GetHealthResponse()
        body.nodeID = options.raft.node.rawValue
        (body.status, body.detail) = health
        origin.reply(WireResponse(.getHealth(body)))
    }

    /// For the leader.
    private func health(of membership: Membership) -> Health {
        let now = RaftNode.now
        let peers = node.core.peerStatus(now: now).filter { membership.voters.contains($0.node) }
        let end = node.core.lastIndex.rawValue
        let silent = membership.voters.filter { voter in
            voter != options.raft.node
                && peers.first { $0.node == voter }?.isAnswering != true
        }
        let lagging = peers.filter { $0.isAnswering && !$0.isCaughtUp }
        var remarks = silent.map { "node \($0) does not answer" }
        remarks += lagging.map { peer in
            if peer.isRegressed { return "node \(peer.node) has lost entries and is not believed" }
            if peer.isRepairing { return "node \(peer.node) repairs its log" }
            let lag = end - min(end, peer.match.rawValue)
            return "node \(peer.node) lags \(lag) entries behind"
        }
        return Self.judge(
            up: membership.voters.count - silent.count, lagging: lagging.count,
            of: membership.voters.count, remarks)
    }

    private func healthByLinks(_ membership: Membership) -> Health {
        let down = membership.voters.filter { !links.isReachable($0) }
        return Self.judge(
            up: membership.voters.count - down.count, lagging: 0, of: membership.voters.count,
            down.map { "node \($0) cannot be reached" })
    }

    /// Who is up but lags helps to elect a leader, and does not help to commit until it has caught
    /// up: a cluster that needs it is not as safe from failures as it looks.
    static func judge(up: Int, lagging: Int, of count: Int, _ remarks: [String]) -> Health {
        let quorum = count / 2 + 1
        if up == count, lagging == 0 { return ("healthy", "all \(count) voters are up") }
        let detail =
            "\(up) of \(count) voters are up, \(quorum) are needed: "
            + remarks.joined(separator: ", ")
        if up < quorum { return ("unavailable", detail) }
        return up - lagging > quorum ? ("healthy", detail) : ("degraded", detail)
    }
}
