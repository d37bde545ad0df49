// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import NIOCore

/// Addresses as settings and memberships write them: "192.0.2.1:7001", "[2001:db8::1]:7001".
/// Numbers only: the daemon has no way to ask a name server.
package enum NetAddress {
    /// - Returns: nil unless it is a numeric address with a port.
    package static func parse(_ text: some StringProtocol) -> SocketAddress? {
        guard let colon = text.lastIndex(of: ":"),
            let port = UInt16(text[text.index(after: colon)...]),
            port > 0
        else { return nil }
        var host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = host.dropFirst().dropLast()
        } else if host.contains(":") {
            return nil
        }
        return try? SocketAddress(ipAddress: String(host), port: Int(port))
    }

    /// An IPv4 address as such, also where an IPv6 socket has it mapped.
    package static func text(_ address: SocketAddress?) -> String {
        guard let address, var host = address.ipAddress, let port = address.port else {
            return "unknown"
        }
        let mapped = "::ffff:"
        if host.hasPrefix(mapped), host.contains(".") { host.removeFirst(mapped.count) }
        return host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    }

    package static func isLoopback(_ address: SocketAddress) -> Bool {
        guard let host = address.ipAddress else { return false }
        return host == "::1" || host.hasPrefix("127.") || host.hasPrefix("::ffff:127.")
    }

    package static func isWildcard(_ address: SocketAddress) -> Bool {
        address.ipAddress == "0.0.0.0" || address.ipAddress == "::"
    }
}

extension ConfiguredPeer {
    /// "NODE@ENDPOINT" and any number of "@ADDRESS": "2@abc…@192.0.2.2:7001@[2001:db8::2]:7001".
    /// - Throws: `invalidArgument` with a text that says which part is wrong.
    package init(setting text: String) throws(AspenError) {
        let parts = text.split(separator: "@", omittingEmptySubsequences: false)
        guard parts.count >= 2, let node = UInt64(parts[0]), node > 0 else {
            throw AspenError(
                .invalidArgument,
                "--peers '\(text)': a peer is NODE@ENDPOINT@ADDRESS:PORT, with a node number")
        }
        guard let endpoint = EndpointID(String(parts[1])) else {
            throw AspenError(
                .invalidArgument,
                "--peers '\(text)': '\(parts[1])' is no endpoint id "
                    + "(52 letters and digits; `aspend-net --print-identity` shows a node's own)")
        }
        let addresses = parts.dropFirst(2).map(String.init)
        guard addresses.count <= Limits.addressesMax else {
            throw AspenError(
                .invalidArgument, "--peers '\(text)': more than \(Limits.addressesMax) addresses")
        }
        for address in addresses where NetAddress.parse(address) == nil {
            throw AspenError(
                .invalidArgument,
                "--peers '\(text)': '\(address)' is no numeric address with a port "
                    + "(192.0.2.1:7001 or [2001:db8::1]:7001)")
        }
        self.init(node: NodeID(node), peer: NetPeer(endpoint: endpoint, addresses: addresses))
    }
}
