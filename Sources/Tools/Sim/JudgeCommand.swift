// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import FoundationEssentials
import Glibc
import SimChecks
import SimFaults

struct JudgeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "judge",
        abstract: "Judge a recorded history of real clients by the simulator's checkers.",
        discussion: """
            FILE has one JSON object a line: client, key, op (get, put, cas, delete), value (what is \
            written), expected (cas; absent: no such key), begin and end (nanoseconds of one clock; \
            no end: nobody knows the outcome), result (get: the value or absent; cas, delete: true \
            or false), version (get: the key's, 0 when absent; put: the new one), revision, and \
            refused (true: the store said that it did nothing). Keys, clients and values are \
            numbers; no two writes have one value. Exit codes: 0, 2 (FILE is malformed), 10 (a \
            finding), 11 (undecided: too much was concurrent).
            """)

    @Argument(help: "The history.")
    var file: String

    func run() throws {
        let history: [ClientOperation]
        do {
            history = try RecordedHistory.read(file)
        } catch let error as RecordedHistory.Malformed {
            Output.line(error.text, to: STDERR_FILENO)
            throw ExitCode(2)
        }
        if let (earlier, later) = ClientRevisions.violation(history) {
            Output.line("FAILED revisions went back\n  earlier: \(earlier)\n  later: \(later)")
            throw Outcome.safety.exitCode
        }
        switch Linearizability.check(history) {
        case .linearizable:
            Output.line("passed: \(history.count) operations are linearizable")
        case .violated(let key, let culprit):
            Output.line("FAILED key \(key) is not linearizable; cannot be placed: \(culprit)")
            throw Outcome.safety.exitCode
        case .undecided(let key):
            Output.line("FAILED key \(key): the search was given up")
            throw Outcome.liveness.exitCode
        }
    }
}

/// A history as clients of real daemons write it down.
enum RecordedHistory {
    struct Malformed: Error {
        var text: String
    }

    private enum Result: Decodable {
        case number(UInt64)
        case truth(Bool)

        init(from decoder: any Decoder) throws {
            let box = try decoder.singleValueContainer()
            if let truth = try? box.decode(Bool.self) {
                self = .truth(truth)
            } else {
                self = .number(try box.decode(UInt64.self))
            }
        }
    }

    private struct Line: Decodable {
        var client: Int
        var key: Int
        var op: String
        var value: UInt64?
        var expected: UInt64?
        var begin: UInt64
        var end: UInt64?
        var result: Result?
        var version: UInt64?
        var revision: UInt64?
        var refused: Bool?
    }

    /// What was refused is left out: it must not show.
    static func read(_ path: String) throws -> [ClientOperation] {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw Malformed(text: "\(path): cannot be read")
        }
        var history: [ClientOperation] = []
        let lines = data.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
        for (index, bytes) in lines.enumerated() where !bytes.isEmpty {
            let place = "\(path):\(index + 1)"
            guard let line = try? JSONDecoder().decode(Line.self, from: Data(bytes)) else {
                throw Malformed(text: "\(place): not an operation")
            }
            let operation = try operation(line, place)
            if line.refused != true { history.append(operation) }
        }
        return history
    }

    private static func operation(_ line: Line, _ place: String) throws -> ClientOperation {
        if let end = line.end, end < line.begin {
            throw Malformed(text: "\(place): ends before it begins")
        }
        let isAnswered = line.end != nil && line.refused != true
        guard let call = call(line) else { throw Malformed(text: "\(place): no such operation") }
        let answer = isAnswered ? answer(line, to: call) : nil
        if isAnswered, answer == nil { throw Malformed(text: "\(place): an answer is missing") }
        return ClientOperation(
            client: line.client, key: line.key, call: call, begin: line.begin,
            end: isAnswered ? line.end : nil, answer: answer,
            revision: isAnswered ? line.revision : nil)
    }

    private static func call(_ line: Line) -> ClientOperation.Call? {
        switch (line.op, line.value) {
        case ("get", _): .get
        case ("put", .some(let value)): .put(value)
        case ("cas", .some(let value)): .swap(expected: line.expected, new: value)
        case ("delete", _): .delete
        default: nil
        }
    }

    private static func answer(
        _ line: Line, to call: ClientOperation.Call
    ) -> ClientOperation.Answer? {
        switch (call, line.result, line.version) {
        case (.get, nil, 0): .value(nil, version: 0)
        case (.get, .number(let value), .some(let version)) where version > 0:
            .value(value, version: version)
        case (.put, _, .some(let version)) where version > 0:
            .stored(previousVersion: version - 1)
        case (.swap, .truth(let truth), _): .swapped(truth)
        case (.delete, .truth(let truth), _): .deleted(truth)
        default: nil
        }
    }
}
