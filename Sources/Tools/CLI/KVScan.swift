// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenBytes
import AspenClient
import AspenTypes

struct KVScan: ClientCommand {
    static let limitDefault = 100

    static let configuration = CommandConfiguration(
        commandName: "scan", abstract: "List keys in the order of their bytes.",
        usage:
            "aspen-cli kv scan [--prefix PREFIX | --from KEY --to KEY] [--limit N | --all] [OPTIONS]",
        discussion: """
            Follows the server's pages up to --limit; all pages show the store as it was when the first \
            was read. If there is more, the token for going on is printed on standard error, and is \
            `continuation_token` in JSON.

            EXAMPLES
              aspen-cli kv scan --prefix user/ --limit 20
              aspen-cli kv scan --prefix user/ --all --keys-only
              aspen-cli kv scan --prefix log/ --reverse --limit 1
              aspen-cli kv scan --prefix user/ --count
              aspen-cli kv scan --all --json | jq -r '.entries[].key'
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions

    @OptionGroup var ranges: RangeOptions

    @Option(help: "At most so many keys.")
    var limit = Self.limitDefault

    @Flag(help: "All keys, however many.")
    var all = false

    @Flag(help: "Leave the values out.")
    var keysOnly = false

    @Flag(help: "From the last key to the first.")
    var reverse = false

    @Flag(help: "Only how many keys there are, without a limit.")
    var count = false

    @Option(help: "Read the store as it was at this revision.")
    var revision: UInt64?

    @OptionGroup var freshness: FreshnessOptions

    @Option(help: "Go on where the scan that printed this token stopped.")
    var continuationToken: String?

    func prepare() throws {
        _ = try ranges.range(keys)
        _ = try continuation()
        if revision == 0 { throw CommandFailure.usage("revisions begin with 1") }
        if count, keysOnly || continuationToken != nil || reverse {
            throw CommandFailure.usage("--count counts, and lists nothing")
        }
        if limit < 1 { throw CommandFailure.usage("--limit is 1 or more") }
    }

    private func continuation() throws -> [UInt8] {
        guard let continuationToken else { return [] }
        guard let bytes = Base32.decode(continuationToken), !bytes.isEmpty else {
            throw CommandFailure.usage(
                "the continuation token is damaged: copy it again as the last scan printed it")
        }
        return bytes
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        if count { return try await countKeys(context) }
        var printer: any ScanPrinter =
            if context.isJSON {
                JSONScanPrinter(output: context.output, keysOnly: keysOnly)
            } else if keysOnly {
                KeyScanPrinter(output: context.output, keys: keys)
            } else {
                TableScanPrinter(output: context.output, keys: keys)
            }
        var left = all ? Int.max : limit
        var shown = 0
        var from = try continuation()
        let range = try ranges.range(keys)
        let options = ScanOptions(
            isDescending: reverse, keysOnly: keysOnly, revision: revision.map { Revision($0) },
            consistency: freshness.consistency)
        repeat {
            let page = try await context.client.scanPage(
                range, options, limit: min(left, Limits.batchCountMax), continuation: from)
            printer.add(page)
            left -= page.entries.count
            shown += page.entries.count
            from = page.continuation
        } while !from.isEmpty && left > 0
        printer.finish(count: shown, token: from.isEmpty ? nil : Base32.encode(from))
        return .done
    }
}

extension KVScan {
    private func countKeys(_ context: CommandContext) async throws -> ExitStatus {
        let answer = try await context.client.count(
            try ranges.range(keys), at: revision.map { Revision($0) },
            consistency: freshness.consistency)
        context.output.write(
            context.isJSON
                ? JSON.object([
                    ("count", .number(answer.count)),
                    ("revision", .number(answer.revision.rawValue)),
                ]).text + "\n" : "\(answer.count)\n")
        return .done
    }
}

private protocol ScanPrinter {
    var output: Output { get }
    mutating func add(_ page: ScanPage)
    /// - Parameter token: nil when there is no more.
    func finish(count: Int, token: String?)
}

extension ScanPrinter {
    /// For people; programs find the token in the JSON.
    func hint(count: Int, token: String?) {
        if count == 0 { output.note("no keys") }
        guard let token else { return }
        output.note(
            "\(count) keys shown, there are more: use --all, a larger --limit, or\n"
                + "  --continuation-token \(token)")
    }
}

private struct TableScanPrinter: ScanPrinter {
    let output: Output
    let keys: KeyOptions
    var table = Table([
        .init(title: "KEY"), .init(title: "REVISION", alignment: .right), .init(title: "VALUE"),
    ])

    mutating func add(_ page: ScanPage) {
        guard !page.entries.isEmpty else { return }
        output.write(
            table.render(
                page.entries.map {
                    [keys.text(of: $0.key), "\($0.modRevision)", Display.value($0.value)]
                }))
    }

    func finish(count: Int, token: String?) { hint(count: count, token: token) }
}

private struct KeyScanPrinter: ScanPrinter {
    let output: Output
    let keys: KeyOptions

    mutating func add(_ page: ScanPage) {
        for entry in page.entries { output.write(keys.text(of: entry.key) + "\n") }
    }

    func finish(count: Int, token: String?) { hint(count: count, token: token) }
}

/// Writes entries as they come, so that no scan has to fit into memory.
private struct JSONScanPrinter: ScanPrinter {
    let output: Output
    let keysOnly: Bool
    var count = 0
    var revision = Revision.zero

    mutating func add(_ page: ScanPage) {
        revision = page.revision
        for entry in page.entries {
            output.write(count == 0 ? #"{"entries":["# : ",")
            count += 1
            var members: [(String, JSON)] = [("key", .bytes(entry.key))]
            if !keysOnly { members.append(("value", .bytes(entry.value))) }
            members += [
                ("create_revision", .number(entry.createRevision.rawValue)),
                ("mod_revision", .number(entry.modRevision.rawValue)),
                ("version", .number(entry.version)),
            ]
            output.write(JSON.object(members).text)
        }
    }

    func finish(count: Int, token: String?) {
        if count == 0 { output.write(#"{"entries":["#) }
        output.write(
            #"],"count":\#(count),"continuation_token":"#
                + (token.map { JSON.string($0) } ?? .null).text
                + #","revision":\#(revision)}"# + "\n")
    }
}
