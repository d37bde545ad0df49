// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

struct KVDelete: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "delete", abstract: "Delete a key, or all keys of a range.",
        usage: "aspen-cli kv delete (KEY | --prefix PREFIX | --from KEY --to KEY) [OPTIONS]",
        discussion: """
            A key that does not exist is exit status 3. Up to 1000 keys of a range go in one revision; \
            more go in several, in their order. Keys that belong to the cluster itself stay.

            EXAMPLES
              aspen-cli kv delete greeting
              aspen-cli kv delete --prefix user/
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions
    @OptionGroup var ranges: RangeOptions

    @Argument(help: "The key.")
    var key: String?

    func prepare() throws {
        guard let key else {
            guard ranges.isGiven else {
                throw CommandFailure.usage(
                    "name a key, or a range with --prefix or --from and --to")
            }
            // Nobody means that by leaving a variable empty.
            if ranges.prefix == "" {
                throw CommandFailure.usage("to delete every key, say --from ''")
            }
            _ = try ranges.range(keys)
            return
        }
        guard !ranges.isGiven else { throw CommandFailure.usage("name a key or a range, not both") }
        _ = try keys.bytes(of: key)
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        guard let key else { return try await deleteRange(context) }
        let bytes = try keys.bytes(of: key)
        let answer = try await context.client.delete(bytes)
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("success", .bool(true)), ("deleted", .bool(answer.deleted)),
                    ("revision", .number(answer.revision.rawValue)),
                    ("log_id", .logID(answer.logID)),
                ]).text + "\n")
        }
        guard answer.deleted else {
            context.output.note("there is no key '\(keys.text(of: bytes))'")
            return .notFound
        }
        if !context.isJSON { context.output.write("OK, revision \(answer.revision)\n") }
        return .done
    }

    private func deleteRange(_ context: CommandContext) async throws -> ExitStatus {
        let range = try ranges.range(keys)
        var progress = DeletionProgress()
        do {
            try await progress.delete(range, context.client)
        } catch {
            throw progress.failure(error)
        }
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("success", .bool(true)), ("deleted", .number(UInt64(progress.count))),
                    ("revision", .number(progress.revision.rawValue)),
                ]).text + "\n")
        } else {
            context.output.write(
                "OK, \(progress.count) keys deleted, revision \(progress.revision)\n")
        }
        return .done
    }
}

/// How far the deletion of a range has come: its pages are gone whatever becomes of the rest.
private struct DeletionProgress {
    var count = 0
    var revision = Revision.zero

    mutating func delete(_ range: KeyRange, _ client: AspenClient) async throws {
        var range = range
        while true {
            let page = try await client.scanPage(range, ScanOptions(keysOnly: true))
            revision = max(revision, page.revision)
            guard let first = page.entries.first, let last = page.entries.last else { return }
            let end = last.key + [0]
            let answer = try await client.transaction(
                if: [], then: [.deleteRange(KeyRange(from: first.key, to: end))])
            count += answer.results.first?.deletedCount ?? 0
            revision = answer.revision
            guard !page.continuation.isEmpty else { return }
            range.from = end
        }
    }

    func failure(_ error: any Error) -> any Error {
        guard count > 0, var failure = error as? AspenError else { return error }
        failure.message =
            "\(count) keys were deleted, and of the next ones: \(failure.message)"
        return failure
    }
}
