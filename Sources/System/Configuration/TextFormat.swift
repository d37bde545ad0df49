// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import Glibc

/// What a text has to look like.
package enum TextFormat: Sendable, Equatable {
    /// See `ListenAddress`.
    case listenAddress
    /// "192.0.2.1:7700", "[2001:db8::1]:7700": a numeric address with a port.
    case address
    /// "2@ENDPOINT@192.0.2.2:7700": a node, its endpoint id, any number of addresses.
    case peer
    /// A word that begins with "aspen". What is in it is for those to judge who use it.
    case ticket

    /// "nodes.example.org": labels of 1 to 63 letters, digits, hyphens and underscores, 190 characters in all,
    /// so that there is room in front for the name of an endpoint.
    case domainName

    /// Longest text of any format, in bytes.
    package static let bytesMax = 8192

    package var allowed: String {
        switch self {
        case .listenAddress: "a text: a port (\":7700\") or a numeric address with one"
        case .address: "a text: a numeric address with a port (\"192.0.2.1:7700\")"
        case .peer:
            "a text of the form \"NODE@ENDPOINT\" or \"NODE@ENDPOINT@ADDRESS:PORT\", or a ticket"
        case .domainName: "a domain name (\"nodes.example.org\")"
        case .ticket: "a ticket as `aspen-cli cluster ticket` prints it"
        }
    }

    /// - Returns: what is wrong with it, nil when it is right.
    package func complaint(about text: String) -> String? {
        guard text.utf8.count <= Self.bytesMax else { return "is over \(Self.bytesMax) bytes" }
        switch self {
        case .listenAddress:
            return ListenAddress(text) == nil ? "is no port, nor a numeric address with one" : nil
        case .address: return Self.complaint(aboutAddress: text)
        case .peer: return Self.complaint(aboutPeer: text)
        case .domainName: return Self.complaint(aboutName: text)
        case .ticket:
            let isWord = text.utf8.allSatisfy {
                (UInt8(ascii: "a")...UInt8(ascii: "z")).contains($0)
                    || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
            }
            return isWord && text.hasPrefix("aspen") ? nil : "is no ticket"
        }
    }

    private static func complaint(aboutAddress text: some StringProtocol) -> String? {
        guard let address = ListenAddress(text), address.host != nil, text.first != "*" else {
            return "is no numeric address with a port"
        }
        return address.isWildcard ? "is every address: nobody can dial that" : nil
    }

    private static let nameBytesMax = 190
    private static let labelBytesMax = 63

    private static func complaint(aboutName text: String) -> String? {
        guard text.utf8.count <= nameBytesMax else { return "is over \(nameBytesMax) bytes" }
        let labels = (text.hasSuffix(".") ? text.dropLast() : text[...]).split(
            separator: ".", omittingEmptySubsequences: false)
        let isName = labels.allSatisfy { label in
            (1...labelBytesMax).contains(label.utf8.count)
                && label.utf8.allSatisfy {
                    (UInt8(ascii: "a")...UInt8(ascii: "z")).contains($0 | 0x20)
                        || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
                        || $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: "_")
                }
        }
        return isName ? nil : "is no domain name"
    }

    private static func complaint(aboutPeer text: String) -> String? {
        if text.hasPrefix("aspen"), !text.contains("@") {
            return TextFormat.ticket.complaint(about: text)
        }
        let parts = text.split(separator: "@", omittingEmptySubsequences: false)
        guard parts.count >= 2, let node = UInt64(parts[0]), node > 0 else {
            return "does not begin with a node number and '@'"
        }
        guard EndpointID(String(parts[1])) != nil else {
            return "has no endpoint id (52 letters and digits) behind the node number"
        }
        guard parts.count - 2 <= Limits.addressesMax else {
            return "has more than \(Limits.addressesMax) addresses"
        }
        for address in parts.dropFirst(2) {
            if let complaint = complaint(aboutAddress: address) {
                return "has the address '\(address)', which \(complaint)"
            }
        }
        return nil
    }
}

/// Where to bind a UDP socket: "7700" or ":7700" (every address), "0.0.0.0:7700", "[::]:7700",
/// "192.0.2.1:7700", "[2001:db8::1]:7700". Port 0 is none: systemd refuses it.
package struct ListenAddress: Sendable, Equatable {
    /// Numeric, without brackets; nil when there is only a port.
    package let host: String?
    package let port: UInt16

    package var isIPv6: Bool { host?.contains(":") ?? false }
    package var isWildcard: Bool { host == nil || host == "0.0.0.0" || isZero6 }

    private var isZero6: Bool {
        var address = in6_addr()
        guard let host, inet_pton(AF_INET6, host, &address) == 1 else { return false }
        return withUnsafeBytes(of: address) { $0.allSatisfy { $0 == 0 } }
    }

    package init?(_ text: some StringProtocol) {
        let (host, digits): (String?, String)
        if let colon = text.lastIndex(of: ":") {
            digits = String(text[text.index(after: colon)...])
            let before = text[..<colon]
            host = before.isEmpty ? nil : String(before)
        } else {
            (host, digits) = (nil, String(text))
        }
        guard digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let port = UInt16(digits),
            port > 0
        else { return nil }
        self.port = port
        guard let host else {
            self.host = nil
            return
        }
        if host.hasPrefix("["), host.hasSuffix("]") {
            let inner = String(host.dropFirst().dropLast())
            var address = in6_addr()
            guard inet_pton(AF_INET6, inner, &address) == 1 else { return nil }
            self.host = inner
        } else {
            var address = in_addr()
            guard inet_pton(AF_INET, host, &address) == 1 else { return nil }
            self.host = host
        }
    }

    /// As systemd.socket(5) writes it. A port alone lets the kernel bind `[::]`, or `0.0.0.0` where
    /// there is no IPv6.
    package var systemd: String {
        guard let host, !isWildcard else { return String(port) }
        return host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    }
}
