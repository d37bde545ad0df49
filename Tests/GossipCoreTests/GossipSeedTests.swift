// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import GossipCore
import Testing

/// Many small worlds in which everything goes wrong for a while.
@Suite struct GossipSeedTests {
    @Test(arguments: 0..<20)
    func afterAllMishapsThereIsOneOverlayInWhichAllKnowAll(tens: Int) {
        for seed in tens * 10..<tens * 10 + 10 {
            let problem = Self.problem(UInt64(seed))
            #expect(problem == nil, "seed \(seed): \(problem ?? "")")
        }
    }

    /// Everything that must hold, of one world; nil when it does.
    private static func problem(_ seed: UInt64) -> String? {
        var random = RandomSource(seed: seed &* 0x9e37_79b9)
        let count = random.uniform(3..<21)
        var world = GossipWorld(seed: seed, count: count)
        world.replaysOneIn = 30
        for place in 0..<count {
            world.setSkew(place, milliseconds: Int64(random.uniform(0..<40_000)) - 20_000)
        }
        world.startAll()
        let end = world.now + .seconds(90)
        while world.now < end {
            world.run(random.uniform(.milliseconds(100), .seconds(6)))
            mishap(&world, &random)
            if !world.auditVersions() { return "a version went back" }
        }
        world.heal()
        for place in world.nodes.indices {
            world.resume(place)
            if !world.nodes[place].isAlive { world.restart(place, contacts: others(place, count)) }
        }
        world.replaysOneIn = nil
        world.run(.seconds(10))
        let isSettled = world.run(limit: .seconds(150)) {
            $0.isOneOverlay && $0.everybodyKnowsEverybody
        }
        guard isSettled != nil else {
            return "not all know all, or not one overlay\n" + world.state
        }
        // Once nothing is under way, neighbours are neighbours of each other.
        let isEven = world.run(limit: .seconds(10)) { $0.lopsided.isEmpty }
        guard isEven != nil else { return "lopsided: \(world.lopsided)" }
        guard world.wronglyGone.isEmpty else { return "gone: \(world.wronglyGone)" }
        guard world.auditVersions() else { return "a version went back" }
        guard world.conflicts == 0 else { return "a conflict that is none" }
        return nil
    }

    private static func others(_ place: Int, _ count: Int) -> [Int] {
        (0..<count).filter { $0 != place }
    }

    private static func mishap(_ world: inout GossipWorld, _ random: inout RandomSource) {
        let count = world.nodes.count
        let place = random.uniform(0..<count)
        switch random.uniform(0..<10) {
        case 0: world.kill(place)
        case 1:
            let other = (place + random.uniform(1..<count)) % count
            world.restart(place, contacts: [other])
        case 2: world.pause(place)
        case 3:
            for place in 0..<count { world.resume(place) }
        case 4:
            let edge = random.uniform(0..<count)
            world.cut { $0 < edge }
        case 5: world.heal()
        case 6:
            if world.nodes[place].isAlive {
                world.move(place, to: "198.51.100.\(random.uniform(0..<250)):1")
            }
        default: world.breakSomeLink()
        }
    }
}
