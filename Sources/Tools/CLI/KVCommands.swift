// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenClient
import AspenTypes
import Glibc

struct KVArea: ParsableCommand, CommandArea {
    static let configuration = CommandConfiguration(
        commandName: "kv", abstract: "Read and write keys.",
        subcommands: [
            KVSet.self, KVGet.self, KVDelete.self, KVCompareAndSwap.self, KVCompareAndDelete.self,
            KVScan.self, KVBatchRead.self, KVBatchWrite.self, KVTransaction.self, KVWatch.self,
            KVHistory.self,
        ])
}

enum KeyEncoding: String, ExpressibleByArgument, CaseIterable {
    case text
    case hex
    case base64
}

struct KeyOptions: ParsableArguments {
    @Option(help: "How keys are written on the command line: for keys that are no text.")
    var keyEncoding = KeyEncoding.text

    func bytes(of key: String) throws -> [UInt8] {
        let bytes: [UInt8]? =
            switch keyEncoding {
            case .text: ArgumentBytes.bytes(key)
            case .hex: Hex.decode(key)
            case .base64: Base64.decode(key)
            }
        guard let bytes else {
            throw CommandFailure.usage(
                "'\(Display.oneLine(key))' is not valid \(keyEncoding.rawValue)")
        }
        return bytes
    }

    /// A key as this command's user would write it.
    func text(of key: [UInt8]) -> String {
        switch keyEncoding {
        case .hex: return Hex.encode(key)
        case .base64: return Base64.encode(key)
        case .text: return Self.plainText(key)
        }
    }

    static func plainText(_ key: [UInt8]) -> String {
        guard let text = String(validating: key, as: UTF8.self) else {
            return "0x" + Hex.encode(key)
        }
        return Display.oneLine(text)
    }
}

extension JSON {
    static func logID(_ logID: LogID) -> JSON {
        .object([("term", .number(logID.term.rawValue)), ("index", .number(logID.index.rawValue))])
    }
}

struct KVSet: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "set", abstract: "Write a key.",
        usage: "aspen-cli kv set KEY (VALUE | - | -f FILE) [OPTIONS]",
        discussion: """
            EXAMPLES
              aspen-cli kv set greeting "hello world"
              aspen-cli kv set -f photo.jpg pic
              date | aspen-cli kv set now -
              aspen-cli kv set worker/1 up --ttl 30s

            A value has at most 1 MiB, a key at most 1 KiB; both may hold any bytes.
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions

    @Option(name: .shortAndLong, help: "Take the value from this file.")
    var file: String?

    @Option(help: "The key goes when this lease goes.")
    var lease: UInt64?

    @Option(
        help: "The key goes after this time (1s to 24h, with its unit): under a lease of its own.")
    var ttl: LeaseTime?

    @Argument(help: "The key.")
    var key: String

    @Argument(help: "The value; '-' takes it from standard input.")
    var value: String?

    func prepare() throws {
        _ = try keys.bytes(of: key)
        if lease != nil, ttl != nil {
            throw CommandFailure.usage("--ttl makes a lease, --lease takes one: choose")
        }
        try ValueSource.check(file: file, value)
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let key = try keys.bytes(of: key)
        let bytes = try ValueSource.bytes(file: file, value)
        var lease = LeaseID(lease ?? 0)
        if let ttl { lease = try await context.client.grantLease(ttl: ttl.duration).lease }
        let answer = try await context.client.set(key, to: bytes, lease: lease)
        if context.isJSON {
            var members: [(String, JSON)] = [
                ("success", .bool(true)), ("revision", .number(answer.revision.rawValue)),
                ("version", .number(answer.version)), ("log_id", .logID(answer.logID)),
            ]
            if lease != .none { members.append(("lease", .number(lease.rawValue))) }
            context.output.write(JSON.object(members).text + "\n")
        } else {
            let under = ttl == nil ? "" : ", lease \(lease)"
            context.output.write("OK, revision \(answer.revision)\(under)\n")
        }
        return .done
    }
}

struct KVGet: ClientCommand {
    static let configuration = CommandConfiguration(
        commandName: "get", abstract: "Read a key.",
        usage: "aspen-cli kv get KEY [OPTIONS]",
        discussion: """
            Prints the value and a line end. A key that does not exist is exit status 3.

            EXAMPLES
              aspen-cli kv get greeting
              aspen-cli kv get pic --raw > copy.jpg
              aspen-cli kv get greeting --revision 12 --json
            """)

    @OptionGroup var global: GlobalOptions
    @OptionGroup var keys: KeyOptions

    @Flag(help: "Print the value's bytes and nothing else.")
    var raw = false

    @OptionGroup var freshness: FreshnessOptions

    @Option(help: "Read the store as it was at this revision.")
    var revision: UInt64?

    @Argument(help: "The key.")
    var key: String

    func prepare() throws {
        _ = try keys.bytes(of: key)
        if raw, global.isJSON {
            throw CommandFailure.usage("--raw prints bytes, --json an object: choose one")
        }
        if revision == 0 { throw CommandFailure.usage("revisions begin with 1") }
    }

    func run(_ context: CommandContext) async throws -> ExitStatus {
        let key = try keys.bytes(of: key)
        let answer = try await context.client.get(
            key, at: revision.map { Revision($0) }, consistency: freshness.consistency)
        if context.isJSON { printJSON(key, answer, to: context.output) }
        guard let entry = answer.entry else {
            let when = revision.map { " at revision \($0)" } ?? ""
            context.output.note("there is no key '\(keys.text(of: key))'\(when)")
            return .notFound
        }
        if context.isJSON { return .done }
        if context.output.isTerminal, !raw, Display.isBinary(entry.value) {
            throw CommandFailure.failed(
                "the value has \(entry.value.count) bytes that are no text, and a terminal would "
                    + "not survive them: write it to a file (--raw > FILE), or use --json")
        }
        context.output.write(entry.value)
        if !raw { context.output.write("\n") }
        return .done
    }

    private func printJSON(_ key: [UInt8], _ answer: GetResult, to output: Output) {
        var members: [(String, JSON)] = [
            ("key", .bytes(key)), ("value", answer.entry.map { .bytes($0.value) } ?? .null),
            ("exists", .bool(answer.entry != nil)),
        ]
        if let entry = answer.entry {
            members += [
                ("create_revision", .number(entry.createRevision.rawValue)),
                ("mod_revision", .number(entry.modRevision.rawValue)),
                ("version", .number(entry.version)),
            ]
            if entry.lease != .none { members.append(("lease", .number(entry.lease.rawValue))) }
        }
        members.append(("revision", .number(answer.revision.rawValue)))
        output.write(JSON.object(members).text + "\n")
    }
}

/// Reads a value without ever holding much more than a value may have.
enum ValueSource {
    /// Of a command that takes a value behind the key, or a file, or standard input for "-".
    static func check(file: String?, _ value: String?) throws {
        switch (file, value) {
        case (nil, nil):
            throw CommandFailure.usage(
                "there is no value: write it behind the key, name a file with -f, or write '-' to "
                    + "take it from standard input")
        case (_?, _?):
            throw CommandFailure.usage("the value comes from -f or from the command line, not both")
        default: break
        }
    }

    static func bytes(file path: String?, _ value: String?) throws -> [UInt8] {
        switch (path, value) {
        case (let path?, _): try file(path)
        case (nil, "-"): try standardInput()
        case (nil, let value): ArgumentBytes.bytes(value ?? "")
        }
    }

    /// How much there may be, and what to do about more.
    struct Limit {
        let bytesMax: Int
        let name: String

        static let value = Limit(
            bytesMax: Limits.valueBytesMax,
            name: "(1 MiB) that a value may have: split it over several keys")
    }

    static func file(_ path: String, _ limit: Limit = .value) throws -> [UInt8] {
        let name = ArgumentBytes.bytes(path).map { CChar(bitPattern: $0) } + [0]
        let descriptor = open(name, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw CommandFailure.failed(
                "cannot read \(Display.oneLine(path)): \(String(cString: strerror(errno)))")
        }
        defer { close(descriptor) }
        return try all(of: descriptor, name: Display.oneLine(path), limit)
    }

    static func standardInput(_ limit: Limit = .value) throws -> [UInt8] {
        try all(of: STDIN_FILENO, name: "standard input", limit)
    }

    private static func all(
        of descriptor: CInt, name: String, _ limit: Limit
    ) throws -> [UInt8] {
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = chunk.withUnsafeMutableBytes { read(descriptor, $0.baseAddress, $0.count) }
            if count == 0 { return bytes }
            if count < 0 {
                if errno == EINTR { continue }
                throw CommandFailure.failed(
                    "cannot read \(name): \(String(cString: strerror(errno)))")
            }
            bytes += chunk[..<count]
            guard bytes.count <= limit.bytesMax else {
                throw AspenError(
                    .invalidArgument,
                    "\(name) has more than the \(limit.bytesMax) bytes \(limit.name)")
            }
        }
    }
}
