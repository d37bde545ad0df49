// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// What a client needs to reach a cluster: "aspen" and base 32 of version, cluster id and bootstrap
/// endpoints with their addresses. It holds no secret: neither cookie nor token.
public struct Ticket: Equatable, Sendable {
    public struct Endpoint: Equatable, Sendable {
        public var endpoint: EndpointID
        /// "192.0.2.1:7001" or "[2001:db8::1]:7001".
        public var addresses: [String]

        public init(endpoint: EndpointID, addresses: [String]) {
            self.endpoint = endpoint
            self.addresses = addresses
        }
    }

    public static let prefix = "aspen"

    public var cluster: ClusterID
    /// 1 to `Limits.ticketEndpointsMax`, in the order in which to try them.
    public var endpoints: [Endpoint]

    public init(cluster: ClusterID, endpoints: [Endpoint]) {
        self.cluster = cluster
        self.endpoints = endpoints
    }

    public func encoded() -> String {
        var writer = ByteWriter()
        writer.byte(ProtocolVersion.ticket)
        writer.integer(cluster.rawValue)
        writer.integer(UInt32(min(endpoints.count, Limits.ticketEndpointsMax)))
        for endpoint in endpoints.prefix(Limits.ticketEndpointsMax) {
            NetPeer(
                endpoint: endpoint.endpoint,
                addresses: Array(endpoint.addresses.prefix(Limits.addressesMax))
            ).encode(into: &writer)
        }
        writer.integer(CRC32C.of(writer.bytes))
        return Self.prefix + Base32.encode(writer.bytes)
    }

    /// - Throws: `invalidArgument` or `unsupportedVersion`, with a text that says what to do.
    public init(_ text: String) throws(AspenError) {
        guard text.hasPrefix(Self.prefix), let bytes = Base32.decode(text.dropFirst(5)),
            bytes.count > 5
        else {
            throw AspenError(
                .invalidArgument,
                "this is no ticket: one begins with 'aspen' and is a single word; "
                    + "`aspen-cli cluster ticket` on a node prints it")
        }
        guard bytes[0] == ProtocolVersion.ticket else {
            throw AspenError(
                .unsupportedVersion,
                "the ticket is of version \(bytes[0]), this program knows "
                    + "\(ProtocolVersion.ticket): upgrade it, or ask for a new ticket")
        }
        do {
            self = try Self.decode(bytes)
        } catch {
            throw AspenError(
                .invalidArgument, "the ticket is damaged or cut off; copy it again (\(error))")
        }
    }

    private static func decode(_ bytes: [UInt8]) throws(DecodeError) -> Ticket {
        var trailer = ByteReader(bytes.suffix(4))
        let checksum: UInt32 = try trailer.integer("checksum")
        guard checksum == CRC32C.of(bytes.dropLast(4)) else { throw .checksum }
        var reader = ByteReader(bytes.dropLast(4))
        _ = try reader.byte("version")
        let cluster = ClusterID(try reader.integer("cluster"))
        let count = try reader.count(
            "endpoints", max: Limits.ticketEndpointsMax, elementBytesMin: 36)
        guard count > 0 else { throw .outOfRange(field: "endpoints") }
        var endpoints: [Endpoint] = []
        for _ in 0..<count {
            let peer = try NetPeer(from: &reader)
            endpoints.append(Endpoint(endpoint: peer.endpoint, addresses: peer.addresses))
        }
        try reader.end()
        return Ticket(cluster: cluster, endpoints: endpoints)
    }
}
