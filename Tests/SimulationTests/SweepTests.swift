// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import Foundation
import RaftCore
import SimChecks
import SimFaults
import SimKit
import Testing

/// The thousand seeds that every change must survive. Each runs twice, in a process of its own.
enum Seeds {
    static let first: UInt64 = 1
    static let count: UInt64 = 1000
    /// Swift Testing runs these side by side.
    static let shards: UInt64 = 4
}

@Suite struct SweepTests {
    @Test(arguments: 0..<Seeds.shards) func everyPromiseIsKept(shard: UInt64) throws {
        let count = Seeds.count / Seeds.shards
        let sweep = try AspenSim.run(
            "sweep", "--from", String(Seeds.first + shard * count), "--count", String(count),
            "--jobs", "1")
        #expect(sweep.exitCode == 0, "\(sweep.failures.joined(separator: "\n"))")
        #expect(sweep.lines.contains { $0.hasPrefix("\(count) seeds: \(count) passed") })
    }

    /// The real database in all of them, not in one of eight.
    @Test func everyPromiseIsKeptByDatabases() throws {
        let sweep = try AspenSim.run(
            "sweep", "--seeds", "5001..5100", "--database", "--jobs", "1")
        #expect(sweep.exitCode == 0, "\(sweep.failures.joined(separator: "\n"))")
        let worlds = (5001...5050).lazy.map {
            Trial.run(Scenario(seed: $0, keepsDatabase: true)).statistics
        }
        #expect(worlds.first.map { $0.databases > 0 } == true)
        #expect(worlds.contains { $0.damagedDatabases > 0 })
    }

    /// Checks that can't fail are worth nothing: each bug is caught, by more than one seed.
    @Test(arguments: PlantedBug.allCases) func everyPlantedBugIsCaught(bug: PlantedBug) throws {
        let enough = 3
        // Garbage that passes for a page may trap wherever it is used.
        let caught = PlantedBug.inPages.contains(bug) ? 10...12 : 10...11
        let known = try KnownSeeds.of(bug).flatMap { seed in
            let run = try AspenSim.run(
                "sweep", "--from", String(seed), "--count", "1", "--once", "--planted", bug.rawValue
            )
            let code = Int(run.exitCode)
            #expect(code == 0 || caught.contains(code), "\(run.lines.suffix(5))")
            return run.failures
        }
        var failures = known
        if known.count < enough || KnownSeeds.areRewritten {
            let sweep = try AspenSim.run(
                "sweep", "--from", String(Seeds.first), "--count", String(Seeds.count), "--once",
                "--jobs", "1", "--planted", bug.rawValue, "--until", String(enough))
            #expect(caught.contains(Int(sweep.exitCode)), "\(sweep.lines.suffix(5))")
            failures = sweep.failures
            if KnownSeeds.areRewritten { try KnownSeeds.write(bug, from: failures) }
        }
        #expect(failures.count >= enough)
        // Nobody is told anything wrong by a watch that falls silent: it is late for ever. Nor is a
        // damaged log filled that does not say what it lacks. And a node that is not believed is unknown.
        if ![.watchIgnoresSnapshot, .damagedNodeVotes, .gossipKeepsItsEpoch].contains(bug) {
            // In some runs all that is seen is that the end of it brings no peace.
            #expect(failures.contains { $0.contains(" safety: ") })
        }
    }

    /// The same bug, seen only by what comes of it: what clients are told, what states hold.
    @Test(arguments: [PlantedBug.acknowledgeBeforeDurable, .skipReadRound, .acceptRecycledRecord])
    func outsidersNoticeToo(bug: PlantedBug) throws {
        let sweep = try AspenSim.run(
            "sweep", "--from", String(Seeds.first), "--count", String(Seeds.count), "--once",
            "--jobs", "1", "--outcomes-only", "--planted", bug.rawValue, "--until", "1")
        #expect(sweep.exitCode == 10, "\(sweep.lines.suffix(5))")
    }
}

@Suite struct DeterminismTests {
    /// Hashed collections are ordered differently in each process: a run must not notice.
    @Test(arguments: [1, 5, 22, 46, 1046] as [UInt64]) func oneSeedIsOneRunInAnyProcess(
        seed: UInt64
    ) throws {
        let first = try AspenSim.run("run", "--seed", String(seed))
        let second = try AspenSim.run("run", "--seed", String(seed))
        #expect(first.exitCode == 0)
        #expect(first.lines == second.lines)
        let here = Trial.run(Scenario(seed: seed))
        #expect(here.hash.hex == first.lastLine)
    }

    @Test func readingTheTraceChangesNothing() throws {
        let quiet = try AspenSim.run("run", "--seed", "7")
        let traced = try AspenSim.run("run", "--seed", "7", "--trace")
        #expect(traced.lines.count > quiet.lines.count + 100)
        #expect(traced.lastLine == quiet.lastLine)
    }

    @Test func aSecondRunThatDiffersIsNoticed() {
        var other = Scenario(seed: 1)
        other.heartbeatInterval += .microseconds(1)
        #expect(Trial.runTwice(Scenario(seed: 1)).violation == nil)
        #expect(
            Trial.runTwice(Scenario(seed: 1), thenAs: other).violation?.name == "determinism")
    }

    @Test func otherSeedsAndSizesAreOtherRuns() {
        let hashes = [
            Trial.run(Scenario(seed: 1)), Trial.run(Scenario(seed: 2)),
            Trial.run(Scenario(seed: 1, founders: 4)), Trial.run(Scenario(seed: 1, steps: 1234)),
        ].map(\.hash.hex)
        #expect(Set(hashes).count == hashes.count)
    }
}

@Suite struct ExitCodeTests {
    @Test func usage() throws {
        #expect(try AspenSim.run("run").exitCode == 2)
        #expect(try AspenSim.run("run", "--seed", "1", "--planted", "no-such-bug").exitCode == 2)
        #expect(try AspenSim.run("run", "--seed", "1", "--nodes", "0").exitCode == 2)
        #expect(try AspenSim.run("run", "--seed", "1", "--without", "rain").exitCode == 2)
        #expect(try AspenSim.run("run", "--seed", "1", "--with", "rain").exitCode == 2)
        #expect(try AspenSim.run("sweep", "--seeds", "9..1").exitCode == 2)
        #expect(try AspenSim.run("replay", "/nonexistent").exitCode == 2)
        #expect(try AspenSim.run("--help").exitCode == 0)
    }

    @Test func safety() throws {
        let run = try AspenSim.run("run", "--seed", "1", "--planted", "apply-before-commit")
        #expect(run.exitCode == 10)
        #expect(run.lines.contains { $0.hasPrefix("FAILED safety") })
        #expect(run.lastLine.count == 16 && UInt64(run.lastLine, radix: 16) != nil)
    }

    /// A trap in the machines ends the process; here a signal from outside plays the trap.
    @Test func crash() throws {
        let (process, output) = try AspenSim.start(["run", "--seed", "1", "--steps", "100000000"])
        // The first line is out before the first event.
        _ = try output.read(upToCount: 1)
        #expect(kill(process.processIdentifier, SIGILL) == 0)
        let rest = try output.readToEnd()
        process.waitUntilExit()
        let run = AspenSim.finished(process, rest ?? .init())
        #expect(run.exitCode == 12 && run.signal == 0)
        #expect(run.lines.contains("seed 1 crashed"))
    }
}

@Suite struct FindingTests {
    /// What a person needs who has to find out why: the last events of each node, the last messages.
    @Test func aFailureIsSummedUpOnOnePage() throws {
        let run = try AspenSim.run("run", "--seed", "1", "--planted", "apply-before-commit")
        #expect(run.lines.contains("n1, last:") && run.lines.contains("last messages:"))
        #expect(run.lines.count < 80, "\(run.lines.count) lines")
    }

    /// A shorter list of faults breaks the same promise, and can be run again from a file.
    @Test func shrunkRunsFailAlike() throws {
        let seed = "1"
        let shrunk = try AspenSim.run("shrink", "--seed", seed, "--planted", "apply-before-commit")
        #expect(shrunk.exitCode == 0, "\(shrunk.lines)")
        let file = FileManager.default.temporaryDirectory
            .appendingPathComponent("aspen-sim-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: file) }
        try Data(shrunk.lines.joined(separator: "\n").utf8).write(to: file)
        let replay = try AspenSim.run("replay", file.path)
        #expect(replay.exitCode == 10)
        let name = shrunk.lines[0].dropFirst("still breaks: ".count)
        #expect(replay.lines.contains { $0.hasPrefix("FAILED safety: \(name)") })
    }
}
