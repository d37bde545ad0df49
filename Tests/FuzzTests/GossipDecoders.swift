// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
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
            .graft(MessageID(7), round: 1, isWanted: true),
            .graft(MessageID(7), round: 0, isWanted: false), .prune(MessageID(7)),
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

    /// What a machine makes of a message from a neighbour, where all signatures hold: it must neither
    /// trap nor break its own promises, and what it says has to be understood.
    static let gossipMachine = Decoder(name: "gossip-machine") { bytes in
        var configuration = GossipConfiguration(own: other(1), topic: topic, epoch: 2)
        configuration.activeMax = 2
        var machine = GossipMachine(configuration: configuration) { _, _, _ in true }
        var random = RandomSource(seed: 1)
        var effects: [GossipEffect] = []
        var now = MonotonicInstant(nanoseconds: 1_000_000_000_000)
        func step(_ input: GossipInput) {
            var fresh: [GossipEffect] = []
            machine.step(input, now: now, random: &random, into: &fresh)
            machine.checkInvariants()
            effects += fresh
            for case .sign(_, let ticket) in fresh {
                step(.signed(ticket, signature: [UInt8](repeating: 3, count: 64)))
            }
        }
        step(.wallClock(milliseconds: 1_790_000_000_000))
        step(.described(description))
        step(.members([GossipMember(endpoint: other(2), node: NodeID(4))]))
        for neighbor in [endpoint, other(2)] {
            step(.linkUp(neighbor))
            step(.received(GossipMessage.neighbor(isHighPriority: true).encoded(), from: neighbor))
        }
        for seconds: Int64 in [0, 2, 40, 400] {
            now = now + .seconds(seconds)
            step(.timeout)
            step(.received(bytes, from: endpoint))
        }
        for case .send(let bytes, _) in effects {
            check((try? GossipMessage(decoding: bytes)) != nil)
        }
        return (try? GossipMessage(decoding: bytes)) != nil
    } examples: {
        try gossipMessage.examples()
    }

    private static func other(_ number: UInt8) -> EndpointID {
        var bytes = endpoint.bytes
        bytes[0] ^= number
        guard let other = EndpointID(bytes: bytes) else { preconditionFailure("32 bytes") }
        return other
    }

    private static let topic = GossipTopic(cookieKey: bytes(32))
    private static let description = NodeDescription(
        node: NodeID(4), addresses: ["127.0.0.1:7701", "[::1]:1"], services: [1, 2],
        programVersion: "1.0.0")

    private static let announcement: SignedAnnouncement = {
        let version = AnnouncementVersion(epoch: 3, timestamp: 1_790_000_000_000)
        let announcement = Announcement(
            topic: topic, endpoint: endpoint, version: version, description,
            reports: [PeerReport(subject: endpoint, kind: .linked, version: version)])
        return SignedAnnouncement(announcement, signature: bytes(64))
    }()
}
