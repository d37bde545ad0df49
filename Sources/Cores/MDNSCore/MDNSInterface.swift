// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DNSWire

/// Who announces itself.
package struct MDNSConfiguration: Sendable {
    package var endpoint: EndpointID
    package var node: NodeID

    package init(endpoint: EndpointID, node: NodeID) {
        self.endpoint = endpoint
        self.node = node
    }
}

/// Limits of discovery on the link; beyond each of them something is left out, nothing grows.
package enum MDNSLimits {
    /// Interfaces used at a time; further ones are ignored.
    package static let interfacesMax = 32
    /// Instances of the service remembered on one link.
    package static let instancesMax = 256
    /// Of them, those that packets from one address brought first.
    package static let instancesPerSourceMax = 64
    /// New ones taken from one packet.
    package static let newInstancesMax = 16
    /// Addresses remembered of one host, and announced of this one.
    package static let addressesMax = Limits.addressesMax
    /// Packets looked at in one second, of all interfaces together, and from one address.
    package static let packetsPerSecondMax = 1000
    package static let packetsPerSourceMax = 100
    /// The same in bytes: what a packet costs goes by its length, at worst 0.2 µs a byte.
    package static let bytesPerSecondMax = 500_000
    package static let bytesPerSourceMax = 100_000
    /// Answers to one asker alone that wait to be sent on one link.
    package static let unicastsMax = 32
    /// Longest time for which a record is believed, in seconds: 75 minutes (RFC 6762 section 10).
    package static let ttlMax: UInt32 = 4500
    /// Conflicts over the name in ten seconds, after which each further one is answered 5 s later.
    package static let conflictsMax = 15
}

/// An interface that is up, as far as it matters here.
package struct MDNSInterface: Equatable, Sendable {
    /// As the kernel numbers it.
    package var index: UInt32
    /// Its addresses with the prefixes that are on its link.
    package var prefixes: [IPPrefix]
    /// Addresses to announce there; without any, others are looked for but nothing is announced.
    package var announced: [IPAddress]
    /// Largest UDP payload that need not be fragmented.
    package var payloadBytesMax: Int

    package init(
        index: UInt32, prefixes: [IPPrefix], announced: [IPAddress], payloadBytesMax: Int = 1452
    ) {
        self.index = index
        self.prefixes = prefixes
        self.announced = Array(announced.prefix(MDNSLimits.addressesMax))
        self.payloadBytesMax = min(max(payloadBytesMax, 512), DNSMessage.bytesMax)
    }
}

/// A datagram that has come to port 5353.
package struct MDNSPacket: Equatable, Sendable {
    package var bytes: [UInt8]
    package var interface: UInt32
    package var source: IPAddress
    package var sourcePort: UInt16

    package init(bytes: [UInt8], interface: UInt32, source: IPAddress, sourcePort: UInt16) {
        self.bytes = bytes
        self.interface = interface
        self.source = source
        self.sourcePort = sourcePort
    }
}

package enum MDNSInput: Equatable, Sendable {
    /// The machine's `deadline` has come.
    case timeout
    /// All interfaces that are up; replaces the former list.
    case interfaces([MDNSInterface])
    /// The port of the QUIC endpoint; nil: nothing is announced.
    case port(UInt16?)
    case received(MDNSPacket)
    /// This peer cannot be reached: it is asked for, and forgotten if it does not answer within 10 s
    /// (RFC 6762 section 10.4).
    case doubted(EndpointID)
    /// Says goodbye. Nothing is done after it.
    case stop
}

/// Somebody on the link who calls himself a node. Nothing of it is proved.
package struct MDNSPeer: Equatable, Sendable {
    package var endpoint: EndpointID
    package var node: NodeID
    /// Version of the protocol, as announced.
    package var version: UInt32
    /// To dial: "192.0.2.1:7700", "[2001:db8::1]:7700"; ascending, at most `addressesMax`.
    package var addresses: [String]

    package init(endpoint: EndpointID, node: NodeID, version: UInt32, addresses: [String]) {
        self.endpoint = endpoint
        self.node = node
        self.version = version
        self.addresses = addresses
    }
}

package enum MDNSDestination: Equatable, Sendable {
    /// 224.0.0.251 and ff02::fb, whichever the interface has, port 5353.
    case group
    case one(IPAddress, port: UInt16)
}

package enum MDNSEffect: Equatable, Sendable {
    case send([UInt8], interface: UInt32, to: MDNSDestination)
    /// New, or something about it is.
    case found(MDNSPeer)
    case lost(EndpointID)
}

package enum MDNS {
    package static let port: UInt16 = 5353
    /// What `v=` says: the version of what nodes say to each other.
    package static let version: UInt32 = 1
    package static let service = name("_aspen._udp.local")
    /// Where all kinds of services are listed (RFC 6763 section 9).
    package static let services = name("_services._dns-sd._udp.local")
    /// Characters of the endpoint id that make the name of an instance.
    package static let labelCount = 16

    static func name(_ text: String) -> DNSName {
        guard let name = DNSName(text) else { preconditionFailure("\(text) is no name") }
        return name
    }
}
