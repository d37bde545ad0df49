// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import LinkCore
import Testing

/// A few nodes whose connections come, go and are noticed late; in virtual time, from a seed.
private struct World {
    struct Node {
        var bench: Bench
        var incarnation: UInt64
        var told: [EndpointID: LinkEffect] = [:]
    }

    struct Connection {
        var dialler: Int
        var acceptor: Int
        var incarnations: (UInt64, UInt64)
        /// What its dialler says behind its proof.
        var over: [LinkName]
        var open: (Bool, Bool) = (false, false)
        /// Ended before the proof was complete at that end.
        var failed: (Bool, Bool) = (false, false)
    }

    enum Event {
        case proved(connection: Int, atDialler: Bool)
        case dialFailed(node: Int, incarnation: UInt64, peer: Int)
        case ended(connection: Int, atDialler: Bool)
    }

    var nodes: [Node]
    var connections: [Connection] = []
    var events: [(at: MonotonicInstant, event: Event)] = []
    var random: RandomSource
    var now = MonotonicInstant(nanoseconds: 1_000_000_000)
    var isLossy = true

    init(seed: UInt64, count: Int) {
        random = RandomSource(seed: seed)
        nodes = []
        for place in 0..<count {
            nodes.append(Node(bench: Bench(own: UInt8(place + 1)), incarnation: 1))
        }
        for place in 0..<count { name(place) }
    }

    mutating func name(_ place: Int) {
        let others = (0..<nodes.count).filter { $0 != place }.map { peer(UInt8($0 + 1)) }
        step(place, .members(others, isClosed: true))
    }

    mutating func step(_ place: Int, _ input: LinkInput) {
        nodes[place].bench.now = now
        for effect in nodes[place].bench.step(input) { carryOut(effect, place) }
    }

    mutating func after(_ low: Int64, _ high: Int64, _ event: Event) {
        events.append((now + random.uniform(.milliseconds(low), .milliseconds(high)), event))
    }

    mutating func carryOut(_ effect: LinkEffect, _ place: Int) {
        switch effect {
        case .dial(let target, _):
            let other = Int(target.bytes[0]) - 1
            if isLossy, random.chance(1, in: 3) {
                let incarnation = nodes[place].incarnation
                return after(
                    1, 900, .dialFailed(node: place, incarnation: incarnation, peer: other))
            }
            connections.append(
                Connection(
                    dialler: place, acceptor: other,
                    incarnations: (nodes[place].incarnation, nodes[other].incarnation),
                    over: nodes[place].bench.machine.over(with: target)))
            after(0, 30, .proved(connection: connections.count - 1, atDialler: true))
            after(0, 30, .proved(connection: connections.count - 1, atDialler: false))
        case .close(let id, _):
            let index = Int(id.rawValue)
            let atDialler = connections[index].dialler == place
            if atDialler {
                connections[index].open.0 = false
            } else {
                connections[index].open.1 = false
            }
            after(0, 30, .ended(connection: index, atDialler: !atDialler))
        case .peerUp(let id):
            #expect(nodes[place].told[id] != effect, "up is said once")
            nodes[place].told[id] = effect
        case .peerDown(let id, _):
            if case .peerDown = nodes[place].told[id] { Issue.record("down is said once") }
            nodes[place].told[id] = effect
        case .primary, .serviceGone: break
        }
    }

    mutating func deliver(_ event: Event) {
        switch event {
        case .dialFailed(let node, let incarnation, let other):
            guard nodes[node].incarnation == incarnation else { return }
            step(node, .dialFailed(endpoint(UInt8(other + 1)), .unreachable("lost")))
        case .proved(let index, let atDialler):
            let connection = connections[index]
            let (here, there) =
                atDialler
                ? (connection.dialler, connection.acceptor)
                : (connection.acceptor, connection.dialler)
            let (own, other) =
                atDialler
                ? connection.incarnations
                : (connection.incarnations.1, connection.incarnations.0)
            guard nodes[here].incarnation == own else { return }
            let hasFailed = atDialler ? connection.failed.0 : connection.failed.1
            guard nodes[there].incarnation == other, !hasFailed else {
                if atDialler {
                    let peer = endpoint(UInt8(there + 1))
                    step(here, .unanswered(peer, LinkName(UInt64(index))))
                    step(here, .dialFailed(peer, .unreachable("gone")))
                }
                return
            }
            if atDialler {
                connections[index].open.0 = true
            } else {
                connections[index].open.1 = true
            }
            step(
                here,
                .proved(
                    LinkID(UInt64(index)), endpoint(UInt8(there + 1)), isInbound: !atDialler,
                    incarnation: other, service: .serving, name: LinkName(UInt64(index))))
            if !atDialler, !connection.over.isEmpty {
                step(here, .over(LinkID(UInt64(index)), connection.over))
            }
        case .ended(let index, let atDialler):
            let connection = connections[index]
            guard atDialler ? connection.open.0 : connection.open.1 else {
                if atDialler {
                    connections[index].failed.0 = true
                } else {
                    connections[index].failed.1 = true
                }
                return
            }
            if atDialler {
                connections[index].open.0 = false
            } else {
                connections[index].open.1 = false
            }
            let here = atDialler ? connection.dialler : connection.acceptor
            step(here, .closed(LinkID(UInt64(index)), reason: "lost"))
        }
    }

    mutating func restart(_ place: Int) {
        nodes[place].incarnation += 1
        nodes[place].bench.machine = LinkMachine(
            configuration: nodes[place].bench.configuration)
        nodes[place].told = [:]
        for index in connections.indices {
            let connection = connections[index]
            if connection.dialler == place {
                connections[index].open.0 = false
                after(0, 4000, .ended(connection: index, atDialler: false))
            } else if connection.acceptor == place {
                connections[index].open.1 = false
                after(0, 4000, .ended(connection: index, atDialler: true))
            }
        }
        name(place)
    }

    /// Runs until `end`, with a mishap now and then while `isLossy`.
    mutating func run(until end: MonotonicInstant) {
        while true {
            let deadlines = nodes.indices.compactMap { place in
                nodes[place].bench.machine.deadline.map { ($0, place) }
            }
            let event = events.indices.min { events[$0].at < events[$1].at }
            let timer = deadlines.min { $0.0 < $1.0 }
            let next = min(
                event.map { events[$0].at } ?? end, timer?.0 ?? end)
            guard next < end else { break }
            now = max(now, next)
            if let event, events[event].at <= now {
                deliver(events.remove(at: event).event)
            } else if let timer {
                step(timer.1, .timeout)
            }
            if isLossy, random.chance(1, in: 20) { mishap() }
        }
        now = end
    }

    mutating func mishap() {
        if random.chance(1, in: 3) {
            restart(random.uniform(0..<nodes.count))
        } else if !connections.isEmpty {
            let index = random.uniform(0..<connections.count)
            // One end may learn of it long after the other: the node there has moved.
            let late: Int64 = random.chance(1, in: 3) ? 8000 : 100
            let isDiallerLate = random.chance(1, in: 2)
            after(0, isDiallerLate ? late : 100, .ended(connection: index, atDialler: true))
            after(0, isDiallerLate ? 100 : late, .ended(connection: index, atDialler: false))
        }
    }
}

@Suite struct LinkWorldTests {
    @Test(arguments: 0..<200)
    func afterAllMishapsEverybodyIsConnectedAndAgrees(seed: Int) {
        var world = World(seed: UInt64(seed), count: 3)
        world.run(until: world.now + .seconds(20))
        world.isLossy = false
        world.run(until: world.now + .seconds(20))
        for here in world.nodes.indices {
            for there in world.nodes.indices where here != there {
                let (a, b) = (endpoint(UInt8(here + 1)), endpoint(UInt8(there + 1)))
                let link = world.nodes[here].bench.machine.primary(of: b)
                #expect(link != nil)
                #expect(link == world.nodes[there].bench.machine.primary(of: a))
                #expect(world.nodes[here].told[b] == .peerUp(b))
            }
        }
        let open = world.connections.count { $0.open.0 && $0.open.1 }
        #expect(open == 3, "no more connections than pairs, once idle ones are retired")
    }
}
