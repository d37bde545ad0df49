// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import LinkCore
import NIOCore
import QUIC
import ServiceKit

/// All that a `NetService` is told at its start.
package struct NetConfiguration: Sendable {
    package var key: NodeKey
    package var cookies: CookieKeys
    /// What others are told to dial, as the settings say; empty where the socket is bound to every
    /// address and nobody has said which: then the addresses of the interfaces are.
    package var advertised: [String]
    /// Of the QUIC socket.
    package var port: UInt16 = 0
    package var configuredPeers: [ConfiguredPeer] = []
    /// Without tokens, clients are accepted whoever they are: on loopback only.
    package var areTokensRequired = true
    /// Where the streams for a service go.
    package var connectors: [ServiceName: PeerConnector] = [:]
    package var access: AccessTable
    package var quic = QUICConfiguration()
    /// Less in tests.
    package var clientBytesMax = NetLimits.clientBytesMax
    /// Less in tests.
    package var answerAfterMove = NetLimits.answerAfterMove
    /// More in tests that count what has not proved itself.
    package var proofTimeout = NetLimits.proofTimeout
    /// See `NetService.stop()`. Two units that are told to stop by one command hear it some
    /// milliseconds apart, and a hand-over takes as long; more would only delay restarts.
    package var raftGraceMax = TimeAmount.milliseconds(100)
    package var link: LinkConfiguration

    package init(
        key: NodeKey, cookie: CookieKey, advertised: [String], access: AccessTable
    ) {
        self.key = key
        cookies = CookieKeys(own: cookie)
        self.advertised = advertised
        self.access = access
        link = LinkConfiguration(own: key.endpoint)
        // A peer that has restarted is noticed by a stateless reset, which takes a packet of ours:
        // raft's heartbeats see to that in time. A peer that is cut off is noticed by silence.
        quic.keepAlive = .seconds(2)
        quic.idleTimeout = .seconds(8)
    }
}

/// The settings of `aspend-net`.
package struct NetSettings: Sendable {
    package static let known: Set<String> = [
        "node-id", "state-dir", "runtime-dir", "peers", "ticket", "tokens-required", "advertise",
    ]

    package var node: NodeID?
    package var stateDirectory: String
    package var runtimeDirectory: String
    package var peers: [ConfiguredPeer] = []
    package var areTokensRequired: Bool
    package var advertised: [String]

    /// - Throws: `invalidArgument` that names the setting and says what it should be.
    package init(_ settings: ServiceSettings) throws(AspenError) {
        node = try settings.integer("node-id", in: 1...Int.max).map { NodeID(UInt64($0)) }
        guard let directory = settings.stateDirectory else {
            throw AspenError(
                .invalidArgument, "--state-dir (ASPEN_STATE_DIR) is missing: where the key is kept")
        }
        stateDirectory = directory
        runtimeDirectory = settings.string("runtime-dir") ?? "/run/aspen"
        areTokensRequired = try settings.flag("tokens-required") ?? true
        advertised = settings.strings("advertise")
        for address in advertised where NetAddress.parse(address) == nil {
            throw AspenError(
                .invalidArgument,
                "--advertise '\(address)' is no numeric address with a port "
                    + "(192.0.2.1:7001 or [2001:db8::1]:7001)")
        }
        guard advertised.count <= Limits.addressesMax else {
            throw AspenError(
                .invalidArgument, "--advertise: more than \(Limits.addressesMax) addresses")
        }
        // Who is named with a number before those of tickets, which have none.
        var tickets = settings.string("ticket").map { [$0] } ?? []
        for text in settings.strings("peers") + settings.peersInFiles {
            if text.hasPrefix("aspen"), !text.contains("@") {
                tickets.append(text)
            } else {
                add(try ConfiguredPeer(setting: text))
            }
        }
        for text in tickets {
            for bootstrap in try Ticket(text).endpoints {
                add(
                    ConfiguredPeer(
                        node: nil,
                        peer: NetPeer(
                            endpoint: bootstrap.endpoint, addresses: bootstrap.addresses)))
            }
        }
        guard peers.count <= Limits.peersMax else {
            throw AspenError(
                .invalidArgument,
                "--peers and --ticket name \(peers.count) peers; at most \(Limits.peersMax) can be")
        }
    }

    /// One that is known already may be elsewhere, too.
    private mutating func add(_ peer: ConfiguredPeer) {
        guard let place = peers.firstIndex(where: { $0.peer.endpoint == peer.peer.endpoint }) else {
            return peers.append(peer)
        }
        for address in peer.peer.addresses
        where !peers[place].peer.addresses.contains(address)
            && peers[place].peer.addresses.count < Limits.addressesMax
        { peers[place].peer.addresses.append(address) }
    }

    /// What to tell others, given where the socket is bound; none where that is every address: then the
    /// interfaces say, by way of `aspend-gossip`.
    /// - Throws: `invalidArgument` when a node without tokens would be open to the world.
    package func addresses(boundTo bound: SocketAddress) throws(AspenError) -> [String] {
        if !areTokensRequired, !NetAddress.isLoopback(bound) {
            throw AspenError(
                .invalidArgument,
                "--tokens-required false is for loopback only, but the QUIC socket is bound to "
                    + "\(NetAddress.text(bound)): whoever reaches it could read and write. "
                    + "Bind 127.0.0.1 or [::1], or require tokens")
        }
        if !advertised.isEmpty { return advertised }
        return NetAddress.isWildcard(bound) ? [] : [NetAddress.text(bound)]
    }
}
