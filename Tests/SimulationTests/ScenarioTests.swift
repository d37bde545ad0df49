// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import SimChecks
import SimFaults
import SimKit
import Testing

/// Scenarios made for one promise each, with the times of production.
@Suite struct ScenarioTests {
    private func quiet(seed: UInt64) -> Scenario {
        var scenario = Scenario(seed: seed, founders: 3, steps: 4000)
        scenario.spares = 0
        scenario.heartbeatInterval = .milliseconds(500)
        scenario.electionTimeoutMin = .milliseconds(1500)
        scenario.electionTimeoutMax = .milliseconds(3000)
        scenario.redialGrace = .milliseconds(300)
        scenario.idleTimeout = .seconds(5)
        scenario.clockDriftPPMMax = 100
        scenario.network = .init()
        scenario.syncLatencyMax = .milliseconds(1)
        scenario.thinkTimeMax = .seconds(1)
        scenario.requestTimeout = .seconds(2)
        scenario.operatorInterval = nil
        scenario.losesMajority = false
        scenario.rates = []
        scenario.bounds = KVBounds()
        scenario.oldProgramPercent = 0
        scenario.stalledLeaderPercent = 0
        scenario.waitsForLearners = false
        scenario.learnerLagMax = UInt64(Limits.learnerLagThreshold)
        // What is counted is what the scenario brings.
        scenario.rehearses = false
        return scenario
    }

    /// DESIGN §2: restarting any aspend-net, the leader's too, changes no term.
    @Test(arguments: 1...20 as ClosedRange<UInt64>) func restartedNetsChangeNoTerm(seed: UInt64) {
        var scenario = quiet(seed: seed)
        // A net that comes back makes a few hundred events.
        scenario.steps = 8000
        scenario.rates = [.init(.killNet, every: .milliseconds(800))]
        scenario.downtimeMax = .milliseconds(200)
        let trial = Trial.run(scenario)
        #expect(trial.violation == nil)
        #expect(trial.statistics.troubles >= 20)
        #expect(trial.statistics.elections == 1)
    }

    /// DESIGN §2: when a leader's raft daemon dies, its living net says so, and the named successor
    /// campaigns at once.
    @Test func deadLeadersAreReplacedAtOnce() {
        var takeovers: [Duration] = []
        for seed in 1...10 as ClosedRange<UInt64> {
            var scenario = quiet(seed: seed)
            scenario.rates = [.init(.killRaft, every: .seconds(4))]
            scenario.leaderHuntPercent = 100
            scenario.downtimeMax = .milliseconds(500)
            let trial = Trial.run(scenario)
            #expect(trial.violation == nil)
            takeovers += trial.statistics.takeovers
        }
        takeovers.sort()
        #expect(takeovers.count >= 20)
        #expect(takeovers[takeovers.count / 2] < .milliseconds(100))
        #expect(takeovers[takeovers.count * 9 / 10] < .milliseconds(500))
    }

    /// A sweep of a night holds one world at a time.
    @Test func aWorldIsFreedAfterItsRun() throws {
        weak var node: SimNode?
        do {
            let scenario = quiet(seed: 2)
            let world = World(scenario, observer: Oracle(nodes: scenario.nodes))
            node = world.nodes.first
            try world.run()
        }
        #expect(node == nil)
    }

    /// One daemon after another is killed, raft or net, of any node: whoever knows that nobody leads
    /// does not wait for an election timeout (1.5 to 3 s).
    @Test func killedDaemonsStopNobodyForLong() {
        var gaps: [Duration] = []
        for seed in 1...8 as ClosedRange<UInt64> {
            let trial = Trial.run(killLoop(seed: seed))
            #expect(trial.violation == nil)
            gaps.append(trial.statistics.commitGapMax)
        }
        let longest = gaps.max() ?? .zero
        #expect(
            longest < .milliseconds(1000), "\(longest), seed \(gaps.firstIndex(of: longest) ?? 0)")
    }

    private func killLoop(seed: UInt64) -> Scenario {
        var scenario = quiet(seed: seed)
        scenario.steps = 20_000
        scenario.rates = [
            .init(.killRaft, every: .milliseconds(1500)),
            .init(.killNet, every: .milliseconds(1500)),
        ]
        scenario.leaderHuntPercent = 33
        scenario.downtimeMax = .milliseconds(300)
        scenario.clients = 10
        scenario.thinkTimeMax = .milliseconds(30)
        scenario.requestTimeout = .milliseconds(100)
        return scenario
    }

    /// Leases end within a second of their deadline as long as somebody leads, and here somebody
    /// nearly always does, although leaders are killed; and never before, which is an oracle's.
    @Test func leasesEndInTime() {
        var expired = 0
        var compactions = 0
        for seed in 1...8 as ClosedRange<UInt64> {
            var scenario = quiet(seed: seed)
            scenario.steps = 8000
            scenario.leasePercent = 40
            scenario.compaction.revisionsKept = 50
            scenario.compaction.revisionsKeptMin = 10
            scenario.rates = [.init(.killRaft, every: .seconds(5))]
            scenario.leaderHuntPercent = 100
            scenario.downtimeMax = .milliseconds(300)
            let trial = Trial.run(scenario)
            #expect(trial.violation == nil)
            #expect(trial.statistics.elections > 2)
            #expect(trial.leaseLatenessMax <= .seconds(1), "seed \(seed)")
            expired += trial.leasesExpired
            compactions += trial.statistics.compactions
        }
        #expect(expired >= 100 && compactions >= 10, "\(expired) leases, \(compactions)")
    }

    /// Watches are told much, from revisions of long ago and across the ends of daemons; sometimes
    /// what they want is gone.
    @Test func watchersAreKeptBusy() {
        var events = 0
        for seed in 1...20 as ClosedRange<UInt64> {
            let trial = Trial.run(Scenario(seed: seed))
            #expect(trial.violation == nil)
            events += trial.eventsTold
        }
        #expect(events > 1000, "\(events) changes")
        // In one world of fifty or so: looked for only until found.
        let isCompacted = (51...250 as ClosedRange<UInt64>).lazy.contains {
            Trial.run(Scenario(seed: $0)).statistics.watchesCompacted > 0
        }
        #expect(isCompacted)
    }

    /// Gossip daemons live beside the cluster: what it lives through is the same without them.
    @Test func gossipLeavesTheClusterAlone() {
        let scenarios = (1...1000 as ClosedRange<UInt64>).lazy.map { Scenario(seed: $0) }.filter {
            $0.gossip != nil
        }
        for scenario in scenarios.prefix(4) {
            var without = scenario
            without.gossip = nil
            let (trial, other) = (Trial.run(scenario), Trial.run(without))
            #expect(trial.violation == nil && other.violation == nil)
            #expect(trial.statistics.gossipMessages > 300)
            var statistics = trial.statistics
            statistics.gossipMessages = 0
            #expect(statistics == other.statistics && trial.steps == other.steps)
            #expect(trial.hash != other.hash)
        }
    }

    @Test func peaceIsUneventful() {
        let trial = Trial.run(quiet(seed: 1))
        #expect(trial.violation == nil)
        #expect(trial.statistics.elections == 1 && trial.statistics.unknown == 0)
    }

    /// The check for liveness can fail: here nothing is healed.
    @Test func brokenClustersAreNoticed() {
        var scenario = quiet(seed: 3)
        scenario.heals = false
        scenario.troubleMax = .seconds(100_000)
        scenario.rates = [.init(.partition, every: .milliseconds(500))]
        let trial = Trial.run(scenario)
        #expect(trial.violation?.kind == .liveness)
    }
}
