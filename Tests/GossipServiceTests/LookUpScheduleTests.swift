// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DNSWire
import GossipService
import ResolverCore
import Testing

func endpoint(_ number: Int) -> EndpointID {
    let bytes = (0..<30).map { _ in UInt8(7) } + [UInt8(number >> 8), UInt8(number & 0xff)]
    guard let endpoint = EndpointID(bytes: bytes) else { preconditionFailure("32 bytes") }
    return endpoint
}

private let origin: DNSName = {
    guard let name = DNSName("nodes.example") else { preconditionFailure("a name") }
    return name
}()

private struct Bench {
    var schedule = LookUpSchedule()
    var random = RandomSource(seed: 1)
    var now = MonotonicInstant(nanoseconds: 1_000_000_000)

    mutating func want(_ endpoints: [EndpointID]) {
        schedule.want(endpoints, now: now)
        schedule.checkInvariants()
    }

    mutating func due() -> [EndpointID] {
        defer { schedule.checkInvariants() }
        return schedule.due(now: now)
    }

    mutating func answer(_ endpoint: EndpointID, _ result: LookUpResult) -> DNSNews? {
        defer { schedule.checkInvariants() }
        return schedule.answered(endpoint, result, now: now, random: &random)
    }

    func records(
        _ endpoint: EndpointID, _ texts: [String] = ["addr=192.0.2.1:7700"], ttl: UInt32 = 60
    ) -> LookUpResult {
        guard let name = DiscoveryRecord.name(of: endpoint, origin: origin) else { return .absent }
        return .records(texts.map { DNSRecord(name, ttl: ttl, .text([Array($0.utf8)])) })
    }

    /// Time until something is due by itself.
    var wait: Duration? { schedule.nextAt.map { $0 - now } }
}

@Suite struct LookUpScheduleTests {
    @Test func whoIsWantedIsLookedUpAtOnceAndAgainWhenTheRecordsAreOld() {
        var bench = Bench()
        #expect(bench.schedule.nextAt == nil)
        bench.want([endpoint(1)])
        #expect(bench.wait == .zero)
        #expect(bench.due() == [endpoint(1)])
        #expect(bench.due() == [], "it is under way")
        #expect(bench.schedule.nextAt == nil)
        let found = bench.answer(endpoint(1), bench.records(endpoint(1), ttl: 60))
        #expect(found == .found(endpoint(1), addresses: ["192.0.2.1:7700"]))
        #expect(bench.wait == .seconds(60))
        bench.now = bench.now + .seconds(59)
        #expect(bench.due() == [])
        bench.now = bench.now + .seconds(1)
        #expect(bench.due() == [endpoint(1)])
    }

    @Test func theShortestTimeToLiveCountsAndHasAFloor() {
        var bench = Bench()
        bench.want([endpoint(1)])
        _ = bench.due()
        _ = bench.answer(endpoint(1), bench.records(endpoint(1), ttl: 0))
        #expect(bench.wait == LookUpSchedule.intervalMin)
        bench.now = bench.now + LookUpSchedule.intervalMin
        _ = bench.due()
        _ = bench.answer(endpoint(1), bench.records(endpoint(1), ttl: .max))
        #expect(bench.wait == ResolverLimits.keptMax)
    }

    @Test func whatIsNotThereIsAskedForEverLessOften() throws {
        var bench = Bench()
        bench.want([endpoint(1)])
        var waits: [Duration] = []
        for round in 0..<12 {
            #expect(bench.due() == [endpoint(1)])
            let result: LookUpResult = round % 2 == 0 ? .absent : .failed(.noAnswer)
            #expect(bench.answer(endpoint(1), result) == nil)
            let wait = try #require(bench.wait)
            waits.append(wait)
            bench.now = bench.now + wait
        }
        let (low, high) = (LookUpSchedule.backOffMin, LookUpSchedule.backOffMax)
        #expect(waits[0] >= low && waits[0] <= low + low / 10)
        #expect(waits[1] >= low * 2)
        for wait in waits.suffix(4) { #expect(wait >= high && wait <= high + high / 10) }
        // What is there at last begins anew.
        _ = bench.due()
        _ = bench.answer(endpoint(1), bench.records(endpoint(1)))
        #expect(bench.wait == .seconds(60))
    }

    @Test func whatGoesIsLostOnceAndSilenceTakesNothing() throws {
        var bench = Bench()
        bench.want([endpoint(1)])
        func next(_ result: LookUpResult) throws -> DNSNews? {
            bench.now = bench.now + (try #require(bench.wait))
            #expect(bench.due() == [endpoint(1)])
            return bench.answer(endpoint(1), result)
        }
        #expect(try next(bench.records(endpoint(1))) != nil)
        #expect(try next(.failed(.noAnswer)) == nil)
        // Records without an address say as little as none.
        #expect(try next(bench.records(endpoint(1), ["relay=https://x"])) == .lost(endpoint(1)))
        #expect(try next(.absent) == nil)
    }

    @Test func beingWantedAgainMakesNothingSooner() throws {
        var bench = Bench()
        bench.want([endpoint(1)])
        _ = bench.due()
        _ = bench.answer(endpoint(1), .absent)
        let wait = try #require(bench.wait)
        bench.want([])
        #expect(bench.wait == nil)
        bench.want([endpoint(1)])
        #expect(bench.wait == wait)
        // Unless its time has come meanwhile.
        bench.want([])
        bench.now = bench.now + wait
        bench.want([])
        bench.want([endpoint(1)])
        #expect(bench.wait == .zero)
    }

    @Test func whatIsForgottenIsDueOnceMore() {
        var bench = Bench()
        bench.want([endpoint(1), endpoint(2)])
        _ = bench.due()
        _ = bench.answer(endpoint(1), bench.records(endpoint(1)))
        _ = bench.answer(endpoint(2), .absent)
        bench.schedule.forget(now: bench.now)
        #expect(bench.due() == [endpoint(1)])
    }

    @Test func endpointsAndLookUpsAreBounded() {
        var bench = Bench()
        bench.want((0..<LookUpSchedule.endpointsMax + 10).map { endpoint($0) })
        var seen: Set<EndpointID> = []
        while true {
            let due = bench.due()
            if due.isEmpty { break }
            #expect(due.count == LookUpSchedule.underWayMax)
            #expect(bench.due() == [] && bench.schedule.nextAt == nil)
            for one in due {
                seen.insert(one)
                _ = bench.answer(one, .absent)
            }
        }
        #expect(seen.count == LookUpSchedule.endpointsMax)
        // An answer that nobody has asked for changes nothing.
        #expect(bench.answer(endpoint(1), bench.records(endpoint(1))) == nil)
    }
}
