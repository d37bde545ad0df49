// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenMachine
import RaftCore
import SimChecks
import SimFaults
import SimKit

struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run",
        abstract: "Run one seed; the last line is the hash of its trace.")

    @Option(help: "Which run.")
    var seed: UInt64

    @OptionGroup var options: ScenarioOptions

    @Flag(help: "Print every event.")
    var trace = false

    func run() throws {
        CrashReport.install()
        CrashReport.begin(seed: seed)
        let scenario = options.scenario(seed: seed)
        Output.line(Self.describe(scenario))
        let sink: ((String) -> Void)? = trace ? { Output.line($0) } : nil
        let trial = Trial.run(scenario, strictness: options.strictness, sink: sink)
        Output.line(Self.describe(trial))
        if let violation = trial.violation {
            Output.line("FAILED \(violation)")
            if !trace {
                let summary = FailureSummary(scenario, strictness: options.strictness)
                for line in summary.lines { Output.line(line) }
                Output.line("See all that led to it: the same command with --trace.")
            }
        } else {
            Output.line("passed: every promise was kept")
        }
        Output.line(trial.hash.hex)
        let outcome = Outcome(trial)
        if outcome != .passed { throw outcome.exitCode }
    }

    private static func describe(_ scenario: Scenario) -> String {
        let spares = scenario.spares == 0 ? "" : " and \(scenario.spares) in reserve"
        let troubles = scenario.rates.map(\.trouble.rawValue).joined(separator: " ")
        var lines = [
            "seed \(scenario.seed): \(scenario.founders) nodes\(spares), \(scenario.clients) "
                + "clients on \(scenario.keys) keys, heartbeat \(scenario.heartbeatInterval)",
            "trouble for \(scenario.steps) events: \(troubles.isEmpty ? "none" : troubles)"
                + (scenario.operatorInterval == nil ? "" : " membership")
                + (scenario.network.datagramLanes > 0 ? " datagrams" : "")
                + (scenario.gossip == nil ? "" : " gossip"),
        ]
        if let bug = scenario.planted.first { lines.append("planted: \(bug.rawValue)") }
        return lines.joined(separator: "\n")
    }

    private static func describe(_ trial: Trial) -> String {
        let statistics = trial.statistics
        let milliseconds = statistics.virtualTime.nanoseconds / 1_000_000
        return "\(trial.steps) events in \(milliseconds) ms of virtual time: "
            + "\(statistics.messages) messages, \(trial.operations) operations "
            + "(\(statistics.unknown) unknown), \(statistics.elections) elections, "
            + "\(statistics.troubles) troubles, \(statistics.recoveries) starts "
            + "(\(statistics.untrustedTails) untrusted), \(statistics.snapshots) snapshots, "
            + "\(statistics.memberships) memberships, \(statistics.watchEvents) changes watched "
            + "(\(statistics.watchesCompacted) watches compacted)"
            + (statistics.databases == 0
                ? ""
                : ", \(statistics.databases) databases opened "
                    + "(\(statistics.damagedDatabases) damaged)")
    }
}
