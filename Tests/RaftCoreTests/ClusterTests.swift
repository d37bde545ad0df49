// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import Testing

/// What the traces cannot show well: times, limits and long runs.
@Suite struct ClusterTests {
    private let one = NodeID(1), two = NodeID(2), three = NodeID(3)

    private func ids(_ range: ClosedRange<UInt64>) -> [NodeID] { range.map { NodeID($0) } }

    /// Node 1 leads three.
    private func ledWorld(seed: UInt64 = 1) -> World {
        let world = World(seed: seed)
        world.found(voters: ids(1...3))
        world.fireTimer(one)
        world.settle()
        return world
    }

    @Test func threeNodesElectAndReplicate() throws {
        let world = World(seed: 1)
        world.found(voters: ids(1...3))
        world.pass(.seconds(5))
        let leader = try #require(world.leader)
        for number in 0..<100 { world.propose(leader.id, "value \(number)") }
        world.settle()
        for node in world.nodes { #expect(node.applied.count == 102) }
        #expect(world.violations.isEmpty)
    }

    /// A cluster that starts cold has a leader soon: the first attempts do not wait for an election
    /// timeout.
    @Test func aColdStartIsShort() {
        for seed in UInt64(0)..<50 {
            let world = World(seed: seed)
            world.found(voters: ids(1...3))
            world.pass(.milliseconds(1000))
            #expect(world.leader != nil, "seed \(seed)")
        }
    }

    /// After the leader's daemon has died and its net has said so, the others have a leader within
    /// 300 ms of messages that take no time, whoever was named and whatever was in flight.
    @Test func aDeadDaemonIsReplacedFast() {
        for seed in UInt64(0)..<300 {
            let world = ledWorld(seed: seed)
            world.pass(.milliseconds(Int64(seed * 7)))
            for number in 0..<3 {
                world.propose(one, "\(number)")
                // Some of it arrives, some does not.
                for _ in 0..<Int(seed % 5) where !world.inFlight.isEmpty {
                    world.deliver(world.inFlight.removeFirst())
                }
            }
            world.crash(one)
            world.inFlight.removeAll { $0.from == one || $0.to == one }
            let term = world.node(two).core?.term
            world.step(seed % 2 == 0 ? two : three, .serviceGone(one))
            world.step(seed % 2 == 0 ? three : two, .serviceGone(one))
            world.pass(.milliseconds(300))
            #expect(world.leader != nil, "seed \(seed), term \(String(describing: term))")
            #expect(world.violations.isEmpty)
        }
    }

    /// Links lost for less than a second, at any moment and any node: the term stays.
    @Test func aRestartedNetChangesNoTerm() {
        for seed in UInt64(0)..<200 {
            var random = RandomSource(seed: seed)
            let world = ledWorld(seed: seed)
            for _ in 0..<10 {
                world.pass(.milliseconds(Int64(random.uniform(0..<1500))))
                let victim = NodeID(UInt64(random.uniform(1..<4)))
                let others = ids(1...3).filter { $0 != victim }
                world.step(victim, .ownNetLost)
                for other in others {
                    world.step(other, .linkLost(victim))
                    world.step(victim, .linkLost(other))
                }
                world.pass(
                    .milliseconds(Int64(random.uniform(10..<950))),
                    isOpen: { $0.from != victim && $0.to != victim })
                world.step(victim, .ownNetRestored)
                for other in others {
                    world.step(other, .linkRestored(victim))
                    world.step(victim, .linkRestored(other))
                }
                world.settle()
            }
            world.pass(.seconds(5))
            for node in world.nodes {
                #expect(node.core?.term == Term(2), "seed \(seed)")
                #expect(node.core?.standing.leader == one)
            }
        }
    }

    @Test func limitsAreAnswered() {
        let world = ledWorld()
        func id(_ number: UInt64) -> ProposalID {
            ProposalID(node: one, incarnation: 9, number: number)
        }
        let big = [UInt8](repeating: 0, count: Proposal.payloadBytesMax + 1)
        world.step(one, .propose([Proposal(id: id(1), payload: big)]))
        #expect(world.node(one).proposalsFailed == [id(1)])
        let many = (0..<UInt64(Limits.proposalsInFlightMax) + 1).map {
            Proposal(id: id(10 + $0), payload: [])
        }
        world.step(one, .propose(many))
        #expect(world.node(one).proposalsFailed.count == 1 + many.count)
        world.step(one, .propose(many.dropLast(2)))
        world.step(one, .propose([Proposal(id: id(3), payload: [])]))
        #expect(world.node(one).proposalsFailed.count == 1 + many.count)
        world.step(one, .propose([Proposal(id: id(4), payload: [])]))
        #expect(world.node(one).proposalsFailed.last == id(4))
        world.settle()
        world.step(one, .propose([Proposal(id: id(5), payload: [])]))
        world.settle()
        #expect(world.node(three).applied.last?.origin == id(5))

        for number in 0..<UInt64(Limits.readsInFlightMax) + 5 {
            world.step(two, .read(ReadID(number)))
        }
        #expect(world.node(two).readsFailed.count == 5)
        world.settle()
        #expect(world.node(two).readsReady.count == Limits.readsInFlightMax)
        #expect(world.violations.isEmpty)
    }

    @Test func membershipsAreBounded() {
        let world = ledWorld()
        let tooMany = UInt64(max(Limits.votersMax, Limits.learnersMax)) + 4
        let (known, others) = (ids(1...3), ids(4...tooMany))
        let wishes = [(known + others, []), (known, others)]
        for (number, (voters, learners)) in wishes.enumerated() {
            let id = ProposalID(node: one, incarnation: 9, number: UInt64(number))
            world.step(
                one,
                .changeMembership(
                    voters: voters, learners: learners,
                    members: (known + others).map(world.present), id: id))
            #expect(world.node(one).proposalsFailed.last == id)
        }
        #expect(world.node(one).proposalsFailed.count == 2 && world.violations.isEmpty)
    }

    /// A leader with much that is not committed takes no more, even of few entries.
    @Test func uncommittedBytesAreBounded() {
        let world = World(seed: 1)
        world.adjust = { $0.uncommittedBytesMax = 1000 }
        world.found(voters: ids(1...3))
        world.fireTimer(one)
        world.settle()
        for _ in 0..<20 { world.propose(one, String(repeating: "x", count: 100)) }
        #expect(world.node(one).proposalsFailed.count == 10)
        world.settle()
        world.propose(one, String(repeating: "x", count: 5000))
        #expect(world.node(one).proposalsFailed.count == 10, "one that is too large alone passes")
        world.settle()
        #expect(world.node(three).applied.count == 2 + 11)
    }

    /// Cluster time starts at the founder's wall clock, follows the leader's clock and never goes
    /// back, whatever the clock of the next leader says.
    @Test func clusterTimeNeverGoesBack() {
        let world = World(seed: 3)
        for id in ids(1...3) { world.start(id) }
        world.node(two).skew = .seconds(100)
        world.step(
            one,
            .initialize(
                world.membership(voters: ids(1...3)), wallTime: ClusterTime(milliseconds: 5000),
                id: ProposalID(node: one, incarnation: 1, number: 1)))
        world.settle()
        for round in 0..<20 {
            world.pass(.milliseconds(700))
            guard let leader = world.leader else {
                Issue.record("no leader")
                return
            }
            world.propose(leader.id, "\(round)")
            world.settle()
            if round % 5 == 4 {
                world.step(leader.id, .transferLeadership(to: NodeID(leader.id.rawValue % 3 + 1)))
                world.settle()
            }
        }
        let times = world.node(one).applied.map(\.time.milliseconds)
        #expect(times == times.sorted())
        #expect(times[0] == 5000)
        #expect(times.last == 5000 + 20 * 700)
    }

    /// The power fails everywhere at any moment; every log ends in a torn record which might have
    /// been acknowledged. Nothing that was synced and committed is missing afterwards.
    @Test func everyNodeTornAtOnce() {
        for seed in UInt64(0)..<300 {
            var random = RandomSource(seed: seed)
            let world = ledWorld(seed: seed)
            for number in 0..<20 {
                world.propose(one, "\(number)")
                for _ in 0..<random.uniform(0..<8) {
                    if random.chance(1, in: 2) {
                        world.sync(NodeID(UInt64(random.uniform(1..<4))))
                    } else if !world.inFlight.isEmpty {
                        world.deliver(world.inFlight.removeFirst())
                    }
                }
            }
            world.inFlight.removeAll()
            for node in world.nodes {
                let torn = node.pending.first?.entries.count ?? 0
                world.crash(node.id)
                guard torn > 0, random.chance(4, in: 5) else { continue }
                node.disk.untrustedBelow = node.disk.lastIndex.advanced(by: torn)
            }
            let committed = world.committedIndex
            for node in world.nodes { world.start(node.id) }
            world.pass(.seconds(15))
            #expect(world.leader != nil, "seed \(seed)")
            #expect(world.committedIndex > committed)
            for node in world.nodes { #expect(node.core?.isTailTrusted == true) }
            #expect(world.violations.isEmpty, "seed \(seed)")
        }
    }

    /// Messages that no correct node would send, in any order: they may confuse an election, but
    /// trap nothing. (Appends are left out: a leader that replaces a committed entry is stopped by
    /// intent, see `Following.swift`.)
    @Test func nonsenseNeverTraps() {
        for seed in UInt64(0)..<200 {
            let world = ledWorld(seed: seed)
            var source = ValueSource(random: RandomSource(seed: seed))
            for _ in 0..<300 {
                var body = source.body()
                if case .append = body { continue }
                if case .heartbeatReply = body, source.flag() {
                    body = .heartbeatReply(round: source.random.uniform(0..<9), lastIndex: .zero)
                }
                let (from, to) = (source.random.uniform(1..<6), source.random.uniform(1..<4))
                world.deliver(
                    Message(
                        from: NodeID(UInt64(from)), to: NodeID(UInt64(to)),
                        term: Term(source.random.uniform(0..<5)), body: body))
                world.inFlight.removeAll()
                if source.flag() { world.sync(NodeID(UInt64(to))) }
            }
        }
    }

    /// A candidate of a newer term without the leader's blessing is not even listened to by voters
    /// that hear their leader; with it, it is.
    @Test func onlyABlessedCandidateOverrulesALiveLeader() {
        func vote(isTransfer: Bool) -> World {
            let world = ledWorld()
            world.deliver(
                Message(
                    from: three, to: two, term: Term(3),
                    body: .vote(
                        lastIndex: LogIndex(2), lastTerm: Term(2), isTransfer: isTransfer)))
            return world
        }
        #expect(vote(isTransfer: false).node(two).core?.term == Term(2))
        #expect(vote(isTransfer: true).node(two).core?.term == Term(3))
        #expect(vote(isTransfer: true).node(two).held.count == 1, "the vote waits for the disk")
    }
}
