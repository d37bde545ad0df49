// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import Testing

/// HyParView, Plumtree and anti-entropy, message by message.
@Suite struct OverlayTests {
    @Test func whoIsAloneJoinsAContact() {
        var bench = Bench.started(1)
        var effects = bench.step(.contact(endpoint(2))) + bench.pass(.seconds(1))
        #expect(effects.contains(.connect(to: endpoint(2))))
        effects = bench.step(.linkUp(endpoint(2)))
        let kinds = messages(effects, to: 2).map { message in
            switch message {
            case .digest: "digest"
            case .join: "join"
            default: "other"
            }
        }
        #expect(kinds == ["digest", "join"])
        #expect(bench.machine.activeView.isEmpty, "not before it is accepted")
        bench.receive(.neighborReply(isAccepted: true), from: 2)
        #expect(bench.machine.activeView == [endpoint(2)])
    }

    @Test func aContactThatIsNotThereIsTriedAgainLessAndLessOften() {
        var bench = Bench.started(1)
        var dials = 0
        func answer(_ effects: [GossipEffect]) {
            for effect in effects where effect == .connect(to: endpoint(2)) {
                dials += 1
                answer(bench.step(.connectFailed(endpoint(2))))
            }
        }
        answer(bench.step(.contact(endpoint(2))))
        for _ in 0..<600 { answer(bench.pass(.seconds(1))) }
        #expect((20...60).contains(dials), "\(dials)")
    }

    @Test func aLinkLostBeforeTheAnswerIsMadeAgainSoon() {
        var bench = Bench.started(1)
        bench.step(.contact(endpoint(2)))
        bench.pass(.seconds(1))
        bench.step(.linkUp(endpoint(2)))
        bench.step(.linkDown(endpoint(2)))
        let effects = bench.pass(.milliseconds(500))
        #expect(effects.contains(.connect(to: endpoint(2))))
    }

    @Test func aJoinIsAnsweredAndWalksOn() {
        var bench = Bench.started(1)
        for number in 2...6 { bench.befriend(number) }
        let newcomer = announced(9, timestamp: bench.wall)
        bench.step(.linkUp(endpoint(9)))
        let effects = bench.receive(.join(newcomer), from: 9)
        #expect(messages(effects, to: 9).contains(.neighborReply(isAccepted: true)))
        #expect(bench.machine.activeView.count == 5)
        #expect(bench.machine.activeView.contains(endpoint(9)))
        let told = (2...6).filter { messages(effects, to: $0).contains(.disconnect) }
        #expect(told.count == 1, "one gives way, and is told")
        #expect(bench.machine.passiveView == told.map { endpoint($0) })
        let walks = (2...6).filter {
            messages(effects, to: $0).contains(.forwardJoin(newcomer, ttl: 6))
        }
        #expect(walks.count == 4)
    }

    @Test func aWalkEndsInAnOffer() {
        var bench = Bench.started(1)
        for number in 2...4 { bench.befriend(number) }
        let newcomer = announced(9, timestamp: bench.wall)
        var effects = bench.receive(.forwardJoin(newcomer, ttl: 3), from: 2)
        let next = (3...4).filter {
            messages(effects, to: $0).contains(.forwardJoin(newcomer, ttl: 2))
        }
        #expect(next.count == 1)
        #expect(bench.machine.passiveView.contains(endpoint(9)), "on the third step from the end")
        effects = bench.receive(.forwardJoin(newcomer, ttl: 0), from: 2)
        #expect(effects.contains(.connect(to: endpoint(9))))
        effects = bench.step(.linkUp(endpoint(9)))
        #expect(messages(effects, to: 9) == [.neighbor(isHighPriority: true)])
        bench.receive(.neighborReply(isAccepted: true), from: 9)
        #expect(bench.machine.activeView.contains(endpoint(9)))
    }

    @Test func lowPriorityNeedsRoomHighPriorityMakesIt() {
        var bench = Bench.started(1)
        for number in 2...6 { bench.befriend(number) }
        bench.step(.linkUp(endpoint(9)))
        let low = bench.receive(.neighbor(isHighPriority: false), from: 9)
        #expect(messages(low, to: 9) == [.neighborReply(isAccepted: false)])
        let high = bench.receive(.neighbor(isHighPriority: true), from: 9)
        #expect(messages(high, to: 9).contains(.neighborReply(isAccepted: true)))
        #expect(bench.machine.activeView.count == 5)
    }

    @Test func anAnswerThatNobodyWaitsForIsTakenBack() {
        var bench = Bench.started(1)
        bench.befriend(2)
        bench.step(.linkUp(endpoint(3)))
        let effects = bench.receive(.neighborReply(isAccepted: true), from: 3)
        #expect(messages(effects, to: 3) == [.disconnect])
        #expect(bench.machine.activeView == [endpoint(2)])
    }

    @Test func whoTalksAsANeighbourAndIsNoneIsToldSoOnce() {
        var bench = Bench.started(1)
        bench.befriend(2)
        bench.step(.linkUp(endpoint(3)))
        let push = GossipMessage.iHave([GossipMessage.LazyPush(id: MessageID(1), round: 0)])
        let first = bench.receive(push, from: 3)
        let second = bench.receive(push, from: 3)
        #expect(messages(first, to: 3) == [.disconnect] && second.isEmpty)
        #expect(bench.machine.memoryCounts.missing == 0)
    }

    @Test func aLinkWithoutUseIsGivenUp() {
        var bench = Bench.started(1)
        bench.befriend(2)
        bench.step(.linkUp(endpoint(3)))
        let effects = bench.pass(.seconds(16))
        #expect(effects.contains(.disconnect(endpoint(3))))
        #expect(!effects.contains(.disconnect(endpoint(2))))
    }

    @Test func aShuffleIsAnsweredWhereItEnds() {
        var bench = Bench.started(1)
        bench.befriend(2)
        bench.receive(.gossip(fresh(announced(7)), round: 0), from: 2)
        bench.receive(.gossip(fresh(announced(8)), round: 0), from: 2)
        let effects = bench.receive(
            .shuffle(origin: endpoint(7), ttl: 5, nodes: [endpoint(8), endpoint(99)]), from: 2)
        #expect(effects.contains(.connect(to: endpoint(7))))
        let passive = bench.machine.passiveView
        #expect(passive.contains(endpoint(8)) && !passive.contains(endpoint(99)))
        let answer = bench.step(.linkUp(endpoint(7)))
        #expect(
            messages(answer, to: 7).contains { if case .shuffleReply = $0 { true } else { false } })
    }

    @Test func thePassiveViewIsBounded() {
        var bench = Bench.started(1)
        bench.befriend(2)
        for number in 10..<60 {
            bench.receive(.gossip(fresh(announced(number)), round: 0), from: 2)
        }
        for number in 0..<5 {
            let nodes = (0..<10).map { endpoint(10 + number * 10 + $0) }
            bench.receive(.shuffle(origin: endpoint(10), ttl: 0, nodes: nodes), from: 2)
        }
        #expect(bench.machine.passiveView.count == 30)
    }

    // MARK: - Plumtree

    @Test func aDuplicatePrunesAndAnAnnouncementIsGraftedInTime() throws {
        var bench = Bench.started(1)
        for number in 2...4 { bench.befriend(number) }
        let signed = announced(9, timestamp: bench.wall)
        let effects = bench.receive(.gossip(fresh(signed), round: 4), from: 2)
        #expect(messages(effects, to: 3) == [.gossip(fresh(signed), round: 5)])
        #expect(messages(effects, to: 2).isEmpty)
        let duplicate = bench.receive(.gossip(fresh(signed), round: 5), from: 3)
        guard case .prune(let id) = messages(duplicate, to: 3).first else {
            Issue.record("\(duplicate)")
            return
        }
        #expect(bench.machine.isLazy(endpoint(3), of: endpoint(9)))
        // What others announce has trees of its own.
        let other = announced(8, timestamp: bench.wall)
        let another = bench.receive(.gossip(fresh(other), round: 0), from: 2)
        #expect(messages(another, to: 3) == [.gossip(fresh(other), round: 1)])
        // From now on it is only told what there is.
        let next = announced(9, timestamp: bench.wall + 1)
        bench.receive(.gossip(fresh(next), round: 0), from: 2)
        bench.receive(.prune(id), from: 4)
        #expect(bench.machine.isLazy(endpoint(4), of: endpoint(9)))
        let later = messages(bench.pass(.milliseconds(100)), to: 3)
        guard case .iHave(let pushes) = later.first, later.count == 1 else {
            Issue.record("\(later)")
            return
        }
        #expect(pushes.map(\.round) == [1])
        let graft = bench.receive(.graft(pushes[0].id, round: 1, isWanted: true), from: 3)
        #expect(messages(graft, to: 3) == [.gossip(fresh(next), round: 1)])
        #expect(!bench.machine.isLazy(endpoint(3), of: endpoint(9)))
    }

    @Test func whatDoesNotComeIsAskedForFromOneAfterTheOther() {
        var bench = Bench.started(1)
        for number in 2...3 { bench.befriend(number) }
        let push = GossipMessage.iHave([GossipMessage.LazyPush(id: MessageID(77), round: 2)])
        bench.receive(push, from: 2)
        bench.receive(push, from: 3)
        var effects = bench.pass(.milliseconds(299))
        #expect(messages(effects).isEmpty)
        effects = bench.pass(.milliseconds(602))
        let graft = GossipMessage.graft(MessageID(77), round: 2, isWanted: true)
        #expect(messages(effects) == [graft], "one of them")
        effects += bench.pass(.milliseconds(250))
        #expect(messages(effects, to: 2) == [graft] && messages(effects, to: 3) == [graft])
    }

    /// An inner node of all trees gives up being one of some; of few trees, of none.
    @Test(arguments: [10, 30]) func whoHasTooMuchToPushShedsSome(count: Int) {
        var bench = Bench.started(1)
        for number in 2...5 { bench.befriend(number) }
        for number in 10..<10 + count {
            bench.receive(
                .gossip(fresh(announced(number, timestamp: bench.wall)), round: 0), from: 2)
            bench.pass(.milliseconds(50))
        }
        func lazy() -> Int {
            (2...5).reduce(0) { sum, neighbor in
                sum
                    + (2..<10 + count).count {
                        bench.machine.isLazy(endpoint(neighbor), of: endpoint($0))
                    }
            }
        }
        #expect(lazy() == 0)
        bench.pass(.seconds(11))
        #expect(count > 16 ? 1...16 ~= lazy() : lazy() == 0, "\(lazy())")
    }

    @Test func aMuchShorterPathIsTaken() {
        var bench = Bench.started(1)
        for number in 2...3 { bench.befriend(number) }
        let signed = announced(9, timestamp: bench.wall)
        // The id as a neighbour would tell it.
        var other = Bench.started(3)
        for number in [1, 4] { other.befriend(number) }
        let former = fresh(announced(9, timestamp: bench.wall - 1))
        other.receive(.gossip(former, round: 0), from: 4)
        other.receive(.gossip(former, round: 0), from: 1)
        other.receive(.gossip(fresh(signed), round: 0), from: 4)
        let told = messages(other.pass(.milliseconds(100)), to: 1)
        guard case .iHave(let pushes) = told.first, let id = pushes.first?.id else {
            Issue.record("\(told)")
            return
        }
        for message in told { bench.receive(message, from: 3) }
        let effects = bench.receive(.gossip(fresh(signed), round: 9), from: 2)
        #expect(messages(effects, to: 3).contains(.graft(id, round: 0, isWanted: false)))
        #expect(messages(effects, to: 2) == [.prune(id)])
    }

    // MARK: - Anti-entropy

    @Test func aDigestIsAnsweredByWhatIsMissing() {
        var bench = Bench.started(1)
        bench.befriend(2)
        for number in [5, 6, 7] {
            bench.receive(.gossip(fresh(announced(number)), round: 0), from: 2)
        }
        bench.pass(.seconds(3))
        bench.step(.linkUp(endpoint(3)))
        func entry(_ number: Int, _ timestamp: UInt64) -> GossipMessage.DigestEntry {
            GossipMessage.DigestEntry(
                endpoint: endpoint(number),
                version: AnnouncementVersion(epoch: 1, timestamp: timestamp))
        }
        let effects = bench.receive(
            .digest([entry(5, wallStart), entry(6, wallStart - 1)]), from: 3)
        var sent: [Int: UInt16] = [:]
        for case .records(let records) in messages(effects, to: 3) {
            for record in records {
                sent[Int(record.signed.announcement.endpoint.bytes[0])] = record.silence
            }
        }
        #expect(sent == [1: 0, 2: 3, 6: 3, 7: 3])
        #expect(messages(effects, to: 3).contains { if case .digest = $0 { true } else { false } })
    }

    /// A node that was started with an epoch that it had used before is told so by whoever it meets.
    @Test func aNodeIsToldOfALaterStartOfItself() {
        var bench = Bench.started(1)
        bench.befriend(2)
        let later = announced(3, epoch: 5, timestamp: bench.wall)
        bench.receive(.gossip(fresh(later), round: 0), from: 2)
        bench.step(.linkUp(endpoint(3)))
        let own = GossipMessage.DigestEntry(
            endpoint: endpoint(3), version: AnnouncementVersion(epoch: 1, timestamp: bench.wall))
        let told = messages(bench.receive(.digest([own]), from: 3), to: 3)
        let isTold = told.contains { message in
            if case .records(let records) = message {
                records.contains { $0.signed == later }
            } else {
                false
            }
        }
        #expect(isTold)
        var other = Bench.started(3)
        other.step(.linkUp(endpoint(1)))
        var effects: [GossipEffect] = []
        for message in told { effects += other.receive(message, from: 1) }
        #expect(effects.contains(.epochRaised(6)))
        #expect(other.machine.ownAnnouncement?.version.epoch == 6)
    }

    /// While they were none, news went past them.
    @Test func whoBecomesANeighbourAgainIsToldWhatThereIs() {
        var bench = Bench.started(1)
        bench.befriend(2)
        func isToldAll(_ effects: [GossipEffect]) -> Bool {
            messages(effects, to: 2).contains { if case .digest = $0 { true } else { false } }
        }
        #expect(!isToldAll(bench.receive(.neighbor(isHighPriority: true), from: 2)))
        bench.receive(.disconnect, from: 2)
        #expect(isToldAll(bench.receive(.neighbor(isHighPriority: true), from: 2)))
    }

    @Test func whatIsLearntSoIsPassedOn() {
        var bench = Bench.started(1)
        bench.befriend(2)
        bench.step(.linkUp(endpoint(3)))
        let news = CarriedAnnouncement(announced(9), silence: 4)
        let effects = bench.receive(.records([news]), from: 3)
        #expect(messages(effects, to: 2) == [.gossip(news, round: 0)])
    }
}
