// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes
import Glibc

/// `aspen-cli`, from its arguments to its exit status.
package enum CommandLineProgram {
    /// What needs no cluster, on the thread that calls; nil for everything else. `config check` runs
    /// in a sandbox that refuses the priorities which libdispatch wants for its threads, and the
    /// first change of thread would start those.
    package static func runAlone() -> Int32? {
        Output.occupyStandardDescriptors()
        Output.forbidCoreFiles()
        let arguments = hoistGlobalOptions(ArgumentBytes.ofProcess())
        guard let area = arguments.first, localAreas.contains(area),
            let verb = try? AspenCommand.parseAsRoot(arguments) as? any LocalCommand
        else { return nil }
        let output = Output()
        return end(runLocally(verb, output, AspenCommand.self), output, AspenCommand.self)
    }

    private static let localAreas = [
        ConfigArea.configuration.commandName, SetupVerb.configuration.commandName,
    ]

    package static func run() async -> Int32 {
        let arguments = hoistGlobalOptions(ArgumentBytes.ofProcess())
        if arguments.first?.hasPrefix("--generate-completion-script") == true {
            return await run(CompletedCommand.self, arguments)
        }
        return hasVersionOption(arguments)
            ? await run(VersionlessCommand.self, arguments)
            : await run(AspenCommand.self, arguments)
    }

    /// Whether the verb has an option of its own that is called --version: the parser takes that for
    /// the program's as soon as anything else is wrong, and ends in status 0.
    private static func hasVersionOption(_ arguments: [String]) -> Bool {
        let words = arguments.first == "help" ? arguments.dropFirst() : arguments[...]
        let verbs = [KVCompareAndSwap.configuration, KVCompareAndDelete.configuration]
        return words.first == KVArea.configuration.commandName
            && verbs.contains { $0.commandName == words.dropFirst().first }
    }

    /// The same for a program with other commands.
    static func run(_ root: any ParsableCommand.Type, _ arguments: [String]) async -> Int32 {
        let output = Output()
        return end(await run(root, arguments, output), output, root)
    }

    private static func end(
        _ status: ExitStatus, _ output: Output, _ root: any ParsableCommand.Type
    ) -> Int32 {
        do {
            try output.flush()
        } catch {
            report(.failed("cannot write the output: \(error)"), asJSON: false, root)
            return ExitStatus.failed.rawValue
        }
        return status.rawValue
    }

    private static func run(
        _ root: any ParsableCommand.Type, _ arguments: [String], _ output: Output
    ) async -> ExitStatus {
        var command: any ParsableCommand
        do {
            command = try root.parseAsRoot(arguments)
        } catch {
            return finishParsing(error, output, root, arguments)
        }
        if let verb = command as? any LocalCommand { return runLocally(verb, output, root) }
        if let verb = command as? any NodeCommand {
            do {
                return try await verb.run(
                    NodeContext(output: output, verb.global, environment: environment))
            } catch {
                return end(error, asJSON: verb.global.isJSON, output, root, verb: type(of: verb))
            }
        }
        guard let verb = command as? any ClientCommand else {
            return runWithoutCluster(&command, output, root)
        }
        if let local = verb.local { return runLocally(local, output, root) }
        do {
            return try await run(verb, output)
        } catch {
            return end(error, asJSON: verb.global.isJSON, output, root, verb: type(of: verb))
        }
    }

    private static func end(
        _ error: any Error, asJSON: Bool, _ output: Output, _ root: any ParsableCommand.Type,
        verb: any ParsableCommand.Type
    ) -> ExitStatus {
        let failure = CommandFailure(error)
        // Half a page may stand there already; what went wrong comes after it.
        try? output.flush()
        report(failure, asJSON: asJSON, root, verb: verb)
        return failure.status
    }

    private static func environment(_ name: String) -> String? {
        getenv(name).map { String(cString: $0) }
    }

    private static func runLocally(
        _ verb: any LocalCommand, _ output: Output, _ root: any ParsableCommand.Type
    ) -> ExitStatus {
        do {
            return try verb.run(output)
        } catch {
            return end(error, asJSON: verb.isJSON, output, root, verb: type(of: verb))
        }
    }

    private static func run(_ verb: any ClientCommand, _ output: Output) async throws -> ExitStatus
    {
        let target = try verb.global.target(environment: environment)
        try verb.prepare()
        var options = AspenClient.Options()
        if case .ticket = target {
            options.credential = try verb.global.credential(environment: environment)
        }
        options.timeout = verb.global.timeout.duration
        let client = try await AspenClient.connect(target, options: options)
        let result: Result<ExitStatus, any Error>
        do {
            result = .success(
                try await verb.run(CommandContext(client: client, output: output, verb.global)))
        } catch {
            result = .failure(error)
        }
        await client.close()
        return try result.get()
    }

    /// Help and completion scripts go to stdout with status 0; an area without a verb and anything
    /// that was not understood go to stderr with status 2.
    private static func runWithoutCluster(
        _ command: inout any ParsableCommand, _ output: Output, _ root: any ParsableCommand.Type
    ) -> ExitStatus {
        if let area = command as? any CommandArea {
            writeError(root.helpMessage(for: type(of: area)) + "\n")
            return .usage
        }
        do {
            try command.run()
            return .done
        } catch {
            return finishParsing(error, output, root)
        }
    }

    private static func finishParsing(
        _ error: any Error, _ output: Output, _ root: any ParsableCommand.Type,
        _ arguments: [String] = []
    ) -> ExitStatus {
        let text = explainNegative(root.fullMessage(for: error), arguments)
        guard root.exitCode(for: error) != .success else {
            output.write(text + "\n")
            return .done
        }
        var hint = ""
        if text.contains("Unknown option '-"), !text.contains("Unknown option '--") {
            hint = "A key or value that begins with '-' goes after '--'.\n"
        }
        let body = text.droppingPrefix("Error: ")
        writeError("\(name(root)): \(body)\n\(hint)")
        return .usage
    }

    /// To the parser "-1" is an option, and the one before it lacks its value.
    private static func explainNegative(_ text: String, _ arguments: [String]) -> String {
        let beginning = "Error: Missing value for '"
        guard text.hasPrefix(beginning) else { return text }
        let option = text.dropFirst(beginning.count).prefix { $0 != " " && $0 != "'" }
        guard let place = arguments.firstIndex(of: String(option)), place + 1 < arguments.count,
            arguments[place + 1].hasPrefix("-"), Double(arguments[place + 1]) != nil
        else { return text }
        let rest = text.drop { $0 != "\n" }
        return "Error: \(option) takes no negative number, such as '\(arguments[place + 1])'\(rest)"
    }

    private static func name(_ root: any ParsableCommand.Type) -> String {
        root.configuration.commandName ?? "aspen-cli"
    }

    /// The words that call a command, such as `aspen-cli kv set`.
    private static func words(
        of verb: any ParsableCommand.Type, _ root: any ParsableCommand.Type
    ) -> String {
        let usage = root.usageString(for: verb).droppingPrefix("Usage: ")
        return usage.split(separator: " ").prefix { word in
            word.allSatisfy { $0 == "-" || $0.isLowercase } && !word.hasPrefix("-")
        }.joined(separator: " ")
    }

    private static func report(
        _ failure: CommandFailure, asJSON: Bool, _ root: any ParsableCommand.Type,
        verb: (any ParsableCommand.Type)? = nil
    ) {
        if asJSON, let error = failure.error {
            writeError(
                JSON.object([
                    ("success", .bool(false)),
                    (
                        "error",
                        .object([
                            ("code", .string(error.code.name)), ("message", .string(error.message)),
                            ("retry", .string("\(error.retry)")),
                        ])
                    ),
                ]).text + "\n")
        } else {
            // An argument that was understood and not taken has its own reason; help has no other.
            let isMisunderstood = failure.status == .usage && failure.error == nil
            let command = verb.map { self.words(of: $0, root) } ?? name(root)
            let hint = isMisunderstood ? "See '\(command) --help'.\n" : ""
            writeError("\(name(root)): \(failure.text)\n\(hint)")
        }
    }

    /// Global options may stand before the area: `aspen-cli --json kv get k`. The parser knows them
    /// only behind the verb, so that is where they are moved.
    static func hoistGlobalOptions(_ arguments: [String]) -> [String] {
        var leading: [String] = []
        var rest = arguments[...]
        while let first = rest.first, first.hasPrefix("-") {
            let name = String(first.prefix { $0 != "=" })
            guard GlobalOptions.names.contains(name) || name.hasPrefix("-o") else {
                return arguments
            }
            leading.append(rest.removeFirst())
            // "--timeout 5s", but not "--timeout=5s" or "-ojson".
            let takesValue = GlobalOptions.names.contains(first) && first != "--json"
            if takesValue, let value = rest.popFirst() { leading.append(value) }
        }
        guard !leading.isEmpty else { return arguments }
        // Most verbs have an area.
        let words = rest.first == SetupVerb.configuration.commandName ? 1 : 2
        return rest.prefix(words) + leading + rest.dropFirst(words)
    }
}

/// The areas of `aspen-cli AREA VERB`.
struct AspenCommand: ParsableCommand, CommandArea {
    static let configuration = describe(version: "aspen-cli \(programVersion)")

    fileprivate static func describe(version: String) -> CommandConfiguration {
        CommandConfiguration(
            commandName: "aspen-cli",
            abstract: "Administer and use an Aspen cluster.",
            discussion: """
                On a node it finds the local daemon by itself (/run/aspen/raft.sock, else a foreground \
                node whose ./data/node-ID is below this directory); elsewhere name the cluster with --ticket or \
                ASPEN_TICKET, and show what you may do with --token or ASPEN_TOKEN.

                EXAMPLES
                  aspen-cli cluster status
                  aspen-cli kv set greeting "hello world"
                  aspen-cli kv get greeting
                  aspen-cli kv scan --prefix gre --limit 100
                  aspen-cli kv set -f photo.jpg pic; aspen-cli kv get pic --raw > copy.jpg

                EXIT STATUS
                  0 done                 4 not authorised
                  1 failed               5 precondition failed
                  2 usage or argument    6 unavailable or timed out
                  3 not found

                ENVIRONMENT
                  ASPEN_TICKET           the cluster, when --ticket is not given
                  ASPEN_TOKEN            a capability token, or @FILE, when --token is not given
                  ASPEN_SOCKET           the local daemon's socket, when --socket is not given
                  ASPEN_CONFIG_DIR       the configuration's directory, when --config is not given
                  NO_COLOR               never use colours
                """,
            version: version,
            subcommands: [
                ClusterArea.self, KVArea.self, LeaseArea.self, PeersArea.self, WhyArea.self,
                ConfigArea.self, SetupVerb.self,
            ])
    }
}

/// The same without --version.
private struct VersionlessCommand: ParsableCommand, CommandArea {
    static let configuration = AspenCommand.describe(version: "")
}

/// The same as shells are told of it: --version belongs to the program, so that a verb with an option
/// of that name is not offered two.
private struct CompletedCommand: ParsableCommand, CommandArea {
    static let configuration = AspenCommand.describe(version: "")

    @Flag(help: "Show the version.")
    var version = false
}

/// A command that only groups others.
protocol CommandArea: ParsableCommand {}

/// A command that works on this machine's files.
protocol LocalCommand: ParsableCommand {
    var isJSON: Bool { get }
    func run(_ output: Output) throws -> ExitStatus
}

extension LocalCommand {
    var isJSON: Bool { false }
}

/// A command that talks to a cluster.
protocol ClientCommand: ParsableCommand {
    var global: GlobalOptions { get }
    /// What is carried out instead, if the arguments ask for something that needs no cluster.
    var local: (any LocalCommand)? { get }
    /// Checks what needs no cluster, before one is dialled.
    func prepare() throws
    func run(_ context: CommandContext) async throws -> ExitStatus
}

extension ClientCommand {
    var local: (any LocalCommand)? { nil }
    func prepare() throws {}
}

/// What a verb works with.
struct CommandContext {
    let client: AspenClient
    let output: Output
    let isJSON: Bool

    init(client: AspenClient, output: Output, _ global: GlobalOptions) {
        self.client = client
        self.output = output
        self.isJSON = global.isJSON
    }
}
