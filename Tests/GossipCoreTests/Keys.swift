// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import GossipCore

/// Instead of Ed25519: a keyed hash that costs little. Everybody could forge it and nobody does, but
/// for those who are meant to.
enum CheapSignature {
    static func sign(_ text: [UInt8], _ key: EndpointID) -> [UInt8] {
        var state: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in key.bytes { state = (state ^ UInt64(byte)) &* 0x100_0000_01b3 }
        text.withUnsafeBytes { raw in
            var place = 0
            while place + 8 <= raw.count {
                let word = raw.loadUnaligned(fromByteOffset: place, as: UInt64.self)
                state = (state ^ word) &* 0x9e37_79b9_7f4a_7c15
                state ^= state >> 29
                place += 8
            }
            while place < raw.count {
                state = (state ^ UInt64(raw[place])) &* 0x100_0000_01b3
                place += 1
            }
        }
        var writer = ByteWriter(capacity: SignedAnnouncement.signatureByteCount)
        for number in 0..<8 { writer.integer(state &* UInt64(2 * number + 1)) }
        return writer.bytes
    }

    static func check(_ signature: [UInt8], _ text: [UInt8], _ key: EndpointID) -> Bool {
        sign(text, key) == signature
    }
}

let cookieTopic = GossipTopic(cookieKey: [UInt8](repeating: 7, count: 32))
let otherTopic = GossipTopic(cookieKey: [UInt8](repeating: 8, count: 32))
/// 2026, in milliseconds.
let wallStart: UInt64 = 1_790_000_000_000

func endpoint(_ number: Int) -> EndpointID {
    var bytes = [UInt8](repeating: UInt8(number & 255), count: 32)
    bytes[1] = UInt8(number >> 8 & 255)
    guard let id = EndpointID(bytes: bytes) else { preconditionFailure("32 bytes make an id") }
    return id
}

func description(_ number: Int, address: String? = nil) -> NodeDescription {
    NodeDescription(
        node: NodeID(UInt64(number)), addresses: [address ?? "192.0.2.\(number & 255):7001"],
        services: [1, 2], programVersion: "1.0.0")
}

/// An announcement as `number` would make and sign it.
func announced(
    _ number: Int, epoch: UInt64 = 1, timestamp: UInt64 = wallStart, node: Int? = nil,
    address: String? = nil, reports: [PeerReport] = [], topic: GossipTopic = cookieTopic,
    signer: Int? = nil
) -> SignedAnnouncement {
    let announcement = Announcement(
        topic: topic, endpoint: endpoint(number),
        version: AnnouncementVersion(epoch: epoch, timestamp: timestamp),
        description(node ?? number, address: address), reports: reports)
    let text = Announcement.signedText(announcement.encoded(), topic)
    return SignedAnnouncement(
        announcement, signature: CheapSignature.sign(text, endpoint(signer ?? number)))
}

func fresh(_ signed: SignedAnnouncement) -> CarriedAnnouncement {
    CarriedAnnouncement(signed, silence: 0)
}

/// One machine with clocks of its own: inputs in, effects out, invariants after each. It signs at
/// once, and its links and connections are what the test says.
struct Bench {
    var machine: GossipMachine
    var now = MonotonicInstant(nanoseconds: 1_000_000_000_000)
    var random = RandomSource(seed: 7)
    let own: EndpointID

    init(own number: Int, epoch: UInt64 = 1, change: (inout GossipConfiguration) -> Void = { _ in })
    {
        own = endpoint(number)
        var configuration = GossipConfiguration(own: own, topic: cookieTopic, epoch: epoch)
        change(&configuration)
        machine = GossipMachine(
            configuration: configuration, checkSignature: CheapSignature.check)
    }

    /// A machine that announces node `number`.
    static func started(_ number: Int) -> Bench {
        var bench = Bench(own: number)
        _ = bench.step(.wallClock(milliseconds: wallStart))
        _ = bench.step(.described(description(number)))
        return bench
    }

    var wall: UInt64 { wallStart + now.nanoseconds / 1_000_000 - 1_000_000 }

    @discardableResult
    mutating func step(_ input: GossipInput) -> [GossipEffect] {
        var effects: [GossipEffect] = []
        machine.step(input, now: now, random: &random, into: &effects)
        machine.checkInvariants()
        for effect in effects {
            guard case .sign(let text, let ticket) = effect else { continue }
            effects += step(.signed(ticket, signature: CheapSignature.sign(text, own)))
        }
        return effects
    }

    @discardableResult
    mutating func receive(_ message: GossipMessage, from number: Int) -> [GossipEffect] {
        step(.received(message.encoded(), from: endpoint(number)))
    }

    /// Lets time pass, with a timeout at each deadline on the way.
    @discardableResult
    mutating func pass(_ duration: Duration) -> [GossipEffect] {
        let end = now + duration
        var effects: [GossipEffect] = []
        var steps = 0
        while let deadline = machine.deadline, deadline <= end {
            now = max(now, deadline)
            effects += step(.timeout)
            steps += 1
            precondition(steps < 100_000, "a deadline that is never met")
        }
        now = end
        return effects
    }

    /// Links with `number`, which is a neighbour then.
    mutating func befriend(_ number: Int, timestamp: UInt64? = nil) {
        step(.linkUp(endpoint(number)))
        let signed = announced(number, timestamp: timestamp ?? wall)
        receive(.join(signed), from: number)
    }
}

/// What was sent, decoded.
func messages(_ effects: [GossipEffect], to number: Int? = nil) -> [GossipMessage] {
    effects.compactMap { effect in
        guard case .send(let bytes, let target) = effect else { return nil }
        guard number.map({ endpoint($0) == target }) ?? true else { return nil }
        return try? GossipMessage(decoding: bytes)
    }
}

func standings(_ effects: [GossipEffect], of number: Int) -> [PeerStanding] {
    effects.compactMap {
        if case .standing(endpoint(number), let standing) = $0 { standing } else { nil }
    }
}

func refusals(_ effects: [GossipEffect]) -> [GossipRefusal] {
    effects.compactMap { if case .refused(let refusal, _, _) = $0 { refusal } else { nil } }
}
