// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes

/// What a key has to be for a change to be made.
struct ExpectationOptions: ParsableArguments {
    @Option(help: "The value that the key has to have.")
    var expected: String?

    @Option(help: "The version that the key has to have.")
    var version: UInt64?

    func compare(_ key: [UInt8], orAbsent isAbsent: Bool? = nil) throws -> Compare {
        switch (expected, version, isAbsent ?? false) {
        case (let value?, nil, false):
            return Compare(key, .equal, .value(ArgumentBytes.bytes(value)))
        case (nil, let version?, false): return Compare(key, .equal, .version(version))
        case (nil, nil, true): return Compare(key, .equal, .exists(false))
        default:
            throw CommandFailure.usage(
                "say in one way what the key has to be: --expected VALUE, --version N"
                    + (isAbsent == nil ? "" : ", --absent"))
        }
    }

    /// What came of the change; where the comparison did not hold, what is there instead.
    static func report(
        _ answer: TransactionResult, of key: [UInt8], _ keys: KeyOptions, _ context: CommandContext
    ) -> ExitStatus {
        guard answer.succeeded else {
            return refusal(key, keys, answer.results.first?.entry, context)
        }
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("success", .bool(true)), ("revision", .number(answer.revision.rawValue)),
                    ("log_id", .logID(answer.logID)),
                ]).text + "\n")
        } else {
            context.output.write("OK, revision \(answer.revision)\n")
        }
        return .done
    }

    private static func refusal(
        _ key: [UInt8], _ keys: KeyOptions, _ actual: KeyValue?, _ context: CommandContext
    ) -> ExitStatus {
        if context.isJSON {
            context.output.write(
                JSON.object([
                    ("success", .bool(false)), ("actual", .entry(key, actual)),
                ]).text + "\n")
        }
        let name = keys.text(of: key)
        let found =
            actual.map { "'\(name)' is version \($0.version): \(Display.value($0.value))" }
            ?? "there is no key '\(name)'"
        context.output.note("nothing was changed: \(found) (PRECONDITION_FAILED)")
        return .preconditionFailed
    }
}

struct KVCompareAndSwap: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "cas", abstract: "Write a key if it is what you think it is.",
        usage: """
            aspen-cli kv cas KEY (--expected VALUE | --version N | --absent) (NEW | - | -f FILE) \
            [OPTIONS]
            """,
        discussion: """
            If it is not, nothing is changed, exit status is 5, and what is there is shown.

            EXAMPLES
              aspen-cli kv cas counter --expected 1 2
              aspen-cli kv cas config --version 7 -f new.json
              aspen-cli kv cas lock --absent "$(hostname)"
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions
    @OptionGroup var expectation: ExpectationOptions

    @Flag(help: "The key may not exist.")
    var absent = false

    @Option(help: "The key goes when this lease goes.")
    var lease: UInt64 = 0

    @Argument(help: "The key.")
    var key: String

    @Option(name: .shortAndLong, help: "Take the new value from this file.")
    var file: String?

    @Argument(help: "The new value; '-' takes it from standard input.")
    var new: String?

    func prepare() throws {
        try ValueSource.check(file: file, new)
        _ = try expectation.compare(try keys.bytes(of: key), orAbsent: absent)
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let key = try keys.bytes(of: key)
        let value = try ValueSource.bytes(file: file, new)
        let answer = try await context.client.transaction(
            if: [try expectation.compare(key, orAbsent: absent)],
            then: [.put(key: key, value: value, lease: LeaseID(lease))],
            else: [.get(key: key)])
        return ExpectationOptions.report(answer, of: key, keys, context)
    }
}

struct KVCompareAndDelete: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "cad", abstract: "Delete a key if it is what you think it is.",
        usage: "aspen-cli kv cad KEY (--expected VALUE | --version N) [OPTIONS]",
        discussion: """
            If it is not, nothing is changed, exit status is 5, and what is there is shown.

            EXAMPLES
              aspen-cli kv cad lock --expected "$(hostname)"
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions
    @OptionGroup var expectation: ExpectationOptions

    @Argument(help: "The key.")
    var key: String

    func prepare() throws { _ = try expectation.compare(try keys.bytes(of: key)) }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let key = try keys.bytes(of: key)
        let answer = try await context.client.transaction(
            if: [try expectation.compare(key)], then: [.delete(key: key)], else: [.get(key: key)])
        return ExpectationOptions.report(answer, of: key, keys, context)
    }
}
