// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc

/// A daemon's settings: flags before environment before defaults (DESIGN §8).
///
/// `--data-dir X`, `--data-dir=X` and `ASPEN_DATA_DIR=X` are the same setting "data-dir". An empty
/// environment variable counts as absent.
package struct ServiceSettings: Sendable {
    private var flags: [String: [String]] = [:]
    private let known: Set<String>

    /// - Throws: `invalidArgument` that names the flag and lists the known ones.
    package init(arguments: [String], known: Set<String>) throws(AspenError) {
        self.known = known
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

    package static func variable(for name: String) -> String {
        "ASPEN_" + name.uppercased().map { $0 == "-" ? "_" : String($0) }.joined()
    }

    package func string(_ name: String) -> String? {
        precondition(known.contains(name), "setting '\(name)' was not declared")
        if let value = flags[name]?.last { return value }
        guard let value = Environment[Self.variable(for: name)], !value.isEmpty else { return nil }
        return value
    }

    /// Every value of a flag that may be repeated; in the environment they are separated by commas.
    package func strings(_ name: String) -> [String] {
        precondition(known.contains(name), "setting '\(name)' was not declared")
        if let values = flags[name] { return values }
        guard let value = Environment[Self.variable(for: name)] else { return [] }
        return value.split(separator: ",").map(String.init)
    }

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
}
