// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenTypes
import Glibc
import RaftCore
import SimChecks
import SimFaults

/// `aspen-sim`: lives through clusters in virtual time and says whether a promise was broken.
package struct SimCommand: ParsableCommand {
    package static let configuration = CommandConfiguration(
        commandName: "aspen-sim",
        abstract: "Run simulated clusters, deterministically: one seed, one run, byte for byte.",
        discussion: """
            Exit codes: 0 all promises kept; 2 usage; 10 a safety promise was broken (something \
            acknowledged was lost, a client saw a wrong value, two leaders in a term, two runs of \
            one seed differed); 11 a liveness promise was broken (the cluster did not come right \
            after all trouble had ended); 12 the program itself trapped on a broken invariant.
            """,
        version: "aspen-sim \(ProgramVersion.text)",
        subcommands: [
            RunCommand.self, SweepCommand.self, ReplayCommand.self, ShrinkCommand.self,
            JudgeCommand.self,
        ])

    package init() {}

    /// Parses the arguments, runs, exits.
    package static func launch() -> Never {
        do {
            var command = try parseAsRoot()
            try command.run()
            Glibc.exit(0)
        } catch {
            let code = exitCode(for: error)
            let message = fullMessage(for: error)
            if !message.isEmpty {
                Output.line(message, to: code.isSuccess ? STDOUT_FILENO : STDERR_FILENO)
            }
            Glibc.exit(code == .validationFailure ? 2 : code.rawValue)
        }
    }
}

/// What a run can end with; the process's exit code.
enum Outcome: Int32, CaseIterable {
    case passed = 0
    case safety = 10
    case liveness = 11
    case crash = 12

    init(_ trial: Trial) {
        switch trial.violation?.kind {
        case nil: self = .passed
        case .safety: self = .safety
        case .liveness: self = .liveness
        }
    }

    var exitCode: ExitCode { ExitCode(rawValue) }
}

/// What a run is made of, besides its seed.
struct ScenarioOptions: ParsableArguments {
    @Option(help: "How many nodes found the cluster (default: drawn from the seed).")
    var nodes: Int?

    @Option(help: "How many events the part with trouble lasts (default: drawn from the seed).")
    var steps: Int?

    @Option(help: ArgumentHelp("Leave this kind of trouble out.", valueName: "trouble"))
    var without: [String] = []

    @Option(
        help: ArgumentHelp(
            "This kind of trouble, too, whatever the seed draws.", valueName: "trouble"))
    var with: [String] = []

    @Flag(help: "The state is kept in the real database, too (default: by one seed of eight).")
    var database = false

    @Flag(
        help: """
            Judge only by what an outsider can see (committed entries, states, clients' answers), \
            not by the rules that a node must follow.
            """)
    var outcomesOnly = false

    #if ASPEN_TEST_BUILD
        @Option(
            help: ArgumentHelp(
                "Switch on a planted bug (test builds only).", valueName: "bug"))
        var planted: Planted?
    #endif

    func validate() throws {
        if let nodes, !(1...7).contains(nodes) {
            throw ValidationError("--nodes: 1 to 7 nodes can found a simulated cluster")
        }
        if let steps, steps < 1 { throw ValidationError("--steps: at least 1") }
        for (option, names) in [("--without", without), ("--with", with)] {
            for name in names where Scenario.Trouble(rawValue: name) == nil {
                let known = Scenario.Trouble.allCases.map(\.rawValue).joined(separator: ", ")
                throw ValidationError("\(option) \(name): one of \(known)")
            }
        }
    }

    func scenario(seed: UInt64) -> Scenario {
        var scenario = drawn(seed: seed)
        for trouble in with.compactMap(Scenario.Trouble.init(rawValue:)) {
            scenario.insist(on: trouble)
        }
        scenario.rates.removeAll { without.contains($0.trouble.rawValue) }
        return scenario
    }

    private func drawn(seed: UInt64) -> Scenario {
        #if ASPEN_TEST_BUILD
            return Scenario(
                seed: seed, founders: nodes, steps: steps, keepsDatabase: database,
                planted: planted.map { [$0.bug] } ?? [])
        #else
            return Scenario(
                seed: seed, founders: nodes, steps: steps, keepsDatabase: database)
        #endif
    }

    var strictness: Oracle.Strictness { outcomesOnly ? .outcomes : .rules }

    /// The same options again, for a worker process.
    var arguments: [String] {
        var arguments: [String] = []
        if let nodes { arguments += ["--nodes", String(nodes)] }
        if let steps { arguments += ["--steps", String(steps)] }
        for name in without { arguments += ["--without", name] }
        for name in with { arguments += ["--with", name] }
        if database { arguments.append("--database") }
        if outcomesOnly { arguments.append("--outcomes-only") }
        #if ASPEN_TEST_BUILD
            if let planted { arguments += ["--planted", planted.bug.rawValue] }
        #endif
        return arguments
    }
}
