// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import DNSWire
import MDNSCore
import Testing

@Suite struct ResponderTests {
    private func responses(_ done: [(at: MonotonicInstant, effect: MDNSEffect)])
        -> [(at: MonotonicInstant, message: DNSMessage)]
    {
        done.compactMap { item in
            guard let message = item.effect.message, message.flags.contains(.response) else {
                return nil
            }
            return (item.at, message)
        }
    }

    @Test func threeProbesThenTwoAnnouncements() throws {
        var bench = Bench(endpoint(1))
        bench.step(.port(7700))
        bench.step(.interfaces([interface(1, "10.0.0.1", "2001:db8::1")]))
        let sent = bench.run(.seconds(30)).compactMap { item in
            item.effect.message.map { (item.at, $0) }
        }
        let probes = sent.filter { !$0.1.authorities.isEmpty }
        let announcements = sent.filter { $0.1.flags.contains(.response) }
        try #require(probes.count == 3 && announcements.count == 2)
        #expect(probes[1].0 - probes[0].0 == .milliseconds(250))
        #expect(announcements[0].0 - probes[2].0 == .milliseconds(250))
        #expect(announcements[1].0 - announcements[0].0 == .seconds(1))
        #expect(probes[0].1.questions.allSatisfy { $0.type == DNSType.any && !$0.wantsUnicast })
        #expect(probes[0].1.authorities.count == 4)
        let records = announcements[0].1.answers
        #expect(records.map(\.data.type) == [12, 12, 33, 16, 1, 28])
        #expect(records.map(\.flushesCache) == [false, false, true, true, true, true])
        #expect(records.map(\.ttl) == [4500, 4500, 120, 4500, 120, 120])
        #expect(
            records[3].data
                == .text(["id=\(endpoint(1))", "node=1", "v=1"].map { Array($0.utf8) }))
        let label = String(endpoint(1).description.prefix(16))
        #expect(records[0].data == .pointer(try #require(DNSName("\(label)._aspen._udp.local"))))
        #expect(records[4].name == DNSName("aspen-\(label).local"))
        // Others are asked for at once, then ever more seldom.
        let questions = sent.filter { $0.1.questions.contains { $0.name == MDNS.service } }
        #expect(questions.count == 5)
        #expect(questions.allSatisfy { !$0.1.questions[0].wantsUnicast })
    }

    @Test func sharedRecordsWaitALittleAndUniqueOnesDoNot() throws {
        var bench = Bench.established(endpoint(1))
        let asked = bench.now
        #expect(bench.receive(query(browse)).isEmpty)
        let answers = responses(bench.run(.seconds(1)))
        try #require(answers.count == 1)
        let wait = answers[0].at - asked
        #expect(wait >= .milliseconds(20) && wait < .milliseconds(120))
        #expect(answers[0].message.answers.map(\.data.type) == [DNSType.ptr])
        #expect(answers[0].message.additionals.map(\.data.type) == [33, 16, 1])
        bench.run(.seconds(5))
        let name = try #require(DNSName("aspen-\(endpoint(1).description.prefix(16)).local"))
        let at = bench.receive(query(DNSQuestion(name, DNSType.a))).compactMap(\.message)
        try #require(at.count == 1)
        #expect(at[0].answers.map(\.data) == [.address(.v4(0x0a00_0001))])
        // That there is no other kind of address is said, too (RFC 6762 section 6.1).
        let none = bench.receive(query(DNSQuestion(name, DNSType.aaaa))).compactMap(\.message)
        #expect(none.flatMap(\.answers).map(\.data) == [.exists(next: name, types: [1])])
    }

    @Test func knownAnswersAreNotGivenAgain() throws {
        var bench = Bench.established(endpoint(1))
        bench.receive(query(browse))
        let own = try #require(responses(bench.run(.seconds(2))).first?.message.answers.first)
        bench.run(.seconds(2))
        var known = own
        known.ttl = own.ttl / 2
        bench.receive(query(browse, known: [known]))
        #expect(responses(bench.run(.seconds(2))).isEmpty)
        known.ttl = own.ttl / 2 - 1
        bench.receive(query(browse, known: [known]))
        #expect(responses(bench.run(.seconds(2))).count == 1)
    }

    @Test func whatAnAskerKnowsMayComeInSeveralPackets() throws {
        var bench = Bench.established(endpoint(1))
        bench.receive(query(browse))
        let own = try #require(responses(bench.run(.seconds(2))).first?.message.answers.first)
        bench.run(.seconds(2))
        var first = query(browse)
        first.flags = .truncated
        bench.receive(first)
        bench.run(.milliseconds(300))
        // Somebody else's list changes nothing.
        var rest = DNSMessage()
        rest.answers = [own]
        bench.receive(rest, from: "10.0.0.8")
        let at = bench.now
        let answered = responses(bench.run(.seconds(2)))
        #expect(answered.count == 1 && answered[0].at - at >= .milliseconds(100))
        bench.run(.seconds(2))
        bench.receive(first)
        bench.run(.milliseconds(300))
        bench.receive(rest)
        #expect(responses(bench.run(.seconds(2))).isEmpty)
    }

    @Test func aRecordIsMulticastOnceASecondHoweverOftenItIsAskedFor() throws {
        var bench = Bench.established(endpoint(1))
        let name = try #require(DNSName("aspen-\(endpoint(1).description.prefix(16)).local"))
        var said: [MonotonicInstant] = []
        for _ in 0..<400 {
            bench.receive(query(DNSQuestion(name, DNSType.a), browse)).forEach {
                if $0.message != nil { said.append(bench.now) }
            }
            said += responses(bench.run(.milliseconds(25))).map(\.at)
        }
        #expect(said.count >= 10 && said.count <= 22, "\(said.count)")
    }

    @Test func whoWantsToBeAnsweredAloneIsIfAllHaveHeardItLately() throws {
        var bench = Bench.established(endpoint(1))
        let name = try #require(DNSName("aspen-\(endpoint(1).description.prefix(16)).local"))
        bench.receive(query(DNSQuestion(name, DNSType.a)))
        bench.run(.seconds(5))
        let question = DNSQuestion(name, DNSType.a, wantsUnicast: true)
        let sent = bench.receive(query(question))
        #expect(sent.map(\.destination) == [.one(address("10.0.0.9"), port: 5353)])
        #expect(sent.first?.message?.answers.first?.flushesCache == true)
        bench.run(.seconds(31))
        #expect(bench.receive(query(question)).map(\.destination) == [.group])
    }

    /// `dig -p 5353 @224.0.0.251`
    @Test func aPlainResolverIsAnsweredInItsOwnWay() throws {
        var bench = Bench.established(endpoint(1))
        let name = try #require(DNSName("ASPEN-\(endpoint(1).description.prefix(16)).local"))
        var message = query(DNSQuestion(name, DNSType.a))
        message.id = 4711
        let sent = bench.receive(message, port: 40_000)
        #expect(sent.map(\.destination) == [.one(address("10.0.0.9"), port: 40_000)])
        let answer = try #require(sent.first?.message)
        #expect(answer.id == 4711 && answer.questions == message.questions)
        #expect(answer.answers.map(\.ttl) == [10] && !answer.answers[0].flushesCache)
    }

    @Test func answersToOneAskerAreBounded() {
        var bench = Bench.established(endpoint(1))
        var answers = 0
        for number in 0..<(MDNSLimits.unicastsMax * 2) {
            bench.receive(query(browse), port: UInt16(30_000 + number))
        }
        for item in bench.run(.seconds(1)) {
            if case .one? = item.effect.destination { answers += 1 }
        }
        #expect(answers == MDNSLimits.unicastsMax)
    }

    @Test func goodbyeTakesEverythingBackButTheKindOfService() {
        var bench = Bench.established(endpoint(1))
        let messages = bench.step(.stop).compactMap(\.message)
        #expect(messages.flatMap(\.answers).map(\.ttl) == [0, 0, 0, 0])
        #expect(messages.flatMap(\.answers).map(\.data.type) == [12, 33, 16, 1])
        #expect(bench.machine.deadline == nil && bench.receive(query(browse)).isEmpty)
    }

    @Test func newAddressesAreAnnouncedAndOldOnesFlushed() throws {
        var bench = Bench.established(endpoint(1))
        let sent = responses(
            bench.step(.interfaces([interface(1, "10.0.0.7")])).map { (bench.now, $0) })
        try #require(sent.count == 1)
        let addresses = sent[0].message.answers.filter { $0.data.type == DNSType.a }
        #expect(addresses.map(\.data) == [.address(address("10.0.0.7"))])
        #expect(addresses[0].flushesCache)
        // The same list again says nothing.
        bench.run(.seconds(10))
        #expect(bench.step(.interfaces([interface(1, "10.0.0.7")])).isEmpty)
    }

    @Test func withoutAPortOrAnAddressNothingIsAnnounced() {
        var bench = Bench(endpoint(1))
        bench.step(
            .interfaces([interface(1, "10.0.0.1"), interface(2, "10.0.1.1", announced: [])]))
        #expect(responses(bench.run(.seconds(30))).isEmpty)
        bench.step(.port(7700))
        let sent = bench.run(.seconds(30)).compactMap { item -> UInt32? in
            guard case .send(_, let interface, _) = item.effect else { return nil }
            return item.effect.message?.flags.contains(.response) == true ? interface : nil
        }
        #expect(sent == [1, 1])
        let messages = bench.step(.port(nil)).compactMap(\.message)
        #expect(!messages.isEmpty && messages.flatMap(\.answers).allSatisfy { $0.ttl == 0 })
    }

    @Test func conflictsAreAnsweredEverMoreSlowly() throws {
        var bench = Bench(endpoint(1))
        bench.step(.port(7700))
        bench.step(.interfaces([interface(1, "10.0.0.1")]))
        let start = bench.now
        for round in 1...(MDNSLimits.conflictsMax + 5) {
            // Somebody has each name that it chooses.
            let label = bench.machine.instanceName.split(separator: ".")[0]
            bench.run(.milliseconds(260))
            bench.receive(announcement(endpoint(2), label: String(label)))
            #expect(bench.machine.instanceName.hasPrefix("\(label.prefix(16))-\(round + 1)."))
        }
        let probes = bench.run(.milliseconds(4900)).filter {
            $0.effect.message?.authorities.isEmpty == false
        }
        #expect(probes.isEmpty, "after \(bench.now - start)")
        #expect(!bench.run(.seconds(1)).isEmpty)
    }
}
