// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import Glibc
import SimChecks
import SimFaults

struct ShrinkCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "shrink",
        abstract: "Find a shorter list of faults with which a seed still breaks the same promise.",
        discussion: """
            Prints the options of the smallest run found, one line that `aspen-sim replay FILE` \
            understands. Takes faults away one kind at a time, then halves the part with trouble.
            """)

    @Option(help: "Which run.")
    var seed: UInt64

    @OptionGroup var options: ScenarioOptions

    func run() throws {
        CrashReport.install()
        CrashReport.begin(seed: seed)
        var best = options
        guard let name = violation(best) else {
            Output.line("seed \(seed) breaks no promise")
            throw ExitCode(Outcome.passed.rawValue)
        }
        for trouble in Scenario.Trouble.allCases where !best.without.contains(trouble.rawValue) {
            var fewer = best
            fewer.without.append(trouble.rawValue)
            if violation(fewer) == name { best = fewer }
        }
        var steps = best.scenario(seed: seed).steps
        while steps > 50 {
            var shorter = best
            shorter.steps = steps / 2
            guard violation(shorter) == name else { break }
            best = shorter
            steps /= 2
        }
        let left = best.scenario(seed: seed)
        Output.line("still breaks: \(name)")
        Output.line(
            "with trouble for \(left.steps) events: "
                + left.rates.map(\.trouble.rawValue).joined(separator: " "))
        Output.line((["--seed", String(seed)] + best.arguments).joined(separator: " "))
    }

    /// The name of the promise that breaks.
    private func violation(_ options: ScenarioOptions) -> String? {
        Trial.run(options.scenario(seed: seed), strictness: options.strictness).violation?.name
    }
}

struct ReplayCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "replay",
        abstract: "Run what a file says: the options of `run`, as `shrink` prints them.",
        discussion: "Lines that do not begin with two dashes are passed over.")

    @Argument(help: "The file.", completion: .file())
    var file: String

    func run() throws {
        guard let text = read() else { throw ValidationError("cannot read \(file)") }
        let lines = text.split(separator: "\n").filter { $0.hasPrefix("--") }
        guard !lines.isEmpty else { throw ValidationError("\(file) has no line of options") }
        for line in lines {
            let words = line.split(separator: " ").map(String.init)
            try RunCommand.parse(words).run()
        }
    }

    private func read() -> String? {
        guard let stream = fopen(file, "r") else { return nil }
        defer { fclose(stream) }
        var bytes = [UInt8](repeating: 0, count: 65_536)
        let count = fread(&bytes, 1, bytes.count, stream)
        return String(decoding: bytes[..<count], as: UTF8.self)
    }
}
