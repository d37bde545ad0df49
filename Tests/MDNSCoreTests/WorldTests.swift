// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DNSWire
import MDNSCore
import Testing

@Suite struct WorldTests {
    private func world(_ seed: UInt64, count: Int = 5) -> World {
        var world = World(seed: seed)
        for number in 0..<count { world.add(endpoint(UInt8(number + 1))) }
        return world
    }

    @Test func allFindEachOtherWithinThreeSeconds() {
        for seed in UInt64(1)...40 {
            var world = world(seed)
            #expect(world.run(.seconds(3)) { $0.isComplete }, "seed \(seed)")
            let peer = world.nodes[0].found[endpoint(3)]
            #expect(
                peer
                    == MDNSPeer(
                        endpoint: endpoint(3), node: NodeID(3), version: 1,
                        addresses: ["10.0.0.3:7702"]))
            world.run(.seconds(60))
            #expect(world.haste.isEmpty, "seed \(seed): \(world.haste)")
        }
    }

    /// Nobody is lost while all is well, and the link is quiet: each record is heard again in time.
    @Test func nobodyIsLostInThreeHours() {
        for seed in UInt64(1)...4 {
            var world = world(seed)
            world.run(.seconds(10))
            for number in world.nodes.indices { world.nodes[number].sent = 0 }
            let stayed = !world.run(.seconds(3 * 3600)) { !$0.isComplete }
            #expect(stayed, "seed \(seed)")
            #expect(world.haste.isEmpty, "seed \(seed): \(world.haste)")
            let sent = world.nodes.map(\.sent).reduce(0, +)
            #expect(sent < 5 * 3 * 3600 / 10, "seed \(seed): \(sent) packets")
        }
    }

    @Test func lossAndDoublesOnlyDelayIt() {
        for seed in UInt64(1)...40 {
            var world = world(seed)
            world.faults = World.Faults(lost: 30, doubled: 20, delayMax: .milliseconds(60))
            #expect(world.run(.seconds(60)) { $0.isComplete }, "seed \(seed)")
            // With a third of all packets lost a peer may be lost for a while, never for good.
            world.run(.seconds(1800))
            world.faults.lost = 0
            #expect(world.run(.seconds(130)) { $0.isComplete }, "seed \(seed)")
        }
    }

    @Test func whoSaysGoodbyeIsLostInASecondAndWhoDiesInTwoMinutes() {
        for seed in UInt64(1)...20 {
            var world = world(seed)
            world.run(.seconds(20))
            world.stop(1)
            #expect(world.run(.milliseconds(1100)) { $0.isComplete }, "seed \(seed)")
            world.crash(2)
            let crashed = world.now
            #expect(world.run(.seconds(120)) { $0.isComplete }, "seed \(seed)")
            #expect(world.now - crashed > .seconds(90))
            // And a new one is found at once.
            world.add(endpoint(9))
            #expect(world.run(.seconds(3)) { $0.isComplete }, "seed \(seed)")
        }
    }

    @Test func whoCannotBeReachedIsLostWithinTenSecondsUnlessItLives() {
        for seed in UInt64(1)...20 {
            var world = world(seed)
            world.run(.seconds(20))
            world.crash(2)
            for number in [0, 1] {
                world.step(number, .doubted(endpoint(3)))
                world.step(number, .doubted(endpoint(4)))
            }
            let isStill = !world.run(.milliseconds(9900)) { $0.nodes[0].found.count < 4 }
            #expect(isStill, "seed \(seed)")
            world.run(.milliseconds(200))
            for number in [0, 1] {
                #expect(world.nodes[number].found[endpoint(3)] == nil, "seed \(seed)")
                #expect(world.nodes[number].found[endpoint(4)] != nil, "seed \(seed)")
            }
            #expect(world.nodes[3].found[endpoint(3)] != nil, "nobody told it")
        }
    }

    @Test func aStoppedProcessFindsTheOthersAgain() {
        for seed in UInt64(1)...40 {
            var world = world(seed)
            world.run(.seconds(20))
            world.pause(2, .seconds(600))
            world.run(.seconds(600))
            #expect(world.nodes[0].found[endpoint(3)] == nil, "seed \(seed)")
            #expect(world.run(.seconds(3)) { $0.isComplete }, "seed \(seed)")
        }
    }

    @Test func nodesOfOneMachineFindEachOther() {
        for seed in UInt64(1)...20 {
            var world = World(seed: seed)
            for number in 0..<3 { world.add(endpoint(UInt8(number + 1)), at: "10.0.0.1") }
            #expect(world.run(.seconds(3)) { $0.isComplete }, "seed \(seed)")
            #expect(world.nodes[0].found[endpoint(2)]?.addresses == ["10.0.0.1:7701"])
        }
    }

    // MARK: - Names

    @Test func whoStartsUnderATakenNameTakesAnother() {
        for seed in UInt64(1)...30 {
            var world = World(seed: seed)
            world.add(endpoint(1, 1))
            world.run(.seconds(5))
            world.add(endpoint(1, 2))
            #expect(world.run(.seconds(5)) { $0.isComplete }, "seed \(seed)")
            let names = world.nodes.map(\.machine.instanceName)
            #expect(names[1] == names[0].replacing("._aspen", with: "-2._aspen"), "seed \(seed)")
        }
    }

    @Test func ofTwoThatStartAtOnceOneTakesAnotherName() {
        for seed in UInt64(1)...30 {
            var world = World(seed: seed)
            world.faults.lost = seed % 2 == 0 ? 0 : 10
            world.add(endpoint(1, 1))
            world.add(endpoint(1, 2))
            world.add(endpoint(1, 3))
            #expect(world.run(.seconds(60)) { $0.isComplete }, "seed \(seed)")
            #expect(Set(world.nodes.map(\.machine.instanceName)).count == 3, "seed \(seed)")
        }
    }

    @Test func linksThatAreJoinedSettleTheirNames() {
        for seed in UInt64(1)...20 {
            var world = World(seed: seed)
            world.add(endpoint(1, 1))
            world.add(endpoint(1, 2))
            world.add(endpoint(2))
            world.groups = [0, 1, 1]
            world.run(.seconds(30))
            #expect(Set(world.nodes.map(\.machine.instanceName)).count == 2)
            world.groups = [0, 0, 0]
            // Whoever speaks first begins it: an address that is new, for one.
            world.step(0, .port(7799))
            #expect(world.run(.seconds(120)) { $0.isComplete }, "seed \(seed)")
            #expect(Set(world.nodes.map(\.machine.instanceName)).count == 3, "seed \(seed)")
        }
    }

    // MARK: - The same again

    @Test func theSameSeedGivesTheSameTrace() {
        func run(_ seed: UInt64) -> UInt64 {
            var world = world(seed)
            world.add(endpoint(1, 7))
            world.faults = World.Faults(lost: 20, doubled: 10)
            world.run(.seconds(100))
            world.pause(1, .seconds(50))
            world.run(.seconds(100))
            world.stop(0)
            world.run(.seconds(200))
            return world.digest
        }
        for seed in UInt64(1)...10 { #expect(run(seed) == run(seed), "seed \(seed)") }
        #expect(run(1) != run(2))
    }
}
