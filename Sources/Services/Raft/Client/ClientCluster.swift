// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire

extension AspenClient {
    /// All members as the leader sees them; from a node without a leader, as far as it knows.
    public func clusterStatus(timeout: Duration? = nil) async throws(AspenError) -> ClusterStatus {
        var request = WireRequest()
        request.getClusterStatus = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .getClusterStatus(let answer) = response else { return nil }
            return ClusterStatus(
                clusterID: answer.clusterID, term: Term(answer.term),
                leader: answer.leaderID == 0 ? nil : NodeID(answer.leaderID),
                revision: Revision(answer.revision),
                nodes: answer.nodes.map(NodeStatus.init(wire:)).sorted { $0.node < $1.node })
        }
    }

    /// Whether the node asked can serve. A status that this version does not know counts as
    /// unavailable.
    public func health(timeout: Duration? = nil) async throws(AspenError) -> Health {
        var request = WireRequest()
        request.getHealth = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .getHealth(let answer) = response else { return nil }
            return Health(
                status: Health.Status(rawValue: answer.status) ?? .unavailable,
                detail: answer.detail, node: NodeID(answer.nodeID))
        }
    }

    /// Who leads, as the node asked knows.
    public func leader(timeout: Duration? = nil) async throws(AspenError) -> Leader {
        var request = WireRequest()
        request.getLeader = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .getLeader(let answer) = response else { return nil }
            return Leader(
                node: answer.leaderID == 0 ? nil : NodeID(answer.leaderID),
                term: Term(answer.term))
        }
    }

    /// The node asked, from the inside.
    public func nodeInfo(timeout: Duration? = nil) async throws(AspenError) -> NodeInfo {
        var request = WireRequest()
        request.getNodeInfo = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .getNodeInfo(let answer) = response else { return nil }
            return NodeInfo(
                status: NodeStatus(wire: answer.node), clusterID: answer.clusterID,
                replica: ReplicaID(answer.replicaID), commit: LogIndex(answer.commit),
                firstLogIndex: LogIndex(answer.firstLogIndex),
                lastLogIndex: LogIndex(answer.lastLogIndex), stateHash: answer.stateHash)
        }
    }

    /// What clients elsewhere need to reach this cluster. It holds no secret.
    public func ticket(timeout: Duration? = nil) async throws(AspenError) -> String {
        var request = WireRequest()
        request.getClusterTicket = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .getClusterTicket(let answer) = response else { return nil }
            return answer.ticket
        }
    }

    /// Makes the node asked the first member of a new cluster.
    ///
    /// - Throws: `alreadyInitialized` when it belongs to one.
    public func initCluster(timeout: Duration? = nil) async throws(AspenError) -> ClusterInit {
        var request = WireRequest()
        request.initCluster = .init()
        return try await perform(request, .unnumbered, timeout: timeout) { response in
            guard case .initCluster(let answer) = response else { return nil }
            return ClusterInit(clusterID: answer.clusterID, node: NodeID(answer.nodeID))
        }
    }

    /// Adds a node that receives the log, but has no vote.
    ///
    /// - Parameters:
    ///   - endpointID: in base 32; nil when the node's peers are configured with it.
    ///   - addresses: "192.0.2.1:7001"; may be empty when the node dials by itself.
    public func addLearner(
        _ node: NodeID, endpointID: String? = nil, addresses: [String] = [],
        timeout: Duration? = nil
    ) async throws(AspenError) -> LogID {
        var request = WireRequest()
        request.addLearner.nodeID = node.rawValue
        request.addLearner.endpointID = endpointID ?? ""
        request.addLearner.addresses = addresses
        return try await perform(request, .unnumbered, timeout: timeout) { response in
            guard case .addLearner(let answer) = response else { return nil }
            return LogID(wire: answer.logID)
        }
    }

    /// Makes exactly `voters` the voters; returns when the change is committed.
    ///
    /// - Parameter force: even if the cluster may lose its quorum by it.
    /// - Throws: `preconditionFailed` when the rules of safe change forbid it, saying why.
    public func changeMembership(
        voters: [NodeID], force: Bool = false, timeout: Duration? = nil
    ) async throws(AspenError) -> MembershipChange {
        var request = WireRequest()
        request.changeMembership.force = force
        request.changeMembership.voters = voters.map(\.rawValue)
        return try await perform(request, .unnumbered, timeout: timeout) { response in
            guard case .changeMembership(let answer) = response else { return nil }
            return MembershipChange(
                logID: LogID(wire: answer.logID), voters: answer.voters.map(NodeID.init),
                learners: answer.learners.map(NodeID.init))
        }
    }

    /// Makes the node asked write all that it has applied durably into its state database.
    ///
    /// - Returns: the applied index that is durable now.
    public func triggerSnapshot(timeout: Duration? = nil) async throws(AspenError) -> LogIndex {
        var request = WireRequest()
        request.triggerSnapshot = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .triggerSnapshot(let answer) = response else { return nil }
            return LogIndex(answer.index)
        }
    }
}
