// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Configuration
import DNSWire
import ServiceKit

/// The settings of `aspend-gossip`.
package struct GossipSettings: Sendable {
    package static let known: Set<String> = [
        "node-id", "state-dir", "runtime-dir", "disable-mdns", "disable-gossip",
        "enable-dns-discovery", "dns-discovery-origin", "enable-pkarr",
    ]

    package var node: NodeID
    /// Nil: nothing is kept.
    package var stateDirectory: String?
    package var runtimeDirectory: String
    package var isMDNSDisabled: Bool
    /// No part is taken in gossip; nodes are found in the other ways.
    package var isGossipDisabled: Bool
    /// Below which DNS is asked for nodes; nil: it is not asked.
    package var dnsOrigin: DNSName?

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
        isGossipDisabled = try settings.flag("disable-gossip") ?? false
        for name in ["dns-discovery-origin", "enable-pkarr"] {
            guard let text = settings.string(name),
                let setting = SettingsCatalogue.setting(named: name)
            else { continue }
            do throws(ConfigurationError) {
                _ = try setting.parse([text], .flag(name))
            } catch {
                throw error.aspenError
            }
        }
        guard try settings.flag("enable-dns-discovery") ?? false else { return }
        guard let origin = settings.string("dns-discovery-origin").flatMap({ DNSName($0) }) else {
            throw AspenError(
                .invalidArgument,
                "--enable-dns-discovery (ASPEN_ENABLE_DNS_DISCOVERY) needs --dns-discovery-origin "
                    + "(ASPEN_DNS_DISCOVERY_ORIGIN): the domain below which the nodes' records are, as "
                    + "nodes.example.org")
        }
        dnsOrigin = origin
    }
}

/// Limits of `gossip.sock`.
package enum GossipSocketLimits {
    /// Connections on `gossip.sock`; further ones are closed at once.
    package static let localConnectionsMax = 100
}
