// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import Testing

/// One random run: messages lost, doubled and shuffled, crashes between any two steps, disks that
/// keep any prefix of what was not synced, links and daemons that come and go.
final class Fuzz {
    let world: World
    private var random: RandomSource
    private let voters: [NodeID]
    private var reads: [ReadID: (node: NodeID, committed: LogIndex)] = [:]
    private var seenReads: [NodeID: Int] = [:]
    private var nextRead: UInt64 = 0
    private var text = 0
    private(set) var answeredReads = 0
    private let withDamage: Bool
    /// Now and then the power fails everywhere, and each log is damaged somewhere else.
    private let withDecay: Bool
    private(set) var decays = 0
    /// Leaders seldom finish what they began.
    private let unrest: Bool
    /// Nodes on one side of a cut; messages do not cross it.
    private var cutOff: [NodeID] = []

    init(
        seed: UInt64, bugs: Set<PlantedBug> = [], withDamage: Bool = false,
        withDecay: Bool = false, unrest: Bool = false
    ) {
        random = RandomSource(seed: seed)
        world = World(seed: random.next())
        world.plantedBugs = bugs
        self.withDamage = withDamage
        self.withDecay = withDecay
        self.unrest = unrest
        let smallCache = random.chance(1, in: 2)
        world.adjust = { configuration in
            configuration.appendBytesMax = 400
            configuration.appendsInFlightMax = 4
            if smallCache { configuration.cacheBytesMax = 600 }
        }
        voters = (1...(random.chance(1, in: 3) ? 5 : 3)).map { NodeID(UInt64($0)) }
        world.found(voters: voters, learners: random.chance(1, in: 2) ? [NodeID(9)] : [])
        if !world.nodes.contains(where: { $0.id == NodeID(9) }) { world.start(NodeID(9)) }
    }

    func run(steps: Int) {
        for _ in 0..<steps {
            act()
            checkReads()
            if !world.violations.isEmpty { return }
        }
        world.checkLogMatching()
    }

    /// Whole scenes instead of single events: some nodes are among themselves, one of them campaigns
    /// or a leader among them is given something to write. Reaches histories such as that of figure
    /// 8 of the Raft paper, which single events hardly ever line up for.
    func walk(scenes: Int) {
        for _ in 0..<scenes where world.violations.isEmpty {
            let together = voters.filter { _ in random.chance(3, in: 5) }
            guard let actor = together.randomElement(using: &random) else { continue }
            switch random.uniform(0..<8) {
            case 0..<4:
                for id in together { world.node(id).skew += .seconds(4) }
                world.fireTimer(actor)
            case 4: read(at: actor)
            default:
                text += 1
                world.propose(actor, "\(text)")
            }
            world.settle(isOpen: { together.contains($0.from) && together.contains($0.to) })
            checkReads()
        }
        world.checkLogMatching()
    }

    private func anyNode() -> NodeID {
        world.nodes[random.uniform(0..<world.nodes.count)].id
    }

    private func act() {
        if unrest, random.chance(1, in: 12) {
            switch random.uniform(0..<6) {
            case 0: crashSomething()
            case 1, 2: restartSomething()
            case 3: world.fireTimer(anyNode())
            default:
                for node in world.nodes where node.core?.isLeader == true {
                    text += 1
                    world.propose(node.id, "\(text)")
                }
            }
        }
        if withDecay, random.chance(1, in: 500) { decay() }
        switch random.uniform(0..<1000) {
        case 0..<520: deliverSomething()
        case 520..<720: syncSomething()
        case 720..<790: fireTimer()
        case 790..<870:
            text += 1
            world.propose(anyNode(), "\(text)")
        case 870..<910: read(at: anyNode())
        case 910..<917: crashSomething()
        case 917..<935: restartSomething()
        case 935..<960: disturbLinks()
        case 960..<970: world.step(anyNode(), .serviceGone(anyNode()))
        case 970..<980: discardSomething()
        case 980..<984: world.step(anyNode(), .transferLeadership(to: anyNode()))
        case 984..<986: changeMembership()
        case 986..<990:
            cutOff = random.chance(1, in: 2) ? [] : voters.filter { _ in random.chance(2, in: 5) }
        default: passSnapshots()
        }
    }

    private func deliverSomething() {
        guard !world.inFlight.isEmpty else { return }
        // Mostly in order, sometimes not.
        let reach = random.chance(1, in: 4) ? world.inFlight.count : min(3, world.inFlight.count)
        let position = random.uniform(0..<reach)
        let message = world.inFlight[position]
        if cutOff.contains(message.from) != cutOff.contains(message.to) {
            world.inFlight.remove(at: position)
            return
        }
        switch random.uniform(0..<40) {
        case 0: world.inFlight.remove(at: position)
        case 1: world.deliver(message)
        default:
            world.inFlight.remove(at: position)
            world.deliver(message)
        }
        if world.inFlight.count > 300 { world.inFlight.removeFirst(150) }
    }

    private func syncSomething() {
        let node = world.node(anyNode())
        guard !node.pending.isEmpty else { return }
        world.sync(node.id, count: random.uniform(1..<node.pending.count + 1))
    }

    private func fireTimer() {
        if random.chance(1, in: 3) {
            world.fireTimer(anyNode())
            return
        }
        guard let next = world.nodes.compactMap(\.due).min() else { return }
        world.now = max(world.now, next)
        for node in world.nodes {
            if let due = node.due, due <= world.now { world.step(node.id, .timeout) }
        }
    }

    private func read(at node: NodeID) {
        nextRead += 1
        let id = ReadID(nextRead)
        guard world.isUp(node) else { return }
        reads[id] = (node, world.committedIndex)
        world.step(node, .read(id))
    }

    private func checkReads() {
        for node in world.nodes {
            for ready in node.readsReady.dropFirst(seenReads[node.id] ?? 0) {
                answeredReads += 1
                guard let asked = reads[ready.id] else { continue }
                if ready.index < asked.committed {
                    world.note("a read at \(node.id) misses what was committed before it")
                }
            }
            seenReads[node.id] = node.readsReady.count
        }
    }

    private func crashSomething() {
        let node = world.node(anyNode())
        guard node.core != nil else { return }
        world.crash(node.id, syncedWrites: random.uniform(0..<node.pending.count + 1))
        if random.chance(1, in: 2) {
            world.inFlight.removeAll { $0.to == node.id || $0.from == node.id }
        }
        if withDamage, random.chance(1, in: 3) { damage(node) }
        if random.chance(1, in: 2) {
            for other in world.nodes { world.step(other.id, .serviceGone(node.id)) }
        }
    }

    /// The newest entries turn out unreadable. One node at a time: what is lost everywhere is lost.
    private func damage(_ node: World.Node) {
        let disk = node.disk
        let isOtherDamaged = world.nodes.contains { $0.disk.untrustedBelow != nil }
        let floor = max(node.appliedIndex, disk.base.index)
        guard !isOtherDamaged, disk.lastIndex > floor else { return }
        let end = disk.lastIndex
        disk.damage(
            after: floor.advanced(by: random.uniform(0..<Int(end.rawValue - floor.rawValue))))
    }

    /// Everything stops, and each voter loses some entries; what is committed stays whole on a majority,
    /// each entry perhaps on another one.
    private func decay() {
        for node in world.nodes {
            world.crash(node.id, syncedWrites: random.uniform(0..<node.pending.count + 1))
        }
        world.inFlight.removeAll()
        for id in voters where random.chance(4, in: 5) {
            let disk = world.node(id).disk
            // The first entry is the membership; without it they would wait for a person.
            let first = max(disk.base.index, LogIndex(1)).next
            guard disk.lastIndex >= first else { continue }
            let length = Int(disk.lastIndex.rawValue - first.rawValue) + 1
            let start = first.advanced(by: random.uniform(max(0, length - 12)..<length))
            let end = min(disk.lastIndex, start.advanced(by: random.uniform(0..<3)))
            let lost = start...end
            guard staysOnMajority(lost, without: disk) else { continue }
            disk.damage(lost)
            world.forgetApplied(id, after: disk.lastIndex)
            decays += 1
        }
    }

    private func staysOnMajority(_ lost: ClosedRange<LogIndex>, without disk: World.Disk) -> Bool {
        var index = lost.lowerBound
        while index <= lost.upperBound {
            if let entry = world.committedEntry(at: index) {
                let holders = voters.count { id in
                    let other = world.node(id).disk
                    return other === disk ? other.salvage.contains(entry) : other.holds(entry)
                }
                if holders <= voters.count / 2 { return false }
            }
            index = index.next
        }
        return true
    }

    private func restartSomething() {
        for node in world.nodes where node.core == nil {
            world.start(node.id)
            if random.chance(1, in: 2) {
                for other in world.nodes { world.step(other.id, .linkRestored(node.id)) }
            }
            return
        }
    }

    private func disturbLinks() {
        let (one, other) = (anyNode(), anyNode())
        switch random.uniform(0..<4) {
        case 0:
            world.inFlight.removeAll { $0.from == one && $0.to == other }
            world.step(one, .linkLost(other))
        case 1: world.step(one, .linkRestored(other))
        case 2: world.step(one, .ownNetLost)
        default: world.step(one, .ownNetRestored)
        }
    }

    private func discardSomething() {
        let node = world.node(anyNode())
        guard node.core != nil else { return }
        world.discard(node.id, upTo: LogIndex(node.appliedIndex.rawValue / 2 + 1))
    }

    private func changeMembership() {
        // A single voter that is damaged has lost the only copy.
        if withDamage || withDecay { return }
        let wished = voters.filter { _ in random.chance(3, in: 4) }
        let learners = random.chance(1, in: 2) ? [NodeID(9)] : []
        let id = ProposalID(node: NodeID(1), incarnation: 2, number: 1)
        for node in world.nodes where node.core?.isLeader == true {
            world.step(
                node.id,
                .changeMembership(
                    voters: wished, learners: learners,
                    members: (wished + learners).map(World.member), id: id))
        }
    }

    private func passSnapshots() {
        for node in world.nodes where node.core != nil {
            for peer in node.snapshotsWanted where world.isUp(peer) {
                world.passSnapshot(from: node.id, to: peer)
            }
        }
    }

    /// Everything works again: the cluster must find a leader and agree.
    func heal() {
        world.inFlight.removeAll()
        for node in world.nodes where node.core == nil { world.start(node.id) }
        for node in world.nodes {
            world.step(node.id, .ownNetRestored)
            for other in world.nodes where other.id != node.id {
                world.step(node.id, .linkRestored(other.id))
            }
        }
        world.pass(.seconds(20))
        checkReads()
        guard let leader = world.leader else {
            world.note("no leader although all is well")
            return
        }
        world.propose(leader.id, "last")
        world.pass(.seconds(5))
        let members = leader.core?.membership?.members.map(\.node) ?? []
        for node in world.nodes where members.contains(node.id) {
            if node.appliedIndex != world.committedIndex {
                world.note("node \(node.id) lags at \(node.appliedIndex) although all is well")
            }
            if node.core?.isTailTrusted != true { world.note("node \(node.id) was not repaired") }
        }
        if leader.applied.last?.payload != Array("last".utf8) { world.note("a write was lost") }
        world.checkLogMatching()
    }
}

@Suite struct FuzzTests {
    @Test(arguments: 0..<8)
    func randomRunsKeepEveryPromise(batch: UInt64) {
        var answered = 0
        for seed in (batch * 40)..<(batch * 40 + 40) {
            let fuzz = Fuzz(seed: seed, unrest: seed % 4 == 1)
            fuzz.run(steps: 4000)
            if fuzz.world.violations.isEmpty { fuzz.heal() }
            answered += fuzz.answeredReads
            #expect(fuzz.world.violations.isEmpty, "seed \(seed)")
        }
        #expect(answered > 0, "the reads were never put to the test")
    }

    @Test func damagedTailsLoseNothing() {
        for seed in UInt64(1000)..<1150 {
            let fuzz = Fuzz(seed: seed, withDamage: true)
            fuzz.run(steps: 4000)
            if fuzz.world.violations.isEmpty { fuzz.heal() }
            #expect(fuzz.world.violations.isEmpty, "seed \(seed)")
        }
    }

    /// No log is whole, and every entry is, on a majority.
    @Test func whatAMajorityHoldsIsNeverLost() {
        var decays = 0
        for seed in UInt64(2000)..<2150 {
            let fuzz = Fuzz(seed: seed, withDecay: true, unrest: seed % 2 == 1)
            fuzz.run(steps: 4000)
            if fuzz.world.violations.isEmpty { fuzz.heal() }
            #expect(fuzz.world.violations.isEmpty, "seed \(seed)")
            decays += fuzz.decays
        }
        #expect(decays > 300, "\(decays) logs damaged")
    }

    @Test func randomScenesKeepEveryPromise() {
        for seed in UInt64(0)..<1000 {
            let fuzz = Fuzz(seed: seed)
            fuzz.walk(scenes: 60)
            if fuzz.world.violations.isEmpty { fuzz.heal() }
            #expect(fuzz.world.violations.isEmpty, "seed \(seed)")
        }
    }

    #if ASPEN_TEST_BUILD
        @Test(arguments: [
            PlantedBug.voteTwice, .acknowledgeBeforeDurable, .applyBeforeCommit, .skipReadRound,
            .commitOldTermByCounting,
        ])
        func plantedBugIsCaught(bug: PlantedBug) {
            for seed in UInt64(0)..<2000 {
                let fuzz = Fuzz(seed: seed, bugs: [bug], unrest: seed % 2 == 1)
                if seed % 2 == 1 { fuzz.walk(scenes: 60) } else { fuzz.run(steps: 4000) }
                if !fuzz.world.violations.isEmpty { return }
            }
            Issue.record("\(bug.rawValue) went unnoticed")
        }

        @Test func forgottenSalvageIsNoticed() {
            for seed in UInt64(2000)..<2150 {
                let fuzz = Fuzz(seed: seed, bugs: [.forgetSalvage], withDecay: true)
                fuzz.run(steps: 4000)
                if fuzz.world.violations.isEmpty { fuzz.heal() }
                if !fuzz.world.violations.isEmpty { return }
            }
            Issue.record("what lies behind the damage is never needed")
        }
    #endif
}
