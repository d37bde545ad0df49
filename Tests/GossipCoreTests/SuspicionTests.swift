// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import Testing

/// Who is silent, who is out of reach, and who is gone.
@Suite struct SuspicionTests {
    private static func bench(knowing number: Int) -> Bench {
        var bench = Bench.started(1)
        bench.befriend(2)
        bench.receive(
            .gossip(fresh(announced(number, timestamp: bench.wall)), round: 0), from: 2)
        return bench
    }

    private static func report(
        _ kind: PeerReport.Kind, of number: Int, _ timestamp: UInt64
    ) -> PeerReport {
        PeerReport(
            subject: endpoint(number), kind: kind,
            version: AnnouncementVersion(epoch: 1, timestamp: timestamp))
    }

    @Test func silenceMakesASuspectNewsMakeItAliveAndLongSilenceMakesItGone() {
        var bench = Self.bench(knowing: 3)
        let effects1 = bench.pass(.seconds(34))
        #expect(standings(effects1, of: 3).isEmpty)
        let effects2 = bench.pass(.seconds(2))
        #expect(standings(effects2, of: 3) == [.suspected(.silent)])
        let signed = announced(3, timestamp: bench.wall)
        let effects = bench.receive(.gossip(fresh(signed), round: 0), from: 2)
        #expect(standings(effects, of: 3) == [.alive])
        let silence = bench.pass(.seconds(299))
        #expect(standings(silence, of: 3) == [.suspected(.silent)])
        let effects3 = bench.pass(.seconds(2))
        #expect(standings(effects3, of: 3) == [.gone])
        #expect(bench.machine.record(of: endpoint(3)) == nil)
    }

    @Test func theGoneDoNotComeBackByWhatIsOld() {
        var bench = Self.bench(knowing: 3)
        // Ahead of the clock here: by its age alone it would be taken when it is gone.
        let last = announced(3, timestamp: bench.wall + 59_000)
        bench.receive(.gossip(fresh(last), round: 0), from: 2)
        bench.pass(.seconds(310))
        #expect(bench.machine.record(of: endpoint(3)) == nil)
        bench.step(.linkUp(endpoint(4)))
        bench.receive(.records([fresh(last)]), from: 4)
        #expect(bench.machine.record(of: endpoint(3)) == nil)
        let back = announced(3, timestamp: bench.wall)
        bench.receive(.records([fresh(back)]), from: 4)
        #expect(bench.machine.record(of: endpoint(3))?.signed == back)
    }

    @Test func whoeverHasALinkKeepsSomebodyKnown() {
        var bench = Self.bench(knowing: 3)
        bench.befriend(4)
        let start = bench.wall
        // 4 says at each interval that it has a link with 3.
        for _ in 0..<60 {
            bench.pass(.seconds(10))
            let vouching = announced(
                4, timestamp: bench.wall, reports: [Self.report(.linked, of: 3, start)])
            bench.receive(.gossip(fresh(vouching), round: 0), from: 4)
        }
        #expect(bench.machine.record(of: endpoint(3)) != nil)
        bench.receive(.gossip(fresh(announced(4, timestamp: bench.wall + 1)), round: 0), from: 4)
        let effects4 = bench.pass(.seconds(11))
        #expect(standings(effects4, of: 3) == [.gone])
    }

    @Test func ownLinksAreSaidOfTheSilentAndKeepThem() {
        var bench = Self.bench(knowing: 3)
        bench.pass(.seconds(400))
        #expect(bench.machine.record(of: endpoint(2)) != nil, "it is silent, and linked")
        let reports = bench.machine.ownAnnouncement?.reports ?? []
        #expect(reports.map(\.subject) == [endpoint(2)] && reports.map(\.kind) == [.linked])
    }

    @Test func aReportIsARumourThatCanBeRefuted() {
        var bench = Self.bench(knowing: 3)
        let version = bench.wall
        let report = announced(
            4, timestamp: bench.wall, reports: [Self.report(.unreachable, of: 3, version)])
        bench.receive(.gossip(fresh(report), round: 0), from: 2)
        let effects5 = bench.pass(.seconds(2))
        #expect(standings(effects5, of: 3).isEmpty)
        let answer = announced(3, timestamp: version + 1)
        bench.receive(.gossip(fresh(answer), round: 0), from: 2)
        let effects6 = bench.pass(.seconds(10))
        #expect(standings(effects6, of: 3).isEmpty, "nobody has seen it suspected")
        // A report of what has been refuted already is none.
        let late = announced(
            5, timestamp: bench.wall, reports: [Self.report(.unreachable, of: 3, version)])
        bench.receive(.gossip(fresh(late), round: 0), from: 2)
        let effects7 = bench.pass(.seconds(10))
        #expect(standings(effects7, of: 3).isEmpty)
        bench.pass(.seconds(9))
        let third = announced(
            6, timestamp: bench.wall, reports: [Self.report(.unreachable, of: 3, version + 1)])
        bench.receive(.gossip(fresh(third), round: 0), from: 2)
        let effects = bench.pass(.milliseconds(5500))
        #expect(standings(effects, of: 3) == [.suspected(.unreachable(by: endpoint(6)))])
        #expect(bench.machine.record(of: endpoint(3)) != nil, "and no more than suspected")
    }

    /// Else a liar would need no more than one report to have somebody answer for ever.
    @Test func aReportOfWhatNobodyHasSeenIsNone() {
        var bench = Self.bench(knowing: 3)
        bench.pass(.seconds(6))
        let count = bench.machine.counters.announced
        let lie = announced(
            4, timestamp: bench.wall,
            reports: [
                Self.report(.unreachable, of: 1, .max), Self.report(.unreachable, of: 3, .max),
            ])
        bench.receive(.gossip(fresh(lie), round: 0), from: 2)
        bench.pass(.milliseconds(100))
        #expect(bench.machine.counters.announced == count)
        let effects = bench.pass(.seconds(10))
        #expect(standings(effects, of: 3).isEmpty)
    }

    @Test func whoIsReportedRefutes() throws {
        var bench = Bench.started(1)
        bench.befriend(2)
        let version = try #require(bench.machine.ownAnnouncement?.version)
        bench.pass(.seconds(6))
        let report = announced(
            4, timestamp: bench.wall,
            reports: [Self.report(.unreachable, of: 1, version.timestamp)])
        bench.receive(.gossip(fresh(report), round: 0), from: 2)
        bench.pass(.milliseconds(10))
        let refuted = try #require(bench.machine.ownAnnouncement?.version)
        #expect(refuted > version)
        // Old reports make it say nothing: it has said so.
        let count = bench.machine.counters.announced
        let again = announced(
            5, timestamp: bench.wall,
            reports: [Self.report(.unreachable, of: 1, version.timestamp)])
        bench.receive(.gossip(fresh(again), round: 0), from: 2)
        bench.pass(.milliseconds(10))
        #expect(bench.machine.counters.announced == count)
    }

    @Test func aLostNeighbourIsTriedAndThenReported() {
        var bench = Self.bench(knowing: 3)
        bench.befriend(4)
        bench.pass(.seconds(6))
        let lost = bench.step(.linkDown(endpoint(4)))
        #expect(lost.contains(.connect(to: endpoint(4))))
        #expect(bench.machine.ownAnnouncement?.reports.isEmpty == true)
        let effects = bench.step(.connectFailed(endpoint(4))) + bench.pass(.seconds(6))
        #expect(standings(effects, of: 4) == [.suspected(.unreachable(by: endpoint(1)))])
        let reports = bench.machine.ownAnnouncement?.reports ?? []
        #expect(reports.map(\.subject) == [endpoint(4)])
        #expect(reports.map(\.kind) == [.unreachable])
        // News of it end that.
        bench.receive(.gossip(fresh(announced(4, timestamp: bench.wall)), round: 0), from: 2)
        bench.pass(.seconds(12))
        #expect(bench.machine.ownAnnouncement?.reports.isEmpty == true)
    }

    @Test func aSleeperDoesNotTakeTheOthersForSilent() {
        var bench = Self.bench(knowing: 3)
        bench.now = bench.now + .seconds(1000)
        let effects = bench.step(.timeout)
        #expect(standings(effects, of: 3).isEmpty && standings(effects, of: 2).isEmpty)
        let effects8 = bench.pass(.seconds(40))
        #expect(standings(effects8, of: 3) == [.suspected(.silent)])
    }

    @Test func aLieAboutSilenceMakesNobodyGone() {
        var bench = Bench.started(1)
        bench.befriend(2)
        let carried = CarriedAnnouncement(announced(3, timestamp: bench.wall), silence: .max)
        bench.receive(.gossip(carried, round: 0), from: 2)
        bench.pass(.seconds(200))
        #expect(bench.machine.record(of: endpoint(3)) != nil)
    }
}
