// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import GossipCore

extension Decoder {
    // MARK: Between members

    static let gossipMessage = Decoder(name: "gossip-message") { bytes in
        guard let message = try? GossipMessage(decoding: bytes) else { return false }
        check(message.encoded() == bytes)
        return true
    } examples: {
        let carried = CarriedAnnouncement(announcement, silence: 9)
        return [
            GossipMessage.join(announcement), .forwardJoin(announcement, ttl: 6),
            .neighbor(isHighPriority: true), .neighborReply(isAccepted: false), .disconnect,
            .shuffle(origin: endpoint, ttl: 3, nodes: [endpoint, endpoint]),
            .shuffleReply([endpoint]), .gossip(carried, round: 2),
            .iHave([GossipMessage.LazyPush(id: MessageID(7), round: 1)]),
            .graft(MessageID(7), round: 1), .graft(nil, round: 0), .prune,
            .digest([
                GossipMessage.DigestEntry(
                    endpoint: endpoint, version: announcement.announcement.version)
            ]), .records([carried, carried]),
        ].map { $0.encoded() }
    }

    static let gossipAnnouncement = Decoder(name: "gossip-announcement") { bytes in
        guard let signed = try? SignedAnnouncement(decoding: bytes) else { return false }
        check(signed.announcement.encoded() + signed.signature == bytes)
        return true
    } examples: {
        [announcement.bytes]
    }

    private static let announcement: SignedAnnouncement = {
        let version = AnnouncementVersion(epoch: 3, timestamp: 1_790_000_000_000)
        let announcement = Announcement(
            topic: GossipTopic(cookieKey: bytes(32)), endpoint: endpoint, version: version,
            NodeDescription(
                node: NodeID(4), addresses: ["127.0.0.1:7701", "[::1]:1"], services: [1, 2],
                programVersion: "1.0.0"),
            reports: [PeerReport(subject: endpoint, kind: .linked, version: version)])
        return SignedAnnouncement(announcement, signature: bytes(64))
    }()
}
