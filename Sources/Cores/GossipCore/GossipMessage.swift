// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// What two nodes say to each other on a link: HyParView (JOIN to SHUFFLEREPLY), Plumtree (GOSSIP to
/// PRUNE) and anti-entropy (DIGEST, RECORDS). Names as in the papers.
package enum GossipMessage: Equatable, Sendable {
    /// The sender wants to be a neighbour, and the receiver to spread the word. Answered by
    /// `neighborReply`.
    case join(SignedAnnouncement)
    /// Walks over `ttl` more hops; where it ends, somebody offers the newcomer to be a neighbour.
    case forwardJoin(SignedAnnouncement, ttl: UInt8)
    /// With high priority it is accepted always, else if there is room. Answered by
    /// `neighborReply`.
    case neighbor(isHighPriority: Bool)
    case neighborReply(isAccepted: Bool)
    /// The sender is no neighbour any more.
    case disconnect
    /// Part of the views of `origin`; walks over `ttl` more hops.
    case shuffle(origin: EndpointID, ttl: UInt8, nodes: [EndpointID])
    case shuffleReply([EndpointID])
    /// An announcement that has gone over `round` hops.
    case gossip(CarriedAnnouncement, round: UInt8)
    /// Announcements that the sender has, each with the hops it would have gone over.
    case iHave([LazyPush])
    /// The sender wants to be pushed to what comes from the same endpoint as this announcement did, and
    /// to get it if it `isWanted`.
    case graft(MessageID, round: UInt8, isWanted: Bool)
    /// The sender has got this from elsewhere already: what comes from the same endpoint, announce only.
    case prune(MessageID)
    /// All that the sender knows.
    case digest([DigestEntry])
    /// What the receiver's digest did not have.
    case records([CarriedAnnouncement])

    package struct LazyPush: Equatable, Sendable {
        package var id: MessageID
        package var round: UInt8
        package init(id: MessageID, round: UInt8) {
            self.id = id
            self.round = round
        }
    }

    package struct DigestEntry: Equatable, Sendable {
        package var endpoint: EndpointID
        package var version: AnnouncementVersion
        package init(endpoint: EndpointID, version: AnnouncementVersion) {
            self.endpoint = endpoint
            self.version = version
        }
    }

    /// The first byte of each message.
    static let format: UInt8 = 1

    enum Kind: UInt8 {
        case join = 1
        case forwardJoin = 2
        case neighbor = 3
        case neighborReply = 4
        case disconnect = 5
        case shuffle = 6
        case shuffleReply = 7
        case gossip = 8
        case iHave = 9
        case graft = 10
        case prune = 11
        case digest = 12
        case records = 13
    }

    // MARK: - Encoding

    package func encoded() -> [UInt8] {
        var writer = ByteWriter(capacity: 64)
        writer.byte(Self.format)
        switch self {
        case .join(let announcement):
            writer.kind(.join)
            writer.announcement(announcement)
        case .forwardJoin(let announcement, let ttl):
            writer.kind(.forwardJoin)
            writer.byte(ttl)
            writer.announcement(announcement)
        case .neighbor(let isHighPriority):
            writer.kind(.neighbor)
            writer.flag(isHighPriority)
        case .neighborReply(let isAccepted):
            writer.kind(.neighborReply)
            writer.flag(isAccepted)
        case .disconnect: writer.kind(.disconnect)
        case .shuffle(let origin, let ttl, let nodes):
            writer.kind(.shuffle)
            writer.byte(ttl)
            writer.raw(origin.bytes)
            writer.endpoints(nodes)
        case .shuffleReply(let nodes):
            writer.kind(.shuffleReply)
            writer.endpoints(nodes)
        case .gossip(let carried, let round):
            writer.kind(.gossip)
            writer.byte(round)
            writer.carried(carried)
        case .iHave(let pushes):
            writer.kind(.iHave)
            writer.byte(UInt8(pushes.count))
            for push in pushes {
                writer.integer(push.id.rawValue)
                writer.byte(push.round)
            }
        case .graft(let id, let round, let isWanted):
            writer.kind(.graft)
            writer.byte(round)
            writer.flag(isWanted)
            writer.integer(id.rawValue)
        case .prune(let id):
            writer.kind(.prune)
            writer.integer(id.rawValue)
        case .digest(let entries):
            writer.kind(.digest)
            writer.integer(UInt16(entries.count))
            for entry in entries {
                writer.raw(entry.endpoint.bytes)
                writer.integer(entry.version.epoch)
                writer.integer(entry.version.timestamp)
            }
        case .records(let records):
            writer.kind(.records)
            writer.byte(UInt8(records.count))
            for record in records { writer.carried(record) }
        }
        precondition(
            writer.bytes.count <= GossipLimits.messageBytesMax, "messages are made to fit")
        return writer.bytes
    }

    /// Records, in as many messages as they need.
    static func records(splitting records: [CarriedAnnouncement]) -> [GossipMessage] {
        var messages: [GossipMessage] = []
        var batch: [CarriedAnnouncement] = []
        let overhead = 3
        var byteCount = overhead
        for record in records {
            let size = record.signed.bytes.count + 4
            if byteCount + size > GossipLimits.messageBytesMax || batch.count == Int(UInt8.max) {
                messages.append(.records(batch))
                batch = []
                byteCount = overhead
            }
            batch.append(record)
            byteCount += size
        }
        if !batch.isEmpty { messages.append(.records(batch)) }
        return messages
    }

    // MARK: - Decoding

    /// - Throws: `unknown` with the field `format` or `kind` for what a later version may send.
    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        guard bytes.count <= GossipLimits.messageBytesMax else {
            throw .outOfRange(field: "message")
        }
        var reader = ByteReader(bytes)
        guard try reader.byte("format") == Self.format else { throw .unknown(field: "format") }
        guard let kind = Kind(rawValue: try reader.byte("kind")) else {
            throw .unknown(field: "kind")
        }
        switch kind {
        case .join: self = .join(try reader.announcement())
        case .forwardJoin:
            let ttl = try reader.byte("ttl")
            self = .forwardJoin(try reader.announcement(), ttl: ttl)
        case .neighbor: self = .neighbor(isHighPriority: try reader.flag("priority"))
        case .neighborReply: self = .neighborReply(isAccepted: try reader.flag("accepted"))
        case .disconnect: self = .disconnect
        case .shuffle:
            let ttl = try reader.byte("ttl")
            let origin = try EndpointID(from: &reader, "origin")
            self = .shuffle(origin: origin, ttl: ttl, nodes: try reader.endpoints())
        case .shuffleReply: self = .shuffleReply(try reader.endpoints())
        case .gossip:
            let round = try reader.byte("round")
            self = .gossip(try reader.carried(), round: round)
        case .iHave: self = .iHave(try reader.pushes())
        case .graft:
            let round = try reader.byte("round")
            let isWanted = try reader.flag("wanted")
            self = .graft(MessageID(try reader.integer("id")), round: round, isWanted: isWanted)
        case .prune: self = .prune(MessageID(try reader.integer("id")))
        case .digest: self = .digest(try reader.digest())
        case .records: self = .records(try reader.records())
        }
        try reader.end()
    }
}

/// An announcement on its way, and for how long its sender has heard nothing newer, in seconds: ages
/// without a comparison of wall clocks.
package struct CarriedAnnouncement: Equatable, Sendable {
    package var signed: SignedAnnouncement
    package var silence: UInt16

    package init(_ signed: SignedAnnouncement, silence: UInt16) {
        self.signed = signed
        self.silence = silence
    }
}

// MARK: - Pieces

extension ByteWriter {
    fileprivate mutating func kind(_ kind: GossipMessage.Kind) { byte(kind.rawValue) }

    fileprivate mutating func announcement(_ announcement: SignedAnnouncement) {
        integer(UInt16(announcement.bytes.count))
        raw(announcement.bytes)
    }

    fileprivate mutating func carried(_ carried: CarriedAnnouncement) {
        integer(carried.silence)
        announcement(carried.signed)
    }

    fileprivate mutating func endpoints(_ nodes: [EndpointID]) {
        byte(UInt8(nodes.count))
        for node in nodes { raw(node.bytes) }
    }
}

extension ByteReader {
    fileprivate mutating func announcement() throws(DecodeError) -> SignedAnnouncement {
        let count: UInt16 = try integer("announcement")
        guard count <= GossipLimits.announcementBytesMax else {
            throw .outOfRange(field: "announcement")
        }
        return try SignedAnnouncement(decoding: Array(try raw(Int(count), "announcement")))
    }

    fileprivate mutating func carried() throws(DecodeError) -> CarriedAnnouncement {
        let silence: UInt16 = try integer("silence")
        return CarriedAnnouncement(try announcement(), silence: silence)
    }

    fileprivate mutating func endpoints() throws(DecodeError) -> [EndpointID] {
        let count = try byte("nodes")
        guard count <= GossipLimits.shuffleMax else { throw .outOfRange(field: "nodes") }
        var nodes: [EndpointID] = []
        for _ in 0..<count { nodes.append(try EndpointID(from: &self, "node")) }
        return nodes
    }

    fileprivate mutating func pushes() throws(DecodeError) -> [GossipMessage.LazyPush] {
        let count = try byte("pushes")
        guard (1...GossipLimits.idsPerMessageMax).contains(Int(count)) else {
            throw .outOfRange(field: "pushes")
        }
        var pushes: [GossipMessage.LazyPush] = []
        for _ in 0..<count {
            let id = MessageID(try integer("id"))
            pushes.append(GossipMessage.LazyPush(id: id, round: try byte("round")))
        }
        return pushes
    }

    /// Ascending by endpoint, each once.
    fileprivate mutating func digest() throws(DecodeError) -> [GossipMessage.DigestEntry] {
        let count: UInt16 = try integer("entries")
        guard count <= GossipLimits.recordsMax else { throw .outOfRange(field: "entries") }
        guard Int(count) * (EndpointID.byteCount + 16) <= remaining else {
            throw .truncated(field: "entries")
        }
        var entries: [GossipMessage.DigestEntry] = []
        entries.reserveCapacity(Int(count))
        for _ in 0..<count {
            let endpoint = try EndpointID(from: &self, "endpoint")
            if let last = entries.last, last.endpoint >= endpoint {
                throw .malformed(field: "entries")
            }
            let version = try AnnouncementVersion(from: &self)
            entries.append(GossipMessage.DigestEntry(endpoint: endpoint, version: version))
        }
        return entries
    }

    fileprivate mutating func records() throws(DecodeError) -> [CarriedAnnouncement] {
        let count = try byte("records")
        guard count > 0 else { throw .outOfRange(field: "records") }
        var records: [CarriedAnnouncement] = []
        for _ in 0..<count { records.append(try carried()) }
        return records
    }
}
