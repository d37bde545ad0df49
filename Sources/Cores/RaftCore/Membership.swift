// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Who takes part. While `votersOutgoing` is not empty the configuration is joint: every decision
/// needs a majority of both sets (Raft §6).
package struct Membership: Equatable, Sendable {
    /// What the cluster knows of one member.
    package struct Member: Equatable, Sendable {
        package var node: NodeID
        package var endpoint: EndpointID
        /// Which data directory this is; another one under the same node id is not this member.
        package var replica: ReplicaID
        /// Socket addresses ("192.0.2.1:7001", "[2001:db8::1]:7001"), best first; hints only.
        package var addresses: [String]

        package init(
            node: NodeID, endpoint: EndpointID, replica: ReplicaID, addresses: [String]
        ) {
            self.node = node
            self.endpoint = endpoint
            self.replica = replica
            self.addresses = addresses
        }
    }

    /// Random, chosen when the cluster was made.
    package var cluster: ClusterID
    /// Ascending, no duplicates, at most `Limits.votersMax`; empty only before `init`.
    package var voters: [NodeID]
    /// The voters that are on their way out; empty unless joint.
    package var votersOutgoing: [NodeID]
    /// Ascending, disjoint from `voters`. While joint, an outgoing voter named here stays on as a
    /// learner once the change is done.
    package var learners: [NodeID]
    /// One for each node named above, ascending by node id.
    package var members: [Member]

    package init(
        cluster: ClusterID, voters: [NodeID] = [], votersOutgoing: [NodeID] = [],
        learners: [NodeID] = [], members: [Member] = []
    ) {
        self.cluster = cluster
        self.voters = voters
        self.votersOutgoing = votersOutgoing
        self.learners = learners
        self.members = members
    }

    package var isJoint: Bool { !votersOutgoing.isEmpty }

    package func isVoter(_ node: NodeID) -> Bool {
        voters.contains(node) || votersOutgoing.contains(node)
    }

    package func member(_ node: NodeID) -> Member? { members.first { $0.node == node } }
}
