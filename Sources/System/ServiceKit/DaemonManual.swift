// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Configuration

/// What a daemon says of itself: `--version`, and `--help`, from which its manual page is made.
///
/// Both are answered before anything else happens: no socket, no file is touched.
package struct DaemonManual: Sendable {
    package let name: String
    /// "keeps the node's key", without the name and a full stop.
    package let abstract: String
    /// Names of settings and directories that it knows, besides those that every daemon knows.
    package let known: Set<String>
    /// Further flags.
    package let flags: [Flag]

    package struct Flag: Sendable {
        /// "--state-dir DIR"
        package let heading: String
        package let text: String

        package init(_ heading: String, _ text: String) {
            self.heading = heading
            self.text = text
        }
    }

    package init(name: String, abstract: String, known: Set<String>, flags: [Flag] = []) {
        self.name = name
        self.abstract = abstract
        self.known = known
        self.flags = flags
    }

    /// What to print, and nothing else to do; nil when neither was asked for.
    package func answer(to arguments: [String]) -> String? {
        if arguments.contains(where: { $0 == "--help" || $0 == "-h" }) { return help }
        return arguments.contains("--version") ? "\(name) \(ProgramVersion.text)\n" : nil
    }

    /// Flags in lines that begin with two spaces, what they mean in lines with six.
    package var help: String {
        var text = """
            \(name) \(ProgramVersion.text): \(abstract).

            Usage: \(name) [--FLAG VALUE]...

            A flag goes before the environment (ASPEN_NODE_ID for --node-id), and that before
            aspen.toml. systemd or aspen-node starts this program and hands it its sockets.

            Flags:

            """
        for flag in directories + settings + flags + ending {
            text += "  \(flag.heading)\n      \(flag.text)\n"
        }
        return text
    }

    private var directories: [Flag] {
        var found = [
            Flag(
                "--config DIR",
                "Where aspen.toml and aspen.toml.d are. Default: /etc/aspen under systemd, else none."
            )
        ]
        if known.contains("state-dir") {
            found.append(
                Flag(
                    "--state-dir DIR",
                    "What it keeps. Default: STATE_DIRECTORY, as systemd sets it."))
        }
        if known.contains("runtime-dir") {
            found.append(
                Flag(
                    "--runtime-dir DIR",
                    "Where the other daemons' sockets are. Default: /run/aspen."))
        }
        return found
    }

    private var settings: [Flag] {
        SettingsCatalogue.all.filter { known.contains($0.name) || $0.name == "log-level" }.map {
            let standard = $0.standard ?? $0.standardNote ?? "none"
            return Flag(
                "--\($0.name) \(Self.placeholder($0.kind))", "\($0.summary) Default: \(standard).")
        }
    }

    private var ending: [Flag] {
        [
            Flag("--version", "Print name and version, and exit."),
            Flag("--help", "Print this, and exit."),
        ]
    }

    private static func placeholder(_ kind: Setting.Kind) -> String {
        switch kind {
        case .integer: "N"
        case .boolean: "true|false"
        case .notYet: "false"
        case .word(let words): words.joined(separator: "|")
        case .text: "TEXT"
        case .list(_, countMax: 1): "TEXT"
        case .list: "TEXT..."
        }
    }
}
