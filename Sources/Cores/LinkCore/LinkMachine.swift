// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// Whom a node keeps connections with, which of several it uses, and when a peer counts as lost.
///
/// - Every member (and, before there is a membership, every configured peer) with an address is
///   dialled until there is a proved connection, whoever made it.
/// - Two nodes that dial each other at once have two connections. New streams go to the one that
///   the smaller endpoint id dialled, then to the newest; both sides see the same two and choose
///   alike. The other keeps its streams and is closed by its dialler once it has none, so nothing
///   flaps. A peer that has restarted (another incarnation) makes its former connections void, and
///   so does one that dials again long after: it would not if it had them still. Soon after, two dials
///   may have crossed; so whoever dials says which connections with this peer are over for it, and
///   those end. (That it has none would not do: he who crosses says so, too.)
/// - A lost connection is reported only after the redial grace, a service that is seen to end at
///   once. A net that has just restarted says `unknown` of its service: that is not `gone`.
package struct LinkMachine: Machine {
    package typealias Input = LinkInput
    package typealias Effect = LinkEffect

    private let configuration: LinkConfiguration
    private var peers: [EndpointID: PeerLink] = [:]
    /// The keys of `peers`, ascending: every walk goes through this, for the same order everywhere.
    private var order: [EndpointID] = []
    private var owners: [LinkID: EndpointID] = [:]
    /// Of whoever it is; looked up only.
    private var learned: [EndpointID: [String]] = [:]
    package private(set) var isClosed = false

    package init(configuration: LinkConfiguration) { self.configuration = configuration }

    package mutating func step(
        _ input: consuming LinkInput, now: MonotonicInstant, random: inout RandomSource,
        into effects: inout [LinkEffect]
    ) {
        switch input {
        case .timeout: break
        case .configured(let list): configure(list, now, &effects)
        case .members(let list, let isClosed): setMembers(list, isClosed, now, &effects)
        case .learned(let list): learn(list, now, &effects)
        case .wanted(let endpoint): want(endpoint, now)
        case .proved(let id, let endpoint, let isInbound, let incarnation, let service, let name):
            let link = Link(
                id: id, name: name, isInbound: isInbound, incarnation: incarnation, provedAt: now,
                service: service, idleSince: now)
            proved(link, endpoint, now, &effects)
        case .unanswered(let endpoint, let name): peers[endpoint]?.isOver(name)
        case .over(let id, let names): end(names, but: id, &effects)
        case .dialFailed(let endpoint, let failure):
            dialFailed(endpoint, failure, now, &random)
        case .service(let id, let state):
            with(id) { $0.service = state }
        case .carrying(let id, let isCarrying):
            with(id) { $0.idleSince = isCarrying ? nil : now }
        case .closed(let id, let reason): closed(id, reason, now, &random, &effects)
        }
        for endpoint in order { settle(endpoint, now, &effects) }
    }

    package var deadline: MonotonicInstant? {
        var earliest: MonotonicInstant?
        for place in peers.values.indices {
            guard let next = peers.values[place].deadline(configuration) else { continue }
            earliest = min(earliest ?? next, next)
        }
        return earliest
    }

    // MARK: - What the shell may ask

    /// Whether a connection for `aspen-raft` with this endpoint may come about at all.
    package func admits(_ endpoint: EndpointID) -> Bool {
        if endpoint == configuration.own { return false }
        guard let peer = peers[endpoint] else {
            return !isClosed && strangers < configuration.peersMax
        }
        return peer.isMember || !isClosed
    }

    /// Where a stream to this peer goes.
    package func primary(of endpoint: EndpointID) -> LinkID? { peers[endpoint]?.links.first?.id }

    /// Where it can be dialled, as far as anybody said.
    package func addresses(of endpoint: EndpointID) -> [String] {
        peers[endpoint]?.addresses ?? learned[endpoint] ?? []
    }

    /// Which connections with this peer are over, ascending: to be told when it is dialled, behind the
    /// proof. At most `LinkName.overMax`.
    package func over(with endpoint: EndpointID) -> [LinkName] {
        (peers[endpoint]?.over ?? []).sorted()
    }

    /// Whether the peer is dialled, so that waiting for it makes sense.
    package func isExpected(_ endpoint: EndpointID) -> Bool {
        guard let peer = peers[endpoint] else { return false }
        return peer.isWanted(isClosed: isClosed)
    }

    /// Every peer with what was reported of it, in ascending order.
    package var standings: [(endpoint: EndpointID, standing: LinkStanding)] {
        order.compactMap { endpoint in
            peers[endpoint].map { (endpoint, $0.standing) }
        }
    }

    /// Peers with a proved connection.
    package var connectedCount: Int { order.count { peers[$0]?.links.isEmpty == false } }

    // MARK: - Lists

    private mutating func configure(
        _ list: [LinkPeer], _ now: MonotonicInstant, _ effects: inout [LinkEffect]
    ) {
        for endpoint in order { peers[endpoint]?.configuredAddresses = nil }
        for peer in list.prefix(configuration.peersMax) where peer.endpoint != configuration.own {
            insert(peer.endpoint, now)
            peers[peer.endpoint]?.configuredAddresses = peer.addresses
            named(peer.endpoint, now)
        }
        dropUnnamed(&effects)
    }

    private mutating func setMembers(
        _ list: [LinkPeer], _ isClosed: Bool, _ now: MonotonicInstant,
        _ effects: inout [LinkEffect]
    ) {
        let reopened = self.isClosed && !isClosed
        self.isClosed = isClosed
        let former = peers
        for endpoint in order { peers[endpoint]?.memberAddresses = nil }
        for peer in list where peer.endpoint != configuration.own {
            insert(peer.endpoint, now)
            peers[peer.endpoint]?.memberAddresses = peer.addresses
            // The same list again must not shorten a wait: it would defeat the back-off.
            if former[peer.endpoint]?.memberAddresses != peer.addresses {
                named(peer.endpoint, now)
            }
        }
        if reopened {
            for endpoint in order where peers[endpoint]?.isMember == false {
                named(endpoint, now)
            }
        }
        dropUnnamed(&effects)
    }

    private mutating func learn(
        _ list: [LinkPeer], _ now: MonotonicInstant, _ effects: inout [LinkEffect]
    ) {
        learned.removeAll(keepingCapacity: true)
        for peer in list.prefix(configuration.learnedMax) where peer.endpoint != configuration.own {
            learned[peer.endpoint] = Array(peer.addresses.prefix(Limits.addressesMax))
        }
        for endpoint in order {
            let addresses = learned[endpoint] ?? []
            guard var peer = peers[endpoint], peer.learnedAddresses != addresses else { continue }
            // Only what is new is a reason not to wait, and not more often than an impatient caller is.
            let new = addresses.filter { !peer.addresses.contains($0) }
            peer.learnedAddresses = addresses
            peers[endpoint] = peer
            guard !new.isEmpty, peer.isNamed else { continue }
            named(endpoint, now)
            if let last = peer.lastDial, let next = peers[endpoint]?.nextDial {
                peers[endpoint]?.nextDial = max(next, last + configuration.wantedSpacing)
            }
            // Nor for a dial that may last until its time is over: there is nobody any more.
            let isEarly = peer.lastExtraDial.map { now < $0 + configuration.wantedSpacing } ?? false
            guard peer.dials == 1, !isEarly, peer.links.isEmpty,
                peers[endpoint]?.isWanted(isClosed: isClosed) == true
            else { continue }
            peers[endpoint]?.dials = 2
            peers[endpoint]?.lastExtraDial = now
            effects.append(.dial(endpoint, addresses: new))
        }
    }

    private mutating func named(_ endpoint: EndpointID, _ now: MonotonicInstant) {
        let delay = firstDelay(endpoint)
        peers[endpoint]?.named(now, delay: delay, configuration)
    }

    /// Cuts off whom nobody names while closed, and forgets whom nobody names or is connected to.
    private mutating func dropUnnamed(_ effects: inout [LinkEffect]) {
        for endpoint in order {
            guard var peer = peers[endpoint], isClosed, !peer.isMember else { continue }
            if peer.announcedPrimary != nil { effects.append(.primary(endpoint, nil)) }
            peer.announcedPrimary = nil
            for link in peer.links {
                owners[link.id] = nil
                peer.isOver(link.name)
                effects.append(.close(link.id, .notMember))
            }
            peer.links.removeAll()
            if peer.standing == .up || peer.standing == .serviceGone {
                effects.append(.peerDown(endpoint, reason: "it is no member"))
            }
            peer.standing = .down(reason: "it is no member")
            peer.graceEnds = nil
            peers[endpoint] = peer
        }
        forgetUnused()
    }

    private mutating func forgetUnused() {
        for endpoint in order {
            guard let peer = peers[endpoint], !peer.isNamed, peer.links.isEmpty, !peer.isDialling,
                peer.standing != .up, peer.standing != .serviceGone
            else { continue }
            peers[endpoint] = nil
        }
        order.removeAll { peers[$0] == nil }
    }

    private mutating func insert(_ endpoint: EndpointID, _ now: MonotonicInstant) {
        guard peers[endpoint] == nil else { return }
        var peer = PeerLink(graceEnds: now + configuration.redialGrace)
        peer.learnedAddresses = learned[endpoint] ?? []
        peers[endpoint] = peer
        let place = order.firstIndex { endpoint < $0 } ?? order.endIndex
        order.insert(endpoint, at: place)
    }

    /// Peers that are no members, named or not.
    private var strangers: Int { order.count { peers[$0]?.isMember == false } }

    private func firstDelay(_ endpoint: EndpointID) -> Duration {
        configuration.own < endpoint ? .zero : configuration.courtesy
    }

    // MARK: - Connections

    private mutating func want(_ endpoint: EndpointID, _ now: MonotonicInstant) {
        // A peer that said no is not asked more often because somebody here is impatient.
        guard let peer = peers[endpoint], peer.links.isEmpty, !peer.isDialling, !peer.isRefused,
            let next = peer.nextDial
        else { return }
        let earliest = peer.lastDial.map { $0 + configuration.wantedSpacing } ?? now
        peers[endpoint]?.nextDial = min(next, max(now, earliest))
    }

    private mutating func proved(
        _ link: Link, _ endpoint: EndpointID, _ now: MonotonicInstant,
        _ effects: inout [LinkEffect]
    ) {
        precondition(owners[link.id] == nil, "a connection is proved once")
        if !link.isInbound, let dials = peers[endpoint]?.dials {
            peers[endpoint]?.dials = max(0, dials - 1)
        }
        guard admits(endpoint) else {
            effects.append(.close(link.id, isClosed ? .notMember : .tooManyPeers))
            return
        }
        insert(endpoint, now)
        guard var peer = peers[endpoint] else { return }
        for old in peer.links where link.supersedes(old, configuration) {
            owners[old.id] = nil
            peer.isOver(old.name)
            effects.append(.close(old.id, .superseded))
        }
        peer.links.removeAll { link.supersedes($0, configuration) }
        owners[link.id] = endpoint
        // Newest first among equals; those that the smaller id dialled before all others.
        let preferred = configuration.own < endpoint
        let isPreferred = { (link: Link) in link.isInbound != preferred }
        let place = isPreferred(link) ? 0 : peer.links.count { isPreferred($0) }
        peer.links.insert(link, at: place)
        if peer.links.count > configuration.connectionsPerPeerMax, let last = peer.links.popLast() {
            owners[last.id] = nil
            peer.isOver(last.name)
            effects.append(.close(last.id, .duplicate))
        }
        peer.failures = 0
        peer.isRefused = false
        peer.nextDial = nil
        peer.lastFailure = nil
        peers[endpoint] = peer
    }

    private mutating func dialFailed(
        _ endpoint: EndpointID, _ failure: DialFailure, _ now: MonotonicInstant,
        _ random: inout RandomSource
    ) {
        guard var peer = peers[endpoint] else { return }
        peer.dials = max(0, peer.dials - 1)
        peer.lastFailure = failure.reason
        if case .unreachable = failure { peer.isRefused = false } else { peer.isRefused = true }
        if peer.links.isEmpty, !peer.isDialling {
            let (least, most) = configuration.backOff(after: failure)
            peer.nextDial = now + peer.nextDelay(from: least, to: most, &random)
        }
        peers[endpoint] = peer
        forgetUnused()
    }

    private mutating func closed(
        _ id: LinkID, _ reason: String, _ now: MonotonicInstant, _ random: inout RandomSource,
        _ effects: inout [LinkEffect]
    ) {
        guard let endpoint = owners.removeValue(forKey: id), var peer = peers[endpoint] else {
            return
        }
        for link in peer.links where link.id == id { peer.isOver(link.name) }
        peer.links.removeAll { $0.id == id }
        if peer.links.isEmpty {
            peer.lastFailure = reason
            peer.failures = 0
            if !peer.isDialling {
                let delay = peer.nextDelay(
                    from: configuration.backOffMin, to: configuration.backOffMax, &random)
                peer.nextDial = now + delay + firstDelay(endpoint)
            }
        }
        peers[endpoint] = peer
    }

    /// What the peer has given up; it says so on a connection that lives.
    private mutating func end(
        _ names: [LinkName], but id: LinkID, _ effects: inout [LinkEffect]
    ) {
        guard let endpoint = owners[id], var peer = peers[endpoint] else { return }
        let ended = peer.links.filter { $0.id != id && names.contains($0.name) }
        for link in ended {
            owners[link.id] = nil
            effects.append(.close(link.id, .superseded))
        }
        peer.links.removeAll { ended.contains($0) }
        peers[endpoint] = peer
    }

    private mutating func with(_ id: LinkID, _ change: (inout Link) -> Void) {
        guard let endpoint = owners[id], var peer = peers[endpoint],
            let place = peer.links.firstIndex(where: { $0.id == id })
        else { return }
        change(&peer.links[place])
        peers[endpoint] = peer
    }

    // MARK: - Consequences

    /// Everything that follows from the state of one peer and the time.
    private mutating func settle(
        _ endpoint: EndpointID, _ now: MonotonicInstant, _ effects: inout [LinkEffect]
    ) {
        guard var peer = peers[endpoint] else { return }
        if peer.announcedPrimary != peer.links.first?.id {
            peer.announcedPrimary = peer.links.first?.id
            effects.append(.primary(endpoint, peer.announcedPrimary))
        }
        for link in peer.retired(now, configuration) {
            for one in peer.links where one.id == link { peer.isOver(one.name) }
            peer.links.removeAll { $0.id == link }
            owners[link] = nil
            effects.append(.close(link, .duplicate))
        }
        if peer.links.isEmpty, !peer.isDialling, peer.isWanted(isClosed: isClosed) {
            if let next = peer.nextDial, next <= now {
                peer.dials = 1
                peer.nextDial = nil
                peer.lastDial = now
                effects.append(.dial(endpoint, addresses: peer.addresses))
            }
        } else if !peer.isWanted(isClosed: isClosed) {
            peer.nextDial = nil
        }
        report(&peer, endpoint, now, &effects)
        peers[endpoint] = peer
        if !peer.isNamed { forgetUnused() }
    }

    private func report(
        _ peer: inout PeerLink, _ endpoint: EndpointID, _ now: MonotonicInstant,
        _ effects: inout [LinkEffect]
    ) {
        switch peer.links.first?.service {
        case .serving:
            peer.graceEnds = nil
            guard peer.standing != .up else { return }
            peer.standing = .up
            effects.append(.peerUp(endpoint))
        case .gone:
            peer.graceEnds = nil
            guard peer.standing == .up || peer.standing == .pending else { return }
            peer.standing = .serviceGone
            effects.append(.serviceGone(endpoint))
        case .unknown, nil:
            if case .down = peer.standing { return }
            let ends = peer.graceEnds ?? now + configuration.redialGrace
            peer.graceEnds = ends
            guard ends <= now else { return }
            let reason =
                peer.links.isEmpty
                ? peer.lastFailure ?? "no connection" : "its service is not there"
            peer.graceEnds = nil
            peer.standing = .down(reason: reason)
            effects.append(.peerDown(endpoint, reason: reason))
        }
    }

    package func checkInvariants() {
        precondition(order.count == peers.count, "every peer has its place")
        var seen = 0
        for (place, endpoint) in order.enumerated() {
            precondition(place == 0 || order[place - 1] < endpoint, "the order is ascending")
            guard let peer = peers[endpoint] else { preconditionFailure("a place has a peer") }
            seen += peer.links.count
            precondition(endpoint != configuration.own, "nobody dials himself")
            precondition(
                peer.links.count <= configuration.connectionsPerPeerMax, "connections are bounded")
            precondition(
                peer.links.allSatisfy { owners[$0.id] == endpoint }, "connections have owners")
            precondition(
                peer.links.allSatisfy { $0.incarnation == peer.links[0].incarnation },
                "connections of one incarnation")
            precondition(
                peer.links.isEmpty || peer.isMember || !isClosed, "strangers are cut off")
            precondition((0...2).contains(peer.dials), "dials are bounded")
            precondition(
                peer.over.count <= LinkName.overMax
                    && peer.links.allSatisfy { !peer.over.contains($0.name) },
                "what is over is no connection")
            precondition(
                !(peer.isDialling && peer.nextDial != nil), "a dial is running or waits, not both")
            if case .up = peer.standing {
                precondition(
                    peer.links.first?.service == .serving || peer.graceEnds != nil,
                    "up without a serving connection lasts for the grace only")
            }
            if peer.links.isEmpty, !peer.isDialling, peer.isWanted(isClosed: isClosed) {
                precondition(peer.nextDial != nil, "a wanted peer is dialled or will be")
            }
        }
        precondition(seen == owners.count, "no connection without a peer")
    }
}
