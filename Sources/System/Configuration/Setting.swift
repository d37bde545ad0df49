// SPDX-License-Identifier: GPL-2.0-or-later

/// One thing that can be set, under one name in three spellings: `--node-id`, `ASPEN_NODE_ID`, and
/// `id` in the table `[node]` of aspen.toml.
package struct Setting: Sendable, Equatable {
    package enum Kind: Sendable, Equatable {
        case integer(ClosedRange<Int>)
        case boolean
        /// A boolean that may only be false: what it would switch on is still to come.
        case notYet
        /// One of these words.
        case word([String])
        case text(TextFormat)
        /// Any number of texts. In the environment they are separated by commas; in the file a
        /// single text may stand for a list of one.
        case list(TextFormat, countMax: Int)
    }

    /// As in flags, `heartbeat-interval-ms`.
    package let name: String
    /// The table and key in the file, `raft` and `heartbeat_interval_ms`.
    package let table: String
    package let key: String
    package let kind: Kind
    /// As it would be written in the file; nil when there is none.
    package let standard: String?
    /// What holds without a value, when `standard` cannot say it.
    package let standardNote: String?
    /// For people: one sentence or two, no more than a line of the reference table.
    package let summary: String
    /// A value for the default file, when there is no default to show.
    package let example: String?
    /// The programs that use it.
    package let users: [String]

    /// As in errors: `raft.heartbeat_interval_ms`.
    package var path: String { "\(table).\(key)" }

    package var variable: String { Self.variable(for: name) }

    package static func variable(for name: String) -> String {
        "ASPEN_" + name.uppercased().map { $0 == "-" ? "_" : String($0) }.joined()
    }

    /// What may be set, in words: "a whole number in 1…3600000".
    package var allowed: String {
        switch kind {
        case .integer(let range):
            range.upperBound == .max
                ? "a whole number of \(range.lowerBound) or more"
                : "a whole number in \(range.lowerBound)…\(range.upperBound)"
        case .boolean: "true or false"
        case .notYet: "false"
        case .word(let words): "one of " + words.map { "\"\($0)\"" }.joined(separator: ", ")
        case .text(let format): format.allowed
        case .list(let format, 1): "\(format.allowed), or a list of one"
        case .list(let format, let countMax):
            "\(format.allowed), or a list of up to \(countMax) such texts"
        }
    }
}

/// What is set, read and checked.
package enum SettingValue: Sendable, Equatable {
    case integer(Int)
    case boolean(Bool)
    case text(String)
    case list([String])

    /// As flags and variables write it, one text a value.
    package var texts: [String] {
        switch self {
        case .integer(let value): [String(value)]
        case .boolean(let value): [value ? "true" : "false"]
        case .text(let value): [value]
        case .list(let values): values
        }
    }

    /// As the file writes it.
    package var toml: String {
        switch self {
        case .integer, .boolean: texts[0]
        case .text(let value): Self.quote(value)
        case .list(let values): "[" + values.map(Self.quote).joined(separator: ", ") + "]"
        }
    }

    /// A basic string (TOML 1.0).
    package static func quote(_ text: String) -> String {
        var quoted = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": quoted += "\\\""
            case "\\": quoted += "\\\\"
            case "\n": quoted += "\\n"
            case "\t": quoted += "\\t"
            case _ where scalar.value < 0x20 || scalar.value == 0x7f:
                let digits = String(scalar.value, radix: 16, uppercase: true)
                quoted += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: quoted.unicodeScalars.append(scalar)
            }
        }
        return quoted + "\""
    }
}

/// Where a value comes from.
package enum Origin: Sendable, Equatable, CustomStringConvertible {
    case flag(String)
    case environment(String)
    case file(path: String, line: Int)
    case standard

    package var description: String {
        switch self {
        case .flag(let name): "--\(name)"
        case .environment(let variable): "environment \(variable)"
        case .file(let path, let line): "\(path):\(line)"
        case .standard: "default"
        }
    }
}
