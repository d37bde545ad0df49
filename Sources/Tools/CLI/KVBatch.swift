// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

struct KVBatchRead: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "batch-read", abstract: "Read several keys at one revision.",
        usage: "aspen-cli kv batch-read KEY... [OPTIONS]",
        discussion: """
            Keys that do not exist are exit status 3; the others are printed all the same.

            EXAMPLES
              aspen-cli kv batch-read user/1 user/2
              aspen-cli kv batch-read user/1 user/2 --revision 12 --json
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions
    @OptionGroup var freshness: FreshnessOptions

    @Option(help: "Read the store as it was at this revision.")
    var revision: UInt64?

    @Argument(help: "The keys.")
    var key: [String]

    func prepare() throws { for key in key { _ = try keys.bytes(of: key) } }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let wanted = try key.map { try keys.bytes(of: $0) }
        let answer = try await context.client.batchGet(
            wanted, at: revision.map { Revision($0) }, consistency: freshness.consistency)
        let found = Array(zip(wanted, answer.entries))
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("entries", .array(found.map { .entry($0.0, $0.1) })),
                    ("revision", .number(answer.revision.rawValue)),
                ]).text + "\n")
        } else {
            var table = Table([
                .init(title: "KEY"), .init(title: "REVISION", alignment: .right),
                .init(title: "VALUE"),
            ])
            context.output.write(
                table.render(
                    found.map { key, entry in
                        [
                            keys.text(of: key), entry.map { "\($0.modRevision)" } ?? "-",
                            entry.map { Display.value($0.value) } ?? "-",
                        ]
                    }))
        }
        let missing = found.filter { $0.1 == nil }
        for (key, _) in missing {
            context.output.note("there is no key '\(keys.text(of: key))'")
        }
        return missing.isEmpty ? .done : .notFound
    }
}

struct KVBatchWrite: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "batch-write", abstract: "Write several keys in one revision, all or none.",
        usage: "aspen-cli kv batch-write KEY=VALUE... [OPTIONS]",
        discussion: """
            At most 100 keys. The first '=' ends the key.

            EXAMPLES
              aspen-cli kv batch-write user/1=Ann user/2=Bob
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions

    @Option(help: "The keys go when this lease goes.")
    var lease: UInt64 = 0

    @Argument(help: "The keys and values.")
    var pair: [String]

    private func operations() throws -> [Operation] {
        try pair.map { pair in
            guard let equals = pair.firstIndex(of: "=") else {
                throw CommandFailure.usage(
                    "'\(Display.oneLine(pair))' is not of the form KEY=VALUE")
            }
            return .put(
                key: try keys.bytes(of: String(pair[..<equals])),
                value: ArgumentBytes.bytes(String(pair[pair.index(after: equals)...])),
                lease: LeaseID(lease))
        }
    }

    func prepare() throws { _ = try operations() }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let answer = try await context.client.transaction(if: [], then: try operations())
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("success", .bool(true)), ("keys", .number(UInt64(pair.count))),
                    ("revision", .number(answer.revision.rawValue)),
                    ("log_id", .logID(answer.logID)),
                ]).text + "\n")
        } else {
            context.output.write("OK, \(pair.count) keys, revision \(answer.revision)\n")
        }
        return .done
    }
}

struct KVHistory: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "history", abstract: "What became of a key, newest first.",
        usage: "aspen-cli kv history KEY [OPTIONS]",
        discussion: """
            As far back as the cluster keeps history. A key that never was is exit status 3.

            EXAMPLES
              aspen-cli kv history greeting
              aspen-cli kv history greeting --before 12 --limit 5
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions

    @Option(help: "At most so many changes.")
    var limit = 100

    @Option(help: "Only changes before this revision.")
    var before: UInt64?

    @Argument(help: "The key.")
    var key: String

    func prepare() throws {
        _ = try keys.bytes(of: key)
        if !(1...Limits.batchCountMax).contains(limit) {
            throw CommandFailure.usage("--limit is 1 to \(Limits.batchCountMax)")
        }
        if let before, before <= 1 {
            throw CommandFailure.usage("revisions begin with 1: there is nothing before it")
        }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let page = try await context.client.history(
            of: try keys.bytes(of: key), before: before.map { Revision($0) }, limit: limit)
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("events", .array(page.events.map { .event($0) })), ("more", .bool(page.more)),
                    ("revision", .number(page.revision.rawValue)),
                    ("compacted_revision", .number(page.compactedRevision.rawValue)),
                ]).text + "\n")
        } else {
            for event in page.events {
                var event = event
                event.previous = nil
                context.output.write(event.line(keys))
            }
        }
        if page.events.isEmpty {
            let when = before.map { " before revision \($0)" } ?? ""
            context.output.note("nothing is known of a key '\(Display.oneLine(key))'\(when)")
            return .notFound
        }
        if page.more, !context.isJSON, let last = page.events.last {
            context.output.note("there are older changes: use --before \(last.entry.modRevision)")
        }
        return .done
    }
}
