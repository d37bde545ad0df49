// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import DNSWire

/// Discovery on the local link: announces this node as an instance of `_aspen._udp.local` and finds
/// the others (RFC 6762, RFC 6763).
///
/// Nothing that comes by multicast DNS is proved: whoever is on the link can claim any endpoint id at
/// any address. What is found is worth an attempt to connect, where the key has to be shown.
package struct MDNSMachine: Machine {
    package typealias Input = MDNSInput
    package typealias Effect = MDNSEffect

    struct Link: Sendable {
        var interface: MDNSInterface
        var responder: Responder
        var browser: Browser
        var deadline: MonotonicInstant
    }

    /// So late a timer means that the process did not run.
    private static let absence = Duration.seconds(10)

    private let configuration: MDNSConfiguration
    private var links: [Link] = []
    private var port: UInt16?
    private var nameNumber = 1
    /// Of the last conflicts, when they were.
    private var conflicts: [MonotonicInstant] = []
    private var budget = PacketBudget()
    private var sent = SentPackets()
    private var told: [MDNSPeer] = []
    /// What was heard on an interface that is gone is gone with it.
    private var hasLostLink = false
    private var isStopped = false
    /// Packets that were not looked at, for the limit or for where they came from.
    package private(set) var ignoredCount: UInt64 = 0

    package init(configuration: MDNSConfiguration) { self.configuration = configuration }

    package mutating func step(
        _ input: consuming MDNSInput, now: MonotonicInstant, random: inout RandomSource,
        into effects: inout [MDNSEffect]
    ) {
        guard !isStopped else { return }
        let start = effects.count
        wakeUp(now, &random, &effects)
        switch input {
        case .timeout: break
        case .interfaces(let list): setInterfaces(list, now, &random, &effects)
        case .port(let port):
            self.port = port
            announceAnew(now, &random, &effects)
        case .received(let packet): received(packet, now, &random, &effects)
        case .doubted(let endpoint):
            for place in links.indices {
                links[place].browser.doubt(endpoint, now, &random)
                links[place].deadline = now
            }
        case .stop:
            isStopped = true
            for place in links.indices { links[place].responder.stop(into: &effects) }
            return
        }
        for place in links.indices where links[place].deadline <= now {
            advance(place, now, &random, &effects)
        }
        report(&effects)
        for effect in effects[start...] {
            if case .send(let bytes, _, .group) = effect { sent.note(bytes, now) }
        }
    }

    package var deadline: MonotonicInstant? {
        isStopped ? nil : links.map(\.deadline).min()
    }

    /// Everybody who is there, ascending.
    package var peers: [MDNSPeer] { told }

    /// What this node is called on the link, for people: "label._aspen._udp.local.".
    package var instanceName: String { names.instance.description }

    private var names: OwnNames {
        OwnNames(endpoint: configuration.endpoint, number: nameNumber)
    }

    // MARK: - Interfaces

    private mutating func setInterfaces(
        _ list: [MDNSInterface], _ now: MonotonicInstant, _ random: inout RandomSource,
        _ effects: inout [MDNSEffect]
    ) {
        let list = list.sorted { $0.index < $1.index }.prefix(MDNSLimits.interfacesMax)
        let former = links
        links = list.map { interface in
            guard var link = former.first(where: { $0.interface.index == interface.index }) else {
                let (index, bytes) = (interface.index, interface.payloadBytesMax)
                return Link(
                    interface: interface,
                    responder: Responder(interface: index, payloadBytesMax: bytes),
                    browser: Browser(interface: index, payloadBytesMax: bytes, now, &random),
                    deadline: now)
            }
            link.interface = interface
            link.responder.payloadBytesMax = interface.payloadBytesMax
            link.browser.payloadBytesMax = interface.payloadBytesMax
            return link
        }
        let present = Set(links.map(\.interface.index))
        if former.contains(where: { !present.contains($0.interface.index) }) { hasLostLink = true }
        announceAnew(now, &random, &effects)
    }

    private mutating func announceAnew(
        _ now: MonotonicInstant, _ random: inout RandomSource, _ effects: inout [MDNSEffect],
        mustProbe: Bool = false, after delay: Duration = .zero
    ) {
        let names = names
        for place in links.indices {
            let addresses = links[place].interface.announced
            var own: OwnRecords?
            if let port, !addresses.isEmpty {
                own = OwnRecords(names, configuration, port: port, addresses)
            }
            links[place].responder.set(
                own, mustProbe: mustProbe, after: delay, now, &random, into: &effects)
            links[place].deadline = now
        }
    }

    // MARK: - Packets

    private mutating func received(
        _ packet: MDNSPacket, _ now: MonotonicInstant, _ random: inout RandomSource,
        _ effects: inout [MDNSEffect]
    ) {
        guard let place = links.firstIndex(where: { $0.interface.index == packet.interface }),
            isOnLink(packet.source, links[place].interface),
            budget.admits(packet.source, byteCount: packet.bytes.count, now)
        else {
            ignoredCount += 1
            return
        }
        guard !sent.contains(packet.bytes, now) else { return }
        let message: DNSMessage
        do throws(DecodeError) {
            message = try DNSMessage(decoding: packet.bytes)
        } catch {
            ignoredCount += 1
            return
        }
        // RFC 6762 sections 18.3 and 18.11.
        guard message.flags.opcode == 0, message.flags.responseCode == 0 else { return }
        if message.flags.contains(.response) {
            response(message, packet, place, now, &random, &effects)
        } else {
            links[place].responder.query(message, from: packet, now, &random)
            if packet.sourcePort == MDNS.port { links[place].browser.query(message, now, &random) }
        }
        settle(place)
        // A unique record is answered at once.
        if links[place].deadline <= now { advance(place, now, &random, &effects) }
    }

    /// Whoever is further away is not believed (RFC 6762 section 11).
    private func isOnLink(_ source: IPAddress, _ interface: MDNSInterface) -> Bool {
        source.isUnicast
            && (source.isLinkLocal || interface.prefixes.contains { $0.contains(source) })
    }

    private mutating func response(
        _ message: DNSMessage, _ packet: MDNSPacket, _ place: Int, _ now: MonotonicInstant,
        _ random: inout RandomSource, _ effects: inout [MDNSEffect]
    ) {
        guard packet.sourcePort == MDNS.port else { return }
        if links[place].responder.response(message, now) {
            conflict(place, now, &random, &effects)
        }
        links[place].browser.response(
            message, from: packet.source, own: links[place].responder.own?.names.instance, now,
            &random)
    }

    /// While it asks whether the names are free, a node takes others; later it asks once more, and so
    /// makes the other one answer (RFC 6762 section 9).
    private mutating func conflict(
        _ place: Int, _ now: MonotonicInstant, _ random: inout RandomSource,
        _ effects: inout [MDNSEffect]
    ) {
        conflicts.removeAll { now - $0 > .seconds(10) }
        let delay: Duration = conflicts.count >= MDNSLimits.conflictsMax ? .seconds(5) : .zero
        if conflicts.count >= MDNSLimits.conflictsMax { conflicts.removeFirst() }
        conflicts.append(now)
        switch links[place].responder.presence {
        case .silent: return
        case .probing: nameNumber = min(nameNumber + 1, 1_000_000)
        case .announcing, .established: break
        }
        announceAnew(now, &random, &effects, mustProbe: true, after: delay)
    }

    // MARK: - Time

    private mutating func advance(
        _ place: Int, _ now: MonotonicInstant, _ random: inout RandomSource,
        _ effects: inout [MDNSEffect]
    ) {
        links[place].responder.advance(now, into: &effects)
        let own = links[place].responder.pointer
        links[place].browser.advance(own: own, now, &random, into: &effects)
        settle(place)
    }

    /// A process that was stopped may have missed that somebody took its name (RFC 6762 section 8).
    private mutating func wakeUp(
        _ now: MonotonicInstant, _ random: inout RandomSource, _ effects: inout [MDNSEffect]
    ) {
        guard let deadline, now - deadline > Self.absence else { return }
        for place in links.indices { links[place].browser.beginAnew(now, &random) }
        announceAnew(now, &random, &effects, mustProbe: true)
    }

    private mutating func settle(_ place: Int) {
        let browser = links[place].browser.deadline
        links[place].deadline = min(links[place].responder.deadline ?? browser, browser)
    }

    // MARK: - What is told

    private mutating func report(_ effects: inout [MDNSEffect]) {
        guard hasLostLink || links.contains(where: \.browser.hasChanged) else { return }
        hasLostLink = false
        for place in links.indices { links[place].browser.hasChanged = false }
        let present = gathered()
        for peer in told where !present.contains(where: { $0.endpoint == peer.endpoint }) {
            effects.append(.lost(peer.endpoint))
        }
        for peer in present where !told.contains(peer) { effects.append(.found(peer)) }
        told = present
    }

    private func gathered() -> [MDNSPeer] {
        var found: [(text: NodeText, port: UInt16, addresses: [IPAddress])] = []
        for link in links {
            found += link.browser.peers.filter { $0.text.endpoint != configuration.endpoint }
        }
        var places: [EndpointID: Int] = [:]
        var gathered: [(peer: MDNSPeer, addresses: [IPAddress])] = []
        for (text, port, addresses) in found {
            let place = places[text.endpoint] ?? gathered.count
            if place == gathered.count {
                places[text.endpoint] = place
                let peer = MDNSPeer(
                    endpoint: text.endpoint, node: text.node, version: text.version, addresses: [])
                gathered.append((peer, []))
            }
            for address in addresses.sorted()
            where gathered[place].peer.addresses.count < MDNSLimits.addressesMax {
                let written = address.text(port: port)
                if !gathered[place].peer.addresses.contains(written) {
                    gathered[place].peer.addresses.append(written)
                }
            }
        }
        for place in gathered.indices { gathered[place].peer.addresses.sort() }
        return gathered.map(\.peer).sorted { $0.endpoint < $1.endpoint }
    }

    package func checkInvariants() {
        precondition(links.count <= MDNSLimits.interfacesMax, "interfaces are bounded")
        for (place, link) in links.enumerated() {
            precondition(
                place == 0 || links[place - 1].interface.index < link.interface.index,
                "interfaces are in order")
            link.responder.checkInvariants()
            link.browser.checkInvariants()
        }
        precondition(conflicts.count <= MDNSLimits.conflictsMax, "conflicts are bounded")
        precondition(
            told.allSatisfy { $0.endpoint != configuration.endpoint }, "nobody finds himself")
    }
}
