// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// What a frame between raft daemons is: its first byte.
package enum PeerFrameKind: UInt8, Sendable {
    case hello = 1
    case message = 2
    case request = 3
    case response = 4
    case refused = 5
    case space = 6
}

/// What a node says first on each stream, and is answered with: who it is.
package struct PeerHello: Equatable, Sendable {
    /// The version of the protocol between raft daemons that the sender speaks.
    package var version: UInt16
    /// Nil: belongs to no cluster yet.
    package var cluster: ClusterID?
    package var node: NodeID
    package var replica: ReplicaID
    package var lane: Lane
    /// Only wants to know who we are; no messages will follow.
    package var isProbe = false

    package init(
        version: UInt16, cluster: ClusterID?, node: NodeID, replica: ReplicaID, lane: Lane,
        isProbe: Bool = false
    ) {
        self.version = version
        self.cluster = cluster
        self.node = node
        self.replica = replica
        self.lane = lane
        self.isProbe = isProbe
    }

    package func encode(into writer: inout ByteWriter) {
        writer.integer(version)
        writer.integer(cluster?.rawValue ?? 0)
        writer.integer(node.rawValue)
        writer.integer(replica.rawValue)
        writer.byte(lane.rawValue)
        writer.flag(isProbe)
    }

    package init(from reader: inout ByteReader) throws(DecodeError) {
        version = try reader.integer("version")
        let cluster: UInt128 = try reader.integer("cluster")
        self.cluster = cluster == 0 ? nil : ClusterID(cluster)
        let node: UInt64 = try reader.integer("node")
        guard node != 0 else { throw .outOfRange(field: "node") }
        self.node = NodeID(node)
        replica = ReplicaID(try reader.integer("replica"))
        guard let lane = Lane(rawValue: try reader.byte("lane")) else {
            throw .unknown(field: "lane")
        }
        self.lane = lane
        isProbe = try reader.flag("isProbe")
    }
}
