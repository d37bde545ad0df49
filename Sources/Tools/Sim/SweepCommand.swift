// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import Glibc
import SimChecks
import SimFaults
import SimKit

struct SweepCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sweep",
        abstract: "Run many seeds, each twice; the last line is one hash over all traces.",
        discussion: """
            Failed seeds are listed, with the first line of what broke. A seed that traps does not \
            end the sweep: seeds run in worker processes.
            """)

    @Option(help: "The first seed.")
    var from: UInt64 = 1

    @Option(help: "How many seeds.")
    var count: UInt64

    @OptionGroup var options: ScenarioOptions

    @Option(help: "How many worker processes.")
    var jobs = 2

    @Option(help: ArgumentHelp("Stop after this many failed seeds.", valueName: "failures"))
    var until: Int?

    @Flag(help: "Run each seed once only.")
    var once = false

    @Option(help: .hidden)
    var stride: UInt64?

    func validate() throws {
        if jobs < 1 || jobs > 64 { throw ValidationError("--jobs: 1 to 64") }
        if let until, until < 1 { throw ValidationError("--until: at least 1") }
        if from.addingReportingOverflow(count).overflow {
            throw ValidationError("--from and --count go beyond the last seed")
        }
    }

    func run() throws {
        if let stride { return work(stride) }
        var tally = Tally()
        try Sweep(command: self).run(&tally)
        print(tally.summary)
        print(tally.hash.hex)
        if tally.worst != .passed { throw tally.worst.exitCode }
    }

    /// The worker's part: one line for each seed, as soon as it is known.
    private func work(_ stride: UInt64) {
        CrashReport.install()
        var seed = from
        while seed < from + count {
            CrashReport.begin(seed: seed)
            let scenario = options.scenario(seed: seed)
            let trial =
                once
                ? Trial.run(scenario, strictness: options.strictness)
                : Trial.runTwice(scenario, strictness: options.strictness)
            let detail = trial.violation.map { " \($0)" } ?? ""
            let line = "\(seed) \(Outcome(trial).rawValue) \(trial.hash.hex)\(detail)\n"
            Array(line.utf8).withUnsafeBytes { _ = write(STDOUT_FILENO, $0.baseAddress, $0.count) }
            seed += stride
        }
    }
}

/// What came of the seeds so far.
struct Tally {
    private var hashes: [UInt64: TraceHashText] = [:]
    private var counts: [Outcome: Int] = [:]

    struct TraceHashText { var text: String }

    var failures: Int { counts.reduce(0) { $0 + ($1.key == .passed ? 0 : $1.value) } }

    mutating func add(seed: UInt64, _ outcome: Outcome, hash: String) {
        counts[outcome, default: 0] += 1
        hashes[seed] = TraceHashText(text: hash)
    }

    /// A crash tells most, then a broken safety promise.
    var worst: Outcome {
        for outcome in [Outcome.crash, .safety, .liveness] where counts[outcome] != nil {
            return outcome
        }
        return .passed
    }

    var summary: String {
        func count(_ outcome: Outcome) -> Int { counts[outcome] ?? 0 }
        return "\(hashes.count) seeds: \(count(.passed)) passed, \(count(.safety)) broke safety, "
            + "\(count(.liveness)) broke liveness, \(count(.crash)) crashed"
    }

    var hash: TraceHash {
        var all = TraceHash()
        for seed in hashes.keys.sorted() {
            all.fold(seed)
            all.fold(Array((hashes[seed]?.text ?? "").utf8))
        }
        return all
    }
}
