// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import MDNSCore

/// A node that has been found, by whatever means. Nothing of it is proved.
package struct DiscoveredNode: Equatable, Sendable {
    package var source: DiscoveredPeer.Source
    package var node: NodeID
    package var endpoint: EndpointID
    package var addresses: [String]

    package init(
        source: DiscoveredPeer.Source, node: NodeID, endpoint: EndpointID, addresses: [String]
    ) {
        self.source = source
        self.node = node
        self.endpoint = endpoint
        self.addresses = addresses
    }

    init(_ peer: MDNSPeer) {
        self.init(
            source: .mdns, node: peer.node, endpoint: peer.endpoint, addresses: peer.addresses)
    }
}

/// What discovery on the link tells the service.
package enum DiscoveryNews: Equatable, Sendable {
    /// New, or something about it is.
    case found(DiscoveredNode)
    case lost(EndpointID)
}
