// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenMachine
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
    var count: UInt64?

    @Option(help: "Stop after this many minutes; --count may be left out then.")
    var minutes: Double?

    @Option(help: ArgumentHelp("The first seed and the last: 1..1000.", valueName: "a..b"))
    var seeds: String?

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
        if let minutes, !(minutes > 0 && minutes <= 1_000_000) {
            throw ValidationError("--minutes: more than 0, at most 1000000")
        }
        guard let range else {
            throw ValidationError("say which seeds: --count N, or --seeds A..B, or --minutes M")
        }
        if range.first.addingReportingOverflow(range.count).overflow {
            throw ValidationError("--from and --count go beyond the last seed")
        }
    }

    /// Nil if the options do not say it, or twice.
    var range: (first: UInt64, count: UInt64)? {
        guard let seeds else {
            return (count ?? minutes.map { _ in UInt64.max - from }).map { (from, $0) }
        }
        let ends = seeds.split(separator: ".", omittingEmptySubsequences: true)
        guard count == nil, ends.count == 2, let first = UInt64(ends[0]),
            let last = UInt64(ends[1]), first <= last, last - first < .max
        else { return nil }
        return (first, last - first + 1)
    }

    func run() throws {
        guard let range else { return }
        if let stride { return work(stride, range) }
        var tally = Tally()
        try Sweep(command: self).run(&tally)
        Output.line(tally.summary)
        Output.line(tally.figures(cpuSeconds: Self.cpuSeconds()))
        Output.line(tally.hash.hex)
        if tally.worst != .passed { throw tally.worst.exitCode }
    }

    /// The worker's part: one line for each seed, as soon as it is known.
    private func work(_ stride: UInt64, _ range: (first: UInt64, count: UInt64)) {
        CrashReport.install()
        var seed = range.first
        while seed < range.first + range.count {
            CrashReport.begin(seed: seed)
            let scenario = options.scenario(seed: seed)
            let trial =
                once
                ? Trial.run(scenario, strictness: options.strictness)
                : Trial.runTwice(scenario, strictness: options.strictness)
            let detail = trial.violation.map { " \($0)" } ?? ""
            let runs: UInt64 = once ? 1 : 2
            let milliseconds = trial.statistics.virtualTime.nanoseconds / 1_000_000
            Output.line(
                "\(seed) \(Outcome(trial).rawValue) \(trial.hash.hex) \(trial.steps * runs) "
                    + "\(milliseconds * runs) \(UInt64(trial.statistics.finished) * runs)"
                    + detail)
            seed += stride
        }
    }

    /// Of the workers that have ended.
    private static func cpuSeconds() -> Double {
        var usage = rusage()
        guard getrusage(__rusage_who_t(RUSAGE_CHILDREN.rawValue), &usage) == 0 else { return 0 }
        func seconds(_ time: timeval) -> Double {
            Double(time.tv_sec) + Double(time.tv_usec) / 1_000_000
        }
        return seconds(usage.ru_utime) + seconds(usage.ru_stime)
    }
}

/// What came of the seeds so far.
struct Tally {
    private var hashes: [UInt64: TraceHashText] = [:]
    private var counts: [Outcome: Int] = [:]
    private var events: UInt64 = 0
    private var milliseconds: UInt64 = 0
    private var requests: UInt64 = 0

    struct TraceHashText { var text: String }

    var failures: Int { counts.reduce(0) { $0 + ($1.key == .passed ? 0 : $1.value) } }

    mutating func add(seed: UInt64, _ outcome: Outcome, hash: String) {
        counts[outcome, default: 0] += 1
        hashes[seed] = TraceHashText(text: hash)
    }

    /// Of runs, the second ones of each seed included.
    mutating func add(events: UInt64, milliseconds: UInt64, requests: UInt64) {
        self.events += events
        self.milliseconds += milliseconds
        self.requests += requests
    }

    /// - Parameter cpuSeconds: what all of it took.
    func figures(cpuSeconds: Double) -> String {
        let seconds = max(cpuSeconds, 0.001)
        let simulated = max(Double(milliseconds) / 1000, 0.001)
        return "\(events) events, \(milliseconds / 1000) s of virtual time: "
            + "\(Int(Double(events) / seconds)) events and "
            + "\(Int(simulated / seconds)) s per CPU second, "
            + "\(Int(Double(requests) / simulated)) requests of clients per second"
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
