// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import DNSWire
import MDNSCore
import Testing

@Suite struct BrowserTests {
    private func questions(_ done: [(at: MonotonicInstant, effect: MDNSEffect)], _ type: UInt16)
        -> [MonotonicInstant]
    {
        done.filter { item in
            guard let message = item.effect.message, message.authorities.isEmpty else {
                return false
            }
            return message.questions.contains { $0.type == type }
        }.map(\.at)
    }

    @Test func whatIsCompleteIsFoundAndWhatChangesIsToldAgain() {
        var bench = Bench.established(endpoint(1))
        let peer = MDNSPeer(
            endpoint: endpoint(2), node: NodeID(2), version: 1, addresses: ["10.0.0.9:7701"])
        #expect(bench.receive(announcement(endpoint(2), label: "two")) == [.found(peer)])
        #expect(bench.receive(announcement(endpoint(2), label: "two")).isEmpty)
        var other = peer
        other.addresses = ["10.0.0.9:7702"]
        #expect(
            bench.receive(announcement(endpoint(2), label: "two", port: 7702)) == [.found(other)])
        #expect(bench.machine.peers == [other])
        bench.receive(announcement(endpoint(2), label: "two", port: 7702, ttl: 0))
        let done = bench.run(.seconds(2)).map(\.effect).filter { $0.message == nil }
        #expect(done == [.lost(endpoint(2))])
    }

    @Test func addressesOfBothKindsAndOnlyThoseThatCanBeDialled() {
        var bench = Bench.established(endpoint(1))
        let effects = bench.receive(
            announcement(
                endpoint(2), label: "two",
                ["10.0.0.9", "2001:db8::9", "fe80::9", "224.0.0.1", "169.254.1.1"]))
        guard case .found(let peer) = effects.first else {
            Issue.record("nobody found")
            return
        }
        #expect(
            peer.addresses == ["10.0.0.9:7701", "169.254.1.1:7701", "[2001:db8::9]:7701"])
    }

    @Test func aFlushForgetsTheAddressesThatAreNotNamedAnyMore() {
        var bench = Bench.established(endpoint(1))
        bench.receive(announcement(endpoint(2), label: "two", ["10.0.0.9", "10.0.0.10"]))
        bench.run(.seconds(5))
        bench.receive(announcement(endpoint(2), label: "two", ["10.0.0.11"]))
        bench.run(.seconds(2))
        #expect(bench.machine.peers.map(\.addresses) == [["10.0.0.11:7701"]])
    }

    @Test func whatIsMissingIsAskedFor() {
        var bench = Bench.established(endpoint(1))
        var message = announcement(endpoint(2), label: "two")
        message.answers.removeLast(3)
        bench.receive(message)
        let done = bench.run(.seconds(10))
        #expect(questions(done, DNSType.srv).count == 4, "after 0, 1, 3 and 7 s")
        #expect(questions(done, DNSType.txt).count == 4)
        bench.receive(announcement(endpoint(2), label: "two"))
        #expect(bench.machine.peers.count == 1)
    }

    @Test func recordsAreAskedForAgainBeforeTheyEnd() throws {
        var bench = Bench.established(endpoint(1))
        bench.receive(announcement(endpoint(2), label: "two"))
        let start = bench.now
        let done = bench.run(.seconds(121))
        let asked = questions(done, DNSType.srv).map { ($0 - start).milliseconds }
        try #require(asked.count >= 4)
        for (place, percent) in [80, 85, 90, 95].enumerated() {
            let from = Int64(percent) * 1200
            #expect(asked[place] >= from && asked[place] <= from + 2400, "\(asked)")
        }
        #expect(done.map(\.effect).contains(.lost(endpoint(2))))
    }

    @Test func aQuestionOfSomebodyElseWillDo() {
        var bench = Bench(endpoint(1))
        bench.step(.interfaces([interface(1, "10.0.0.1")]))
        bench.run(.milliseconds(600))
        // It would ask half a second later: now it need not, but for the next time.
        // (With one thing more, or it would be taken for this node's own.)
        bench.receive(query(browse, DNSQuestion(MDNS.services, DNSType.ptr)))
        #expect(questions(bench.run(.milliseconds(900)), DNSType.ptr).isEmpty)
        // With an answer that we do not know nobody would tell us of it.
        var other = Bench(endpoint(1))
        other.step(.interfaces([interface(1, "10.0.0.1")]))
        other.run(.milliseconds(600))
        other.receive(query(browse, known: [announcement(endpoint(2), label: "two").answers[0]]))
        #expect(questions(other.run(.milliseconds(900)), DNSType.ptr).count == 1)
    }

    @Test func knownAnswersThatDoNotFitFollow() throws {
        var bench = Bench.established(endpoint(1))
        for number in 0..<60 {
            let label = "a-node-with-quite-a-long-name-\(number)"
            bench.receive(
                announcement(endpoint(UInt8(number + 2)), label: label, host: "\(label).local"),
                from: "10.0.0.\(number + 2)")
        }
        let packets = bench.run(.seconds(120)).compactMap(\.effect.message)
            .filter { !$0.flags.contains(.response) }
        let place = try #require(packets.firstIndex { $0.flags.contains(.truncated) })
        #expect(packets[place].questions.map(\.name) == [MDNS.service])
        #expect(packets[place + 1].questions.isEmpty && !packets[place + 1].answers.isEmpty)
        let last = try #require(packets[place...].firstIndex { !$0.flags.contains(.truncated) })
        let known = packets[place...last].flatMap(\.answers).count
        #expect(known == 61, "sixty and itself")
    }

    // MARK: - Strangers

    @Test func whoIsNotOnTheLinkIsNotHeard() {
        var bench = Bench.established(endpoint(1))
        let message = announcement(endpoint(2), label: "two")
        for source in ["10.0.1.9", "192.0.2.1", "224.0.0.1", "0.0.0.0", "2001:db8::9"] {
            #expect(bench.receive(message, from: source).isEmpty, "\(source)")
        }
        #expect(bench.receive(message, port: 40_000).isEmpty, "a response from another port")
        #expect(bench.receive(message, on: 7).isEmpty, "an interface that is not used")
        var refused = message
        refused.flags.formUnion(DNSFlags(rawValue: 3))
        #expect(bench.receive(refused).isEmpty)
        #expect(bench.receive(message, from: "fe80::9") != [])
    }

    @Test func whoDoesNotSayWhoHeIsIsNotFound() {
        let wrong = [
            [], ["id=\(endpoint(2))", "node=2"], ["id=x", "node=2", "v=1"],
            ["id=\(endpoint(2))", "node=0", "v=1"], ["id=\(endpoint(2))", "node=-1", "v=1"],
            ["id=\(endpoint(1))", "node=1", "v=1"],
        ]
        for strings in wrong {
            var bench = Bench.established(endpoint(1))
            var message = announcement(endpoint(2), label: "two")
            message.answers[2].data = .text(strings.map { Array($0.utf8) })
            #expect(bench.receive(message).isEmpty, "\(strings)")
        }
        var bench = Bench.established(endpoint(1))
        var message = announcement(endpoint(2), label: "two")
        message.answers[2].data = .text(
            ["ID=\(endpoint(2))", "id=x", "Node=2", "v=3", "other"].map { Array($0.utf8) })
        bench.receive(message)
        #expect(bench.machine.peers.map(\.version) == [3])
    }

    @Test func interfacesThatGoTakeWhatWasHeardThereWithThem() {
        var bench = Bench(endpoint(1))
        let both = [interface(1, "10.0.0.1"), interface(2, "10.0.1.1")]
        bench.step(.interfaces(both))
        bench.receive(announcement(endpoint(2), label: "two"))
        let effects = bench.receive(
            announcement(endpoint(2), label: "two", ["10.0.1.9"]), from: "10.0.1.9", on: 2)
        #expect(effects.count == 1)
        #expect(bench.machine.peers.map(\.addresses) == [["10.0.0.9:7701", "10.0.1.9:7701"]])
        bench.step(.interfaces([both[0]]))
        #expect(bench.machine.peers.map(\.addresses) == [["10.0.0.9:7701"]])
        #expect(bench.step(.interfaces([])) == [.lost(endpoint(2))])
        #expect(bench.machine.deadline == nil)
    }
}

/// Each limit is crossed.
@Suite struct MDNSLimitTests {
    private func label(_ number: Int) -> String { "n\(number)" }

    private func flood(_ bench: inout Bench, _ numbers: Range<Int>, from source: (Int) -> String) {
        for number in numbers {
            let bytes =
                [UInt8](repeating: 9, count: 28) + (0..<4).map { UInt8(number >> (8 * $0) & 0xff) }
            guard let other = EndpointID(bytes: bytes) else { preconditionFailure("32 bytes") }
            bench.receive(
                announcement(other, label: label(number), host: "h\(number).local"),
                from: source(number))
            bench.run(.milliseconds(20))
        }
    }

    @Test func instancesAreBoundedInAllAndForOneSource() {
        var bench = Bench.established(endpoint(1))
        flood(&bench, 0..<200) { _ in "10.0.0.66" }
        #expect(bench.machine.peers.count == MDNSLimits.instancesPerSourceMax)
        // Others are found all the same.
        bench.receive(announcement(endpoint(2), label: "two"), from: "10.0.0.9")
        #expect(bench.machine.peers.contains { $0.endpoint == endpoint(2) })
        flood(&bench, 200..<600) { "10.0.0.\($0 % 200 + 20)" }
        #expect(bench.machine.peers.count == MDNSLimits.instancesMax)
    }

    @Test func ofOnePacketOnlySomeNewInstancesAreTaken() {
        var bench = Bench.established(endpoint(1))
        var message = announcement(endpoint(2), label: "two")
        for number in 0..<40 {
            message.answers += announcement(
                endpoint(UInt8(number + 3)), label: label(number), host: "other.local"
            ).answers.prefix(3)
        }
        bench.receive(message)
        #expect(bench.machine.peers.count == MDNSLimits.newInstancesMax)
    }

    @Test func aVagueInstanceGivesWayToANewOne() {
        var bench = Bench.established(endpoint(1))
        for number in 0..<MDNSLimits.instancesMax {
            var message = announcement(endpoint(9), label: label(number))
            message.answers.removeLast(3)
            bench.receive(message, from: "10.0.0.\(number % 200 + 20)")
            bench.run(.milliseconds(20))
        }
        bench.receive(announcement(endpoint(2), label: "two"))
        #expect(bench.machine.peers.map(\.endpoint) == [endpoint(2)])
    }

    @Test func addressesOfOneHostAreBounded() {
        var bench = Bench.established(endpoint(1))
        let many = (1...40).map { "10.0.0.\($0)" }
        bench.receive(announcement(endpoint(2), label: "two", many))
        #expect(bench.machine.peers.map(\.addresses.count) == [MDNSLimits.addressesMax])
        #expect(
            MDNSInterface(index: 1, prefixes: [], announced: many.map { address($0) })
                .announced.count == MDNSLimits.addressesMax)
    }

    @Test func interfacesAreBounded() {
        var bench = Bench(endpoint(1))
        bench.step(.port(7700))
        bench.step(.interfaces((1...40).map { interface($0, "10.0.\($0).1") }))
        var used: Set<UInt32> = []
        for item in bench.run(.seconds(10)) {
            if case .send(_, let interface, _) = item.effect { used.insert(interface) }
        }
        #expect(used == Set(1...UInt32(MDNSLimits.interfacesMax)))
    }

    @Test func recordsAreBelievedForAnHourAndAQuarterAtMost() {
        var bench = Bench(endpoint(1))
        bench.step(.interfaces([interface(1, "10.0.0.1")]))
        bench.receive(announcement(endpoint(2), label: "two", ttl: .max))
        bench.run(.seconds(Int64(MDNSLimits.ttlMax) - 1))
        #expect(bench.machine.peers.count == 1)
        bench.run(.seconds(2))
        #expect(bench.machine.peers.isEmpty)
    }

    @Test func bytesAreCountedToo() {
        var bench = Bench.established(endpoint(1))
        bench.run(.seconds(1))
        var large = DNSMessage()
        large.questions = [browse]
        large.answers = [
            DNSRecord(MDNS.service, ttl: 1, .other(type: 999, [UInt8](repeating: 0, count: 8900)))
        ]
        let bytes = large.encoded().count
        let before = bench.machine.ignoredCount
        let ofOne = MDNSLimits.bytesPerSourceMax / bytes
        for _ in 0..<(ofOne + 3) { bench.receive(large) }
        #expect(bench.machine.ignoredCount == before + 3)
        let left = (MDNSLimits.bytesPerSecondMax - ofOne * bytes) / bytes
        for number in 0..<(left + 4) { bench.receive(large, from: "10.0.0.\(number + 20)") }
        #expect(bench.machine.ignoredCount == before + 7)
        bench.run(.seconds(1))
        bench.receive(large)
        #expect(bench.machine.ignoredCount == before + 7)
    }

    /// The dearest packets that somebody on the link could think of, as many as are looked at. What each
    /// costs is printed, not judged: the machine may be busy.
    @Test func theDearestPacketsAreCheap() {
        var bench = Bench.established(endpoint(1))
        flood(&bench, 0..<(2 * MDNSLimits.instancesMax)) { "10.0.0.\($0 % 200 + 20)" }
        var strangers = DNSMessage(flags: .response)
        var moving = DNSMessage(flags: .response)
        for number in 0..<60 {
            strangers.answers +=
                announcement(
                    endpoint(9), label: "x\(number)", host: "y\(number).local"
                ).answers
            moving.answers.append(
                announcement(
                    endpoint(9), label: label(number), host: "z\(number).local"
                ).answers[1])
        }
        var asking = query(known: bench.machine.peers.prefix(150).map { _ in strangers.answers[0] })
        asking.questions = Array(repeating: browse, count: 300)
        for (what, message) in [
            ("new instances", strangers), ("other hosts", moving), ("questions", asking),
        ] {
            let bytes = message.encoded()
            #expect(bytes.count <= DNSMessage.bytesMax)
            let before = bench.machine.ignoredCount
            let clock = ContinuousClock()
            var took = Duration.zero
            let count = 500
            for number in 0..<count {
                if number % 50 == 0 { bench.run(.seconds(1)) }
                let packet = MDNSPacket(
                    bytes: bytes, interface: 1, source: address("10.0.0.\(number % 200 + 20)"),
                    sourcePort: MDNS.port)
                let start = clock.now
                bench.stepUnchecked(.received(packet))
                took += clock.now - start
            }
            #expect(bench.machine.ignoredCount == before)
            print("\(what): \(bytes.count) bytes, \(took / count) a packet")
        }
    }

    /// A flood costs little: beyond the limit no packet is even decoded, and who says no more than his share
    /// is still heard.
    @Test func aFloodIsNotLookedAt() {
        var bench = Bench.established(endpoint(1))
        bench.run(.seconds(1))
        let before = bench.machine.ignoredCount
        let message = query(DNSQuestion(MDNS.service, DNSType.txt))
        for _ in 0..<(MDNSLimits.packetsPerSourceMax + 50) { bench.receive(message) }
        #expect(bench.machine.ignoredCount == before + 50)
        #expect(!bench.receive(announcement(endpoint(2), label: "two"), from: "10.0.0.8").isEmpty)
        for number in 0..<MDNSLimits.packetsPerSecondMax {
            bench.receive(message, from: "10.0.0.\(10 + number % 200)")
        }
        #expect(
            bench.machine.ignoredCount == before + 50 + UInt64(MDNSLimits.packetsPerSourceMax) + 1)
        #expect(bench.receive(announcement(endpoint(3), label: "three"), from: "10.0.0.7").isEmpty)
        bench.run(.seconds(1))
        #expect(!bench.receive(announcement(endpoint(3), label: "three"), from: "10.0.0.7").isEmpty)
    }
}
