// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import RaftCore

// A node that has left its cluster says so at once, so that clients go elsewhere: it would never
// hear of a leader again, and what it has is old.

extension ClientService {
    static let hasLeftCluster = AspenError(
        .unavailable,
        "this node is no member of its cluster any more: ask another. To use it again, empty its "
            + "data directory and add it", retry: .safe)

    /// The membership that leaves this node out is committed.
    var hasLeft: Bool {
        links.hasLeft && !isLeader && node.core.membershipIndex <= node.core.commitIndex
    }

    /// What needs no cluster, but the node itself.
    func isAnsweredAlone(_ body: WireRequest.OneOf_Request) -> Bool {
        switch body {
        case .getHealth, .getClusterStatus, .getLeader, .getNodeInfo, .getClusterTicket,
            .initCluster, .restoreChunk, .why, .getMetrics, .getRaftMetrics, .recoverQuorum,
            .triggerSnapshot, .backup, .cancelWatch:
            true
        default: false
        }
    }

    /// Answers all that waits: nothing of it can be carried out here.
    func dismissClients() {
        dismissWrites()
        dismissReads()
    }
}
