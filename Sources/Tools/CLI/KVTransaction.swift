// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

struct KVTransaction: ClientCommand {
    /// Room for a value of the largest size with every byte written as `\xHH`, and for what is around it.
    private static let textLimit = ValueSource.Limit(
        bytesMax: 8 * Limits.valueBytesMax,
        name: "(8 MiB) that the text of a transaction may have: split it over several transactions")

    static let configuration = CommandConfiguration(
        commandName: "txn", abstract: "Change several keys at once, on conditions.",
        usage: "aspen-cli kv txn [FILE] [OPTIONS]",
        discussion: """
            Reads from FILE, or from standard input. If every compare holds, what stands behind 'then' \
            is carried out, else what stands behind 'else': all in one revision. If they did not hold, \
            exit status is 5.

              if
              value KEY = VALUE          (= != < >; also version, create, mod with a number)
              exists KEY
              missing KEY
              then
              put KEY VALUE [lease=N]
              get KEY
              delete KEY
              delete-prefix PREFIX
              delete-range FROM TO
              else
              get KEY

            A word with blanks stands in double quotes, with \\", \\\\, \\n, \\t and \\xHH in it; '#' begins \
            a comment.

            EXAMPLES
              printf 'if\\nmissing lock\\nthen\\nput lock "node 1"\\nelse\\nget lock\\n' | aspen-cli kv txn
            """)

    @OptionGroup var global: GlobalOptions

    @Argument(help: "The file; without it, standard input.")
    var file: String?

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let bytes =
            if let file, file != "-" { try ValueSource.file(file, Self.textLimit) } else {
                try ValueSource.standardInput(Self.textLimit)
            }
        let text: TransactionText
        do { text = try TransactionText(bytes) } catch {
            throw CommandFailure.usage("line \(error.line): \(error.text)")
        }
        guard !text.isEmpty else {
            throw CommandFailure.usage(
                "there is no transaction: it has neither compare nor operation")
        }
        let answer = try await context.client.transaction(
            if: text.compares, then: text.success, else: text.failure)
        let operations = answer.succeeded ? text.success : text.failure
        if context.isJSON {
            printJSON(answer, operations, context.output)
        } else {
            context.output.write(
                (answer.succeeded ? "SUCCESS" : "FAILURE") + ", revision \(answer.revision)\n")
            for (operation, result) in zip(operations, answer.results) {
                context.output.write(Self.line(operation, result) + "\n")
            }
        }
        return answer.succeeded ? .done : .preconditionFailed
    }

    private static func line(_ operation: Operation, _ result: OperationResult) -> String {
        switch operation {
        case .put(let key, _, _): "put \(KeyOptions.plainText(key))"
        case .get(let key):
            result.entry.map { "\(KeyOptions.plainText(key)) = \(Display.value($0.value))" }
                ?? "there is no key '\(KeyOptions.plainText(key))'"
        case .delete, .deleteRange: "deleted \(result.deletedCount)"
        }
    }

    private func printJSON(
        _ answer: TransactionResult, _ operations: [Operation], _ output: Output
    ) {
        let results: [JSON] = zip(operations, answer.results).map { operation, result in
            switch operation {
            case .put(let key, _, _):
                .object([("put", .bytes(key)), ("existed", .bool(result.existed))])
            case .get(let key): .object([("get", .entry(key, result.entry))])
            case .delete, .deleteRange:
                .object([("deleted", .number(UInt64(result.deletedCount)))])
            }
        }
        output.write(
            JSON.object([
                ("succeeded", .bool(answer.succeeded)),
                ("revision", .number(answer.revision.rawValue)), ("results", .array(results)),
                ("log_id", .logID(answer.logID)),
            ]).text + "\n")
    }
}
