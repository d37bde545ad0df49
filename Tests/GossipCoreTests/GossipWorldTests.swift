// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import Testing

/// Worlds of fifty nodes: what is known, how soon, at what price.
@Suite struct GossipWorldTests {
    /// Fifty nodes that have found each other and have settled.
    private static func settled(seed: UInt64, count: Int = 50) -> GossipWorld {
        var world = GossipWorld(seed: seed, count: count)
        world.checksEachStep = false
        world.startAll()
        world.run(.seconds(90))
        return world
    }

    private static func check(_ world: GossipWorld) {
        for place in world.living { world.nodes[place].machine.checkInvariants() }
        #expect(world.wronglyGone.isEmpty)
    }

    @Test(arguments: 1...4)
    func fiftyNodesThatStartTogetherKnowEachOtherInSeconds(seed: UInt64) throws {
        var world = GossipWorld(seed: seed, count: 50)
        world.checksEachStep = seed == 1
        world.startAll()
        let time = try #require(world.run(limit: .seconds(30)) { $0.everybodyKnowsEverybody })
        #expect(time <= .seconds(5), "\(time)")
        world.run(.seconds(60))
        Self.check(world)
        #expect(world.isOneOverlay && world.suspicions == 0)
    }

    @Test(arguments: 1...3)
    func aChangeIsKnownToAllInAboutASecond(seed: UInt64) throws {
        var world = Self.settled(seed: seed)
        var slowest = Duration.zero
        for round in 0..<10 {
            let place = world.random.uniform(0..<50)
            world.move(place, to: "198.51.100.\(round):7001")
            let time = try #require(
                world.run(limit: .seconds(30)) { world in
                    world.living.allSatisfy { $0 == place || world.knows($0, place) }
                })
            slowest = max(slowest, time)
            world.run(.seconds(5))
        }
        #expect(slowest <= .seconds(2), "\(slowest)")
        Self.check(world)
    }

    @Test(arguments: 1...3)
    func aChangeIsKnownToAllAlsoWhenOneInTenHasDiedAtOnce(seed: UInt64) throws {
        var world = Self.settled(seed: seed)
        for place in [3, 11, 22, 37, 48] { world.kill(place) }
        world.move(5, to: "198.51.100.5:7001")
        let time = try #require(
            world.run(limit: .seconds(30)) { world in
                world.living.allSatisfy { $0 == 5 || world.knows($0, 5) }
            })
        #expect(time <= .seconds(5), "\(time)")
        world.run(.seconds(60))
        Self.check(world)
        #expect(world.isOneOverlay)
        // The dead are suspected everywhere, and nowhere called gone so soon.
        for place in world.living {
            let record = world.nodes[place].machine.record(of: endpoint(4))
            if case .suspected = record?.standing {} else { Issue.record("\(place) does not") }
        }
        world.run(.seconds(330))
        #expect(world.living.allSatisfy { world.nodes[$0].machine.record(of: endpoint(4)) == nil })
    }

    /// Bytes of messages and of the frames around them. What one node sends depends on its places in
    /// the trees: it is the busiest one that counts.
    @Test(arguments: 1...4)
    func idleTrafficIsSmallForTheBusiestToo(seed: UInt64) {
        var world = Self.settled(seed: seed)
        world.clearTraffic()
        world.run(.seconds(120))
        let sent = world.nodes.map { $0.bytesSent / 120 }
        let received = world.nodes.map { $0.bytesReceived / 120 }
        let average = sent.reduce(0, +) / 50
        #expect(average < 1200, "\(average) bytes a second sent on average")
        #expect(sent.allSatisfy { $0 < 2000 }, "\(sent.sorted())")
        #expect(received.allSatisfy { $0 < 2000 }, "\(received.sorted())")
        Self.check(world)
    }

    @Test func aPausedNodeIsSuspectedAndRefutesAndIsNeverGone() {
        var world = Self.settled(seed: 5)
        // Stopped with its links up: nobody can say that it is unreachable, only that it is silent.
        world.pause(7)
        world.run(.seconds(60))
        let subject = endpoint(8)
        let suspecting = world.living.count { place in
            world.nodes[place].standings[subject] == .suspected(.silent)
        }
        #expect(suspecting == 49)
        world.run(.seconds(900))
        #expect(world.living.allSatisfy { $0 == 7 || world.nodes[$0].standings[subject] != .gone })
        world.resume(7)
        let time = world.run(limit: .seconds(30)) { $0.everybodyKnowsEverybody }
        #expect(time.map { $0 <= .seconds(3) } ?? false, "\(String(describing: time))")
        Self.check(world)
    }

    @Test func aNodeThatWasStoppedForLongAndLostAllLinksComesBack() {
        var world = Self.settled(seed: 6, count: 10)
        world.pause(3)
        world.breakLinks { $0.ends.0 == 3 || $0.ends.1 == 3 }
        world.run(.seconds(400))
        #expect(
            world.living.allSatisfy { $0 == 3 || world.nodes[$0].standings[endpoint(4)] == .gone })
        world.resume(3)
        #expect(world.run(limit: .seconds(60)) { $0.everybodyKnowsEverybody } != nil)
    }

    @Test(arguments: [60, 250])
    func twoHalvesBecomeOneOverlayAgain(seconds: Int) throws {
        var world = Self.settled(seed: 7)
        world.cut { $0 % 2 == 0 }
        world.run(.seconds(seconds))
        let across = world.living.filter { $0 % 2 == 1 }.allSatisfy { place in
            world.nodes[place].standings[endpoint(1)] != .alive
        }
        #expect(across, "the other half is suspected")
        world.heal()
        let time = try #require(
            world.run(limit: .seconds(90)) { $0.isOneOverlay && $0.everybodyKnowsEverybody })
        #expect(time <= .seconds(30), "\(time)")
        world.run(.seconds(60))
        #expect(world.isOneOverlay && world.everybodyKnowsEverybody)
        Self.check(world)
    }

    /// What members do who have forgotten each other; strangers are found again by whoever found
    /// them first.
    @Test func halvesThatHaveForgottenEachOtherMeetThroughTheMembership() throws {
        var world = Self.settled(seed: 8, count: 12)
        let members = (0..<12).map {
            GossipMember(endpoint: endpoint($0 + 1), node: NodeID(UInt64($0 + 1)))
        }
        for place in 0..<12 { world.step(place, .members(members)) }
        world.cut { $0 < 6 }
        world.run(.seconds(1800))
        #expect(world.nodes[0].machine.record(of: endpoint(12)) == nil)
        world.heal()
        _ = try #require(
            world.run(limit: .seconds(120)) { $0.isOneOverlay && $0.everybodyKnowsEverybody })
    }

    @Test func aFlakyLinkMakesNobodyASuspect() {
        var world = Self.settled(seed: 9, count: 10)
        world.noticeMax = .seconds(1)
        let before = world.suspicions
        for _ in 0..<100 {
            world.breakSomeLink()
            world.run(.seconds(2))
        }
        #expect(world.suspicions == before)
        #expect(world.isOneOverlay)
        Self.check(world)
    }

    @Test func clocksThatAreALittleOffDisturbNobody() throws {
        var world = GossipWorld(seed: 10, count: 10)
        for place in 0..<10 {
            world.setSkew(place, milliseconds: place % 2 == 0 ? 25_000 : -25_000)
        }
        world.startAll()
        _ = try #require(world.run(limit: .seconds(30)) { $0.everybodyKnowsEverybody })
        world.run(.seconds(300))
        #expect(world.suspicions == 0 && world.everybodyKnowsEverybody)
        Self.check(world)
    }

    @Test func aRestartIsKnownAtOnce() throws {
        var world = Self.settled(seed: 11, count: 20)
        world.nodes[4].description.addresses = ["203.0.113.9:7001"]
        world.restart(4, contacts: [9])
        let time = try #require(world.run(limit: .seconds(30)) { $0.everybodyKnowsEverybody })
        #expect(time <= .seconds(3), "\(time)")
        Self.check(world)
    }

    @Test func theSameSeedGivesTheSameTrace() {
        func trace(_ seed: UInt64) -> UInt64 {
            var world = GossipWorld(seed: seed, count: 12)
            world.startAll()
            world.run(.seconds(30))
            world.kill(3)
            world.cut { $0 < 4 }
            world.run(.seconds(50))
            world.heal()
            world.restart(3, contacts: [1])
            world.run(.seconds(50))
            return world.hash
        }
        #expect(trace(1) == trace(1))
        #expect(trace(1) != trace(2))
    }
}
