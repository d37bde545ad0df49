// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import Synchronization
import Testing

/// A million announcements that must not be believed, from members who have the cookie.
@Suite struct HostileTests {
    /// What an attacker sends; each kind over a link of its own.
    private enum Attack: Int, CaseIterable {
        case wrongTopic, wrongSignature, replayed, forged, futureDated, tooOld, flooding, strangers
    }

    /// Signatures verified, as the machine's shell would count them.
    private final class Verifications: Sendable {
        let count = Mutex(0)
    }

    /// Honest: 1 to 20, announced through 1, 2 and 3. Attackers: 101 to 108.
    @Test func ofAMillionNoneIsBelievedAndFewCostAVerification() {
        let verified = Verifications()
        var configuration = GossipConfiguration(own: endpoint(200), topic: cookieTopic, epoch: 1)
        configuration.activeMax = 12
        var machine = GossipMachine(configuration: configuration) { signature, text, key in
            verified.count.withLock { $0 += 1 }
            return CheapSignature.check(signature, text, key)
        }
        var random = RandomSource(seed: 5)
        var now = MonotonicInstant(nanoseconds: 1_000_000_000_000)
        var wall: UInt64 { wallStart + now.nanoseconds / 1_000_000 - 1_000_000 }
        var effects: [GossipEffect] = []
        var links: Set<Int> = []
        func step(_ input: GossipInput) {
            effects.removeAll(keepingCapacity: true)
            machine.step(input, now: now, random: &random, into: &effects)
            for effect in effects {
                switch effect {
                case .disconnect(let peer): links.remove(Int(peer.bytes[0]))
                case .sign(let text, let ticket):
                    step(
                        .signed(ticket, signature: CheapSignature.sign(text, endpoint(200))))
                default: break
                }
            }
        }
        func receive(_ message: GossipMessage, _ from: Int) {
            if links.insert(from).inserted { step(.linkUp(endpoint(from))) }
            step(.received(message.encoded(), from: endpoint(from)))
        }
        step(.wallClock(milliseconds: wall))
        step(.described(description(200)))
        var newest: [Int: SignedAnnouncement] = [:]
        func announceHonestly() {
            for number in 1...20 {
                let signed = announced(number, timestamp: wall)
                newest[number] = signed
                receive(.gossip(fresh(signed), round: 1), 1 + number % 3)
            }
            let flooder = announced(107, timestamp: wall)
            newest[107] = flooder
            receive(.gossip(fresh(flooder), round: 1), 1)
        }
        for number in [1, 2, 3] { receive(.neighbor(isHighPriority: true), number) }
        announceHonestly()
        let old = newest
        var honest = 21
        var sent = 0
        while sent < 1_000_000 {
            now = now + .seconds(10)
            announceHonestly()
            honest += 21
            // The flooder has used up what he may announce in honesty.
            for number in 1...10 {
                receive(
                    .gossip(fresh(announced(107, timestamp: wall + UInt64(number))), round: 1), 107)
            }
            let accepted = machine.counters.accepted
            for number in 0..<4000 {
                let attack = Attack.allCases[number % Attack.allCases.count]
                let victim = 1 + number % 20
                let signed = Self.lie(attack, number, wall, victim, old, &random)
                receive(.gossip(fresh(signed), round: 1), 101 + attack.rawValue)
                sent += 1
            }
            #expect(machine.counters.accepted == accepted, "a lie was believed")
            guard machine.counters.accepted == accepted else { return }
        }
        machine.checkInvariants()
        for number in 1...20 {
            #expect(machine.record(of: endpoint(number))?.signed == newest[number])
            #expect(machine.record(of: endpoint(number))?.standing == .alive)
        }
        #expect([1, 2, 3].allSatisfy { machine.activeView.contains(endpoint($0)) })
        let wasted = verified.count.withLock { $0 } - honest
        #expect(wasted < sent / 100, "\(wasted) of \(sent) were verified")
    }

    private static func lie(
        _ attack: Attack, _ number: Int, _ wall: UInt64, _ victim: Int,
        _ old: [Int: SignedAnnouncement], _ random: inout RandomSource
    ) -> SignedAnnouncement {
        let jitter = UInt64(number)
        switch attack {
        case .wrongTopic: return announced(victim, timestamp: wall + jitter, topic: otherTopic)
        case .wrongSignature:
            let good = announced(victim, timestamp: wall + jitter)
            var signature = Array(good.signature)
            signature[Int(random.next() % 64)] ^= UInt8(1 << (random.next() % 8))
            return SignedAnnouncement(good.announcement, signature: signature)
        case .replayed: return old[victim] ?? announced(victim)
        case .forged: return announced(victim, timestamp: wall + jitter, signer: 104)
        case .futureDated: return announced(105, timestamp: wall + 60_001 + jitter)
        case .tooOld: return announced(106, timestamp: wall - 300_001 - jitter)
        case .flooding: return announced(107, timestamp: wall + 100 + jitter)
        // Its own key each time, and a signature that does not hold: no key that is worth a place.
        case .strangers:
            return announced(1000 + number, timestamp: wall, signer: 2)
        }
    }
}
