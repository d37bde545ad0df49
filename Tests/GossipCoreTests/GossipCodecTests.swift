// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import GossipCore
import Testing

@Suite struct GossipCodecTests {
    static let topic = GossipTopic(cookieKey: [UInt8](repeating: 7, count: 32))

    static func announcement(
        addresses: [String] = ["192.0.2.1:7001", "[2001:db8::1]:7001"], reports: Int = 2
    ) -> Announcement {
        Announcement(
            topic: topic, endpoint: endpoint(1),
            version: AnnouncementVersion(epoch: 3, timestamp: 1_800_000_000_000),
            NodeDescription(
                node: NodeID(4), addresses: addresses, services: [1, 2, 9], programVersion: "1.0.0"),
            reports: (0..<reports).map { number in
                PeerReport(
                    subject: endpoint(50 - number), kind: number % 2 == 0 ? .unreachable : .linked,
                    version: AnnouncementVersion(epoch: 1, timestamp: UInt64(number)))
            })
    }

    static func signed(_ announcement: Announcement = announcement()) -> SignedAnnouncement {
        SignedAnnouncement(announcement, signature: [UInt8](repeating: 5, count: 64))
    }

    static let messages: [GossipMessage] = [
        .join(signed()), .forwardJoin(signed(), ttl: 6), .neighbor(isHighPriority: true),
        .neighborReply(isAccepted: false), .disconnect,
        .shuffle(origin: endpoint(3), ttl: 2, nodes: [endpoint(4), endpoint(5)]),
        .shuffleReply([]),
        .gossip(CarriedAnnouncement(signed(announcement(reports: 0)), silence: 2), round: 3),
        .iHave([GossipMessage.LazyPush(id: MessageID(77), round: 2)]),
        .graft(MessageID(9), round: 1, isWanted: true),
        .graft(MessageID(9), round: 0, isWanted: false), .prune(MessageID(9)),
        .digest([
            GossipMessage.DigestEntry(
                endpoint: endpoint(1), version: AnnouncementVersion(epoch: 1, timestamp: 2)),
            GossipMessage.DigestEntry(
                endpoint: endpoint(2), version: AnnouncementVersion(epoch: 3, timestamp: 4)),
        ]),
        .records([
            CarriedAnnouncement(signed(), silence: 0),
            CarriedAnnouncement(signed(announcement(addresses: [])), silence: 65_535),
        ]),
    ]

    @Test(arguments: messages.indices)
    func aMessageHasOneEncoding(_ place: Int) throws {
        let message = Self.messages[place]
        let bytes = message.encoded()
        #expect(try GossipMessage(decoding: bytes) == message)
        for count in 0..<bytes.count {
            #expect(throws: DecodeError.self) {
                try GossipMessage(decoding: Array(bytes.prefix(count)))
            }
        }
        #expect(throws: DecodeError.self) { try GossipMessage(decoding: bytes + [0]) }
        for bit in 0..<bytes.count * 8 {
            var changed = bytes
            changed[bit / 8] ^= 1 << (bit % 8)
            if let other = try? GossipMessage(decoding: changed) {
                #expect(other.encoded() == changed && other != message)
            }
        }
    }

    @Test func whatIsTooLongIsLeftOutOrRefused() throws {
        let addresses =
            (0..<20).map { "192.0.2.\($0):7001" } + ["192.0.2.0:7001", "with space", ""]
        let long = Announcement(
            topic: Self.topic, endpoint: endpoint(1),
            version: AnnouncementVersion(epoch: 1, timestamp: 1),
            NodeDescription(
                node: nil, addresses: [String(repeating: "a", count: 65)] + addresses,
                services: Set(0..<40), programVersion: String(repeating: "1", count: 33)),
            reports: (1...9).map {
                PeerReport(
                    subject: endpoint($0), kind: .linked,
                    version: AnnouncementVersion(epoch: 1, timestamp: 1))
            })
        #expect(long.addresses == (0..<Limits.addressesMax).map { "192.0.2.\($0):7001" })
        #expect(long.services.count == GossipLimits.servicesMax)
        #expect(long.programVersion.isEmpty)
        #expect(long.reports.count == GossipLimits.reportsMax)
        let signed = Self.signed(long)
        #expect(signed.bytes.count <= GossipLimits.announcementBytesMax)
        #expect(try SignedAnnouncement(decoding: signed.bytes) == signed)
        #expect(throws: DecodeError.outOfRange(field: "announcement")) {
            try SignedAnnouncement(
                decoding: [UInt8](repeating: 1, count: GossipLimits.announcementBytesMax + 1))
        }
        #expect(throws: DecodeError.outOfRange(field: "message")) {
            try GossipMessage(
                decoding: [UInt8](repeating: 1, count: GossipLimits.messageBytesMax + 1))
        }
    }

    /// One field beyond its limit at a time, in bytes that are right otherwise.
    @Test func countsAreBounded() {
        func refused(_ bytes: [UInt8], _ field: StaticStringName) {
            #expect(throws: DecodeError.outOfRange(field: field)) {
                try GossipMessage(decoding: bytes)
            }
        }
        refused([1, 6, 0] + endpoint(1).bytes + [17], "nodes")
        refused([1, 9, 65], "pushes")
        refused([1, 9, 0], "pushes")
        let tooMany = GossipLimits.recordsMax + 1
        refused([1, 12, UInt8(tooMany & 255), UInt8(tooMany >> 8)], "entries")
        refused([1, 13, 0], "records")
        let body = Self.announcement(addresses: [], reports: 0).encoded()
        // Behind it: a count, three services, a version of six bytes with its length, a count.
        let addresses = body.count - 12
        func changed(_ place: Int, _ value: UInt8, _ field: StaticStringName) {
            var bytes = body + [UInt8](repeating: 0, count: 64)
            bytes[place] = value
            #expect(throws: DecodeError.outOfRange(field: field)) {
                try SignedAnnouncement(decoding: bytes)
            }
        }
        changed(addresses, 17, "addresses")
        changed(addresses + 1, 33, "services")
        changed(body.count - 1, 9, "reports")
        changed(44, 0x80, "epoch")
    }

    @Test func topicsAreApart() {
        let other = GossipTopic(cookieKey: [UInt8](repeating: 8, count: 32))
        #expect(other != Self.topic)
        let body = Self.announcement().encoded()
        #expect(
            Announcement.signedText(body, other) != Announcement.signedText(body, Self.topic))
    }
}
