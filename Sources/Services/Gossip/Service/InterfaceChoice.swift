// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import DNSWire
import MDNSCore

/// On which interfaces a node announces itself, and with which addresses.
///
/// - A node that can be dialled on loopback alone uses the loopback interface alone: a cluster for
///   development finds itself, and nobody on the network hears of it.
/// - Any other uses all interfaces that are up and can multicast, but for loopback and tunnels with one
///   other end. Each tells those of the node's addresses that are its own.
/// - When none of the node's addresses is one of this machine (behind a translation of addresses, say),
///   those of each interface are told instead.
package struct InterfaceChoice: Equatable, Sendable {
    package var interfaces: [MDNSInterface]
    /// nil: no address of the node has a meaning, so that nothing is announced.
    package var port: UInt16?

    /// Where a node that is bound to every address can be dialled: the addresses of this machine that others
    /// may know, IPv6 first, none of loopback, nor those that mean something on one link alone.
    static func located(_ all: [RouteInterface], port: UInt16) -> [String] {
        let addresses = all.filter { $0.isUp && !$0.isLoopback }.flatMap {
            $0.prefixes.map(\.address)
        }
        let known = addresses.filter { !$0.isLinkLocal }
        let (six, four) = (known.filter { !$0.isV4 }, known.filter(\.isV4))
        return (six + four).prefix(Limits.addressesMax).map { $0.text(port: port) }
    }

    /// - Parameter advertised: what others dial, as net tells it: "192.0.2.1:7700".
    package init(_ all: [RouteInterface], advertised: [String]) {
        let dialled = advertised.compactMap { IPAddress.parse($0) }
        let isLocal = !dialled.isEmpty && dialled.allSatisfy(\.address.isLoopback)
        let used = all.filter { interface in
            guard interface.isUp, !interface.prefixes.isEmpty else { return false }
            if isLocal { return interface.isLoopback }
            return !interface.isLoopback && interface.canMulticast && !interface.isPointToPoint
        }
        let own = Set(used.flatMap { $0.prefixes.map(\.address) })
        let present = dialled.filter { own.contains($0.address) }
        port = (present.first ?? dialled.first)?.port
        interfaces = used.map { interface in
            let addresses = interface.prefixes.map(\.address)
            return MDNSInterface(
                index: interface.index, prefixes: interface.prefixes,
                announced: present.isEmpty
                    ? addresses
                    : addresses.filter { one in present.contains { $0.address == one } },
                // IPv6 and UDP need 48 bytes of it; beyond 1500 there may be switches in between.
                payloadBytesMax: Int(min(interface.mtu, 1500)) - 48)
        }
    }
}
