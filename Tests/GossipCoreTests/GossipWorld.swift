// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore

/// Nodes that gossip, in virtual time and from a seed: links that take time, break, and are seen to
/// break late; nodes that die, restart, stop for a while, and are cut off.
struct GossipWorld {
    struct Node {
        var machine: GossipMachine
        var random: RandomSource
        var epoch: UInt64 = 1
        var isAlive = false
        var isPaused = false
        /// How far its wall clock is off.
        var skewMilliseconds: Int64 = 0
        var description: NodeDescription
        /// The links that this end holds up, by number.
        var links: [EndpointID: Int] = [:]
        var timerAt: MonotonicInstant?
        /// What happens to it while it is paused.
        var waiting: [Event] = []
        /// Of links that are not read: what has arrived since.
        var unread: [Int: [Event]] = [:]
        var bytesSent = 0
        var bytesReceived = 0
        var standings: [EndpointID: PeerStanding] = [:]
        var versions: [EndpointID: AnnouncementVersion] = [:]
    }

    struct Link {
        let ends: (Int, Int)
        /// What is on its way arrives; nothing once it is cut.
        var isCut = false
        /// Nothing arrives before what was sent earlier, at each end.
        var lastArrival: (MonotonicInstant, MonotonicInstant)
    }

    enum Event {
        case timer(Int)
        case up(Int, peer: Int, link: Int)
        case down(Int, peer: Int, link: Int)
        case arrived([UInt8], at: Int, from: Int, link: Int)
        case dialled(Int, peer: Int, epoch: UInt64, succeeds: Bool)
    }

    var nodes: [Node] = []
    private var linkTable: [Link] = []
    private var queue = EventQueue<Event>()
    var random: RandomSource
    private(set) var now = MonotonicInstant(nanoseconds: 1_000_000_000_000)
    private(set) var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    /// Said of somebody who lives and can be reached.
    private(set) var wronglyGone: [(by: Int, of: Int)] = []
    private(set) var suspicions = 0
    private(set) var conflicts = 0
    private(set) var messagesOnTheWay = 0
    /// Which side of a cut each node is on.
    private var side: [Int]
    /// How late the end of a link may be seen.
    var noticeMax = Duration.seconds(10)
    /// One in so many announcements is sent again later, by somebody.
    var replaysOneIn: UInt64?
    private var replays: [[UInt8]] = []
    let change: (inout GossipConfiguration) -> Void
    var checksEachStep = true

    init(
        seed: UInt64, count: Int, change: @escaping (inout GossipConfiguration) -> Void = { _ in }
    ) {
        random = RandomSource(seed: seed)
        side = [Int](repeating: 0, count: count)
        self.change = change
        for number in 0..<count {
            nodes.append(
                Node(
                    machine: machine(number, epoch: 1), random: random.split(),
                    description: description(number + 1)))
        }
    }

    private func machine(_ number: Int, epoch: UInt64) -> GossipMachine {
        var configuration = GossipConfiguration(
            own: endpoint(number + 1), topic: cookieTopic, epoch: epoch)
        change(&configuration)
        return GossipMachine(configuration: configuration, checkSignature: CheapSignature.check)
    }

    private func number(_ endpoint: EndpointID) -> Int {
        let bytes = endpoint.bytes
        return Int(bytes[0]) + Int(bytes[1]) * 256 - 1
    }

    // MARK: - What happens to nodes

    /// Starts a node that knows where some others are.
    mutating func start(_ place: Int, contacts: [Int]) {
        nodes[place].isAlive = true
        tellClock(place)
        step(place, .described(nodes[place].description))
        for contact in contacts where contact != place {
            step(place, .contact(endpoint(contact + 1)))
        }
    }

    mutating func tellClock(_ place: Int) {
        let elapsed = Int64((now.nanoseconds - 1_000_000_000_000) / 1_000_000)
        let wall = Int64(wallStart) + elapsed + nodes[place].skewMilliseconds
        step(place, .wallClock(milliseconds: UInt64(wall)))
    }

    /// Starts all at once, each with one earlier contact.
    mutating func startAll() {
        for place in nodes.indices {
            start(place, contacts: place == 0 ? [] : [random.uniform(0..<place)])
        }
    }

    mutating func kill(_ place: Int) {
        nodes[place].isAlive = false
        nodes[place].isPaused = false
        nodes[place].waiting = []
        nodes[place].unread = [:]
        nodes[place].timerAt = nil
        breakLinks { $0.ends.0 == place || $0.ends.1 == place }
        nodes[place].links = [:]
    }

    mutating func restart(_ place: Int, contacts: [Int]) {
        kill(place)
        nodes[place].epoch += 1
        nodes[place].machine = machine(place, epoch: nodes[place].epoch)
        nodes[place].standings = [:]
        nodes[place].versions = [:]
        start(place, contacts: contacts)
    }

    /// Stops a process; its links stay until somebody breaks them.
    mutating func pause(_ place: Int) { nodes[place].isPaused = true }

    mutating func resume(_ place: Int) {
        guard nodes[place].isPaused else { return }
        nodes[place].isPaused = false
        let waiting = nodes[place].waiting
        nodes[place].waiting = []
        for event in waiting { handle(event) }
    }

    mutating func move(_ place: Int, to address: String) {
        nodes[place].description.addresses = [address]
        step(place, .described(nodes[place].description))
    }

    /// One more message on the link of these two, behind what is on its way.
    mutating func inject(_ message: GossipMessage, at place: Int, from: Int) {
        send(message.encoded(), from, place)
    }

    mutating func cut(_ isOnOtherSide: (Int) -> Bool) {
        for place in nodes.indices { side[place] = isOnOtherSide(place) ? 1 : 0 }
        let side = side
        breakLinks { side[$0.ends.0] != side[$0.ends.1] }
    }

    mutating func heal() { side = [Int](repeating: 0, count: nodes.count) }

    mutating func breakLinks(_ isMeant: (Link) -> Bool) {
        for number in linkTable.indices where !linkTable[number].isCut && isMeant(linkTable[number])
        {
            linkTable[number].isCut = true
            let (a, b) = linkTable[number].ends
            for (place, peer) in [(a, b), (b, a)] {
                queue.add(
                    .down(place, peer: peer, link: number),
                    at: now + random.uniform(.zero, noticeMax))
            }
        }
    }

    /// Breaks one link that is up.
    mutating func breakSomeLink() {
        let open = linkTable.indices.filter { !linkTable[$0].isCut }
        guard !open.isEmpty else { return }
        let chosen = linkTable[open[random.uniform(0..<open.count)]].ends
        breakLinks { $0.ends == chosen }
    }

    // MARK: - Steps and effects

    mutating func step(_ place: Int, _ input: GossipInput) {
        guard nodes[place].isAlive else { return }
        var effects: [GossipEffect] = []
        var random = nodes[place].random
        nodes[place].machine.step(input, now: now, random: &random, into: &effects)
        nodes[place].random = random
        if checksEachStep { nodes[place].machine.checkInvariants() }
        for effect in effects { carryOut(effect, place) }
        guard let deadline = nodes[place].machine.deadline else { return }
        if nodes[place].timerAt.map({ deadline < $0 }) ?? true {
            nodes[place].timerAt = deadline
            queue.add(.timer(place), at: max(now, deadline))
        }
    }

    private mutating func carryOut(_ effect: GossipEffect, _ place: Int) {
        trace(UInt64(place))
        trace(now.nanoseconds)
        switch effect {
        case .send(let bytes, let target): send(bytes, place, number(target))
        case .connect(let target): dial(place, number(target))
        case .pause(let target): nodes[place].unread[number(target)] = []
        case .resume(let target):
            let unread = nodes[place].unread.removeValue(forKey: number(target)) ?? []
            for event in unread { queue.add(event, at: now) }
        case .disconnect(let target):
            nodes[place].unread[number(target)] = nil
            disconnect(place, number(target))
        case .sign(let text, let ticket):
            step(
                place,
                .signed(ticket, signature: CheapSignature.sign(text, endpoint(place + 1))))
        case .standing(let subject, let standing):
            trace(7)
            nodes[place].standings[subject] = standing
            if case .suspected = standing { suspicions += 1 }
            if standing == .gone, isReachable(number(subject), from: place) {
                wronglyGone.append((place, number(subject)))
            }
        case .conflict: conflicts += 1
        case .learned, .refused, .epochRaised, .shunned: break
        }
    }

    private func isReachable(_ subject: Int, from place: Int) -> Bool {
        nodes[subject].isAlive && side[subject] == side[place]
            && (!nodes[subject].isPaused
                || nodes[subject].links.values.contains { !linkTable[$0].isCut })
    }

    private mutating func trace(_ word: UInt64) {
        hash = (hash ^ word) &* 0x100_0000_01b3
        hash ^= hash >> 31
    }

    private mutating func send(_ bytes: [UInt8], _ place: Int, _ peer: Int) {
        trace(UInt64(bytes.count))
        for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        guard let link = nodes[place].links[endpoint(peer + 1)] else { return }
        nodes[place].bytesSent += bytes.count + 4
        guard !linkTable[link].isCut else { return }
        var at = now + random.uniform(.microseconds(200), .milliseconds(15))
        if linkTable[link].ends.1 == peer {
            at = max(at, linkTable[link].lastArrival.1)
            linkTable[link].lastArrival.1 = at
        } else {
            at = max(at, linkTable[link].lastArrival.0)
            linkTable[link].lastArrival.0 = at
        }
        messagesOnTheWay += 1
        queue.add(.arrived(bytes, at: peer, from: place, link: link), at: at)
    }

    private mutating func dial(_ place: Int, _ peer: Int) {
        let isThere =
            nodes.indices.contains(peer) && nodes[peer].isAlive && !nodes[peer].isPaused
            && side[place] == side[peer]
        let wait: Duration =
            isThere
            ? random.uniform(.milliseconds(1), .milliseconds(40))
            : random.uniform(.milliseconds(5), .seconds(5))
        queue.add(
            .dialled(place, peer: peer, epoch: nodes[place].epoch, succeeds: isThere),
            at: now + wait)
    }

    private mutating func disconnect(_ place: Int, _ peer: Int) {
        guard let link = nodes[place].links.removeValue(forKey: endpoint(peer + 1)) else { return }
        let last =
            linkTable[link].ends.1 == peer
            ? linkTable[link].lastArrival.1 : linkTable[link].lastArrival.0
        guard !linkTable[link].isCut else { return }
        queue.add(.down(peer, peer: place, link: link), at: max(last, now + .milliseconds(5)))
    }

    // MARK: - Time

    mutating func run(_ duration: Duration) { run(until: now + duration) }

    mutating func run(until end: MonotonicInstant) {
        while let at = queue.next, at <= end {
            now = max(now, at)
            if let event = queue.take() { handle(event) }
        }
        now = end
    }

    /// Runs until `condition` holds, looking every 50 ms.
    ///
    /// - Returns: how long it took; nil when it does not within `limit`.
    mutating func run(
        limit: Duration, until condition: (borrowing GossipWorld) -> Bool
    ) -> Duration? {
        let start = now
        while !condition(self) {
            guard now - start < limit else { return nil }
            run(.milliseconds(50))
        }
        return now - start
    }

    private mutating func handle(_ event: Event) {
        switch event {
        case .timer(let place):
            guard !defers(event, place), let at = nodes[place].timerAt, at <= now else { return }
            nodes[place].timerAt = nil
            step(place, .timeout)
        case .up(let place, let peer, let link):
            guard !defers(event, place), nodes[place].isAlive, !linkTable[link].isCut else {
                return
            }
            nodes[place].links[endpoint(peer + 1)] = link
            nodes[place].unread[peer] = nil
            step(place, .linkUp(endpoint(peer + 1)))
        case .down(let place, let peer, let link):
            guard !defers(event, place) else { return }
            linkTable[link].isCut = true
            guard nodes[place].links[endpoint(peer + 1)] == link else { return }
            nodes[place].links[endpoint(peer + 1)] = nil
            nodes[place].unread[peer] = nil
            step(place, .linkDown(endpoint(peer + 1)))
        case .arrived(let bytes, let place, let from, let link):
            guard !defers(event, place) else { return }
            messagesOnTheWay -= 1
            guard !linkTable[link].isCut, nodes[place].links[endpoint(from + 1)] == link else {
                return
            }
            if nodes[place].unread[from] != nil {
                messagesOnTheWay += 1
                nodes[place].unread[from]?.append(event)
                return
            }
            nodes[place].bytesReceived += bytes.count + 4
            step(place, .received(bytes, from: endpoint(from + 1)))
            replay(bytes, place, from)
        case .dialled(let place, let peer, let epoch, let succeeds):
            guard !defers(event, place), nodes[place].isAlive, nodes[place].epoch == epoch else {
                return
            }
            finishDial(place, peer, succeeds)
        }
    }

    private mutating func finishDial(_ place: Int, _ peer: Int, _ succeeds: Bool) {
        let (here, there) = (endpoint(place + 1), endpoint(peer + 1))
        guard succeeds, nodes[peer].isAlive, !nodes[peer].isPaused, side[place] == side[peer] else {
            return step(place, .connectFailed(there))
        }
        if let link = nodes[place].links[there], nodes[peer].links[here] == link,
            !linkTable[link].isCut
        {
            return
        }
        // A new link takes the place of one of which only one end knows.
        for link in newestLink(place, peer) { linkTable[link].isCut = true }
        linkTable.append(Link(ends: (place, peer), lastArrival: (now, now + .milliseconds(3))))
        let link = linkTable.count - 1
        // In this order: what is sent at once arrives behind it.
        queue.add(.up(peer, peer: place, link: link), at: now + .milliseconds(3))
        handle(.up(place, peer: peer, link: link))
    }

    /// The one that is not cut, if any.
    private func newestLink(_ place: Int, _ peer: Int) -> [Int] {
        let from = max(0, linkTable.count - 500)
        return (from..<linkTable.count).filter {
            let ends = linkTable[$0].ends
            return !linkTable[$0].isCut && (ends == (place, peer) || ends == (peer, place))
        }
    }

    /// Whether this has to wait until the node goes on.
    private mutating func defers(_ event: Event, _ place: Int) -> Bool {
        guard nodes[place].isPaused else { return false }
        nodes[place].waiting.append(event)
        return true
    }

    /// An insider who sends old announcements again.
    private mutating func replay(_ bytes: [UInt8], _ place: Int, _ from: Int) {
        guard let replaysOneIn, bytes[1] == 8 || bytes[1] == 13 else { return }
        if random.chance(1, in: replaysOneIn), replays.count < 200 { replays.append(bytes) }
        if !replays.isEmpty, random.chance(1, in: replaysOneIn) {
            let chosen = replays[random.uniform(0..<replays.count)]
            step(place, .received(chosen, from: endpoint(from + 1)))
        }
    }
}

// MARK: - What must hold

extension GossipWorld {
    var living: [Int] { nodes.indices.filter { nodes[$0].isAlive } }

    /// Whether every living node has the newest of every other, and thinks that it lives.
    var everybodyKnowsEverybody: Bool {
        living.allSatisfy { place in
            living.allSatisfy { other in
                other == place || knows(place, other)
            }
        }
    }

    func knows(_ place: Int, _ other: Int) -> Bool {
        guard let record = nodes[place].machine.record(of: endpoint(other + 1)),
            let own = nodes[other].machine.ownAnnouncement
        else { return false }
        return record.standing == .alive && record.version.epoch == own.version.epoch
            && record.announcement.addresses == nodes[other].description.addresses
    }

    /// Ends of active views that the other end does not have.
    var lopsided: [(Int, Int)] {
        living.flatMap { place in
            nodes[place].machine.activeView.map { (place, number($0)) }.filter { place, other in
                !nodes[other].machine.activeView.contains(endpoint(place + 1))
            }
        }
    }

    /// Whether the active views, in either direction, join all the living.
    var isOneOverlay: Bool {
        guard let first = living.first else { return true }
        var reached: Set<Int> = [first]
        var open = [first]
        while let place = open.popLast() {
            for other in nodes[place].machine.activeView.map(number)
            where nodes[other].isAlive && reached.insert(other).inserted {
                open.append(other)
            }
        }
        return reached.count == living.count
    }

    /// For people: who has whom as a neighbour, and whom he does not know.
    var state: String {
        living.map { place in
            let views = nodes[place].machine.activeView.map { number($0) }
            let links = nodes[place].links.keys.map { number($0) }.sorted()
            let unknown = living.filter { $0 != place && !knows(place, $0) }
            let standings = unknown.map {
                "\(nodes[place].machine.record(of: endpoint($0 + 1))?.standing as Any)"
            }
            return "\(place): views \(views) links \(links) does not know \(unknown) \(standings)"
        }.joined(separator: "\n")
    }

    /// What a node has seen of another never goes back within one life of the node.
    mutating func auditVersions() -> Bool {
        for place in living {
            for other in nodes[place].machine.endpoints {
                guard let version = nodes[place].machine.record(of: other)?.version else {
                    continue
                }
                if let before = nodes[place].versions[other], version < before { return false }
                nodes[place].versions[other] = version
            }
        }
        return true
    }

    mutating func clearTraffic() {
        for place in nodes.indices {
            nodes[place].bytesSent = 0
            nodes[place].bytesReceived = 0
        }
    }

    mutating func setSkew(_ place: Int, milliseconds: Int64) {
        nodes[place].skewMilliseconds = milliseconds
        if nodes[place].isAlive { tellClock(place) }
    }
}

/// A heap; events of one instant come in the order in which they were added.
struct EventQueue<Event> {
    private var heap: [(at: MonotonicInstant, number: UInt64, event: Event)] = []
    private var count: UInt64 = 0

    var next: MonotonicInstant? { heap.first?.at }

    private func isBefore(_ left: Int, _ right: Int) -> Bool {
        (heap[left].at, heap[left].number) < (heap[right].at, heap[right].number)
    }

    mutating func add(_ event: Event, at instant: MonotonicInstant) {
        heap.append((instant, count, event))
        count += 1
        var place = heap.count - 1
        while place > 0, isBefore(place, (place - 1) / 2) {
            heap.swapAt(place, (place - 1) / 2)
            place = (place - 1) / 2
        }
    }

    mutating func take() -> Event? {
        guard let first = heap.first else { return nil }
        heap.swapAt(0, heap.count - 1)
        heap.removeLast()
        var place = 0
        while true {
            var least = place
            for child in [2 * place + 1, 2 * place + 2]
            where child < heap.count && isBefore(child, least) {
                least = child
            }
            guard least != place else { return first.event }
            heap.swapAt(place, least)
            place = least
        }
    }
}
