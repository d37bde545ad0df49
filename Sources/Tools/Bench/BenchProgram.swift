// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenCLI
import AspenClient
import AspenTypes
import AspenWire

/// `aspen-bench`, from its arguments to its exit status.
package enum BenchProgram {
    package static func run(_ arguments: [String]) async -> Int32 {
        let output = Output()
        var status = ExitStatus.done
        do {
            var command = try BenchCommand.parseAsRoot(arguments)
            if let audit = command as? Audit { return try await audit.audit() }
            if let watchers = command as? Watchers { return try await watchers.follow() }
            if let disk = command as? DiskProbe {
                let report = try disk.measure()
                output.write(disk.isJSON ? report.json.text + "\n" : report.text)
                try output.flush()
                return ExitStatus.done.rawValue
            }
            guard let verb = command as? any LoadCommand else {
                try command.run()
                return ExitStatus.usage.rawValue
            }
            let plan = try verb.plan()
            let report = try await LoadTest(plan).run()
            output.write(verb.options.isJSON ? report.json.text + "\n" : report.text)
            if let path = plan.samples { try report.writeSamples(to: path) }
            status = report.status
        } catch let failure as CommandFailure {
            let hint = failure.status == .usage ? "See 'aspen-bench --help'.\n" : ""
            writeError("aspen-bench: \(failure.text)\n\(hint)")
            status = failure.status
        } catch let error as AspenError {
            writeError("aspen-bench: \(CommandFailure(error).text)\n")
            status = ExitStatus(error)
        } catch {
            let text = BenchCommand.fullMessage(for: error) + "\n"
            if BenchCommand.exitCode(for: error) == .success {
                output.write(text)
            } else {
                writeError("aspen-bench: " + text.droppingPrefix("Error: "))
                status = .usage
            }
        }
        do {
            try output.flush()
        } catch {
            writeError("aspen-bench: cannot write the output: \(error)\n")
            status = .failed
        }
        return status.rawValue
    }
}

struct BenchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "aspen-bench",
        abstract: "Load a cluster and measure rate and latency.",
        discussion: """
            Each client sends its next request when the answer to the last one is here (a closed loop), \
            so the rate says what so many clients get, not what they would like; with --rate requests \
            are due at fixed times. SIGINT or SIGTERM ends the measuring early; the report is printed.

            EXAMPLES
              aspen-bench put --clients 64 --duration 10s
              aspen-bench get --clients 64 --connections 8 --keys 100000 --stale
              aspen-bench mixed --read-percent 90 --socket a/raft.sock --socket b/raft.sock
              aspen-bench put --clients 64 --rate 2000 --distribution zipf --plot
            """,
        version: "aspen-bench \(programVersion)",
        subcommands: [
            PutLoad.self, GetLoad.self, MixedLoad.self, ScanLoad.self, TransactionLoad.self,
            LeaseLoad.self, NotifyLoad.self, FillLoad.self, DiskProbe.self, Watchers.self,
            Audit.self,
        ])
}

protocol LoadCommand: ParsableCommand {
    var options: LoadOptions { get }
    func plan() throws -> LoadPlan
}

struct PutLoad: LoadCommand {
    static let configuration = CommandConfiguration(
        commandName: "put", abstract: "Write random keys of the key space.")
    @OptionGroup var options: LoadOptions
    func plan() throws -> LoadPlan { try options.plan(.put) }
}

struct GetLoad: LoadCommand {
    static let configuration = CommandConfiguration(
        commandName: "get", abstract: "Read random keys, after all have been written once.")
    @OptionGroup var options: LoadOptions
    @OptionGroup var reading: ReadOptions
    func plan() throws -> LoadPlan {
        try options.plan(.get, isStale: reading.stale, isLoaded: !reading.noLoad)
    }
}

struct MixedLoad: LoadCommand {
    static let configuration = CommandConfiguration(
        commandName: "mixed", abstract: "Read and write random keys.")
    @OptionGroup var options: LoadOptions
    @OptionGroup var reading: ReadOptions
    @Option(help: "How many of a hundred requests read.")
    var readPercent = 50
    func plan() throws -> LoadPlan {
        guard (0...100).contains(readPercent) else {
            throw CommandFailure.usage("--read-percent is 0 to 100")
        }
        return try options.plan(
            .mixed(readPercent: UInt64(readPercent)), isStale: reading.stale,
            isLoaded: !reading.noLoad)
    }
}

struct ScanLoad: LoadCommand {
    static let configuration = CommandConfiguration(
        commandName: "scan", abstract: "Read the first page of the key space.",
        aliases: ["range"])
    @OptionGroup var options: LoadOptions
    @OptionGroup var reading: ReadOptions
    @Option(help: "Keys a page.")
    var limit = Limits.batchCountMax
    func plan() throws -> LoadPlan {
        guard (1...Limits.batchCountMax).contains(limit) else {
            throw CommandFailure.usage("--limit is 1 to \(Limits.batchCountMax)")
        }
        return try options.plan(
            .scan(limit: UInt32(limit)), isStale: reading.stale, isLoaded: !reading.noLoad)
    }
}

struct TransactionLoad: LoadCommand {
    static let configuration = CommandConfiguration(
        commandName: "txn",
        abstract:
            "Compare, read and write one key in a transaction, after all have been written once.")
    @OptionGroup var options: LoadOptions
    @Flag(help: "Do not write the keys first: they are there from an earlier run.")
    var noLoad = false
    func plan() throws -> LoadPlan { try options.plan(.txn, isLoaded: !noLoad) }
}

struct LeaseLoad: LoadCommand {
    static let configuration = CommandConfiguration(
        commandName: "lease",
        abstract: "Grant a lease, put a key under it, keep it alive, revoke it: four requests.")
    @OptionGroup var options: LoadOptions
    func plan() throws -> LoadPlan { try options.plan(.lease) }
}

struct NotifyLoad: LoadCommand {
    static let configuration = CommandConfiguration(
        commandName: "notify",
        abstract: "Write, and measure until each of many watches has told of it.",
        discussion: """
            A latency is that of one event at one watch, from the sending of the put; the rate counts \
            events. Nobody else may write below "bench/" meanwhile.
            """)
    @OptionGroup var options: LoadOptions
    @Option(help: "Watches of the whole key space, shared out among the connections.")
    var watchers = 1
    func plan() throws -> LoadPlan {
        guard (1...10_000).contains(watchers) else {
            throw CommandFailure.usage("--watchers is 1 to 10000")
        }
        guard options.valueSize >= Workload.stampBytes else {
            throw CommandFailure.usage(
                "--value-size is \(Workload.stampBytes) or more: a value says when it was written")
        }
        return try options.plan(.notify(watchers: watchers))
    }
}

struct FillLoad: LoadCommand {
    static let configuration = CommandConfiguration(
        commandName: "load",
        abstract: "Write every key of the key space once, 100 in a transaction.")
    @OptionGroup var options: LoadOptions
    func plan() throws -> LoadPlan { try options.plan(.load, isLoaded: true) }
}

struct ReadOptions: ParsableArguments {
    @Flag(help: "Stale reads: answered by the node asked, from what it has.")
    var stale = false
    @Flag(help: "Do not write the keys first: they are there from an earlier run.")
    var noLoad = false
}
