// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Configuration
import Glibc

/// A daemon's settings: flags before environment before the configuration's files before defaults
/// (DESIGN §8).
///
/// `--data-dir X`, `--data-dir=X` and `ASPEN_DATA_DIR=X` are the same setting "data-dir". An empty
/// environment variable counts as absent. The files know the settings of `SettingsCatalogue` alone:
/// directories are told by whoever starts the daemon.
package struct ServiceSettings: Sendable {
    private var flags: [String: [String]] = [:]
    private let known: Set<String>
    private var files = ConfigurationFiles()

    /// What every daemon knows.
    private static let common: Set<String> = ["config", "log-level"]

    /// Reads the files, too: those below `--config DIR`, else ASPEN_CONFIG_DIR, else /etc/aspen if
    /// systemd started this process, else none.
    ///
    /// - Throws: `invalidArgument` that names the flag and lists the known ones, or the first thing
    ///   that is wrong with the files and where.
    package init(arguments: [String], known: Set<String>) throws(AspenError) {
        self.known = known.union(Self.common)
        try parse(arguments)
        files = Self.files(flag: flags["config"]?.last)
        if let problem = files.problems.first { throw problem.aspenError }
        if let level = string("log-level")?.lowercased() {
            let setting = SettingsCatalogue.setting(named: "log-level")
            let complaint = setting?.complaint(about: .text(level), .flag("log-level"))
            if let complaint { throw complaint.aspenError }
        }
    }

    private mutating func parse(_ arguments: [String]) throws(AspenError) {
        var rest = arguments[...]
        while let argument = rest.popFirst() {
            guard argument.hasPrefix("--") else {
                throw AspenError(.invalidArgument, "unexpected argument '\(argument)'")
            }
            let body = argument.dropFirst(2)
            let name: String
            let value: String
            if let equals = body.firstIndex(of: "=") {
                name = String(body[..<equals])
                value = String(body[body.index(after: equals)...])
            } else {
                name = String(body)
                guard known.contains(name), let next = rest.popFirst() else {
                    throw Self.unknown(name, known)
                }
                value = next
            }
            guard known.contains(name) else { throw Self.unknown(name, known) }
            flags[name, default: []].append(value)
        }
    }

    private static func unknown(_ name: String, _ known: Set<String>) -> AspenError {
        let list = known.sorted().map { "--" + $0 }.joined(separator: ", ")
        return AspenError(
            .invalidArgument, "unknown flag or missing value: --\(name); known are \(list)")
    }

    // MARK: - Files

    /// The files that a program started like this reads.
    package static func files(flag: String?) -> ConfigurationFiles {
        if let directory = flag ?? Environment.nonEmpty("ASPEN_CONFIG_DIR") {
            return ConfigurationFiles(directory: directory, mustExist: true)
        }
        guard Supervision.isBySystemd else { return ConfigurationFiles() }
        return ConfigurationFiles(directory: ConfigurationFiles.standardDirectory)
    }

    /// The files of a program that is started with `arguments`, whatever else is wrong with them.
    package static func files(arguments: [String]) -> ConfigurationFiles {
        files(flag: value(of: "config", in: arguments))
    }

    /// Known before the daemon's own settings are: its first line is to be logged at the right level.
    package static func logLevel(arguments: [String]) -> String? {
        value(of: "log-level", in: arguments) ?? Environment.nonEmpty(variable(for: "log-level"))
            ?? files(arguments: arguments).values["log-level"]?.last?.value.texts.first
    }

    private static func value(of flag: String, in arguments: [String]) -> String? {
        var found: String?
        for (place, argument) in arguments.enumerated() {
            if argument == "--" + flag, place + 1 < arguments.count {
                found = arguments[place + 1]
            } else if argument.hasPrefix("--\(flag)=") {
                found = String(argument.dropFirst(flag.count + 3))
            }
        }
        return found
    }

    // MARK: - Values

    package static func variable(for name: String) -> String { Setting.variable(for: name) }

    package func string(_ name: String) -> String? {
        precondition(known.contains(name), "setting '\(name)' was not declared")
        if let value = flags[name]?.last { return value }
        if let value = Environment.nonEmpty(Self.variable(for: name)) { return value }
        return files.values[name]?.last?.value.texts.first
    }

    /// Every value of a flag that may be repeated; in the environment they are separated by commas.
    package func strings(_ name: String) -> [String] {
        precondition(known.contains(name), "setting '\(name)' was not declared")
        if let values = flags[name] { return values }
        if let value = Environment.nonEmpty(Self.variable(for: name)) {
            return value.split(separator: ",").map(String.init)
        }
        return files.values[name]?.last?.value.texts ?? []
    }

    /// What the files of `peers.d` name, besides the setting "peers".
    package var peersInFiles: [String] { files.peers.flatMap(\.value.texts) }

    package func integer(_ name: String, in range: ClosedRange<Int>) throws(AspenError) -> Int? {
        guard let text = string(name) else { return nil }
        guard let value = Int(text), range.contains(value) else {
            throw AspenError(
                .invalidArgument,
                "--\(name) (\(Self.variable(for: name))) must be a number in "
                    + "\(range.lowerBound)…\(range.upperBound), not '\(text)'")
        }
        return value
    }

    package func flag(_ name: String) throws(AspenError) -> Bool? {
        switch string(name) {
        case nil: return nil
        case "true", "1", "yes", "on": return true
        case "false", "0", "no", "off": return false
        case let text?:
            throw AspenError(.invalidArgument, "--\(name) must be true or false, not '\(text)'")
        }
    }

    /// Where systemd made the state directory (StateDirectory=), unless another is set.
    package var stateDirectory: String? {
        string("state-dir") ?? Environment.nonEmpty("STATE_DIRECTORY")
    }
}
