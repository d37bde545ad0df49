// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import DNSWire
import EgressService
import MDNSCore
import ResolverCore

extension Decoder {
    // MARK: From everybody on the link, and from name servers

    static let dnsMessage = Decoder(name: "dns-message") { bytes in
        guard let message = try? DNSMessage(decoding: bytes) else { return false }
        let encoded = message.encoded()
        // What was compressed inside data that is not understood comes out longer.
        if encoded.count <= DNSMessage.bytesMax {
            check((try? DNSMessage(decoding: encoded)) == message)
        }
        _ = DiscoveryRecord(endpoint, records: message.answers)
        return true
    } examples: {
        [announcement.encoded(), announcement.encoded(style: .classic), query.encoded()]
    }

    /// What a machine makes of a packet: it must neither trap nor break its own promises.
    static let multicastDNS = Decoder(name: "multicast-dns") { bytes in
        var machine = MDNSMachine(
            configuration: MDNSConfiguration(endpoint: endpoint, node: NodeID(1)))
        var random = RandomSource(seed: 1)
        var effects: [MDNSEffect] = []
        var now = MonotonicInstant(nanoseconds: 1_000_000_000)
        let own = IPAddress.v4(0x0a00_0001)
        let interface = MDNSInterface(index: 1, prefixes: [IPPrefix(own, 24)], announced: [own])
        machine.step(.port(7700), now: now, random: &random, into: &effects)
        machine.step(.interfaces([interface]), now: now, random: &random, into: &effects)
        for seconds: Int64 in [0, 10] {
            for port: UInt16 in [5353, 40_000] {
                now = now + .seconds(seconds)
                machine.step(.timeout, now: now, random: &random, into: &effects)
                let packet = MDNSPacket(
                    bytes: bytes, interface: 1, source: .v4(0x0a00_0002), sourcePort: port)
                machine.step(.received(packet), now: now, random: &random, into: &effects)
                machine.checkInvariants()
            }
        }
        for effect in effects {
            guard case .send(let bytes, _, _) = effect else { continue }
            check((try? DNSMessage(decoding: bytes)) != nil)
        }
        return (try? DNSMessage(decoding: bytes)) != nil
    } examples: {
        var claim = announcement
        claim.flags = []
        claim.questions = [DNSQuestion(MDNS.service, DNSType.any, wantsUnicast: true)]
        swap(&claim.authorities, &claim.answers)
        return [announcement.encoded(), query.encoded(), claim.encoded()]
    }

    /// A TXT record where a node's addresses are looked for.
    static let discoveryRecord = Decoder(name: "discovery-record") { bytes in
        let strings = stride(from: 0, to: bytes.count, by: 255).map {
            Array(bytes[$0..<min(bytes.count, $0 + 255)])
        }
        let found = DiscoveryRecord(
            endpoint, records: [DNSRecord(resolved, ttl: 9, .text(strings))])
        guard let found else { return false }
        let records = found.records(origin: resolved, ttl: 9)
        check(records.flatMap { DiscoveryRecord(endpoint, records: $0) } == found)
        return true
    } examples: {
        [
            "addr=192.0.2.1:7700", "addr=192.0.2.1:7700 [2001:db8::1]:7700 nonsense:1",
            "addr=" + String(repeating: "192.0.2.1:1 ", count: 20) + "192.0.2.2:65535",
        ].map { Array($0.utf8) }
    }

    static let resolver = Decoder(name: "resolver") { bytes in
        var machine = ResolverMachine()
        var random = RandomSource(seed: 1)
        var effects: [ResolverEffect] = []
        let now = MonotonicInstant(nanoseconds: 1_000_000_000)
        let server = ResolverServer(.v4(1))
        machine.step(.servers([server]), now: now, random: &random, into: &effects)
        let lookUp = ResolverInput.lookUp(LookUpID(1), resolved, type: DNSType.txt)
        machine.step(lookUp, now: now, random: &random, into: &effects)
        guard case .ask(let exchange, let asked, _, _)? = effects.last else { return false }
        // The id is the one part that no mutation would guess.
        let answer = Array(asked.prefix(2)) + bytes.dropFirst(2)
        let input = ResolverInput.received(exchange, answer, from: server)
        machine.step(input, now: now, random: &random, into: &effects)
        machine.checkInvariants()
        return effects.contains { if case .answer = $0 { true } else { false } }
    } examples: {
        var message = DNSMessage(flags: [.response, .recursionDesired])
        message.questions = [DNSQuestion(resolved, DNSType.txt)]
        message.answers = [
            DNSRecord(resolved, ttl: 9, .alias(MDNS.service)),
            DNSRecord(MDNS.service, ttl: 9, .text([Array("addr=192.0.2.1:7700".utf8)])),
        ]
        var absent = DNSMessage(flags: .response)
        absent.questions = message.questions
        absent.authorities = [DNSRecord(.root, ttl: 9, .other(type: DNSType.soa, bytes(22)))]
        return [message.encoded(), absent.encoded()]
    }
}

extension Decoder {
    // MARK: gossip.sock

    static let gossipRequest = Decoder(name: "gossip-request") { bytes in
        guard let value = try? GossipRequest(decoding: bytes) else { return false }
        check(value.encoded() == bytes)
        return true
    } examples: {
        [GossipRequest.listDiscovered.encoded(), GossipRequest.listPeers.encoded()]
    }

    static let gossipReply = Decoder(name: "gossip-reply") { bytes in
        guard let value = try? GossipReply(decoding: bytes) else { return false }
        check((try? GossipReply(decoding: value.encoded())) == value)
        return true
    } examples: {
        let found = DiscoveredPeer(
            source: .mdns, node: NodeID(2), endpoint: endpoint, addresses: peer.addresses)
        return [
            GossipReply.discovered([found, found]),
            .peers([
                PeerLine(
                    endpoint: endpoint, node: NodeID(2), sources: ["mdns", "gossip"],
                    addresses: peer.addresses, isConnected: true, standing: "alive",
                    roundTripMicroseconds: 350, lastSeenMilliseconds: 1200, version: "1.0.0",
                    reason: "")
            ]), .failed(code: .unavailable, message: "no"),
        ].map { $0.encoded() }
    }
}

extension Decoder {
    // MARK: egress.sock, and what it reads

    static let egressRequest = Decoder(name: "egress-request") { bytes in
        guard let value = try? EgressRequest(decoding: bytes) else { return false }
        check(value.encoded() == bytes)
        return true
    } examples: {
        [
            EgressRequest.nameServers, .nameServer(place: 1, isStream: true),
        ].map { $0.encoded() }
    }

    static let egressReply = Decoder(name: "egress-reply") { bytes in
        guard let value = try? EgressReply(decoding: bytes) else { return false }
        check((try? EgressReply(decoding: value.encoded())) == value)
        return true
    } examples: {
        [
            EgressReply.nameServers(["192.0.2.1:53", "[2001:db8::1]:53"]),
            .connected(address: "192.0.2.1:53"), .failed(code: .unavailable, message: "no"),
        ].map { $0.encoded() }
    }

    static let resolverFile = Decoder(name: "resolver-file") { bytes in
        let servers = NameServers.parse(bytes)
        check(!servers.isEmpty && servers.count <= EgressLimits.nameServersMax)
        let written = servers.map { "nameserver \($0.address)\n" }.joined()
        check(NameServers.parse(Array(written.utf8)) == servers)
        return servers.count > 1
    } examples: {
        ["# none\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\noptions edns0\n"].map {
            Array($0.utf8)
        }
    }
}

private let resolved: DNSName = {
    guard let name = DNSName("_iroh.example") else { preconditionFailure("a name") }
    return name
}()

private let query: DNSMessage = {
    var message = DNSMessage()
    message.questions = [
        DNSQuestion(MDNS.service, DNSType.ptr), DNSQuestion(MDNS.services, DNSType.any),
    ]
    message.answers = [announcement.answers[0]]
    return message
}()

/// Of a node, as others announce it.
private let announcement: DNSMessage = {
    guard let instance = MDNS.service.child(Array("other".utf8)),
        let host = DNSName("other.local")
    else { preconditionFailure("names") }
    var message = DNSMessage(flags: [.response, .authoritative])
    message.answers = [
        DNSRecord(MDNS.service, ttl: 4500, .pointer(instance)),
        DNSRecord(
            instance, ttl: 120, .service(priority: 0, weight: 0, port: 7700, target: host),
            flushesCache: true),
        DNSRecord(
            instance, ttl: 4500,
            .text(
                ["id=aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq", "node=2", "v=1"].map {
                    Array($0.utf8)
                }), flushesCache: true),
        DNSRecord(host, ttl: 120, .address(.v4(0x0a00_0002)), flushesCache: true),
        DNSRecord(host, ttl: 120, .address(.v6(1 << 120)), flushesCache: true),
        DNSRecord(host, ttl: 120, .exists(next: host, types: [1, 28]), flushesCache: true),
    ]
    return message
}()
