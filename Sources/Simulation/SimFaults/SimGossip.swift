// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import RaftCore
import SimKit

/// What one seed does to the gossip daemons.
package struct GossipScenario: Sendable {
    /// Nodes that have the cookie and belong to no cluster.
    package var strangers = 2
    package var activeMax = 3
    package var passiveMax = 6
    /// Seconds of gossip in one of the cluster's: it has times of its own, and they are longer.
    package var pace: UInt64 = 6
    /// How long trouble goes on among these daemons when that of the cluster is over.
    package var afterwards = Duration.seconds(60)
    /// Mean time between two mishaps of their own.
    package var mishapInterval = Duration.seconds(5)
    /// Of each wall clock, in milliseconds, either way.
    package var skewMax = 20_000
    package var plantedBug: GossipPlantedBug?
}

/// The gossip daemons of all machines: the production machine, joined by simulated links.
///
/// It is a world beside that of the raft daemons. It shares their machines, nets and partitions, and
/// has a heap, a randomness and a pace of its own; what raft daemons live through is the same with it and
/// without. It goes on when they are done: in trouble for a while, then in peace until all know all.
package final class SimGossip {
    typealias Place = Int

    struct Daemon {
        var machine: GossipMachine
        var random: RandomSource
        var links: [Place: Int] = [:]
        var timerAt: MonotonicInstant?
        /// What has happened since it stands still; nil: it runs.
        var waiting: [Event]?
        /// Of links that are not read: what has arrived since.
        var unread: [Place: [Event]] = [:]
        var members: [GossipMember] = []
        /// The newest that it had of each.
        var versions: [EndpointID: AnnouncementVersion] = [:]
    }

    struct Site {
        let endpoint: EndpointID
        var description: NodeDescription
        /// How far the wall clock is off, in milliseconds.
        var skew: Int64
        /// On disk.
        var epoch: UInt64 = 0
        /// Grows with each start.
        var life: UInt64 = 0
        var daemon: Daemon?
        /// The net daemon here, by its life; nil while there is none.
        var net: UInt64?
        /// Last seen without a daemon or a net, or cut off from somebody.
        var disturbedAt = MonotonicInstant.zero
        var isLost = false
        var side = 0
    }

    struct Link {
        let ends: (Place, Place)
        var isCut = false
        var blockedSince: MonotonicInstant?
        /// By direction: to the second end, to the first.
        var sent: [UInt64] = [0, 0]
        var received: [UInt64] = [0, 0]
    }

    enum Event {
        case timer(Place, life: UInt64)
        case tick(Place, life: UInt64)
        case up(Place, peer: Place, link: Int)
        case down(Place, peer: Place, link: Int)
        /// `number`: its place on its way; nil: it is there, and has waited.
        case arrived([UInt8], at: Place, from: Place, link: Int, number: UInt64?)
        case dialled(Place, life: UInt64, peer: Place)
        case start(Place)
        case resume(Place)
        case mishap
        case reunite
    }

    let options: GossipScenario
    /// It owns this.
    unowned let world: World
    var random: RandomSource
    var sites: [Site] = []
    var links: [Link] = []
    var heap = EventHeap<Event>()
    /// By this world's own pace.
    var now = MonotonicInstant.zero
    var hash = TraceHash()
    var isInTrouble = true
    /// All that was ever signed, by a digest of its bytes.
    var signed: Set<UInt64> = []
    /// Messages that somebody may send once more.
    var overheard: [[UInt8]] = []
    package private(set) var messages = 0

    static let topic = GossipTopic(cookieKey: [UInt8](repeating: 7, count: 32))
    /// 2026, in milliseconds.
    static let wallStart: Int64 = 1_790_000_000_000

    init(_ options: GossipScenario, world: World, random: RandomSource) {
        self.options = options
        self.world = world
        self.random = random
        let cluster = world.nodes.count
        for place in 0..<cluster + options.strangers {
            let isStranger = place >= cluster
            // Now and then a stranger calls itself by a member's number.
            let number =
                isStranger && !self.random.chance(1, in: 3) ? 50 + place : place % cluster + 1
            sites.append(
                Site(
                    endpoint: isStranger
                        ? Self.key(100 + place) : world.nodes[place].member.endpoint,
                    description: NodeDescription(
                        node: NodeID(UInt64(number)), addresses: ["192.0.2.\(place + 1):7001"],
                        services: [1, 2], programVersion: "1.0.0"),
                    skew: Int64(self.random.uniform(0..<2 * options.skewMax + 1) - options.skewMax))
            )
            if isStranger { sites[place].net = 1 }
            schedule(.start(place), after: self.random.uniform(.zero, .seconds(5)))
        }
        schedule(.mishap, after: options.mishapInterval)
    }

    static func key(_ number: Int, _ serial: Int = 0) -> EndpointID {
        var bytes = [UInt8](repeating: 0, count: EndpointID.byteCount)
        (bytes[0], bytes[1]) = (UInt8(number), UInt8(serial))
        guard let endpoint = EndpointID(bytes: bytes) else { preconditionFailure("32 bytes") }
        return endpoint
    }

    func place(of endpoint: EndpointID) -> Place? { sites.firstIndex { $0.endpoint == endpoint } }

    private func configuration(_ site: Site) -> GossipConfiguration {
        var configuration = GossipConfiguration(
            own: site.endpoint, topic: Self.topic, epoch: site.epoch)
        configuration.announceInterval = .seconds(6)
        configuration.suspectAfter = .seconds(20)
        configuration.goneAfter = Self.goneAfter
        configuration.tombstoneKept = .seconds(120)
        configuration.rumourPause = .seconds(10)
        configuration.shuffleInterval = .seconds(20)
        configuration.repairDelayMax = .seconds(8)
        configuration.probeDelayMax = .seconds(5)
        configuration.activeMax = options.activeMax
        configuration.passiveMax = options.passiveMax
        configuration.plantedBug = options.plantedBug
        return configuration
    }

    static let goneAfter = Duration.seconds(60)

    // MARK: - Time

    func schedule(_ event: Event, after delay: Duration) { heap.schedule(event, at: now + delay) }

    /// What happens until the cluster's clock shows `instant`.
    func advance(to instant: MonotonicInstant) throws(Violation) {
        look()
        try run(until: MonotonicInstant(nanoseconds: instant.nanoseconds * options.pace))
    }

    func run(until end: MonotonicInstant) throws(Violation) {
        while let next = heap.next, next <= end, let (at, event) = heap.pop() {
            now = max(now, at)
            try handle(event)
        }
        now = max(now, end)
    }

    /// Nets that have ended or begun since the last look.
    private func look() {
        for node in world.nodes {
            let place = node.index
            if node.isLost, !sites[place].isLost {
                sites[place].isLost = true
                end(place)
            }
            let net = node.isLost ? nil : node.net?.life
            guard net != sites[place].net else { continue }
            if sites[place].net != nil { breakLinks(of: place) }
            sites[place].net = net
            sites[place].disturbedAt = now
        }
    }

    private func handle(_ event: Event) throws(Violation) {
        switch event {
        case .timer(let place, let life):
            guard !defers(event, place), sites[place].life == life,
                let at = sites[place].daemon?.timerAt, at <= now
            else { return }
            sites[place].daemon?.timerAt = nil
            try step(place, .timeout)
        case .tick(let place, let life):
            guard sites[place].life == life, sites[place].daemon != nil else { return }
            schedule(event, after: .seconds(1))
            try tick(place)
        case .up(let place, let peer, let link):
            guard !defers(event, place), !links[link].isCut, sites[place].daemon != nil else {
                return
            }
            sites[place].daemon?.links[peer] = link
            sites[place].daemon?.unread[peer] = nil
            try step(place, .linkUp(sites[peer].endpoint))
        case .down(let place, let peer, let link):
            guard !defers(event, place) else { return }
            links[link].isCut = true
            guard sites[place].daemon?.links[peer] == link else { return }
            sites[place].daemon?.links[peer] = nil
            sites[place].daemon?.unread[peer] = nil
            try step(place, .linkDown(sites[peer].endpoint))
        case .arrived(let bytes, let place, let from, let link, let number):
            try arrive(bytes, place, from, link, number, event)
        case .dialled(let place, let life, let peer):
            guard !defers(event, place), sites[place].life == life, sites[place].daemon != nil
            else { return }
            try finishDial(place, peer)
        case .start(let place): try start(place)
        case .resume(let place): try resume(place)
        case .mishap: try mishap()
        case .reunite: reunite()
        }
    }

    /// Whether this has to wait until the daemon goes on.
    private func defers(_ event: Event, _ place: Place) -> Bool {
        guard sites[place].daemon?.waiting != nil else { return false }
        sites[place].daemon?.waiting?.append(event)
        return true
    }

    // MARK: - Daemons

    private func start(_ place: Place) throws(Violation) {
        guard sites[place].daemon == nil, !sites[place].isLost else { return }
        sites[place].life += 1
        sites[place].epoch += 1
        sites[place].disturbedAt = now
        sites[place].daemon = Daemon(
            machine: GossipMachine(
                configuration: configuration(sites[place]), checkSignature: Self.isSigned),
            random: random.split())
        schedule(.tick(place, life: sites[place].life), after: random.uniform(.zero, .seconds(1)))
        try tellClock(place)
        try step(place, .described(sites[place].description))
    }

    func end(_ place: Place) {
        guard sites[place].daemon != nil else { return }
        breakLinks(of: place)
        sites[place].daemon = nil
        sites[place].disturbedAt = now
    }

    /// A machine has lost both its other daemons, and this one with them.
    func killed(_ place: Place, restartAfter delay: Duration) {
        end(place)
        schedule(.start(place), after: delay * Int(options.pace))
    }

    func resume(_ place: Place) throws(Violation) {
        guard let waiting = sites[place].daemon?.waiting else { return }
        sites[place].daemon?.waiting = nil
        for event in waiting { try handle(event) }
    }

    private func tellClock(_ place: Place) throws(Violation) {
        let wall = Self.wallStart + Int64(now.nanoseconds / 1_000_000) + sites[place].skew
        try step(place, .wallClock(milliseconds: UInt64(wall)))
    }

    /// What the shell does now and then: the clock, the members, and whoever else it has been told of.
    private func tick(_ place: Place) throws(Violation) {
        lookForBlocked(place)
        guard sites[place].daemon?.waiting == nil else { return }
        try tellClock(place)
        if place < world.nodes.count, let membership = world.nodes[place].shell?.membership {
            let members = membership.members.map {
                GossipMember(endpoint: $0.endpoint, node: $0.node)
            }
            if sites[place].daemon?.members != members {
                sites[place].daemon?.members = members
                try step(place, .members(members))
            }
        }
        // As multicast DNS finds them, one after the other.
        let other = random.uniform(0..<sites.count)
        if other != place { try step(place, .contact(sites[other].endpoint)) }
        try audit(place)
    }

    func step(_ place: Place, _ input: GossipInput) throws(Violation) {
        // Taken out, so that there is no copy of it.
        guard var daemon = sites[place].daemon.take() else { return }
        var effects: [GossipEffect] = []
        daemon.machine.step(input, now: now, random: &daemon.random, into: &effects)
        let isViewBounded = daemon.machine.activeView.count <= options.activeMax
        let deadline = daemon.machine.deadline
        let isSooner = daemon.timerAt.flatMap { at in deadline.map { $0 < at } } ?? true
        if let deadline, isSooner {
            daemon.timerAt = deadline
            heap.schedule(.timer(place, life: sites[place].life), at: max(now, deadline))
        }
        sites[place].daemon = daemon
        guard isViewBounded else {
            throw Violation(
                .safety, "gossip: views are bounded", "g\(place + 1) has too many neighbours")
        }
        for effect in effects { try carryOut(effect, place) }
    }

    private func carryOut(_ effect: GossipEffect, _ place: Place) throws(Violation) {
        hash.fold(now.nanoseconds)
        hash.fold(UInt64(place))
        switch effect {
        case .send(let bytes, let target):
            hash.fold(bytes)
            if let peer = self.place(of: target) { send(bytes, place, peer) }
        case .connect(let target):
            guard let peer = self.place(of: target) else {
                return try step(place, .connectFailed(target))
            }
            let isThere = isReachable(peer, from: place)
            schedule(
                .dialled(place, life: sites[place].life, peer: peer),
                after: isThere
                    ? random.uniform(.milliseconds(1), .milliseconds(40))
                    : random.uniform(.milliseconds(5), .seconds(5)))
        case .pause(let target):
            if let peer = self.place(of: target) { sites[place].daemon?.unread[peer] = [] }
        case .resume(let target):
            guard let peer = self.place(of: target) else { return }
            let unread = sites[place].daemon?.unread.removeValue(forKey: peer)
            for event in unread ?? [] { schedule(event, after: .zero) }
        case .disconnect(let target):
            guard let peer = self.place(of: target) else { return }
            sites[place].daemon?.unread[peer] = nil
            disconnect(place, peer)
        case .sign(let text, let ticket):
            // aspend-net has the key.
            guard sites[place].net != nil else {
                return try step(place, .signed(ticket, signature: nil))
            }
            let signature = Self.sign(text, sites[place].endpoint)
            note(signature, of: sites[place].endpoint)
            try step(place, .signed(ticket, signature: signature))
        case .epochRaised(let epoch): sites[place].epoch = epoch
        case .standing(let subject, let standing):
            hash.fold(standing == .gone ? 2 : standing == .alive ? 1 : 0)
            if standing == .gone { try judgeGone(subject, by: place) }
        case .learned, .conflict, .refused, .shunned: break
        }
    }

    // MARK: - Links

    func isBlocked(_ from: Place, _ to: Place) -> Bool {
        guard sites[from].side == sites[to].side else { return true }
        guard from < world.nodes.count, to < world.nodes.count else { return false }
        return world.network.isBlocked(from: from, to: to)
    }

    private func isReachable(_ peer: Place, from place: Place) -> Bool {
        sites[place].net != nil && sites[peer].net != nil && sites[peer].daemon != nil
            && sites[peer].daemon?.waiting == nil && !isBlocked(place, peer)
            && !isBlocked(peer, place)
    }

    private func send(_ bytes: [UInt8], _ place: Place, _ peer: Place) {
        guard let link = sites[place].daemon?.links[peer], !links[link].isCut else { return }
        messages += 1
        let direction = links[link].ends.1 == peer ? 0 : 1
        let number = links[link].sent[direction]
        links[link].sent[direction] += 1
        schedule(
            .arrived(bytes, at: peer, from: place, link: link, number: number),
            after: random.uniform(.microseconds(200), .milliseconds(15)))
    }

    private func arrive(
        _ bytes: [UInt8], _ place: Place, _ from: Place, _ link: Int, _ number: UInt64?,
        _ event: Event
    ) throws(Violation) {
        guard !links[link].isCut else { return }
        guard let number else { return try deliver(bytes, place, from, link) }
        let direction = links[link].ends.1 == place ? 0 : 1
        // Held up, or what went before it is.
        guard !isBlocked(from, place), links[link].received[direction] == number else {
            return schedule(event, after: .milliseconds(20))
        }
        links[link].received[direction] += 1
        try deliver(bytes, place, from, link)
    }

    private func deliver(
        _ bytes: [UInt8], _ place: Place, _ from: Place, _ link: Int
    ) throws(Violation) {
        if sites[place].daemon?.waiting != nil {
            sites[place].daemon?.waiting?.append(
                .arrived(bytes, at: place, from: from, link: link, number: nil))
            return
        }
        guard sites[place].daemon?.links[from] == link else { return }
        if sites[place].daemon?.unread[from] != nil {
            sites[place].daemon?.unread[from]?.append(
                .arrived(bytes, at: place, from: from, link: link, number: nil))
            return
        }
        let isNews = bytes[1] == 8 || bytes[1] == 13
        if isInTrouble, isNews, random.chance(1, in: 40) { overhear(bytes) }
        try step(place, .received(bytes, from: sites[from].endpoint))
    }

    private func disconnect(_ place: Place, _ peer: Place) {
        guard let link = sites[place].daemon?.links.removeValue(forKey: peer), !links[link].isCut
        else { return }
        // Behind what was sent before.
        schedule(.down(peer, peer: place, link: link), after: .milliseconds(20))
    }

    private func finishDial(_ place: Place, _ peer: Place) throws(Violation) {
        guard isReachable(peer, from: place) else {
            return try step(place, .connectFailed(sites[peer].endpoint))
        }
        if let link = sites[place].daemon?.links[peer], !links[link].isCut,
            sites[peer].daemon?.links[place] == link
        {
            return
        }
        // A new link takes the place of one of which only one end knows.
        for one in [sites[place].daemon?.links[peer], sites[peer].daemon?.links[place]] {
            if let one { links[one].isCut = true }
        }
        links.append(Link(ends: (place, peer)))
        // In this order: what is sent at once arrives behind it.
        try handle(.up(peer, peer: place, link: links.count - 1))
        try handle(.up(place, peer: peer, link: links.count - 1))
    }

    /// Nothing passes any more; the ends find out by themselves.
    func cut(_ link: Int) {
        guard !links[link].isCut else { return }
        links[link].isCut = true
        let (one, other) = links[link].ends
        for (place, peer) in [(one, other), (other, one)] {
            schedule(
                .down(place, peer: peer, link: link), after: random.uniform(.zero, .seconds(5)))
        }
    }

    private func breakLinks(of place: Place) {
        guard let daemon = sites[place].daemon else { return }
        for (_, link) in daemon.links.sorted(by: { $0.key < $1.key }) { cut(link) }
    }

    /// A connection on which nothing passes is given up after a while.
    private func lookForBlocked(_ place: Place) {
        guard let daemon = sites[place].daemon else { return }
        if sites[place].net == nil { sites[place].disturbedAt = now }
        for peer in sites.indices where isBlocked(place, peer) || isBlocked(peer, place) {
            sites[place].disturbedAt = now
        }
        for (peer, link) in daemon.links.sorted(by: { $0.key < $1.key }) where !links[link].isCut {
            guard isBlocked(place, peer) || isBlocked(peer, place) else {
                links[link].blockedSince = nil
                continue
            }
            let since = links[link].blockedSince ?? now
            links[link].blockedSince = since
            if now - since >= .seconds(5) { cut(link) }
        }
    }
}
