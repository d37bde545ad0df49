// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DNSWire
import MDNSCore
import Testing

/// An endpoint of which the first ten bytes, that is its name on the link, are `kind`.
func endpoint(_ kind: UInt8, _ rest: UInt8 = 0) -> EndpointID {
    let bytes = [UInt8](repeating: kind, count: 10) + [UInt8](repeating: rest, count: 22)
    guard let endpoint = EndpointID(bytes: bytes) else { preconditionFailure("32 bytes") }
    return endpoint
}

func address(_ text: String) -> IPAddress {
    guard let address = IPAddress(text) else { preconditionFailure("\(text)") }
    return address
}

func interface(_ index: UInt32 = 1, _ addresses: String..., announced: [String]? = nil)
    -> MDNSInterface
{
    MDNSInterface(
        index: index, prefixes: addresses.map { IPPrefix(address($0), $0.contains(":") ? 64 : 24) },
        announced: (announced ?? addresses).map { address($0) })
}

/// One machine by itself, in virtual time.
struct Bench {
    var machine: MDNSMachine
    var random: RandomSource
    var now = MonotonicInstant(nanoseconds: 1_000_000_000)
    var effects: [MDNSEffect] = []

    init(_ endpoint: EndpointID, node: UInt64 = 1, seed: UInt64 = 1) {
        machine = MDNSMachine(
            configuration: MDNSConfiguration(endpoint: endpoint, node: NodeID(node)))
        random = RandomSource(seed: seed)
    }

    /// Established on one link, with nothing left to say.
    static func established(_ endpoint: EndpointID, seed: UInt64 = 1) -> Bench {
        var bench = Bench(endpoint, seed: seed)
        bench.step(.port(7700))
        bench.step(.interfaces([interface(1, "10.0.0.1")]))
        bench.run(.seconds(60))
        return bench
    }

    @discardableResult
    mutating func step(_ input: MDNSInput) -> [MDNSEffect] {
        effects.removeAll()
        machine.step(input, now: now, random: &random, into: &effects)
        machine.checkInvariants()
        return effects
    }

    mutating func stepUnchecked(_ input: MDNSInput) {
        effects.removeAll()
        machine.step(input, now: now, random: &random, into: &effects)
    }

    /// Lets time pass; gives what was done meanwhile, and when.
    @discardableResult
    mutating func run(_ duration: Duration) -> [(at: MonotonicInstant, effect: MDNSEffect)] {
        var done: [(MonotonicInstant, MDNSEffect)] = []
        let end = now + duration
        while let deadline = machine.deadline, deadline <= end {
            now = max(now, deadline)
            for effect in step(.timeout) { done.append((now, effect)) }
        }
        now = end
        return done
    }

    @discardableResult
    mutating func receive(
        _ message: DNSMessage, from source: String = "10.0.0.9", port: UInt16 = 5353,
        on interface: UInt32 = 1
    ) -> [MDNSEffect] {
        step(
            .received(
                MDNSPacket(
                    bytes: message.encoded(), interface: interface, source: address(source),
                    sourcePort: port)))
    }
}

extension MDNSEffect {
    var message: DNSMessage? {
        guard case .send(let bytes, _, _) = self else { return nil }
        return try? DNSMessage(decoding: bytes)
    }

    var destination: MDNSDestination? {
        guard case .send(_, _, let destination) = self else { return nil }
        return destination
    }
}

func query(_ questions: DNSQuestion..., known: [DNSRecord] = []) -> DNSMessage {
    var message = DNSMessage()
    message.questions = questions
    message.answers = known
    return message
}

let browse = DNSQuestion(MDNS.service, DNSType.ptr)

/// What a node announces, as somebody else would write it.
func announcement(
    _ endpoint: EndpointID, node: UInt64 = 2, label: String, host: String = "other.local",
    _ addresses: [String] = ["10.0.0.9"], port: UInt16 = 7701, ttl: UInt32 = 120
) -> DNSMessage {
    guard let instance = MDNS.service.child(Array(label.utf8)), let host = DNSName(host) else {
        preconditionFailure("names")
    }
    let text = ["id=\(endpoint)", "node=\(node)", "v=1"].map { Array($0.utf8) }
    var message = DNSMessage(flags: [.response, .authoritative])
    message.answers = [
        DNSRecord(MDNS.service, ttl: ttl == 0 ? 0 : 4500, .pointer(instance)),
        DNSRecord(
            instance, ttl: ttl, .service(priority: 0, weight: 0, port: port, target: host),
            flushesCache: true),
        DNSRecord(instance, ttl: ttl == 0 ? 0 : 4500, .text(text), flushesCache: true),
    ]
    message.answers += addresses.map {
        DNSRecord(host, ttl: ttl, .address(address($0)), flushesCache: true)
    }
    return message
}

/// A few nodes on one link; packets are lost, come twice and late; processes are stopped and go on.
struct World {
    struct Node {
        var machine: MDNSMachine
        var random: RandomSource
        var address: IPAddress
        var isAlive = true
        var pausedUntil: MonotonicInstant?
        var found: [EndpointID: MDNSPeer] = [:]
        var sent = 0
        /// When each record was last multicast.
        var said: [DNSRecord: MonotonicInstant] = [:]
    }

    struct Faults {
        /// Of a hundred packets.
        var lost: UInt64 = 0
        var doubled: UInt64 = 0
        var delayMax = Duration.milliseconds(5)
    }

    var nodes: [Node] = []
    var faults = Faults()
    var random: RandomSource
    var now = MonotonicInstant(nanoseconds: 1_000_000_000)
    /// Nodes of different groups do not hear each other.
    var groups: [Int] = []
    private var packets: [(at: MonotonicInstant, number: Int, to: Int, packet: MDNSPacket)] = []
    private var packetCount = 0
    private(set) var digest: UInt64 = 0xcbf2_9ce4_8422_2325
    /// Records that were said again too soon.
    private(set) var haste: [String] = []

    init(seed: UInt64) { random = RandomSource(seed: seed) }

    @discardableResult
    mutating func add(_ endpoint: EndpointID, at text: String? = nil) -> Int {
        let number = nodes.count
        let own = address(text ?? "10.0.0.\(number + 1)")
        nodes.append(
            Node(
                machine: MDNSMachine(
                    configuration: MDNSConfiguration(
                        endpoint: endpoint, node: NodeID(UInt64(number + 1)))),
                random: random.split(), address: own))
        groups.append(0)
        step(number, .port(UInt16(7700 + number)))
        step(number, .interfaces([interface(1, own.description)]))
        return number
    }

    mutating func step(_ number: Int, _ input: MDNSInput) {
        var effects: [MDNSEffect] = []
        var random = nodes[number].random
        nodes[number].machine.step(input, now: now, random: &random, into: &effects)
        nodes[number].random = random
        nodes[number].machine.checkInvariants()
        for effect in effects { carryOut(effect, number) }
    }

    private mutating func carryOut(_ effect: MDNSEffect, _ number: Int) {
        fold("\(number) \(now.nanoseconds) \(effect)")
        switch effect {
        case .found(let peer):
            #expect(nodes[number].found[peer.endpoint] != peer, "news only")
            nodes[number].found[peer.endpoint] = peer
        case .lost(let endpoint):
            #expect(nodes[number].found[endpoint] != nil, "only who was found is lost")
            nodes[number].found[endpoint] = nil
        case .send(let bytes, _, let destination):
            nodes[number].sent += 1
            note(bytes, destination, number)
            for other in nodes.indices where groups[other] == groups[number] {
                if case .one(let to, _) = destination, to != nodes[other].address { continue }
                let packet = MDNSPacket(
                    bytes: bytes, interface: 1, source: nodes[number].address, sourcePort: 5353)
                let copies = random.chance(faults.doubled, in: 100) ? 2 : 1
                for _ in 0..<copies where !random.chance(faults.lost, in: 100) || other == number {
                    let at = now + random.uniform(.microseconds(50), faults.delayMax)
                    packets.append((at, packetCount, other, packet))
                    packetCount += 1
                }
            }
        }
    }

    private mutating func note(_ bytes: [UInt8], _ destination: MDNSDestination, _ number: Int) {
        guard destination == .group, let message = try? DNSMessage(decoding: bytes),
            message.flags.contains(.response)
        else { return }
        for record in message.answers + message.additionals where record.ttl > 0 {
            if let last = nodes[number].said[record], now - last < .seconds(1) {
                haste.append("\(number): \(record) after \(now - last)")
            }
            nodes[number].said[record] = now
        }
    }

    private mutating func fold(_ text: String) {
        for byte in text.utf8 { digest = (digest ^ UInt64(byte)) &* 0x100_0000_01b3 }
    }

    mutating func pause(_ number: Int, _ duration: Duration) {
        nodes[number].pausedUntil = now + duration
    }

    mutating func crash(_ number: Int) { nodes[number].isAlive = false }

    mutating func stop(_ number: Int) {
        step(number, .stop)
        crash(number)
    }

    /// Runs until `end`, or until `condition` holds; says whether it does.
    @discardableResult
    mutating func run(
        _ duration: Duration, until condition: (World) -> Bool = { _ in false }
    ) -> Bool {
        let end = now + duration
        while !condition(self) {
            var next = packets.indices.min {
                (packets[$0].at, packets[$0].number) < (packets[$1].at, packets[$1].number)
            }
            var at = next.map { packets[$0].at } ?? .init(nanoseconds: .max)
            var timer: Int?
            for number in nodes.indices where nodes[number].isAlive {
                guard let deadline = nodes[number].machine.deadline else { continue }
                let due = max(deadline, nodes[number].pausedUntil ?? deadline, now)
                if due < at { (timer, next, at) = (number, nil, due) }
            }
            guard at <= end else {
                now = end
                return condition(self)
            }
            now = at
            if let timer {
                nodes[timer].pausedUntil = nil
                step(timer, .timeout)
            } else if let next {
                let (_, _, to, packet) = packets.remove(at: next)
                guard nodes[to].isAlive else { continue }
                // Its socket buffer is full of older ones.
                if let until = nodes[to].pausedUntil, until > now { continue }
                step(to, .received(packet))
            }
        }
        return true
    }

    /// Each of those that live knows exactly the others that do.
    var isComplete: Bool {
        let alive = nodes.indices.filter { nodes[$0].isAlive }
        return alive.allSatisfy { nodes[$0].found.count == alive.count - 1 }
    }
}
