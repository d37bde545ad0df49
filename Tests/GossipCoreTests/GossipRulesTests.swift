// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import Testing

/// One machine: what it takes, what it refuses, and what it says then.
@Suite struct GossipRulesTests {
    @Test func nothingIsAnnouncedBeforeThereIsSomethingToSayAndAClock() {
        var bench = Bench(own: 1)
        let early = bench.step(.described(description(1)))
        #expect(early.isEmpty)
        let effects = bench.step(.wallClock(milliseconds: wallStart))
        #expect(effects.contains { if case .sign = $0 { true } else { false } })
        #expect(bench.machine.ownAnnouncement?.version.timestamp == wallStart)
        #expect(bench.machine.ownAnnouncement?.node == NodeID(1))
    }

    @Test func itAnnouncesAtAnIntervalAndAtEachChangeButNotTooOften() {
        var bench = Bench.started(1)
        bench.pass(.seconds(100))
        #expect((10...12).contains(bench.machine.counters.announced))
        let before = bench.machine.counters.announced
        for number in 0..<50 {
            bench.step(.described(description(1, address: "198.51.100.\(number):1")))
            bench.pass(.milliseconds(100))
        }
        let changes = bench.machine.counters.announced - before
        #expect((4...6).contains(changes), "\(changes)")
        bench.pass(.seconds(10))
        #expect(bench.machine.ownAnnouncement?.addresses == ["198.51.100.49:1"])
    }

    @Test func timestampsRiseAlsoWhenTheClockGoesBack() throws {
        var bench = Bench.started(1)
        let first = try #require(bench.machine.ownAnnouncement?.version)
        bench.step(.wallClock(milliseconds: wallStart - 3_600_000))
        bench.step(.described(description(1, address: "198.51.100.1:1")))
        let second = try #require(bench.machine.ownAnnouncement?.version)
        #expect(second.timestamp == first.timestamp + 1)
    }

    @Test func aSignatureThatDoesNotComeIsAskedForAgain() {
        var bench = Bench(own: 1)
        _ = bench.step(.wallClock(milliseconds: wallStart))
        var effects: [GossipEffect] = []
        func tickets() -> [SignTicket] {
            effects.compactMap { if case .sign(_, let ticket) = $0 { ticket } else { nil } }
        }
        bench.machine.step(
            .described(description(1)), now: bench.now, random: &bench.random, into: &effects)
        #expect(tickets().count == 1)
        bench.machine.step(
            .signed(tickets()[0], signature: nil), now: bench.now, random: &bench.random,
            into: &effects)
        bench.now = bench.now + .seconds(1)
        bench.machine.step(.timeout, now: bench.now, random: &bench.random, into: &effects)
        #expect(tickets().count == 2)
        bench.now = bench.now + .seconds(11)
        bench.machine.step(.timeout, now: bench.now, random: &bench.random, into: &effects)
        #expect(tickets().count == 3 && bench.machine.ownAnnouncement == nil)
    }

    @Test func anEarlierSelfRaisesTheEpoch() {
        var bench = Bench.started(1)
        bench.befriend(2)
        let earlier = announced(1, epoch: 5, timestamp: bench.wall)
        let effects = bench.receive(.gossip(fresh(earlier), round: 0), from: 2)
        #expect(effects.contains(.epochRaised(6)))
        bench.pass(.seconds(4))
        #expect(bench.machine.ownAnnouncement?.version.epoch == 6)
        // What another has signed in this node's name raises nothing.
        let forged = announced(1, epoch: 9, timestamp: bench.wall, signer: 2)
        let after = bench.receive(.gossip(fresh(forged), round: 0), from: 2)
        #expect(refusals(after) == [.forged])
    }

    // MARK: - What is taken

    @Test func versionsRiseStrictly() {
        var bench = Bench.started(1)
        bench.befriend(2)
        func tell(_ epoch: UInt64, _ timestamp: UInt64, _ address: String) -> Bool {
            let before = bench.machine.counters.accepted
            let signed = announced(3, epoch: epoch, timestamp: timestamp, address: address)
            bench.receive(.gossip(fresh(signed), round: 0), from: 2)
            return bench.machine.counters.accepted > before
        }
        let taken = [
            tell(2, wallStart, "a:1"),
            // The same version, which says something else.
            tell(2, wallStart, "b:1"), tell(2, wallStart - 1, "c:1"),
            // A later time of an earlier life, and an earlier one of a later life.
            tell(1, wallStart + 1000, "d:1"), tell(3, wallStart - 1000, "e:1"),
        ]
        #expect(taken == [true, false, false, false, true])
        #expect(bench.machine.record(of: endpoint(3))?.announcement.addresses == ["e:1"])
        #expect(bench.machine.counters.refusals[.replayed] == 3)
    }

    @Test func whatIsNewIsTold() {
        var bench = Bench.started(1)
        bench.befriend(2)
        let signed = announced(3)
        let effects = bench.receive(.gossip(fresh(signed), round: 0), from: 2)
        #expect(effects.contains(.learned(signed.announcement, source: endpoint(2))))
        #expect(standings(effects, of: 3) == [.alive])
        let again = announced(3, timestamp: wallStart + 1)
        let later = bench.receive(.gossip(fresh(again), round: 0), from: 2)
        #expect(standings(later, of: 3).isEmpty)
        #expect(!later.contains { if case .learned = $0 { true } else { false } })
    }

    @Test func clocksAreAllowedToDifferByTheBounds() {
        var bench = Bench.started(1)
        bench.befriend(2)
        func tell(_ number: Int, _ timestamp: UInt64) -> [GossipRefusal] {
            refusals(
                bench.receive(
                    .gossip(fresh(announced(number, timestamp: timestamp)), round: 0), from: 2))
        }
        let wall = bench.wall
        let (ahead, behind) = (GossipLimits.futureMaxMilliseconds, GossipLimits.ageMaxMilliseconds)
        let answers = [
            tell(3, wall + ahead), tell(4, wall + ahead + 1), tell(5, wall - behind),
            tell(6, wall - behind - 1), tell(7, .max),
        ]
        #expect(answers == [[], [.futureDated], [], [.tooOld], [.futureDated]])
        #expect(bench.machine.endpoints.count == 3)
        // Neither is a reason to stop listening to who passes it on.
        #expect(bench.machine.activeView == [endpoint(2)])
    }

    @Test func whatNoHonestNodeSendsEndsTheLink() {
        for (number, bytes) in [
            [1, 6], [],
            GossipMessage.gossip(fresh(announced(3, signer: 4)), round: 0).encoded(),
            GossipMessage.join(announced(3)).encoded(),
        ].enumerated() {
            var bench = Bench.started(1)
            bench.befriend(2)
            let effects = bench.step(.received(bytes, from: endpoint(2)))
            #expect(effects.contains(.disconnect(endpoint(2))), "\(number)")
            #expect(bench.machine.activeView.isEmpty)
            // And keeps it out for a while.
            let again = bench.step(.linkUp(endpoint(2)))
            let why = number == 2 ? GossipRefusal.forged : .malformed
            #expect(again == [.shunned(endpoint(2), why), .disconnect(endpoint(2))])
            bench.pass(.seconds(61))
            let later = bench.step(.linkUp(endpoint(2)))
            #expect(later != again)
        }
    }

    /// A cluster goes over to another cookie: what is said under either is believed by who accepts both, and
    /// who has forgotten the former one takes what comes of it for no attack.
    @Test func anotherTopicIsBelievedOnlyWhereItIsAccepted() {
        for isAccepted in [true, false] {
            var bench = Bench(own: 1) {
                if isAccepted { $0.acceptedTopics = [otherTopic] }
            }
            _ = bench.step(.wallClock(milliseconds: wallStart))
            _ = bench.step(.described(description(1)))
            bench.befriend(2)
            let told = bench.receive(
                .gossip(fresh(announced(3, topic: otherTopic)), round: 0), from: 2)
            #expect(refusals(told) == (isAccepted ? [] : [.wrongTopic]))
            #expect(bench.machine.endpoints.contains(endpoint(3)) == isAccepted)
            #expect(bench.machine.activeView == [endpoint(2)])
            // Under whatever topic it says that it is for, it has to be signed for that.
            let mixed = SignedAnnouncement(
                announced(4, topic: otherTopic).announcement,
                signature: Array(announced(4).signature))
            let lied = bench.receive(.gossip(fresh(mixed), round: 0), from: 2)
            #expect(refusals(lied) == [isAccepted ? .forged : .wrongTopic])
        }
    }

    @Test func whatALaterVersionSendsIsPassedOver() {
        var bench = Bench.started(1)
        bench.befriend(2)
        let effects =
            bench.step(.received([2, 1, 1], from: endpoint(2)))
            + bench.step(.received([1, 99], from: endpoint(2)))
        #expect(effects.isEmpty)
        #expect(bench.machine.activeView == [endpoint(2)])
    }

    @Test func aNodeIDBelongsToTheFirstWhoIsNotGone() {
        var bench = Bench.started(1)
        bench.befriend(2)
        func tell(_ number: Int, node: Int, _ timestamp: UInt64) -> [GossipEffect] {
            bench.receive(
                .gossip(fresh(announced(number, timestamp: timestamp, node: node)), round: 0),
                from: 2)
        }
        func node(_ number: Int) -> NodeID? { bench.machine.record(of: endpoint(number))?.node }
        _ = tell(3, node: 30, wallStart)
        let conflict = GossipEffect.conflict(
            NodeID(30), holder: endpoint(3), claimant: endpoint(4))
        let second = tell(4, node: 30, wallStart)
        #expect(second.contains(conflict))
        #expect(node(3) == NodeID(30) && node(4) == nil)
        // Who takes another one sets it free.
        _ = tell(3, node: 31, wallStart + 1)
        _ = tell(4, node: 30, wallStart + 2)
        #expect(node(3) == NodeID(31) && node(4) == NodeID(30))
        // The membership stands above what anybody says.
        let member = GossipMember(endpoint: endpoint(5), node: NodeID(30))
        let effects = bench.step(.members([member]))
        #expect(
            effects.contains(.conflict(NodeID(30), holder: endpoint(5), claimant: endpoint(4))))
        _ = tell(5, node: 77, wallStart)
        #expect(node(4) == nil && node(5) == NodeID(30))
        // This node is a member like the others.
        _ = tell(6, node: 1, wallStart)
        #expect(node(6) == NodeID(1))
        let own = GossipMember(endpoint: endpoint(1), node: NodeID(1))
        let others = bench.step(.members([own, member]))
        #expect(others.contains(.conflict(NodeID(1), holder: endpoint(1), claimant: endpoint(6))))
        #expect(node(6) == nil)
    }

    // MARK: - Bounds

    @Test func strangersHavePlacesAndMembersOthers() {
        var bench = Bench.started(1)
        bench.befriend(2)
        bench.step(.members([GossipMember(endpoint: endpoint(150), node: NodeID(150))]))
        for number in 3...100 {
            bench.receive(.gossip(fresh(announced(number)), round: 0), from: 2)
            bench.pass(.milliseconds(20))
        }
        #expect(bench.machine.endpoints.count == Limits.peersMax)
        #expect(bench.machine.counters.refusals[.tableFull] == 98 - 63)
        bench.receive(.gossip(fresh(announced(150)), round: 0), from: 2)
        #expect(bench.machine.endpoints.count == Limits.peersMax + 1)
        // Nobody who is heard gives way, however long it goes on.
        for second in 1...30 {
            bench.pass(.seconds(10))
            for number in 2...65 {
                let signed = announced(number, timestamp: bench.wall)
                bench.receive(.gossip(fresh(signed), round: 0), from: 2)
            }
            let stranger = announced(100 + second, timestamp: bench.wall)
            bench.receive(.gossip(fresh(stranger), round: 0), from: 2)
        }
        #expect((2...65).allSatisfy { bench.machine.record(of: endpoint($0)) != nil })
        // The gone give way.
        bench.pass(.seconds(400))
        bench.receive(.gossip(fresh(announced(99, timestamp: bench.wall)), round: 0), from: 2)
        #expect(bench.machine.record(of: endpoint(99)) != nil)
    }

    @Test func membersAreBoundedAndFormerOnesGiveWay() {
        var bench = Bench.started(1)
        bench.befriend(2)
        let members = (100..<400).map {
            GossipMember(endpoint: endpoint($0), node: NodeID(UInt64($0)))
        }
        bench.step(.members(members))
        for number in 100..<400 {
            bench.receive(.gossip(fresh(announced(number)), round: 0), from: 2)
            bench.pass(.milliseconds(60))
        }
        let all = GossipLimits.membersMax + Limits.peersMax
        #expect(bench.machine.endpoints.count == all)
        bench.step(.members([]))
        #expect(bench.machine.endpoints.count == Limits.peersMax)
        #expect(bench.machine.memoryCounts.tombstones == GossipLimits.membersMax)
    }

    @Test func oneEndpointIsHeardAtARate() {
        var bench = Bench.started(1)
        bench.befriend(2)
        let before = bench.machine.counters
        for number in 1...1000 {
            let signed = announced(3, timestamp: wallStart + UInt64(number))
            bench.receive(.gossip(fresh(signed), round: 0), from: 2)
        }
        let accepted = bench.machine.counters.accepted - before.accepted
        #expect(accepted == GossipLimits.announcements.burst)
        #expect(bench.machine.counters.verifications - before.verifications == accepted)
        bench.pass(.seconds(20))
        bench.receive(.gossip(fresh(announced(3, timestamp: bench.wall)), round: 0), from: 2)
        #expect(bench.machine.counters.accepted - before.accepted == accepted + 1)
    }

    /// Keys are cheap: a member who makes new ones all the time costs few signatures, and takes
    /// nothing away from those who are known.
    @Test func strangersWithNewKeysStarveNobody() {
        var bench = Bench.started(1)
        bench.befriend(2)
        bench.befriend(3)
        for number in 10..<1000 {
            bench.receive(
                .gossip(fresh(announced(number, signer: number)), round: 0), from: 2)
        }
        #expect(bench.machine.counters.verifications < 70)
        bench.pass(.seconds(1))
        let signed = announced(3, timestamp: bench.wall)
        bench.receive(.gossip(fresh(signed), round: 0), from: 3)
        #expect(bench.machine.record(of: endpoint(3))?.signed == signed)
    }

    @Test func framesVerificationsDigestsAndJoinsHaveRates() {
        var bench = Bench.started(1)
        bench.befriend(2)
        var effects: [GossipEffect] = []
        for _ in 0..<2000 { effects += bench.receive(.prune(MessageID(1)), from: 2) }
        #expect(refusals(effects).first == .flooding)
        #expect(bench.machine.counters.unread >= 2000 - GossipLimits.frames.burst)
        bench.pass(.seconds(9))
        effects = []
        bench.step(.linkUp(endpoint(3)))
        for _ in 0..<20 { effects += bench.receive(.digest([]), from: 3) }
        let answers = messages(effects, to: 3).count {
            if case .records = $0 { true } else { false }
        }
        #expect(answers == GossipLimits.digests.burst)
        effects = []
        for number in 0..<20 {
            let signed = announced(3, timestamp: bench.wall + UInt64(number))
            effects += bench.receive(.join(signed), from: 3)
        }
        let accepted = messages(effects, to: 3).count { $0 == .neighborReply(isAccepted: true) }
        #expect(accepted == GossipLimits.joins.burst)
    }

    @Test func whatIsRememberedIsBounded() {
        var bench = Bench.started(1)
        bench.befriend(2)
        for round in 0..<40 {
            let pushes = (0..<GossipLimits.idsPerMessageMax).map {
                GossipMessage.LazyPush(id: MessageID(UInt64(round * 100 + $0)), round: 0)
            }
            bench.receive(.iHave(pushes), from: 2)
        }
        #expect(bench.machine.memoryCounts.missing == GossipLimits.missingPerPeerMax)
        for number in 10..<20 {
            bench.befriend(number)
            bench.receive(
                .iHave(
                    (0..<GossipLimits.idsPerMessageMax).map {
                        GossipMessage.LazyPush(id: MessageID(UInt64(number * 1000 + $0)), round: 0)
                    }), from: number)
        }
        #expect(bench.machine.memoryCounts.missing <= GossipLimits.missingMax)
        bench.pass(.seconds(5))
        #expect(bench.machine.memoryCounts.missing == 0, "what nobody has is given up")
        for number in 1000..<1400 {
            bench.step(.linkUp(endpoint(number)))
            bench.step(.contact(endpoint(number)))
            bench.receive(.prune(MessageID(1)), from: number)
        }
        #expect(bench.machine.memoryCounts.meters <= GossipLimits.metersMax)
        #expect(bench.machine.memoryCounts.contacts == GossipLimits.contactsMax)
        bench.pass(.seconds(20))
        bench.befriend(2)
        for number in 0..<1500 {
            bench.receive(
                .gossip(
                    fresh(announced(20 + number % 30, timestamp: bench.wall)), round: 0), from: 2)
            bench.pass(.milliseconds(200))
        }
        #expect(bench.machine.memoryCounts.seen == GossipLimits.seenMax)
    }

    @Test func connectionsUnderWayAreBounded() {
        var bench = Bench.started(1)
        bench.befriend(2)
        var dialled = 0
        for number in 10..<60 {
            let effects = bench.receive(
                .forwardJoin(announced(number), ttl: 0), from: 2)
            dialled += effects.count { if case .connect = $0 { true } else { false } }
        }
        #expect(dialled == GossipLimits.dialsMax)
    }

    @Test func signaturesOfAllHaveARate() {
        var bench = Bench.started(1)
        let links = Array(2...40)
        for number in links { bench.step(.linkUp(endpoint(number))) }
        let members = (100..<300).map {
            GossipMember(endpoint: endpoint($0), node: NodeID(UInt64($0)))
        }
        bench.step(.members(members))
        // Each link within its own rate, each endpoint heard for the first time in this life.
        for epoch in 1...7 {
            for number in 100..<300 {
                let signed = announced(number, epoch: UInt64(epoch))
                bench.receive(.records([fresh(signed)]), from: links[number % links.count])
            }
        }
        #expect(bench.machine.counters.verifications == GossipLimits.knownVerifications.burst)
        let before = bench.machine.counters.verifications
        for number in 1000..<1600 {
            // Signed by somebody else: each costs a signature, and its sender the link.
            let sender = 300 + number
            bench.step(.linkUp(endpoint(sender)))
            bench.receive(.records([fresh(announced(number, signer: 2))]), from: sender)
        }
        let unknown = bench.machine.counters.verifications - before
        #expect(unknown == GossipLimits.unknownVerifications.burst)
    }

    @Test func refusalsAreReportedAtARate() {
        var bench = Bench.started(1)
        bench.befriend(2)
        var effects: [GossipEffect] = []
        for number in 10..<30 {
            let signed = announced(number, timestamp: bench.wall + 90_000)
            effects += bench.receive(.gossip(fresh(signed), round: 0), from: 2)
        }
        #expect(refusals(effects).count == GossipLimits.reportsOfRefusals.burst)
        #expect(bench.machine.counters.refusals[.futureDated] == 20)
    }
}
