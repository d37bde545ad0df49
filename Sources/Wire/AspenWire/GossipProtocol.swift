// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// The frames of `gossip.sock`: length (u32 LE), then a type byte and its fields (`ByteWriter`).
/// Requests are answered in order.
package enum GossipRequest: Equatable, Sendable {
    /// Who has been found. Answers `discovered`.
    case listDiscovered
    /// What is known of each peer. Answers `peers`.
    case listPeers
}

/// A node that somebody says there is. Nothing of it is proved.
package struct DiscoveredPeer: Equatable, Sendable {
    package enum Source: UInt8, Sendable {
        /// Multicast DNS, on a local link.
        case mdns = 1
    }

    package var source: Source
    package var node: NodeID
    package var endpoint: EndpointID
    /// "192.0.2.1:7001", "[2001:db8::1]:7001"
    package var addresses: [String]

    package init(source: Source, node: NodeID, endpoint: EndpointID, addresses: [String]) {
        self.source = source
        self.node = node
        self.endpoint = endpoint
        self.addresses = addresses
    }
}

/// What a node knows of a peer. Endpoint and connection are proved, everything else is what somebody has
/// said.
package struct PeerLine: Equatable, Sendable {
    package var endpoint: EndpointID
    package var node: NodeID?
    /// How it was found: "mdns", "gossip", "dns", "manual", "ticket".
    package var sources: [String]
    /// The one in use first, then the best.
    package var addresses: [String]
    /// There is a link for gossip between the two nodes.
    package var isConnected: Bool
    /// "alive", "suspected", or "unknown" while it has announced nothing.
    package var standing: String
    /// Of the connection in use, smoothed, in microseconds; 0: unknown.
    package var roundTripMicroseconds: UInt64
    /// How long ago anything was heard of it, in milliseconds; nil: never.
    package var lastSeenMilliseconds: UInt64?
    /// Of its program, as it says; empty: unknown.
    package var version: String
    /// Why nothing is known of it, or it cannot be reached; empty: nothing is wrong.
    package var reason: String

    package init(
        endpoint: EndpointID, node: NodeID?, sources: [String], addresses: [String],
        isConnected: Bool, standing: String, roundTripMicroseconds: UInt64,
        lastSeenMilliseconds: UInt64?, version: String, reason: String
    ) {
        self.endpoint = endpoint
        self.node = node
        self.sources = sources
        self.addresses = addresses
        self.isConnected = isConnected
        self.standing = standing
        self.roundTripMicroseconds = roundTripMicroseconds
        self.lastSeenMilliseconds = lastSeenMilliseconds
        self.version = version
        self.reason = reason
    }
}

package enum GossipReply: Equatable, Sendable {
    case discovered([DiscoveredPeer])
    case peers([PeerLine])
    case failed(code: AspenErrorCode, message: String)
}

extension GossipRequest {
    /// Largest request on `gossip.sock`, in bytes.
    package static let frameBytesMax = 65_536

    package func encoded() -> [UInt8] {
        var writer = ByteWriter()
        switch self {
        case .listDiscovered: writer.byte(1)
        case .listPeers: writer.byte(2)
        }
        return writer.bytes
    }

    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        switch try reader.byte("request") {
        case 1: self = .listDiscovered
        case 2: self = .listPeers
        default: throw .unknown(field: "request")
        }
        try reader.end()
    }
}

extension GossipReply {
    /// Most peers in one answer.
    package static let peersMax = 10_000
    private static let messageBytesMax = 4096

    package func encoded() -> [UInt8] {
        var writer = ByteWriter()
        switch self {
        case .discovered(let peers):
            writer.byte(1)
            writer.integer(UInt32(min(peers.count, Self.peersMax)))
            for peer in peers.prefix(Self.peersMax) {
                writer.byte(peer.source.rawValue)
                writer.integer(peer.node.rawValue)
                NetPeer(endpoint: peer.endpoint, addresses: peer.addresses).encode(into: &writer)
            }
        case .peers(let lines):
            writer.byte(3)
            writer.integer(UInt32(min(lines.count, Self.peersMax)))
            for line in lines.prefix(Self.peersMax) { line.encode(into: &writer) }
        case .failed(let code, let message):
            writer.byte(2)
            writer.integer(code.rawValue)
            writer.blob(Array(message.utf8.prefix(Self.messageBytesMax)))
        }
        return writer.bytes
    }

    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        switch try reader.byte("reply") {
        case 1:
            let count = try reader.count("peers", max: Self.peersMax, elementBytesMin: 45)
            var peers: [DiscoveredPeer] = []
            for _ in 0..<count {
                guard let source = DiscoveredPeer.Source(rawValue: try reader.byte("source"))
                else { throw .unknown(field: "source") }
                let node = NodeID(try reader.integer("node"))
                let peer = try NetPeer(from: &reader)
                peers.append(
                    DiscoveredPeer(
                        source: source, node: node, endpoint: peer.endpoint,
                        addresses: peer.addresses))
            }
            self = .discovered(peers)
        case 2:
            guard let code = AspenErrorCode(rawValue: try reader.integer("code")) else {
                throw .unknown(field: "code")
            }
            self = .failed(
                code: code, message: try reader.string("message", max: Self.messageBytesMax))
        case 3:
            let count = try reader.count("peers", max: Self.peersMax, elementBytesMin: 77)
            var lines: [PeerLine] = []
            for _ in 0..<count { lines.append(try PeerLine(from: &reader)) }
            self = .peers(lines)
        default: throw .unknown(field: "reply")
        }
        try reader.end()
    }
}

extension PeerLine {
    private static let sourcesMax = 8
    private static let wordBytesMax = 64
    private static let reasonBytesMax = 1024

    func encode(into writer: inout ByteWriter) {
        NetPeer(endpoint: endpoint, addresses: addresses).encode(into: &writer)
        writer.integer(node?.rawValue ?? 0)
        writer.integer(UInt32(min(sources.count, Self.sourcesMax)))
        for source in sources.prefix(Self.sourcesMax) { writer.string(source) }
        writer.flag(isConnected)
        writer.string(standing)
        writer.integer(roundTripMicroseconds)
        writer.integer(lastSeenMilliseconds ?? .max)
        writer.blob(Array(version.utf8.prefix(Self.wordBytesMax)))
        writer.blob(Array(reason.utf8.prefix(Self.reasonBytesMax)))
    }

    init(from reader: inout ByteReader) throws(DecodeError) {
        let peer = try NetPeer(from: &reader)
        endpoint = peer.endpoint
        addresses = peer.addresses
        let number: UInt64 = try reader.integer("node")
        node = number == 0 ? nil : NodeID(number)
        let count = try reader.count("sources", max: Self.sourcesMax, elementBytesMin: 4)
        sources = []
        for _ in 0..<count {
            sources.append(try reader.string("source", max: Self.wordBytesMax))
        }
        isConnected = try reader.flag("isConnected")
        standing = try reader.string("standing", max: Self.wordBytesMax)
        roundTripMicroseconds = try reader.integer("roundTrip")
        let seen: UInt64 = try reader.integer("lastSeen")
        lastSeenMilliseconds = seen == .max ? nil : seen
        version = try reader.string("version", max: Self.wordBytesMax)
        reason = try reader.string("reason", max: Self.reasonBytesMax)
    }
}
