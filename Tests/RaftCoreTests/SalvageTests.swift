// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import Testing

/// What lies behind damage, where it takes long to gather, or is not to be had.
@Suite struct SalvageTests {
    private let one = NodeID(1), two = NodeID(2), three = NodeID(3)

    /// All three hold three entries: the membership, the first of term 2, a value.
    private func world(seed: UInt64 = 1) -> World {
        let world = World(seed: seed)
        world.adjust = { $0.appendBytesMax = 1 }
        world.found(voters: [one, two, three])
        world.fireTimer(two)
        world.settle()
        world.propose(two, "first")
        world.settle()
        return world
    }

    /// Power fails. Node 2 has lost the last entry that the others have, and what it has behind it is
    /// whole; node 3 cannot trust its end; node 1 is whole.
    ///
    /// - Parameter forgetting: what had been applied is gone, too.
    private func damage(_ world: World, forgetting: Bool = false) {
        let end = world.node(one).disk.lastIndex
        world.inFlight.removeAll()
        for id in [one, two, three] { world.crash(id) }
        world.node(two).disk.damage(end...end)
        world.forgetApplied(two, after: end.previous)
        world.node(three).disk.damage(after: end)
        if forgetting {
            for id in [one, two, three] { world.forgetApplied(id, after: LogIndex(1)) }
        }
        for id in [one, two, three] { world.start(id) }
    }

    /// Each message is on its way for 100 ms; timers fire meanwhile. Ends when somebody leads.
    private func pass(
        _ world: World, seconds: Int, isOpen: (Message) -> Bool = { _ in true }
    ) {
        for _ in 0..<seconds * 10 where world.leader == nil {
            let underWay = world.inFlight
            world.inFlight.removeAll()
            world.now = world.now + .milliseconds(100)
            for message in underWay where isOpen(message) { world.deliver(message) }
            for node in world.nodes where node.due.map({ $0 <= world.now }) == true {
                world.step(node.id, .timeout)
            }
            for node in world.nodes where !node.pending.isEmpty { world.sync(node.id) }
        }
    }

    /// Node 1 has granted, is asked for nothing, and its log is as good as the candidate's: it must not
    /// campaign while that one gathers page after page. What is gathered would be lost each time.
    @Test func manyPagesAreGatheredInOneCampaign() throws {
        for seed in UInt64(1)...20 {
            let world = world(seed: seed)
            try gatherManyPages(world, "seed \(seed)")
        }
    }

    /// Nor must one that is no voter any more, but does not know that this is committed: nobody asks it
    /// for its vote.
    @Test func formerVotersDoNotDisturb() throws {
        for seed in UInt64(1)...20 {
            let world = world(seed: seed)
            world.step(
                two,
                .changeMembership(
                    voters: [two, three], learners: [one],
                    members: [one, two, three].map(world.present),
                    id: ProposalID(node: two, incarnation: 1, number: 1000)))
            world.settle()
            world.propose(two, "second")
            world.settle()
            try gatherManyPages(world, "seed \(seed)", forgetting: true)
        }
    }

    private func gatherManyPages(_ world: World, _ comment: Comment, forgetting: Bool = false)
        throws
    {
        let end = world.node(one).disk.lastIndex
        world.propose(two, all: (1...40).map { "value \($0)" })
        world.sync(two)
        damage(world, forgetting: forgetting)
        pass(world, seconds: 60)
        _ = try #require(world.leader, comment)
        world.settle()
        // And the first entry of the term; of two, if a former voter led and went.
        #expect(world.committedIndex >= end.advanced(by: 41), comment)
        let values = world.node(one).applied.filter {
            $0.payload.starts(with: Array("value ".utf8))
        }
        #expect(values.count == 40, comment)
        #expect(world.violations.isEmpty, comment)
    }

    /// A program that does not understand the question gives no answer, and closes the stream. Nobody
    /// leads then without what it holds, and it is not asked as often as the stream is made anew; as
    /// soon as it answers somebody leads.
    @Test func nobodyLeadsWithoutTheAnswers() throws {
        let world = world()
        let end = world.node(one).disk.lastIndex
        world.propose(two, "behind the damage")
        world.sync(two)
        damage(world)
        var (asked, terms) = (0, Set<Term>())
        pass(world, seconds: 60) { message in
            guard case .salvageRequest = message.body, message.to == two else { return true }
            asked += 1
            terms.insert(message.term)
            world.step(message.from, .linkRestored(two))
            return false
        }
        #expect(world.leader == nil)
        #expect(asked > 0 && asked <= terms.count * 2, "\(asked) times in \(terms.count) terms")
        pass(world, seconds: 60)
        _ = try #require(world.leader)
        world.settle()
        #expect(world.committedIndex == end.advanced(by: 2))
        #expect(world.violations.isEmpty)
    }

    /// The first entry of a term is joined to what it says that it follows. One of a program that did
    /// not say so yet is not, and nor is what stands behind it.
    @Test(arguments: [true, false]) func whatBeginsATermSaysWhatItFollows(saysSo: Bool) throws {
        let world = world()
        let end = world.node(one).disk.lastIndex
        for id in [one, two, three] { world.crash(id) }
        let before = try #require(world.node(one).disk.entry(end)).term
        let payload = withUnsafeBytes(of: before.rawValue.littleEndian) { Array($0) }
        world.node(two).disk.hardState = HardState(term: before.next, votedFor: two)
        world.node(two).disk.entries += [
            Entry(
                index: end.next, term: before.next, kind: .noop, origin: nil, time: .zero,
                payload: saysSo ? payload : []),
            Entry(
                index: end.next.next, term: before.next, kind: .command, origin: nil,
                time: .zero, payload: [1]),
        ]
        damage(world)
        pass(world, seconds: 60)
        _ = try #require(world.leader)
        world.settle()
        #expect(world.committedIndex == end.advanced(by: saysSo ? 3 : 1))
        #expect(world.violations.isEmpty)
    }
}
