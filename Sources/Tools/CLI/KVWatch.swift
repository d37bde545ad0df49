// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

struct KVWatch: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "watch", abstract: "Follow what happens to a key or a range.",
        usage: "aspen-cli kv watch (KEY | --prefix PREFIX | --from KEY --to KEY) [OPTIONS]",
        discussion: """
            Prints each change once and in order, until it is interrupted; it goes on by itself when \
            its node dies. With --json each line is an object.

            EXAMPLES
              aspen-cli kv watch --prefix jobs/
              aspen-cli kv watch greeting --from-revision 12 --previous
              aspen-cli kv watch lock --count 1 --json
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions
    @OptionGroup var ranges: RangeOptions

    @Option(help: "Begin with the changes of this revision instead of with what comes now.")
    var fromRevision: UInt64?

    @Flag(help: "Show what each change replaced.")
    var previous = false

    @Flag(help: "Only values that are written.")
    var putsOnly = false

    @Flag(help: "Only keys that are deleted.")
    var deletesOnly = false

    @Option(help: "End after so many changes.")
    var count: Int?

    @Argument(help: "The key.")
    var key: String?

    private func range() throws -> KeyRange {
        guard let key else {
            guard ranges.isGiven else {
                throw CommandFailure.usage(
                    "name a key, or a range with --prefix or --from and --to (--prefix '' for all)")
            }
            return try ranges.range(keys)
        }
        guard !ranges.isGiven else { throw CommandFailure.usage("name a key or a range, not both") }
        return KeyRange(key: try keys.bytes(of: key))
    }

    func prepare() throws {
        _ = try range()
        if putsOnly, deletesOnly {
            throw CommandFailure.usage("choose --puts-only or --deletes-only")
        }
        if let count, count < 1 { throw CommandFailure.usage("--count is 1 or more") }
        if fromRevision == 0 { throw CommandFailure.usage("revisions begin with 1") }
        if key == "" {
            throw CommandFailure.usage("a key may not be empty: --prefix '' is all keys")
        }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        var left = count ?? .max
        let options = WatchOptions(
            kinds: putsOnly ? .puts : deletesOnly ? .deletes : .all, previousValues: previous)
        let updates = context.client.watch(
            try range(), from: fromRevision.map { Revision($0) }, options)
        for try await update in updates {
            for event in update.events.prefix(left) {
                context.output.write(
                    context.isJSON ? JSON.event(event).text + "\n" : event.line(keys))
            }
            try context.output.flush()
            left -= min(left, update.events.count)
            if left == 0 { break }
        }
        return .done
    }
}
