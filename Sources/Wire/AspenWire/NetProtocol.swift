// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// The frames of `net.sock`: length (u32 LE), then a type byte and its fields (`ByteWriter`).
///
/// A connection is one of two things, decided by its first frame: `openStream` turns it, after
/// `opened`, into the raw bytes of a stream to a peer; anything else makes it a control connection,
/// on which requests are answered in order and events may come at any time.
package enum NetRequest: Equatable, Sendable {
    /// A stream to that endpoint. The connection is made if there is none. Answers `opened` or
    /// `failed`.
    case openStream(endpoint: EndpointID, alpn: ALPN, service: ServiceName)
    /// Who this node is. Answers `identity`.
    case identify
    /// The members (raft's uid only): net keeps a connection to each, accepts `aspen-raft` from
    /// these alone while `isClosed`; while not, from whoever proves the cookie. Replaces the former
    /// list. Answers `done`.
    case setPeers(peers: [NetPeer], isClosed: Bool)
    /// Where this caller wants to hear about peers. Answers `done`, then sends `event`s, beginning
    /// with the present state of each peer.
    case subscribe
    /// Where peers are said to be (gossip's uid only): whoever is dialled for another reason, or by a
    /// stream to him, is dialled there as well. Replaces the former list. Answers `done`.
    case learned(peers: [ConfiguredPeer])
    /// What was last `learned`, for who adds nodes to the cluster. Answers `learned`.
    case listLearned
    /// What gossip's daemon has to know (its uid only). Answers `gossipSetup`.
    case gossipSetup
    /// Where this node can be reached by the addresses of its interfaces (gossip's uid only): what it
    /// tells others while the settings name none. Answers `done`.
    case located(addresses: [String])
    /// Who belongs to the cluster, this node included (raft's uid only): `setPeers` names others, too.
    /// Replaces the former list; an empty one: there is no cluster. Answers `done`.
    case members([NetMember])
    /// The connections that carry gossip (gossip's uid only). Answers `connections`.
    case listConnections
    /// Ed25519 over context and bytes; the context is fixed by the caller's uid. Answers `signature`.
    case sign(context: String, bytes: [UInt8])
}

package struct NetPeer: Equatable, Sendable {
    package var endpoint: EndpointID
    /// "192.0.2.1:7001", "[2001:db8::1]:7001"; may be empty when only the peer can dial.
    package var addresses: [String]

    package init(endpoint: EndpointID, addresses: [String]) {
        self.endpoint = endpoint
        self.addresses = addresses
    }
}

/// A member, as the replicated membership names it.
package struct NetMember: Equatable, Sendable {
    package var node: NodeID
    package var endpoint: EndpointID

    package init(node: NodeID, endpoint: EndpointID) {
        self.node = node
        self.endpoint = endpoint
    }
}

/// A connection whose other end has proved its key and the cookie.
package struct NetConnection: Equatable, Sendable {
    package var endpoint: EndpointID
    /// Where it is just now, whoever dialled.
    package var address: String
    /// Smoothed (RFC 9002 section 5.3), in microseconds.
    package var roundTripMicroseconds: UInt32

    package init(endpoint: EndpointID, address: String, roundTripMicroseconds: UInt32) {
        self.endpoint = endpoint
        self.address = address
        self.roundTripMicroseconds = roundTripMicroseconds
    }
}

package enum NetReply: Equatable, Sendable {
    case opened
    case done
    case identity(endpoint: EndpointID, addresses: [String], configuredPeers: [ConfiguredPeer])
    case signature([UInt8])
    case learned(peers: [ConfiguredPeer])
    /// The topic of this cluster's gossip, derived from the stretched cookie (32 bytes, secret to those
    /// who have the cookie), and behind it that of the cookie that is also accepted, if there is one; the
    /// port of the QUIC socket, and where the settings say that this node is to be dialled: none leaves it
    /// to the interfaces.
    case gossipSetup(topics: [[UInt8]], port: UInt16, advertised: [String])
    case connections([NetConnection])
    case failed(code: AspenErrorCode, message: String)
    case event(NetEvent)
}

/// A peer with its number, if that is known: named by `--peers`, by a ticket (which has no numbers), or
/// found.
package struct ConfiguredPeer: Equatable, Sendable {
    package var node: NodeID?
    package var peer: NetPeer

    package init(node: NodeID?, peer: NetPeer) {
        self.node = node
        self.peer = peer
    }
}

package enum NetEvent: Equatable, Sendable {
    /// An authenticated connection for `aspen-raft` is up; streams can be opened.
    case peerUp(EndpointID)
    /// It is gone; net redials by itself.
    case peerDown(EndpointID, reason: String)
    /// The peer's net is alive and says that its service is gone.
    case serviceGone(EndpointID, ServiceName)
    /// What this node tells others to dial is now this: `identity` said something else before.
    case located([String])
    /// The members are these now; for whoever subscribes, also at first, once they are known.
    case members([NetMember])
}

/// The first frame on NAME.peer.sock: on whose behalf the bytes that follow come.
package struct Principal: Equatable, Sendable {
    package var endpoint: EndpointID
    package var alpn: ALPN
    /// Whether this connection's other end proved the cluster cookie.
    package var hasProvedCookie: Bool
    /// Capability tokens, verified by the service; empty when none were shown.
    package var tokenChain: [UInt8]
    package var remoteAddress: String

    package init(
        endpoint: EndpointID, alpn: ALPN, hasProvedCookie: Bool, tokenChain: [UInt8] = [],
        remoteAddress: String
    ) {
        self.endpoint = endpoint
        self.alpn = alpn
        self.hasProvedCookie = hasProvedCookie
        self.tokenChain = tokenChain
        self.remoteAddress = remoteAddress
    }
}

// MARK: - Encoding

private let addressBytesMax = 256
private let messageBytesMax = 4096
/// Largest text to sign, in bytes.
private let signBytesMax = 65_536
private let tokenChainBytesMax = 65_536

extension NetRequest {
    /// Largest frame on `net.sock`, in bytes.
    package static let frameBytesMax = 1_000_000

    package func encoded() -> [UInt8] {
        var writer = ByteWriter()
        switch self {
        case .openStream(let endpoint, let alpn, let service):
            writer.byte(1)
            writer.raw(endpoint.bytes)
            writer.string(alpn.rawValue)
            writer.byte(service.rawValue)
        case .identify: writer.byte(2)
        case .setPeers(let peers, let isClosed):
            writer.byte(3)
            writer.flag(isClosed)
            writer.integer(UInt32(peers.count))
            for peer in peers { peer.encode(into: &writer) }
        case .subscribe: writer.byte(4)
        case .sign(let context, let bytes):
            writer.byte(5)
            writer.string(context)
            writer.blob(bytes)
        case .learned(let peers):
            writer.byte(6)
            writer.configured(peers)
        case .listLearned: writer.byte(7)
        case .gossipSetup: writer.byte(8)
        case .located(let addresses):
            writer.byte(9)
            writer.addresses(addresses)
        case .members(let members):
            writer.byte(10)
            writer.members(members)
        case .listConnections: writer.byte(11)
        }
        return writer.bytes
    }

    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        switch try reader.byte("request") {
        case 1:
            let endpoint = try reader.endpoint()
            let alpn = try reader.alpn()
            guard let service = ServiceName(rawValue: try reader.byte("service")) else {
                throw .unknown(field: "service")
            }
            self = .openStream(endpoint: endpoint, alpn: alpn, service: service)
        case 2: self = .identify
        case 3:
            let isClosed = try reader.flag("isClosed")
            self = .setPeers(peers: try reader.peers(), isClosed: isClosed)
        case 4: self = .subscribe
        case 5:
            self = .sign(
                context: try reader.string("context", max: 64),
                bytes: try reader.blob("bytes", max: signBytesMax))
        case 6: self = .learned(peers: try reader.configured())
        case 7: self = .listLearned
        case 8: self = .gossipSetup
        case 9: self = .located(addresses: try reader.addresses())
        case 10: self = .members(try reader.members())
        case 11: self = .listConnections
        default: throw .unknown(field: "request")
        }
        try reader.end()
    }
}

extension ByteWriter {
    mutating func addresses(_ list: [String]) {
        integer(UInt32(list.count))
        for address in list { string(address) }
    }

    mutating func configured(_ peers: [ConfiguredPeer]) {
        integer(UInt32(peers.count))
        for peer in peers {
            integer(peer.node?.rawValue ?? 0)
            peer.peer.encode(into: &self)
        }
    }
}

extension ByteWriter {
    mutating func members(_ list: [NetMember]) {
        integer(UInt32(list.count))
        for member in list {
            integer(member.node.rawValue)
            raw(member.endpoint.bytes)
        }
    }

    mutating func connections(_ list: [NetConnection]) {
        integer(UInt32(list.count))
        for connection in list {
            raw(connection.endpoint.bytes)
            string(connection.address)
            integer(connection.roundTripMicroseconds)
        }
    }
}

extension NetPeer {
    func encode(into writer: inout ByteWriter) {
        writer.raw(endpoint.bytes)
        writer.addresses(addresses)
    }

    init(from reader: inout ByteReader) throws(DecodeError) {
        endpoint = try reader.endpoint()
        addresses = try reader.addresses()
    }
}

extension ByteReader {
    mutating func endpoint() throws(DecodeError) -> EndpointID {
        guard let endpoint = EndpointID(bytes: try raw(EndpointID.byteCount, "endpoint")) else {
            throw .malformed(field: "endpoint")
        }
        return endpoint
    }

    mutating func addresses() throws(DecodeError) -> [String] {
        let count = try count("addresses", max: Limits.addressesMax, elementBytesMin: 4)
        var result: [String] = []
        for _ in 0..<count { result.append(try string("address", max: addressBytesMax)) }
        return result
    }

    mutating func peers() throws(DecodeError) -> [NetPeer] {
        let count = try count("peers", max: 1000, elementBytesMin: 36)
        var result: [NetPeer] = []
        for _ in 0..<count { result.append(try NetPeer(from: &self)) }
        return result
    }

    mutating func configured() throws(DecodeError) -> [ConfiguredPeer] {
        let count = try count("peers", max: 1000, elementBytesMin: 44)
        var result: [ConfiguredPeer] = []
        for _ in 0..<count {
            let node: UInt64 = try integer("node")
            let peer = try NetPeer(from: &self)
            result.append(ConfiguredPeer(node: node == 0 ? nil : NodeID(node), peer: peer))
        }
        return result
    }

    mutating func members() throws(DecodeError) -> [NetMember] {
        let count = try count("members", max: 1000, elementBytesMin: 40)
        var result: [NetMember] = []
        for _ in 0..<count {
            let node = NodeID(try integer("node"))
            result.append(NetMember(node: node, endpoint: try endpoint()))
        }
        return result
    }

    mutating func connections() throws(DecodeError) -> [NetConnection] {
        let count = try count("connections", max: 1000, elementBytesMin: 40)
        var result: [NetConnection] = []
        for _ in 0..<count {
            let endpoint = try endpoint()
            let address = try string("address", max: addressBytesMax)
            result.append(
                NetConnection(
                    endpoint: endpoint, address: address,
                    roundTripMicroseconds: try integer("round trip")))
        }
        return result
    }

    mutating func alpn() throws(DecodeError) -> ALPN {
        guard let alpn = ALPN(rawValue: try string("alpn", max: 32)) else {
            throw .unknown(field: "alpn")
        }
        return alpn
    }

    mutating func service() throws(DecodeError) -> ServiceName {
        guard let service = ServiceName(rawValue: try byte("service")) else {
            throw .unknown(field: "service")
        }
        return service
    }
}

extension NetReply {
    package func encoded() -> [UInt8] {
        var writer = ByteWriter()
        switch self {
        case .opened: writer.byte(1)
        case .done: writer.byte(2)
        case .identity(let endpoint, let addresses, let peers):
            writer.byte(3)
            NetPeer(endpoint: endpoint, addresses: addresses).encode(into: &writer)
            writer.configured(peers)
        case .signature(let bytes):
            writer.byte(4)
            writer.blob(bytes)
        case .failed(let code, let message):
            writer.byte(5)
            writer.integer(code.rawValue)
            writer.blob(Array(message.utf8.prefix(messageBytesMax)))
        case .event(.peerUp(let endpoint)):
            writer.byte(6)
            writer.raw(endpoint.bytes)
        case .event(.peerDown(let endpoint, let reason)):
            writer.byte(7)
            writer.raw(endpoint.bytes)
            writer.blob(Array(reason.utf8.prefix(messageBytesMax)))
        case .event(.serviceGone(let endpoint, let service)):
            writer.byte(8)
            writer.raw(endpoint.bytes)
            writer.byte(service.rawValue)
        case .event(.located(let addresses)):
            writer.byte(11)
            writer.addresses(addresses)
        case .event(.members(let members)):
            writer.byte(12)
            writer.members(members)
        case .connections(let connections):
            writer.byte(13)
            writer.connections(connections)
        case .learned(let peers):
            writer.byte(9)
            writer.configured(peers)
        case .gossipSetup(let topics, let port, let advertised):
            writer.byte(10)
            writer.integer(UInt32(topics.count))
            for topic in topics { writer.blob(topic) }
            writer.integer(port)
            writer.addresses(advertised)
        }
        return writer.bytes
    }

    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        switch try reader.byte("reply") {
        case 1: self = .opened
        case 2: self = .done
        case 3:
            let own = try NetPeer(from: &reader)
            self = .identity(
                endpoint: own.endpoint, addresses: own.addresses,
                configuredPeers: try reader.configured())
        case 4: self = .signature(try reader.blob("signature", max: 64))
        case 5:
            let raw: UInt16 = try reader.integer("code")
            guard let code = AspenErrorCode(rawValue: raw) else { throw .unknown(field: "code") }
            self = .failed(code: code, message: try reader.string("message", max: messageBytesMax))
        case 6: self = .event(.peerUp(try reader.endpoint()))
        case 7:
            let endpoint = try reader.endpoint()
            let reason = try reader.string("reason", max: messageBytesMax)
            self = .event(.peerDown(endpoint, reason: reason))
        case 8: self = .event(.serviceGone(try reader.endpoint(), try reader.service()))
        case 9: self = .learned(peers: try reader.configured())
        case 10:
            var topics: [[UInt8]] = []
            for _ in 0..<(try reader.count("topics", max: 2, elementBytesMin: 4)) {
                topics.append(try reader.blob("topic", max: 32))
            }
            self = .gossipSetup(
                topics: topics, port: try reader.integer("port"),
                advertised: try reader.addresses())
        case 11: self = .event(.located(try reader.addresses()))
        case 12: self = .event(.members(try reader.members()))
        case 13: self = .connections(try reader.connections())
        default: throw .unknown(field: "reply")
        }
        try reader.end()
    }
}

extension Principal {
    package func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.byte(ProtocolVersion.netSocket)
        writer.raw(endpoint.bytes)
        writer.string(alpn.rawValue)
        writer.flag(hasProvedCookie)
        writer.blob(tokenChain)
        writer.string(remoteAddress)
        return writer.bytes
    }

    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        guard try reader.byte("version") == ProtocolVersion.netSocket else {
            throw .unknown(field: "version")
        }
        endpoint = try reader.endpoint()
        alpn = try reader.alpn()
        hasProvedCookie = try reader.flag("hasProvedCookie")
        tokenChain = try reader.blob("tokenChain", max: tokenChainBytesMax)
        remoteAddress = try reader.string("remoteAddress", max: addressBytesMax)
        try reader.end()
    }
}
