// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

/// Which keys a verb is about.
struct RangeOptions: ParsableArguments {
    @Option(help: "Only keys that begin with this.")
    var prefix: String?

    @Option(help: "Only keys from this one on.")
    var from: String?

    @Option(help: "Only keys before this one.")
    var to: String?

    var isGiven: Bool { prefix != nil || from != nil || to != nil }

    func range(_ keys: KeyOptions) throws -> KeyRange {
        if let prefix {
            guard from == nil, to == nil else {
                throw CommandFailure.usage("keys are chosen by --prefix, or by --from and --to")
            }
            return KeyRange(prefix: try keys.bytes(of: prefix))
        }
        return KeyRange(
            from: try from.map { try keys.bytes(of: $0) } ?? [],
            to: try to.map { try keys.bytes(of: $0) })
    }
}

/// How old an answer may be.
struct FreshnessOptions: ParsableArguments {
    @Flag(help: "Take what the node asked has, without asking the leader: it may be old.")
    var stale = false

    @Option(help: "With --stale: not older than this, such as 200ms.")
    var maxStaleness: TimeLimit?

    var consistency: Consistency {
        if let maxStaleness { return .staleAtMost(maxStaleness.duration) }
        return stale ? .stale : .linearizable
    }
}

extension JSON {
    /// `value` null in a removal.
    static func event(_ event: KeyEvent) -> JSON {
        var members: [(String, JSON)] = [
            ("type", .string(event.kind == .put ? "put" : "delete")),
            ("key", .bytes(event.entry.key)),
            ("value", event.kind == .put ? .bytes(event.entry.value) : .null),
            ("mod_revision", .number(event.entry.modRevision.rawValue)),
        ]
        if event.kind == .put {
            members += [
                ("create_revision", .number(event.entry.createRevision.rawValue)),
                ("version", .number(event.entry.version)),
            ]
            if event.entry.lease != .none {
                members.append(("lease", .number(event.entry.lease.rawValue)))
            }
        }
        if let previous = event.previous {
            members.append(("previous", .bytes(previous.value)))
        }
        return .object(members)
    }

    static func entry(_ key: [UInt8], _ entry: KeyValue?) -> JSON {
        guard let entry else {
            return .object([("key", .bytes(key)), ("value", .null), ("exists", .bool(false))])
        }
        var members: [(String, JSON)] = [
            ("key", .bytes(key)), ("value", .bytes(entry.value)), ("exists", .bool(true)),
            ("create_revision", .number(entry.createRevision.rawValue)),
            ("mod_revision", .number(entry.modRevision.rawValue)),
            ("version", .number(entry.version)),
        ]
        if entry.lease != .none { members.append(("lease", .number(entry.lease.rawValue))) }
        return .object(members)
    }
}

extension KeyEvent {
    /// "put KEY = VALUE", for people.
    func line(_ keys: KeyOptions) -> String {
        let name = keys.text(of: entry.key)
        var text =
            kind == .put
            ? "\(entry.modRevision)  put     \(name) = \(Display.value(entry.value))"
            : "\(entry.modRevision)  delete  \(name)"
        if let previous { text += "  (was \(Display.value(previous.value)))" }
        return text + "\n"
    }
}
