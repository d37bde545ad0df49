// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import Testing

/// Somebody who has the cookie and sends as fast as he is read.
@Suite struct FloodTests {
    /// The shell of one machine, and a peer whose messages never end: it gives the machine the next one
    /// whenever the link is read.
    private struct Flood {
        var bench: Bench
        let flooder: Int
        var isRead = false
        var shunned: [GossipRefusal] = []
        var sent = 0
        let message: (_ number: Int, _ wall: UInt64) -> GossipMessage

        init(_ flooder: Int, message: @escaping (Int, UInt64) -> GossipMessage) {
            bench = Bench.started(1)
            bench.befriend(2)
            self.flooder = flooder
            self.message = message
        }

        mutating func see(_ effects: [GossipEffect]) {
            let peer = endpoint(flooder)
            for effect in effects {
                switch effect {
                case .pause(peer), .disconnect(peer): isRead = false
                case .resume(peer): isRead = true
                case .shunned(peer, let why): shunned.append(why)
                default: break
                }
            }
        }

        mutating func connect() {
            isRead = true
            see(bench.step(.linkUp(endpoint(flooder))))
            // As a neighbour, whose link stays.
            if isRead { see(bench.receive(.join(announced(flooder)), from: flooder)) }
        }

        /// Lets time pass, with as many messages as are read, and the honest neighbour's announcements.
        mutating func run(_ duration: Duration) {
            let end = bench.now + duration
            while bench.now < end {
                sendWhileRead()
                see(bench.pass(.milliseconds(50)))
            }
        }

        mutating func sendWhileRead() {
            while isRead {
                sent += 1
                see(bench.receive(message(sent, bench.wall), from: flooder))
            }
        }
    }

    private static func prune(_ number: Int, _ wall: UInt64) -> GossipMessage {
        .prune(MessageID(UInt64(number)))
    }

    @Test func anEndlessFlooderCostsABoundedNumberOfMessages() {
        var flood = Flood(3, message: Self.prune)
        flood.connect()
        flood.run(.seconds(20))
        let rate = GossipLimits.frames
        let most = rate.burst + Int(Duration.seconds(20) / rate.interval)
        #expect(flood.sent <= most && flood.sent > most * 9 / 10, "\(flood.sent) of \(most)")
        #expect(flood.bench.machine.counters.unread == 0, "whoever waits loses nothing")
        #expect(flood.shunned.isEmpty)
        // Now and then, not for each message.
        let pauses = flood.bench.machine.counters.pauses
        #expect(pauses <= 20 * Int(1_000_000_000 / 50_000_000), "\(pauses)")
        // And what comes in spite of a pause is not looked at.
        flood.sendWhileRead()
        let read = flood.bench.machine.counters.read
        flood.bench.receive(.prune(MessageID(1)), from: 3)
        #expect(flood.bench.machine.counters.read == read)
        #expect(flood.bench.machine.counters.unread == 1)
    }

    @Test func bytesAreCountedAsWellAsMessages() {
        let large = GossipMessage.records(
            (0..<60).map {
                fresh(
                    announced(
                        100 + $0, address: String(repeating: "a", count: 60), topic: otherTopic))
            })
        let size = large.encoded().count
        #expect(size > GossipLimits.messageBytesMax / 2)
        var flood = Flood(3) { _, _ in large }
        flood.connect()
        flood.run(.seconds(20))
        let rate = GossipLimits.bytes
        let most = rate.burst + Int(Duration.seconds(20) / rate.interval)
        #expect(flood.sent * size <= most && flood.sent * size > most * 8 / 10)
        #expect(flood.bench.machine.counters.unread == 0)
    }

    /// What an honest peer of the largest kind says at once goes through without a pause: all that
    /// there can be in a table, in the largest announcements.
    @Test func aFullTableIsNotHeldUp() {
        var bench = Bench.started(1)
        let numbers = 100..<(100 + GossipLimits.membersMax)
        bench.step(
            .members(
                numbers.map { GossipMember(endpoint: endpoint($0), node: NodeID(UInt64($0))) }))
        bench.befriend(2)
        let services = Set((1...GossipLimits.servicesMax).map { UInt8($0) })
        let addresses = (0..<Limits.addressesMax).map { number in
            let text = "\(number)."
            return text + String(repeating: "a", count: GossipLimits.addressBytesMax - text.count)
        }
        var effects: [GossipEffect] = []
        var bytes = 0
        for number in numbers {
            let announcement = Announcement(
                topic: cookieTopic, endpoint: endpoint(number),
                version: AnnouncementVersion(epoch: 1, timestamp: bench.wall),
                NodeDescription(
                    node: NodeID(UInt64(number)), addresses: addresses, services: services,
                    programVersion: "1.0.0"), reports: [])
            let text = Announcement.signedText(announcement.encoded(), cookieTopic)
            let message = GossipMessage.records([
                fresh(
                    SignedAnnouncement(
                        announcement, signature: CheapSignature.sign(text, endpoint(number))))
            ])
            bytes += message.encoded().count
            effects += bench.step(.received(message.encoded(), from: endpoint(2)))
        }
        #expect(bench.machine.endpoints.count == numbers.count + 1)
        #expect(bench.machine.counters.pauses == 0)
        let most = GossipLimits.recordsMax * (GossipLimits.announcementBytesMax + 4)
        #expect(bytes < most && 2 * most <= 2 * GossipLimits.bytes.burst)
    }

    /// The flooder is shunned in the end, and told apart; his new link is no new allowance.
    @Test func whoFloodsForLongIsShunned() {
        var flood = Flood(3, message: Self.prune)
        flood.connect()
        flood.run(.seconds(29))
        #expect(flood.shunned.isEmpty)
        flood.run(.seconds(20))
        #expect(flood.shunned == [.flooding])
        #expect(flood.bench.machine.activeView == [endpoint(2)])
        let sent = flood.sent
        flood.connect()
        #expect(flood.shunned == [.flooding, .flooding] && !flood.isRead, "he is told why again")
        flood.run(.seconds(30))
        #expect(flood.sent == sent)
        flood.run(.seconds(31))
        flood.connect()
        #expect(flood.isRead, "it ends")
    }

    @Test func aNewLinkIsNoNewAllowance() {
        var flood = Flood(3, message: Self.prune)
        flood.connect()
        flood.run(.milliseconds(10))
        #expect(!flood.isRead)
        let sent = flood.sent
        for _ in 0..<10 {
            flood.bench.step(.linkDown(endpoint(3)))
            flood.connect()
            #expect(!flood.isRead)
        }
        flood.run(.milliseconds(10))
        #expect(flood.sent == sent)
    }

    /// Bursts with rests between them are no flood, however long they go on.
    @Test func burstsWithRestsAreNoFlood() {
        var flood = Flood(3, message: Self.prune)
        for _ in 0..<20 {
            flood.connect()
            flood.run(.milliseconds(100))
            flood.isRead = false
            flood.see(flood.bench.pass(.seconds(8)))
        }
        #expect(flood.shunned.isEmpty)
    }

    /// In a world of nodes: one of them is flooded by a neighbour, and what another says goes through.
    @Test func whatOthersSaySpreadsMeanwhile() {
        var world = GossipWorld(seed: 3, count: 8)
        world.startAll()
        #expect(world.run(limit: .seconds(60)) { $0.everybodyKnowsEverybody } != nil)
        let target = 0
        let flooder = Int(world.nodes[target].machine.activeView[0].bytes[0]) - 1
        let mover = world.nodes.indices.first { $0 != target && $0 != flooder } ?? 0
        for round in 0..<20 {
            for _ in 0..<400 {
                world.inject(.prune(MessageID(7)), at: target, from: flooder)
            }
            if round == 1 { world.move(mover, to: "198.51.100.9:1") }
            world.run(.seconds(1))
            guard round == 3 else { continue }
            // All but what comes from the flooder himself, who is another place to be told from.
            #expect(
                world.living.allSatisfy { $0 == mover || world.knows($0, mover) },
                "\(world.state)")
        }
        #expect(world.nodes[target].machine.counters.pauses > 10)
        #expect(world.wronglyGone.isEmpty)
    }
}
