// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore

/// Where connections come from, as far as they are counted together: one IPv4 address, or the /64 of an
/// IPv6 address, of which one machine has as many as it likes.
struct Origin: Hashable {
    private let bytes: [UInt8]

    /// An IPv4 address counts as the same when it comes mapped, through an IPv6 socket.
    init(_ address: SocketAddress) {
        let all = address.withSockAddr { Array(UnsafeRawBufferPointer(start: $0, count: $1)) }
        switch address {
        // Behind family and port; of IPv6 behind the flow's label too.
        case .v4: bytes = Array(all[4..<8])
        case .v6:
            let isMapped = all[8..<20].elementsEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255])
            bytes = isMapped ? Array(all[20..<24]) : Array(all[8..<16])
        case .unixDomainSocket: bytes = []
        }
    }
}

/// How many connections each client and each address has: no one of them may keep all others out.
struct ClientCounts {
    private var byIdentity: [EndpointID: Int] = [:]
    private var byOrigin: [Origin: Int] = [:]
    private var withoutToken: [Origin: Int] = [:]

    /// Why this one may not have another; nil: it may.
    func refusal(of client: EndpointID, from origin: Origin, needsToken: Bool) -> String? {
        if byIdentity[client, default: 0] >= NetLimits.clientConnectionsPerIdentityMax {
            return
                "more than \(NetLimits.clientConnectionsPerIdentityMax) connections of one client"
        }
        if byOrigin[origin, default: 0] >= NetLimits.clientConnectionsPerAddressMax {
            return "more than \(NetLimits.clientConnectionsPerAddressMax) clients at one address"
        }
        if needsToken,
            withoutToken[origin, default: 0] >= NetLimits.clientsWithoutTokenPerAddressMax
        {
            return "more than \(NetLimits.clientsWithoutTokenPerAddressMax) clients at one address "
                + "that have not shown a token yet"
        }
        return nil
    }

    mutating func add(_ client: EndpointID, from origin: Origin, needsToken: Bool) {
        byIdentity[client, default: 0] += 1
        byOrigin[origin, default: 0] += 1
        if needsToken { withoutToken[origin, default: 0] += 1 }
    }

    mutating func hasShownToken(from origin: Origin) { Self.subtract(&withoutToken, origin) }

    /// What it had to show, or has not shown, is told before.
    mutating func remove(_ client: EndpointID, from origin: Origin) {
        Self.subtract(&byIdentity, client)
        Self.subtract(&byOrigin, origin)
    }

    private static func subtract<Key: Hashable>(_ counts: inout [Key: Int], _ key: Key) {
        let left = counts[key, default: 0] - 1
        precondition(left >= 0, "what was counted is taken away once")
        counts[key] = left == 0 ? nil : left
    }

    var isEmpty: Bool { byIdentity.isEmpty && byOrigin.isEmpty && withoutToken.isEmpty }
}
