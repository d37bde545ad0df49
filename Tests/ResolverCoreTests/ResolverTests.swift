// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DNSWire
import ResolverCore
import Testing

private struct Bench {
    var machine = ResolverMachine()
    var random: RandomSource
    var now = MonotonicInstant(nanoseconds: 1_000_000_000)
    var effects: [ResolverEffect] = []

    init(seed: UInt64 = 1, servers: Int = 2) {
        random = RandomSource(seed: seed)
        step(.servers((0..<servers).map(server)))
    }

    @discardableResult
    mutating func step(_ input: ResolverInput) -> [ResolverEffect] {
        effects.removeAll()
        machine.step(input, now: now, random: &random, into: &effects)
        machine.checkInvariants()
        return effects
    }

    mutating func lookUp(_ id: UInt64, _ name: String = "a.example", _ type: UInt16 = DNSType.txt)
        -> [ResolverEffect]
    {
        step(.lookUp(LookUpID(id), names(name), type: type))
    }

    /// Waits until something is to be done, and does it.
    mutating func next() -> [ResolverEffect] {
        guard let deadline = machine.deadline else { return [] }
        now = deadline
        return step(.timeout)
    }
}

private func server(_ number: Int) -> ResolverServer {
    ResolverServer(.v4(0xc000_0200 + UInt32(number)))
}

private func names(_ text: String) -> DNSName {
    guard let name = DNSName(text) else { preconditionFailure("\(text)") }
    return name
}

private struct Ask {
    let exchange: ExchangeID
    let message: DNSMessage
    let server: ResolverServer
    let isStream: Bool

    init(_ effects: [ResolverEffect]) throws { self = try #require(Ask(among: effects)) }

    init?(among effects: [ResolverEffect]) {
        for effect in effects {
            guard case .ask(let exchange, let bytes, let server, let isStream) = effect,
                let message = try? DNSMessage(decoding: bytes)
            else { continue }
            self.exchange = exchange
            self.message = message
            self.server = server
            self.isStream = isStream
            return
        }
        return nil
    }

    func reply(_ change: (inout DNSMessage) -> Void) -> ResolverInput {
        var message = message
        message.flags.insert(.response)
        change(&message)
        return .received(exchange, message.encoded(), from: server)
    }
}

private func text(_ value: String, ttl: UInt32 = 300, at name: String = "a.example") -> DNSRecord {
    DNSRecord(names(name), ttl: ttl, .text([Array(value.utf8)]))
}

private func soa(ttl: UInt32, minimum: UInt32) -> DNSRecord {
    let tail = (0..<4).map { UInt8(truncatingIfNeeded: minimum >> (24 - 8 * UInt32($0))) }
    return DNSRecord(
        names("example"), ttl: ttl,
        .other(type: DNSType.soa, [UInt8](repeating: 0, count: 18) + tail))
}

@Suite struct ResolverTests {
    @Test func anAnswerIsGivenAndKeptForItsTime() throws {
        var bench = Bench()
        let ask = try Ask(bench.lookUp(1))
        #expect(ask.message.flags == .recursionDesired && !ask.isStream && ask.server == server(0))
        #expect(ask.message.questions == [DNSQuestion(names("a.example"), DNSType.txt)])
        #expect(bench.lookUp(2).isEmpty, "one question for both")
        let effects = bench.step(ask.reply { $0.answers = [text("x"), text("y", ttl: 100)] })
        let records = [text("x"), text("y", ttl: 100)]
        #expect(
            effects == [
                .close(ask.exchange), .answer(LookUpID(1), .records(records)),
                .answer(LookUpID(2), .records(records)),
            ])
        bench.now = bench.now + .seconds(99)
        #expect(
            bench.lookUp(3) == [
                .answer(LookUpID(3), .records([text("x", ttl: 201), text("y", ttl: 1)]))
            ])
        bench.now = bench.now + .seconds(1)
        #expect(try Ask(bench.lookUp(4)).message.id != ask.message.id)
    }

    @Test func thatThereIsNothingIsKeptToo() throws {
        for code: UInt16 in [0, 3] {
            var bench = Bench()
            let ask = try Ask(bench.lookUp(1))
            let effects = bench.step(
                ask.reply {
                    $0.flags.formUnion(DNSFlags(rawValue: code))
                    $0.authorities = [soa(ttl: 60, minimum: 300)]
                })
            #expect(effects.last == .answer(LookUpID(1), .absent))
            bench.now = bench.now + .seconds(59)
            #expect(bench.lookUp(2) == [.answer(LookUpID(2), .absent)])
            bench.now = bench.now + .seconds(1)
            let again = try Ask(bench.lookUp(3))
            // Without an SOA record nobody says for how long.
            bench.step(again.reply { $0.flags.formUnion(DNSFlags(rawValue: 3)) })
            #expect(throws: Never.self) { try Ask(bench.lookUp(4)) }
        }
    }

    /// Whoever guesses is not believed.
    @Test func onlyTheAnswerToThisQuestionOfThisServerCounts() throws {
        var bench = Bench()
        let ask = try Ask(bench.lookUp(1))
        let forged = text("forged")
        let wrong: [(String, ResolverInput)] = [
            (
                "id",
                ask.reply {
                    $0.id &+= 1; $0.answers = [forged]
                }
            ),
            (
                "type",
                ask.reply {
                    $0.questions[0].type = DNSType.a; $0.answers = [forged]
                }
            ),
            ("name", ask.reply { $0.questions[0].name = names("b.example") }),
            ("no question", ask.reply { $0.questions = [] }),
            ("a query", ask.reply { $0.flags.remove(.response) }),
            ("opcode", ask.reply { $0.flags.formUnion(DNSFlags(rawValue: 0x2800)) }),
            ("rubbish", .received(ask.exchange, [1, 2, 3], from: ask.server)),
        ]
        for (what, input) in wrong { #expect(bench.step(input).isEmpty, "\(what)") }
        guard case .received(_, let bytes, _) = ask.reply({ $0.answers = [forged] }) else { return }
        #expect(bench.step(.received(ask.exchange, bytes, from: server(1))).isEmpty)
        var port = ask.server
        port.port = 54
        #expect(bench.step(.received(ask.exchange, bytes, from: port)).isEmpty)
        #expect(bench.step(.received(ExchangeID(99), bytes, from: ask.server)).isEmpty)
        let effects = bench.step(ask.reply { $0.answers = [text("true")] })
        #expect(effects.last == .answer(LookUpID(1), .records([text("true")])))
        #expect(bench.step(ask.reply { $0.answers = [forged] }).isEmpty, "too late")
    }

    @Test func recordsOfOtherNamesAreLeftOutAndAliasesFollowed() throws {
        var bench = Bench()
        var ask = try Ask(bench.lookUp(1))
        var effects = bench.step(
            ask.reply {
                $0.answers = [
                    text("other", at: "evil.example"),
                    DNSRecord(names("a.example"), ttl: 10, .alias(names("b.example"))),
                    DNSRecord(names("b.example"), ttl: 50, .alias(names("c.example"))),
                    text("here", at: "c.example"),
                ]
            })
        let expected = LookUpResult.records([text("here", at: "c.example")])
        #expect(effects.last == .answer(LookUpID(1), expected))
        bench.now = bench.now + .seconds(10)
        // Aliases that go round end somewhere.
        ask = try Ask(bench.lookUp(2))
        effects = bench.step(
            ask.reply {
                $0.answers = [
                    DNSRecord(names("a.example"), ttl: 10, .alias(names("b.example"))),
                    DNSRecord(names("b.example"), ttl: 50, .alias(names("a.example"))),
                ]
            })
        #expect(effects.last == .answer(LookUpID(2), .absent))
    }

    @Test func whatIsCutOffIsAskedForOverAStream() throws {
        var bench = Bench()
        let ask = try Ask(bench.lookUp(1))
        let effects = bench.step(
            ask.reply {
                $0.flags.insert(.truncated)
                $0.answers = [text("part")]
            })
        #expect(effects.first == .close(ask.exchange))
        let second = try Ask(effects)
        #expect(second.isStream && second.server == ask.server && second.exchange != ask.exchange)
        #expect(second.message.id != ask.message.id)
        let last = bench.step(
            second.reply { $0.answers = (0..<40).map { text("\($0)") } }
        ).last
        #expect(last == .answer(LookUpID(1), .records((0..<40).map { text("\($0)") })))
    }

    @Test func silenceIsFollowedByOtherServersAndMorePatience() throws {
        var bench = Bench(servers: 2)
        let start = bench.now
        var asked: [(Int64, ResolverServer)] = []
        var effects = bench.lookUp(1)
        while true {
            if let ask = Ask(among: effects) {
                asked.append(((bench.now - start).milliseconds, ask.server))
            } else {
                break
            }
            effects = bench.next()
        }
        #expect(asked.map(\.0) == [0, 1000, 2000, 4000, 8000])
        #expect(asked.map(\.1) == [0, 1, 0, 1, 0].map(server))
        #expect(effects.last == .answer(LookUpID(1), .failed(.noAnswer)))
        #expect((bench.now - start).milliseconds == 12_000)
        #expect(bench.machine.deadline == nil)
        #expect(throws: Never.self, "it is not remembered") { try Ask(bench.lookUp(2)) }
    }

    @Test func aServerThatRefusesOrFailsIsNotWaitedFor() throws {
        var bench = Bench(servers: 2)
        var ask = try Ask(bench.lookUp(1))
        let effects = bench.step(.failed(ask.exchange))
        ask = try Ask(effects)
        #expect(ask.server == server(1))
        var last: [ResolverEffect] = []
        for _ in 0..<4 {
            last = bench.step(ask.reply { $0.flags.formUnion(DNSFlags(rawValue: 2)) })
            if let next = Ask(among: last) { ask = next }
        }
        #expect(last.last == .answer(LookUpID(1), .failed(.refused)))
    }

    @Test func whoGivesUpIsNotAnswered() throws {
        var bench = Bench()
        let ask = try Ask(bench.lookUp(1))
        #expect(bench.lookUp(2).isEmpty)
        #expect(bench.step(.cancel(LookUpID(1))).isEmpty)
        #expect(bench.step(.cancel(LookUpID(2))) == [.close(ask.exchange)])
        #expect(bench.step(ask.reply { $0.answers = [text("x")] }).isEmpty)
        #expect(bench.machine.deadline == nil)
    }

    @Test func everythingHasALimit() throws {
        var bench = Bench(servers: 0)
        #expect(bench.lookUp(1) == [.answer(LookUpID(1), .failed(.noServer))])
        bench.step(.servers((0..<9).map(server)))
        for number in 0..<ResolverLimits.questionsMax {
            _ = try Ask(bench.lookUp(UInt64(number), "n\(number).example"))
        }
        #expect(bench.lookUp(900, "more.example") == [.answer(LookUpID(900), .failed(.tooMany))])
        let room = ResolverLimits.lookUpsMax - ResolverLimits.questionsMax
        for number in 0..<room {
            #expect(bench.lookUp(UInt64(1000 + number), "n1.example").isEmpty)
        }
        #expect(bench.lookUp(901, "n1.example") == [.answer(LookUpID(901), .failed(.tooMany))])
        var asked: Set<ResolverServer> = []
        var cached = Bench(servers: 9)
        var effects = cached.lookUp(1, "silent.example")
        while let ask = Ask(among: effects) {
            asked.insert(ask.server)
            effects = cached.next()
        }
        #expect(asked.count == ResolverLimits.serversMax)
        for number in 0..<(ResolverLimits.cachedMax + 10) {
            let name = "n\(number).example"
            let ask = try Ask(cached.lookUp(UInt64(number), name))
            cached.step(
                ask.reply {
                    $0.answers = (0...ResolverLimits.recordsMax).map {
                        text("\($0)", ttl: .max, at: name)
                    }
                })
        }
        #expect(cached.machine.keptCount == ResolverLimits.cachedMax)
        guard case .answer(_, .records(let records))? = cached.lookUp(1, "n500.example").first
        else {
            Issue.record("not kept")
            return
        }
        #expect(records.count == ResolverLimits.recordsMax)
        let absent = try Ask(cached.lookUp(3, "absent.example"))
        cached.step(absent.reply { $0.authorities = [soa(ttl: .max, minimum: .max)] })
        cached.now = cached.now + (ResolverLimits.absentMax - .seconds(1))
        #expect(cached.lookUp(4, "absent.example") == [.answer(LookUpID(4), .absent)])
        cached.now = cached.now + .seconds(1)
        #expect(throws: Never.self) { try Ask(cached.lookUp(5, "absent.example")) }
        cached.now = cached.now + ResolverLimits.keptMax
        #expect(throws: Never.self) { try Ask(cached.lookUp(2, "n500.example")) }
    }
}

@Suite struct DiscoveryRecordTests {
    /// The key and the name that iroh's own tests have.
    private let endpoint: EndpointID? = EndpointID(
        bytes: [
            0x19, 0x92, 0xd5, 0x3c, 0x02, 0xcd, 0xc0, 0x45, 0x66, 0xe5, 0xc0, 0xed, 0xb1, 0xce,
            0x83, 0x30, 0x5c, 0xd5, 0x50, 0x29, 0x79, 0x53, 0xa0, 0x47, 0xa4, 0x45, 0xea, 0x32,
            0x64, 0xb5, 0x4b, 0x18,
        ])

    @Test func theNameIsTheOneThatIrohPublishes() throws {
        let endpoint = try #require(endpoint)
        let origin = names("dns.iroh.link")
        let name = try #require(DiscoveryRecord.name(of: endpoint, origin: origin))
        let text = "_iroh.dgjpkxyn3zyrk3zfads5duwdgbqpkwbjxfj4yt7rezidr3fijccy.dns.iroh.link."
        #expect(name.description == text)
        #expect(DiscoveryRecord.endpoint(of: name, origin: origin) == endpoint)
        #expect(DiscoveryRecord.endpoint(of: name, origin: names("iroh.link")) == nil)
        #expect(DiscoveryRecord.endpoint(of: names("_iroh.x.dns.iroh.link"), origin: origin) == nil)
        let long = [[UInt8]](repeating: [UInt8](repeating: 97, count: 63), count: 3)
        let far = try #require(DNSName(labels: long + [[UInt8](repeating: 97, count: 10)]))
        #expect(DiscoveryRecord.name(of: endpoint, origin: far) == nil)
    }

    @Test func addressesAreReadAndEverythingElseIgnored() throws {
        let endpoint = try #require(endpoint)
        func strings(_ list: [String]) -> DNSRecord {
            DNSRecord(.root, ttl: 30, .text(list.map { Array($0.utf8) }))
        }
        let record = DiscoveryRecord(
            endpoint,
            records: [
                strings(["relay=https://relay.example/"]),
                strings(["addr=192.0.2.1:7700 [2001:db8", "::1]:7701"]),
                strings(["addr=192.0.2.1:7700"]), strings(["addr=nonsense 10.0.0.1 [::1"]),
                strings(["addr"]), strings([]), strings(["user-data=x"]),
                DNSRecord(.root, ttl: 1, .address(.v4(7))),
            ])
        #expect(record?.addresses == ["192.0.2.1:7700", "[2001:db8::1]:7701"])
        #expect(DiscoveryRecord(endpoint, records: [strings(["relay=x"])]) == nil)
        let many = (1...99).map { "10.0.0.\($0):7700" }.joined(separator: " ")
        let bounded = DiscoveryRecord(endpoint, records: [strings(["addr=" + many])])
        #expect(bounded?.addresses.count == Limits.addressesMax)
    }

    @Test func whatIsPublishedIsReadAgain() throws {
        let record = DiscoveryRecord(
            endpoint: try #require(endpoint), addresses: ["192.0.2.1:7700", "[2001:db8::1]:7701"])
        let records = try #require(record.records(origin: names("example.org"), ttl: 30))
        #expect(records.count == 2 && records.allSatisfy { $0.ttl == 30 })
        #expect(DiscoveryRecord(record.endpoint, records: records) == record)
    }
}
