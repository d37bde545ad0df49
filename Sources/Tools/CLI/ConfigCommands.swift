// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenTypes
import AspenWire
import Configuration
import Glibc

struct ConfigArea: ParsableCommand, CommandArea {
    static let configuration = CommandConfiguration(
        commandName: "config", abstract: "Look at this node's configuration.",
        subcommands: [ConfigCheck.self])
}

/// Where the files are; for tests and for nodes in the foreground.
struct ConfigurationPlace: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Directory with aspen.toml and aspen.toml.d (default: ASPEN_CONFIG_DIR, else /etc/aspen).",
            valueName: "dir"))
    var config: String?

    var directory: String {
        if let config { return config }
        if let text = getenv("ASPEN_CONFIG_DIR").map({ String(cString: $0) }), !text.isEmpty {
            return text
        }
        return ConfigurationFiles.standardDirectory
    }

    /// Somebody has named it.
    var isNamed: Bool { directory != ConfigurationFiles.standardDirectory }
}

struct ConfigCheck: LocalCommand {
    static let configuration = CommandConfiguration(
        commandName: "check", abstract: "Say what is in force and why, and what is wrong.",
        usage: "aspen-cli config check [OPTIONS]",
        discussion: """
            Reads aspen.toml and aspen.toml.d/*.toml as the daemons do, and looks at the cookie and \
            the key, which it never prints. Something wrong is exit status 1. Environment variables \
            ASPEN_* of this shell count, too; those of the daemons may be others.

            EXAMPLES
              sudo aspen-cli config check
              aspen-cli config check -o json
            """)

    @OptionGroup var place: ConfigurationPlace

    @Option(
        help: ArgumentHelp(
            "State directory of aspend-net, with the node's key.", valueName: "dir"))
    var stateDir = "/var/lib/aspen/net"

    @Option(name: .shortAndLong, help: "Output format.")
    var output = OutputFormat.table

    @Flag(help: "The same as -o json.")
    var json = false

    @Flag(name: .shortAndLong, help: "Print only what is wrong.")
    var quiet = false

    var isJSON: Bool { json || output == .json }

    func run(_ output: Output) throws -> ExitStatus {
        let check = ConfigurationCheck(
            directory: place.directory, isNamed: place.isNamed, stateDirectory: stateDir,
            environment: { getenv($0).map { String(cString: $0) } })
        if isJSON {
            output.write(check.json.text + "\n")
        } else {
            if !quiet { output.write(check.table) }
            try output.flush()
            if !quiet {
                for warning in check.warnings { writeError("aspen-cli: warning: \(warning)\n") }
            }
            for problem in check.problems {
                writeError("aspen-cli: \(Display.oneLine("\(problem)"))\n")
            }
        }
        return check.problems.isEmpty ? .done : .failed
    }
}

/// The whole state of a node's configuration.
struct ConfigurationCheck {
    let settings: EffectiveSettings
    let credentials: [CredentialReport]
    let problems: [ConfigurationError]
    let warnings: [String]
    private let files: ConfigurationFiles

    init(
        directory: String, isNamed: Bool, stateDirectory: String,
        environment: (String) -> String?
    ) {
        files = ConfigurationFiles(directory: directory, mustExist: isNamed)
        settings = EffectiveSettings(environment: environment, files: files)
        let handedOver = environment("CREDENTIALS_DIRECTORY").flatMap { directory in
            access("\(directory)/cookie", F_OK) == 0 ? directory : nil
        }
        credentials = [
            Credentials.cookie(configurationDirectory: directory, handedOver: handedOver),
            Credentials.accepted(configurationDirectory: directory, handedOver: handedOver),
            Credentials.key(configurationDirectory: directory, stateDirectory: stateDirectory),
        ].compactMap { $0 }
        var problems = settings.problems
        // A value that could not be read is not missing.
        let told = Set(problems.compactMap(\.path))
        if !problems.contains(where: { $0.kind == .unreadable || $0.kind == .syntax }) {
            problems += settings.nodeProblems.filter { !told.contains($0.path ?? "") }
        }
        problems += Self.ticketProblems(settings)
        problems += credentials.compactMap(\.problem)
        self.problems = problems
        warnings = credentials.compactMap(\.warning)
    }

    private static func ticketProblems(_ settings: EffectiveSettings) -> [ConfigurationError] {
        guard let entry = settings["ticket"], let text = entry.value?.texts.first else { return [] }
        do {
            _ = try Ticket(text)
            return []
        } catch {
            return [
                ConfigurationError(
                    .outOfRange, entry.origin, path: "node.ticket",
                    "node.ticket: \(error.message)")
            ]
        }
    }

    // MARK: - For people

    var table: String {
        var table = Table([.init(title: "SETTING"), .init(title: "VALUE"), .init(title: "FROM")])
        let rows = settings.entries.map { entry in
            var from = "\(entry.origin)"
            if !entry.overridden.isEmpty {
                from += ", over " + entry.overridden.map { "\($0.origin)" }.joined(separator: ", ")
            }
            return [entry.setting.path, Display.oneLine(Self.value(of: entry)), from]
        }
        var text = table.render(rows)
        var secrets = Table([.init(title: "SECRET"), .init(title: "STATE"), .init(title: "FILE")])
        let credentialRows = credentials.map { report in
            [report.name, Self.state(of: report), Display.oneLine(report.path)]
        }
        text += "\n" + secrets.render(credentialRows)
        return text
    }

    private static func value(of entry: EffectiveSettings.Entry) -> String {
        guard let value = entry.value else { return "(\(entry.setting.standardNote ?? "none"))" }
        // A list of peers is longer than any terminal is wide.
        let text = value.toml
        guard text.count > 2 * Display.cellCharactersMax else { return text }
        return text.prefix(2 * Display.cellCharactersMax - 1) + "…"
    }

    private static func state(of report: CredentialReport) -> String {
        switch report.state {
        case .present: "present (\(report.detail))"
        case .missing: "missing (\(report.detail))"
        case .hidden: "unknown (\(report.detail))"
        case .wrong: "wrong (\(report.detail))"
        }
    }

    // MARK: - For programs

    var json: JSON {
        .object([
            ("ok", .bool(problems.isEmpty)),
            ("files", .array(files.paths.map { .string($0) })),
            ("settings", .array(settings.entries.map(Self.json))),
            (
                "secrets",
                .array(
                    credentials.map { report in
                        .object([
                            ("name", .string(report.name)),
                            ("state", .string(report.state.rawValue)),
                            ("detail", .string(report.detail)), ("file", .string(report.path)),
                        ])
                    })
            ),
            ("warnings", .array(warnings.map { .string($0) })),
            ("problems", .array(problems.map(Self.json))),
        ])
    }

    private static func json(_ entry: EffectiveSettings.Entry) -> JSON {
        .object([
            ("setting", .string(entry.setting.path)), ("value", json(entry.value)),
            ("from", json(entry.origin)),
            (
                "overridden",
                .array(
                    entry.overridden.map {
                        .object([("value", json($0.value)), ("from", json($0.origin))])
                    })
            ),
        ])
    }

    private static func json(_ value: SettingValue?) -> JSON {
        switch value {
        case nil: .null
        case .integer(let number): .number(UInt64(clamping: number))
        case .boolean(let flag): .bool(flag)
        case .text(let text): .string(text)
        case .list(let texts): .array(texts.map { .string($0) })
        }
    }

    private static func json(_ origin: Origin) -> JSON {
        switch origin {
        case .flag(let name): .object([("kind", .string("flag")), ("flag", .string("--" + name))])
        case .environment(let variable):
            .object([("kind", .string("environment")), ("variable", .string(variable))])
        case .file(let path, let line):
            .object([
                ("kind", .string("file")), ("file", .string(path)),
                ("line", line > 0 ? .number(UInt64(line)) : .null),
            ])
        case .standard: .object([("kind", .string("default"))])
        }
    }

    private static func json(_ problem: ConfigurationError) -> JSON {
        .object([
            ("kind", .string(problem.kind.rawValue)),
            ("setting", problem.path.map { .string($0) } ?? .null),
            ("from", problem.origin.map(json) ?? .null), ("message", .string(problem.message)),
        ])
    }
}
