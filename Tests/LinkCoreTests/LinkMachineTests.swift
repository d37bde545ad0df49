// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import LinkCore
import Testing

func endpoint(_ number: UInt8) -> EndpointID {
    guard let id = EndpointID(bytes: [UInt8](repeating: number, count: 32)) else {
        preconditionFailure("32 bytes make an id")
    }
    return id
}

func peer(_ number: UInt8) -> LinkPeer {
    LinkPeer(endpoint: endpoint(number), addresses: ["127.0.0.1:\(7000 + Int(number))"])
}

/// One machine with a clock of its own: inputs in, effects out, invariants after each.
struct Bench {
    var machine: LinkMachine
    var now = MonotonicInstant(nanoseconds: 1_000_000_000)
    var random = RandomSource(seed: 7)
    let configuration: LinkConfiguration

    init(own: UInt8) {
        configuration = LinkConfiguration(own: endpoint(own))
        machine = LinkMachine(configuration: configuration)
    }

    mutating func step(_ input: LinkInput) -> [LinkEffect] {
        var effects: [LinkEffect] = []
        machine.step(input, now: now, random: &random, into: &effects)
        machine.checkInvariants()
        return effects
    }

    /// Lets time pass, with a timeout at each deadline on the way.
    mutating func pass(_ duration: Duration) -> [LinkEffect] {
        let end = now + duration
        var effects: [LinkEffect] = []
        while let deadline = machine.deadline, deadline <= end {
            now = max(now, deadline)
            effects += step(.timeout)
        }
        now = end
        return effects
    }

    /// Connects with a peer, inbound, and returns what followed.
    mutating func prove(
        _ id: UInt64, _ number: UInt8, isInbound: Bool = true, incarnation: UInt64 = 1,
        _ service: ServiceState = .serving
    ) -> [LinkEffect] {
        step(
            .proved(
                LinkID(id), endpoint(number), isInbound: isInbound, incarnation: incarnation,
                service: service, name: name(id)))
    }

    /// What both ends call the connection with this number.
    func name(_ id: UInt64) -> LinkName { LinkName(1_000_000 - id) }
}

func isDial(_ effect: LinkEffect) -> Bool { if case .dial = effect { true } else { false } }

@Suite struct LinkMachineTests {
    @Test func theSmallerIdDialsAtOnceTheGreaterALittleLater() {
        var small = Bench(own: 1)
        let dial = LinkEffect.dial(endpoint(2), addresses: ["127.0.0.1:7002"])
        #expect(small.step(.members([peer(2)], isClosed: true)) == [dial])
        var great = Bench(own: 3)
        #expect(great.step(.members([peer(2)], isClosed: true)) == [])
        #expect(great.pass(.milliseconds(19)) == [])
        #expect(great.pass(.milliseconds(1)) == [dial])
    }

    @Test func backOffDoublesWithJitterUpToItsCap() {
        var bench = Bench(own: 1)
        _ = bench.step(.members([peer(2)], isClosed: true))
        var waits: [Duration] = []
        for _ in 0..<12 {
            let failed = bench.now
            _ = bench.step(.dialFailed(endpoint(2), .unreachable("no route")))
            while !bench.pass(.milliseconds(1)).contains(where: isDial) {}
            waits.append(bench.now - failed)
        }
        for (place, wait) in waits.enumerated() {
            let whole = min(Duration.milliseconds(50) * (1 << place), .seconds(2))
            #expect(wait >= whole / 2 && wait <= whole + .milliseconds(1), "\(place): \(wait)")
        }
        #expect(Set(waits.suffix(6)).count > 1, "jitter")
    }

    @Test func aDifferentCookieIsRetriedSlowlyHoweverImpatientTheCaller() {
        var bench = Bench(own: 1)
        _ = bench.step(.members([peer(2)], isClosed: true))
        _ = bench.step(.dialFailed(endpoint(2), .cookie("the cookie differs")))
        var dials = 0
        for _ in 0..<9 {
            dials += bench.step(.wanted(endpoint(2))).count(where: isDial)
            dials += bench.pass(.milliseconds(100)).count(where: isDial)
        }
        #expect(dials == 0)
        #expect(bench.pass(.seconds(2)).contains(where: isDial))
    }

    @Test func aWaitingCallerShortensTheWaitForAnUnreachablePeer() {
        var bench = Bench(own: 1)
        _ = bench.step(.members([peer(2)], isClosed: true))
        for _ in 0..<8 {
            _ = bench.step(.dialFailed(endpoint(2), .unreachable("silence")))
            while !bench.pass(.milliseconds(10)).contains(where: isDial) {}
        }
        _ = bench.step(.dialFailed(endpoint(2), .unreachable("silence")))
        _ = bench.step(.wanted(endpoint(2)))
        #expect(bench.pass(bench.configuration.wantedSpacing).contains(where: isDial))
    }

    @Test func anInboundConnectionNeedsNoDial() {
        var bench = Bench(own: 3)
        _ = bench.step(.members([peer(2)], isClosed: true))
        #expect(
            bench.prove(1, 2) == [.primary(endpoint(2), LinkID(1)), .peerUp(endpoint(2))])
        #expect(bench.pass(.seconds(60)) == [])
    }

    @Test func twoDialsAtOnceLeaveOneConnectionWithoutAFlap() {
        var small = Bench(own: 1)
        var great = Bench(own: 2)
        _ = small.step(.members([peer(2)], isClosed: true))
        _ = great.step(.members([peer(1)], isClosed: true))
        _ = great.pass(.milliseconds(20))
        // Connection 1 was dialled by the smaller, 2 by the greater; each side sees them in
        // another order, and the greater already carries a stream on its own.
        var effects = great.prove(2, 1, isInbound: false)
        effects += great.step(.carrying(LinkID(2), true))
        effects += great.prove(1, 1, isInbound: true)
        #expect(
            effects == [
                .primary(endpoint(1), LinkID(2)), .peerUp(endpoint(1)),
                .primary(endpoint(1), LinkID(1)),
            ])
        #expect(small.prove(1, 2, isInbound: false).contains(.primary(endpoint(2), LinkID(1))))
        #expect(small.prove(2, 2, isInbound: true) == [])
        #expect(small.machine.primary(of: endpoint(2)) == great.machine.primary(of: endpoint(1)))
        #expect(great.pass(.seconds(60)) == [], "a connection that carries streams stays")
        #expect(great.step(.carrying(LinkID(2), false)) == [])
        #expect(great.pass(.milliseconds(999)) == [])
        #expect(great.pass(.milliseconds(1)) == [.close(LinkID(2), .duplicate)])
        #expect(small.pass(.seconds(60)) == [], "its dialler closes it, nobody else")
        #expect(small.step(.closed(LinkID(2), reason: "closed by the peer")) == [])
    }

    @Test func aLossIsReportedAfterTheGraceAndNotWhenItCameBack() {
        var bench = Bench(own: 1)
        _ = bench.step(.members([peer(2)], isClosed: true))
        _ = bench.prove(1, 2)
        #expect(bench.step(.closed(LinkID(1), reason: "reset")) == [.primary(endpoint(2), nil)])
        _ = bench.pass(.milliseconds(200))
        #expect(bench.prove(2, 2) == [.primary(endpoint(2), LinkID(2))])
        _ = bench.step(.closed(LinkID(2), reason: "reset"))
        let lost = bench.pass(.milliseconds(299)) + bench.pass(.milliseconds(1))
        #expect(lost.filter { !isDial($0) } == [.peerDown(endpoint(2), reason: "reset")])
        #expect(bench.pass(.seconds(5)).filter { !isDial($0) } == [], "reported once")
        #expect(
            bench.prove(3, 2) == [.primary(endpoint(2), LinkID(3)), .peerUp(endpoint(2))])
    }

    @Test func aNamedPeerThatNeverComesIsDownAfterTheGrace() {
        var bench = Bench(own: 3)
        _ = bench.step(.members([LinkPeer(endpoint: endpoint(2), addresses: [])], isClosed: true))
        #expect(bench.machine.standings.map(\.standing) == [.pending])
        #expect(
            bench.pass(.milliseconds(300)) == [.peerDown(endpoint(2), reason: "no connection")])
    }

    @Test func aServiceThatEndsIsReportedAtOnceAndAgainWhenItIsBack() {
        var bench = Bench(own: 1)
        _ = bench.step(.members([peer(2)], isClosed: true))
        _ = bench.prove(1, 2)
        #expect(bench.step(.service(LinkID(1), .gone)) == [.serviceGone(endpoint(2))])
        #expect(bench.step(.service(LinkID(1), .gone)) == [])
        #expect(bench.step(.service(LinkID(1), .serving)) == [.peerUp(endpoint(2))])
    }

    @Test func aRestartedNetIsNotAServiceThatIsGone() {
        var bench = Bench(own: 1)
        _ = bench.step(.members([peer(2)], isClosed: true))
        _ = bench.prove(1, 2, incarnation: 1)
        // Its net is back before the old connection is known to be dead.
        #expect(
            bench.prove(2, 2, incarnation: 2, .unknown) == [
                .close(LinkID(1), .superseded), .primary(endpoint(2), LinkID(2)),
            ])
        _ = bench.pass(.milliseconds(100))
        #expect(bench.step(.service(LinkID(2), .serving)) == [], "within the grace: no word")
        // And once more, but its service does not come back.
        _ = bench.prove(3, 2, incarnation: 3, .unknown)
        #expect(
            bench.pass(.milliseconds(300)) == [
                .peerDown(endpoint(2), reason: "its service is not there")
            ])
    }

    /// A node that was stopped for long wakes with the connection from before; its peer has given
    /// that up in silence and dialled anew. Nobody will ever tell that the old one is dead.
    @Test(arguments: [true, false], [UInt8(1), 3])
    func aConnectionThatThePeerHasForgottenIsReplacedByTheOneItDials(
        wasInbound: Bool, own: UInt8
    ) {
        var bench = Bench(own: own)
        _ = bench.step(.members([peer(2)], isClosed: true))
        _ = bench.pass(.milliseconds(20))
        _ = bench.prove(1, 2, isInbound: wasInbound)
        _ = bench.step(.carrying(LinkID(1), true))
        #expect(bench.pass(.seconds(20)) == [])
        #expect(
            bench.prove(2, 2, isInbound: true) == [
                .close(LinkID(1), .superseded), .primary(endpoint(2), LinkID(2)),
            ])
        #expect(bench.pass(.seconds(60)) == [], "nothing flaps afterwards")
        #expect(bench.machine.primary(of: endpoint(2)) == LinkID(2))
    }

    /// However slow the second of two dials that crossed was: both sides have both connections.
    @Test func aDialThatCrossedSupersedesNothing() {
        var small = Bench(own: 1)
        var great = Bench(own: 2)
        _ = small.step(.members([peer(2)], isClosed: true))
        _ = great.step(.members([peer(1)], isClosed: true))
        _ = great.pass(.milliseconds(20))
        _ = small.prove(1, 2, isInbound: false)
        _ = great.prove(1, 1, isInbound: true)
        let slowest = Limits.connectTimeout + .seconds(2)
        _ = small.pass(slowest)
        _ = great.pass(slowest)
        #expect(small.prove(2, 2, isInbound: true) == [])
        #expect(great.prove(2, 1, isInbound: false) == [])
        #expect(small.machine.primary(of: endpoint(2)) == LinkID(1))
        #expect(great.machine.primary(of: endpoint(1)) == LinkID(1))
    }

    @Test func whileClosedOnlyMembersAreDialledAndAdmitted() {
        var bench = Bench(own: 1)
        #expect(bench.step(.configured([peer(2), peer(3)])).count == 2)
        #expect(bench.machine.admits(endpoint(9)))
        _ = bench.prove(1, 2)
        _ = bench.prove(2, 9)
        _ = bench.step(.dialFailed(endpoint(2), .unreachable("late")))
        let effects = bench.step(.members([peer(3)], isClosed: true))
        #expect(effects.contains(.close(LinkID(1), .notMember)))
        #expect(effects.contains(.close(LinkID(2), .notMember)))
        #expect(!bench.machine.admits(endpoint(2)))
        #expect(!bench.machine.admits(endpoint(9)))
        #expect(bench.machine.admits(endpoint(3)))
        #expect(bench.prove(3, 2) == [.close(LinkID(3), .notMember)])
        let later = bench.pass(.seconds(10)).filter(isDial)
        #expect(later.isEmpty, "3 is still being dialled, 2 must not be")
        let reopened = bench.step(.members([], isClosed: false))
        #expect(reopened.contains { $0 == .dial(endpoint(2), addresses: peer(2).addresses) })
    }

    @Test func strangersAreLimited() {
        var bench = Bench(own: 200)
        for number in 0..<UInt8(64) { _ = bench.prove(UInt64(number), number) }
        #expect(!bench.machine.admits(endpoint(100)))
        #expect(bench.prove(1000, 100) == [.close(LinkID(1000), .tooManyPeers)])
        _ = bench.step(.members([peer(100)], isClosed: false))
        #expect(bench.machine.admits(endpoint(100)), "members are exempt")
        _ = bench.step(.closed(LinkID(5), reason: "bye"))
        _ = bench.pass(.seconds(1))
        #expect(bench.machine.admits(endpoint(101)), "who has left makes room")
    }

    @Test func theSameListAgainDoesNotDefeatTheBackOff() {
        var bench = Bench(own: 1)
        _ = bench.step(.members([peer(2)], isClosed: true))
        for _ in 0..<8 {
            _ = bench.step(.dialFailed(endpoint(2), .refused("not a member")))
            while !bench.pass(.milliseconds(10)).contains(where: isDial) {}
        }
        _ = bench.step(.dialFailed(endpoint(2), .refused("not a member")))
        #expect(!bench.step(.members([peer(2)], isClosed: true)).contains(where: isDial))
        var moved = peer(2)
        moved.addresses = ["127.0.0.1:9"]
        #expect(bench.step(.members([moved], isClosed: true)).contains(where: isDial))
    }

    // MARK: What peers say of themselves

    private static let elsewhere = LinkPeer(endpoint: endpoint(2), addresses: ["192.0.2.9:7001"])

    @Test func whoIsOnlySaidToBeSomewhereIsNotDialled() {
        var bench = Bench(own: 1)
        #expect(bench.step(.learned([Self.elsewhere])) == [])
        #expect(bench.pass(.seconds(10)) == [])
        #expect(!bench.machine.isExpected(endpoint(2)))
        #expect(bench.machine.addresses(of: endpoint(2)) == Self.elsewhere.addresses)
        #expect(bench.machine.standings.isEmpty)
    }

    @Test func aMemberIsDialledWhereItIsSaidToBeAsWell() {
        for isEarlier in [true, false] {
            var bench = Bench(own: 1)
            if isEarlier { _ = bench.step(.learned([Self.elsewhere])) }
            let dial = LinkEffect.dial(
                endpoint(2),
                addresses: peer(2).addresses + (isEarlier ? Self.elsewhere.addresses : []))
            #expect(bench.step(.members([peer(2)], isClosed: true)) == [dial])
            guard !isEarlier else { continue }
            // Far out in its back-off: a new address is no reason to wait.
            for _ in 0..<8 {
                _ = bench.step(.dialFailed(endpoint(2), .unreachable("silence")))
                while !bench.pass(.milliseconds(10)).contains(where: isDial) {}
            }
            _ = bench.step(.dialFailed(endpoint(2), .unreachable("silence")))
            // As soon as a caller who is impatient would have it.
            #expect(bench.step(.learned([Self.elsewhere])) == [])
            #expect(
                bench.pass(bench.configuration.wantedSpacing) == [
                    .dial(endpoint(2), addresses: peer(2).addresses + Self.elsewhere.addresses)
                ])
            // The same again is.
            _ = bench.step(.dialFailed(endpoint(2), .unreachable("silence")))
            #expect(bench.step(.learned([Self.elsewhere])) == [])
            #expect(bench.step(.learned([peer(2)])) == [], "known from the membership")
        }
    }

    @Test func aDialThatIsUnderWayDoesNotKeepANewAddressWaiting() {
        var bench = Bench(own: 1)
        #expect(bench.step(.members([peer(2)], isClosed: true)).contains(where: isDial))
        let dial = LinkEffect.dial(endpoint(2), addresses: Self.elsewhere.addresses)
        #expect(bench.step(.learned([Self.elsewhere])) == [dial])
        #expect(bench.step(.learned([Self.elsewhere])) == [])
        let effects = bench.prove(1, 2, isInbound: false)
        #expect(effects.contains(.peerUp(endpoint(2))))
        // The first one ends when its time is over, and changes nothing.
        #expect(bench.step(.dialFailed(endpoint(2), .unreachable("no answer in time"))) == [])
        #expect(bench.pass(.seconds(60)) == [])
    }

    /// Anybody on the link can say where a member is.
    @Test func liesAboutAMemberNeitherHideItNorMakeItDialledWithoutEnd() {
        var bench = Bench(own: 1)
        let own = (1...20).map { "192.0.2.1:\($0)" }
        let member = LinkPeer(endpoint: endpoint(2), addresses: Array(own.prefix(16)))
        _ = bench.step(.members([member], isClosed: true))
        var dials = 0
        for number in 0..<1000 {
            let lies = (0..<40).map { "198.51.100.\($0):\(number + 1)" }
            dials += bench.step(
                .learned([LinkPeer(endpoint: endpoint(2), addresses: lies)])
            ).count(where: isDial)
            let known = bench.machine.addresses(of: endpoint(2))
            #expect(known.starts(with: own.prefix(12)) && known.count == Limits.addressesMax)
            dials += bench.pass(.milliseconds(10)).count(where: isDial)
            if number % 10 == 9 {
                dials += bench.step(.dialFailed(endpoint(2), .unreachable("silence")))
                    .count(where: isDial)
            }
        }
        // In ten seconds.
        #expect(dials <= 100, "\(dials)")
    }

    @Test func aMemberWithoutAnAddressIsDialledOnceItHasSaidWhereItIs() {
        var bench = Bench(own: 1)
        let silent = LinkPeer(endpoint: endpoint(2), addresses: [])
        #expect(bench.step(.members([silent], isClosed: true)) == [])
        #expect(bench.pass(.seconds(5)).count(where: isDial) == 0)
        #expect(bench.step(.learned([Self.elsewhere])).contains(where: isDial))
        _ = bench.step(.dialFailed(endpoint(2), .unreachable("silence")))
        _ = bench.step(.learned([]))
        #expect(bench.pass(.seconds(5)).count(where: isDial) == 0, "nowhere to dial")
    }

    @Test func whatIsLearnedIsBounded() {
        var bench = Bench(own: 1)
        let max = bench.configuration.learnedMax
        let many = (0...max).compactMap { number -> LinkPeer? in
            let bytes = [UInt8(1), UInt8(number / 256), UInt8(number % 256)]
            return EndpointID(bytes: bytes + [UInt8](repeating: 0, count: 29)).map {
                LinkPeer(
                    endpoint: $0, addresses: (0..<100).map { "192.0.2.1:\($0 + 1)" })
            }
        }
        _ = bench.step(.learned(many))
        #expect(bench.machine.addresses(of: many[max - 1].endpoint).count == Limits.addressesMax)
        #expect(bench.machine.addresses(of: many[max].endpoint) == [])
    }

    // MARK: - Connections that one side has lost

    /// A peer that has moved dials again while its former connection is young: as soon as a dial could
    /// have crossed with another. It says that the former one is over.
    @Test func aPeerThatMovesIsBackAtOnceHoweverYoungTheConnection() {
        for isInbound in [true, false] {
            for own: UInt8 in [1, 3] {
                var bench = Bench(own: own)
                _ = bench.step(.members([peer(2)], isClosed: true))
                _ = bench.prove(1, 2, isInbound: isInbound)
                _ = bench.step(.carrying(LinkID(1), true))
                _ = bench.pass(.seconds(1))
                var effects = bench.prove(2, 2)
                effects += bench.step(.over(LinkID(2), [bench.name(1), bench.name(7)]))
                #expect(effects.contains(.close(LinkID(1), .superseded)))
                #expect(bench.machine.primary(of: endpoint(2)) == LinkID(2))
                #expect(!effects.contains { if case .peerDown = $0 { true } else { false } })
                #expect(bench.pass(.seconds(20)) == [], "one is left, and it stays")
            }
        }
    }

    /// Two dials that cross: each side has lost an earlier connection, and neither has had the other's
    /// new one.
    @Test func dialsThatCrossEndInOneConnectionAsBefore() {
        var small = Bench(own: 1)
        var great = Bench(own: 2)
        _ = small.step(.members([peer(2)], isClosed: true))
        _ = great.step(.members([peer(1)], isClosed: true))
        // An earlier one, which both have lost.
        _ = small.prove(9, 2, isInbound: false)
        _ = great.prove(9, 1)
        _ = small.step(.closed(LinkID(9), reason: "lost"))
        _ = great.step(.closed(LinkID(9), reason: "lost"))
        let said = small.machine.over(with: endpoint(2))
        #expect(said == [small.name(9)] && said == great.machine.over(with: endpoint(1)))
        var effects = great.prove(2, 1, isInbound: false)
        effects += great.prove(1, 1)
        effects += great.step(.over(LinkID(1), said))
        effects += small.prove(1, 2, isInbound: false)
        effects += small.prove(2, 2)
        effects += small.step(.over(LinkID(2), said))
        #expect(!effects.contains { if case .close = $0 { true } else { false } })
        #expect(small.machine.primary(of: endpoint(2)) == LinkID(1))
        #expect(great.machine.primary(of: endpoint(1)) == LinkID(1))
        #expect(great.pass(.seconds(2)).contains(.close(LinkID(2), .duplicate)))
    }

    @Test func whatIsOverIsRememberedForTheNextDial() {
        var bench = Bench(own: 3)
        _ = bench.step(.members([peer(2)], isClosed: true))
        #expect(bench.machine.over(with: endpoint(2)).isEmpty)
        // One that the peer may think proved, though its answer has not come.
        _ = bench.pass(.milliseconds(20))
        _ = bench.step(.unanswered(endpoint(2), LinkName(5)))
        _ = bench.step(.dialFailed(endpoint(2), .unreachable("silence")))
        #expect(bench.machine.over(with: endpoint(2)) == [LinkName(5)])
        for id: UInt64 in 1...6 {
            _ = bench.prove(id, 2)
            _ = bench.step(.closed(LinkID(id), reason: "lost"))
        }
        let over = bench.machine.over(with: endpoint(2))
        #expect(over == (3...6).map { bench.name($0) }.sorted(), "the latest, ascending")
        // One that is superseded is over as well; one that lives is not named.
        _ = bench.prove(7, 2)
        _ = bench.prove(8, 2, incarnation: 2)
        #expect(bench.machine.over(with: endpoint(2)).contains(bench.name(7)))
        #expect(!bench.machine.over(with: endpoint(2)).contains(bench.name(8)))
    }

    /// Nobody can end another's connections, or the one on which he speaks.
    @Test func whatIsSaidToBeOverIsTheSpeakersOwn() {
        var bench = Bench(own: 1)
        _ = bench.step(.members([peer(2), peer(3)], isClosed: true))
        _ = bench.prove(1, 2)
        _ = bench.prove(2, 3)
        #expect(bench.step(.over(LinkID(2), [bench.name(1), bench.name(2)])) == [])
        #expect(bench.step(.over(LinkID(77), [bench.name(1)])) == [])
        #expect(bench.machine.primary(of: endpoint(2)) == LinkID(1))
    }
}
