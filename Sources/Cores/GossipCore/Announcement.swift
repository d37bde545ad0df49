// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// Who gossips with whom: those who have the same cookie. Secret, since it is made from the cookie.
package struct GossipTopic: Equatable, Sendable {
    package static let byteCount = BLAKE3.byteCount
    let bytes: [UInt8]
    /// Stands in each announcement, so that one of another topic is seen without its signature.
    let tag: UInt32

    /// - Parameter cookieKey: the stretched cookie.
    package init(cookieKey: some Collection<UInt8>) {
        let bytes = BLAKE3.deriveKey(context: "aspen gossip topic v1", material: cookieKey)
        (self.bytes, tag) = (bytes, Self.tag(of: bytes))
    }

    /// As somebody else has derived it; nil unless it has its length.
    package init?(bytes: [UInt8]) {
        guard bytes.count == Self.byteCount else { return nil }
        (self.bytes, tag) = (bytes, Self.tag(of: bytes))
    }

    private static func tag(of bytes: [UInt8]) -> UInt32 {
        let digest = BLAKE3.deriveKey(context: "aspen gossip topic tag v1", material: bytes)
        return digest.prefix(4).reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }
}

/// What orders the announcements of one endpoint: the newer one has the greater epoch, or the same
/// one and the greater timestamp.
package struct AnnouncementVersion: Hashable, Comparable, Sendable {
    /// Rises with each start of the node; 1 to `epochMax`.
    package var epoch: UInt64
    /// Milliseconds since 1970 by the node's wall clock; rises with each announcement of an epoch.
    package var timestamp: UInt64

    package static let epochMax: UInt64 = 1 << 62

    package init(epoch: UInt64, timestamp: UInt64) {
        self.epoch = epoch
        self.timestamp = timestamp
    }

    package static func < (left: Self, right: Self) -> Bool {
        (left.epoch, left.timestamp) < (right.epoch, right.timestamp)
    }
}

/// What a node says of another one that is silent. Never believed as its death.
package struct PeerReport: Equatable, Sendable {
    package enum Kind: UInt8, Sendable {
        /// The reporter has lost its link and cannot make another.
        case unreachable = 1
        /// The reporter has a live link.
        case linked = 2
    }

    package var subject: EndpointID
    package var kind: Kind
    /// The newest that the reporter had of the subject: a later one refutes the report.
    package var version: AnnouncementVersion

    package init(subject: EndpointID, kind: Kind, version: AnnouncementVersion) {
        self.subject = subject
        self.kind = kind
        self.version = version
    }
}

/// What a node tells of itself, and asks its shell to announce when it changes.
package struct NodeDescription: Equatable, Sendable {
    /// Nil before it has a number.
    package var node: NodeID?
    /// Texts of printable ASCII, the best first; beyond the limits they are left out.
    package var addresses: [String]
    /// By their numbers on the wire.
    package var services: Set<UInt8>
    package var programVersion: String

    package init(
        node: NodeID?, addresses: [String], services: Set<UInt8>, programVersion: String
    ) {
        self.node = node
        self.addresses = addresses
        self.services = services
        self.programVersion = programVersion
    }
}

/// One announcement, as it is signed. The encoding is canonical: a value has one byte string, and a
/// byte string one value.
package struct Announcement: Equatable, Sendable {
    /// Of the topic it is for.
    package let topicTag: UInt32
    package let endpoint: EndpointID
    package let version: AnnouncementVersion
    package let node: NodeID?
    /// At most `Limits.addressesMax`, each once, the best first.
    package let addresses: [String]
    /// Ascending.
    package let services: [UInt8]
    package let programVersion: String
    /// Ascending by subject, each once.
    package let reports: [PeerReport]

    private static let format: UInt8 = 1
    /// In front of everything signed: no other signature of Aspen's begins so.
    private static let domain = Array("aspen gossip announcement v1\0".utf8)

    /// What does not fit is left out of `description` and `reports`.
    package init(
        topic: GossipTopic, endpoint: EndpointID, version: AnnouncementVersion,
        _ description: NodeDescription, reports: [PeerReport] = []
    ) {
        precondition(
            (1...AnnouncementVersion.epochMax).contains(version.epoch), "epochs are in their range")
        topicTag = topic.tag
        self.endpoint = endpoint
        self.version = version
        node = description.node
        var addresses: [String] = []
        for address in description.addresses
        where Self.isAddress(address.utf8) && !addresses.contains(address)
            && addresses.count < Limits.addressesMax
        {
            addresses.append(address)
        }
        self.addresses = addresses
        services = Array(description.services.sorted().prefix(GossipLimits.servicesMax))
        let text = description.programVersion
        programVersion = Self.isVersion(text.utf8) ? text : ""
        self.reports = Array(
            reports.sorted { $0.subject < $1.subject }.prefix(GossipLimits.reportsMax))
    }

    private static func isPrintable(_ text: some Collection<UInt8>) -> Bool {
        text.allSatisfy { (0x21...0x7e).contains($0) }
    }

    private static func isAddress(_ text: some Collection<UInt8>) -> Bool {
        (1...GossipLimits.addressBytesMax).contains(text.count) && isPrintable(text)
    }

    private static func isVersion(_ text: some Collection<UInt8>) -> Bool {
        text.count <= GossipLimits.versionBytesMax && isPrintable(text)
    }

    // MARK: - Bytes

    package func encoded() -> [UInt8] {
        var writer = ByteWriter(capacity: 256)
        writer.byte(Self.format)
        writer.integer(topicTag)
        writer.raw(endpoint.bytes)
        writer.integer(version.epoch)
        writer.integer(version.timestamp)
        writer.integer(node?.rawValue ?? 0)
        writer.byte(UInt8(addresses.count))
        for address in addresses { writer.shortText(address) }
        writer.byte(UInt8(services.count))
        writer.raw(services)
        writer.shortText(programVersion)
        writer.byte(UInt8(reports.count))
        for report in reports {
            writer.raw(report.subject.bytes)
            writer.byte(report.kind.rawValue)
            writer.integer(report.version.epoch)
            writer.integer(report.version.timestamp)
        }
        return writer.bytes
    }

    /// What the node's key signs: the topic is in it, whole, and nothing signed for another topic or
    /// another purpose can be taken for it.
    package static func signedText(_ encoded: some Collection<UInt8>, _ topic: GossipTopic)
        -> [UInt8]
    {
        domain + topic.bytes + encoded
    }

    init(from reader: inout ByteReader) throws(DecodeError) {
        guard try reader.byte("format") == Self.format else { throw .unknown(field: "format") }
        topicTag = try reader.integer("topic")
        endpoint = try EndpointID(from: &reader, "endpoint")
        version = try AnnouncementVersion(from: &reader)
        let number: UInt64 = try reader.integer("node")
        node = number == 0 ? nil : NodeID(number)
        let addressCount = try reader.byte("addresses")
        guard addressCount <= Limits.addressesMax else { throw .outOfRange(field: "addresses") }
        var addresses: [String] = []
        for _ in 0..<addressCount {
            let text = try reader.shortText("address")
            guard Self.isAddress(text) else { throw .malformed(field: "address") }
            let address = String(decoding: text, as: UTF8.self)
            guard !addresses.contains(address) else { throw .malformed(field: "addresses") }
            addresses.append(address)
        }
        self.addresses = addresses
        let serviceCount = try reader.byte("services")
        guard serviceCount <= GossipLimits.servicesMax else { throw .outOfRange(field: "services") }
        services = Array(try reader.raw(Int(serviceCount), "services"))
        guard zip(services, services.dropFirst()).allSatisfy({ $0 < $1 }) else {
            throw .malformed(field: "services")
        }
        let text = try reader.shortText("version")
        guard Self.isVersion(text) else { throw .malformed(field: "version") }
        programVersion = String(decoding: text, as: UTF8.self)
        reports = try Self.reports(from: &reader)
    }

    private static func reports(from reader: inout ByteReader) throws(DecodeError) -> [PeerReport] {
        let count = try reader.byte("reports")
        guard count <= GossipLimits.reportsMax else { throw .outOfRange(field: "reports") }
        var reports: [PeerReport] = []
        for _ in 0..<count {
            let subject = try EndpointID(from: &reader, "subject")
            guard let kind = PeerReport.Kind(rawValue: try reader.byte("kind")) else {
                throw .unknown(field: "kind")
            }
            if let last = reports.last, last.subject >= subject {
                throw .malformed(field: "reports")
            }
            let version = try AnnouncementVersion(from: &reader)
            reports.append(PeerReport(subject: subject, kind: kind, version: version))
        }
        return reports
    }
}

/// Names a signed announcement by its bytes: the first 8 of their BLAKE3 hash. Computed by whoever
/// has the bytes, never taken from a message that carries them. Enough to make another's announcement
/// unlike all others; whoever makes two of his own that are alike hides one of them.
package struct MessageID: Hashable, Sendable {
    package let rawValue: UInt64
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }

    init(of bytes: some Collection<UInt8>) {
        rawValue = BLAKE3.hash(bytes).prefix(8).reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }
}

/// An announcement and its signature.
package struct SignedAnnouncement: Equatable, Sendable {
    package static let signatureByteCount = 64
    package let announcement: Announcement
    /// The announcement, then the signature.
    package let bytes: [UInt8]

    package var signature: ArraySlice<UInt8> { bytes.suffix(Self.signatureByteCount) }
    var body: ArraySlice<UInt8> { bytes.dropLast(Self.signatureByteCount) }

    package init(_ announcement: Announcement, signature: [UInt8]) {
        precondition(signature.count == Self.signatureByteCount, "an Ed25519 signature")
        self.announcement = announcement
        bytes = announcement.encoded() + signature
    }

    /// Form only: nothing of it is believed before its signature is verified.
    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        guard bytes.count <= GossipLimits.announcementBytesMax else {
            throw .outOfRange(field: "announcement")
        }
        var reader = ByteReader(bytes)
        announcement = try Announcement(from: &reader)
        _ = try reader.raw(Self.signatureByteCount, "signature")
        try reader.end()
        self.bytes = bytes
    }
}

// MARK: - Pieces

extension EndpointID {
    init(from reader: inout ByteReader, _ field: StaticStringName) throws(DecodeError) {
        guard let id = EndpointID(bytes: try reader.raw(EndpointID.byteCount, field)) else {
            throw .malformed(field: field)
        }
        self = id
    }
}

extension AnnouncementVersion {
    init(from reader: inout ByteReader) throws(DecodeError) {
        epoch = try reader.integer("epoch")
        guard (1...Self.epochMax).contains(epoch) else { throw .outOfRange(field: "epoch") }
        timestamp = try reader.integer("timestamp")
    }
}

extension ByteWriter {
    /// A length of one byte, then the text.
    fileprivate mutating func shortText(_ text: String) {
        byte(UInt8(text.utf8.count))
        raw(Array(text.utf8))
    }
}

extension ByteReader {
    fileprivate mutating func shortText(
        _ field: StaticStringName
    ) throws(DecodeError) -> ArraySlice<UInt8> {
        let count = try byte(field)
        return try raw(Int(count), field)
    }
}
