// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// The frames of `gossip.sock`: length (u32 LE), then a type byte and its fields (`ByteWriter`).
/// Requests are answered in order.
package enum GossipRequest: Equatable, Sendable {
    /// Who has been found. Answers `discovered`.
    case listDiscovered
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

package enum GossipReply: Equatable, Sendable {
    case discovered([DiscoveredPeer])
    case failed(code: AspenErrorCode, message: String)
}

extension GossipRequest {
    /// Largest request on `gossip.sock`, in bytes.
    package static let frameBytesMax = 65_536

    package func encoded() -> [UInt8] {
        var writer = ByteWriter()
        switch self {
        case .listDiscovered: writer.byte(1)
        }
        return writer.bytes
    }

    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        switch try reader.byte("request") {
        case 1: self = .listDiscovered
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
        case .failed(let code, let message):
            writer.byte(2)
            writer.integer(code.rawValue)
            writer.blob(message.utf8.prefix(Self.messageBytesMax))
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
        default: throw .unknown(field: "reply")
        }
        try reader.end()
    }
}
