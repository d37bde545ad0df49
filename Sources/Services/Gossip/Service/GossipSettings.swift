// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import ServiceKit

/// The settings of `aspend-gossip`.
package struct GossipSettings: Sendable {
    package static let known: Set<String> = [
        "node-id", "state-dir", "runtime-dir", "disable-mdns",
    ]

    package var node: NodeID
    /// Nil: nothing is kept.
    package var stateDirectory: String?
    package var runtimeDirectory: String
    package var isMDNSDisabled: Bool

    /// - Throws: `invalidArgument` that names the setting and says what it should be.
    package init(_ settings: ServiceSettings) throws(AspenError) {
        guard let id = try settings.integer("node-id", in: 1...Int.max) else {
            throw AspenError(
                .invalidArgument,
                "--node-id (ASPEN_NODE_ID) is missing: this node's number, at least 1")
        }
        node = NodeID(UInt64(id))
        stateDirectory = settings.stateDirectory
        runtimeDirectory = settings.string("runtime-dir") ?? "/run/aspen"
        isMDNSDisabled = try settings.flag("disable-mdns") ?? false
    }
}

/// Limits of `gossip.sock`.
package enum GossipSocketLimits {
    /// Connections on `gossip.sock`; further ones are closed at once.
    package static let localConnectionsMax = 100
}
