// SPDX-License-Identifier: GPL-2.0-or-later

import Foundation
import Testing

/// The files of Tests/Traces, executed. `ASPEN_REWRITE=1 swift test --filter TraceTests` writes down
/// what happens now; the difference is for a reviewer to judge.
@Suite struct TraceTests {
    static let directory = URL(filePath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().appending(path: "Traces")

    static var names: [String] {
        let files = try? FileManager.default.contentsOfDirectory(atPath: directory.path)
        return (files ?? []).filter { $0.hasSuffix(".txt") && $0.hasPrefix("raft-") }.sorted()
    }

    @Test func thereAreTraces() { #expect(Self.names.count >= 15) }

    @Test(arguments: names)
    func traceHolds(name: String) throws {
        let file = Self.directory.appending(path: name)
        let text = try String(contentsOf: file, encoding: .utf8)
        let replayed = try replay(text)
        if ProcessInfo.processInfo.environment["ASPEN_REWRITE"] == "1" {
            try replayed.write(to: file, atomically: true, encoding: .utf8)
        } else {
            #expect(firstDifference(text, replayed) == nil, "\(name)")
        }
    }

    /// The file as it would be written now: comments and commands as they are, outputs anew.
    private func replay(_ text: String) throws -> String {
        let runner = TraceRunner()
        var result: [String] = []
        var isOutput = false
        for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
            if line.isEmpty {
                isOutput = false
                if result.last?.isEmpty != true { result.append("") }
            } else if line.hasPrefix("#") {
                isOutput = false
                result.append(String(line))
            } else if line.hasPrefix("> ") {
                isOutput = true
                result.append(String(line))
                result += try runner.run(String(line.dropFirst(2)))
            } else if !isOutput {
                throw TraceRunner.SyntaxError(description: "neither comment nor command: \(line)")
            }
        }
        return result.joined(separator: "\n")
    }

    private func firstDifference(_ expected: String, _ found: String) -> String? {
        let (old, new) = (expected.split(separator: "\n"), found.split(separator: "\n"))
        for (position, pair) in zip(old, new).enumerated() where pair.0 != pair.1 {
            return "line \(position + 1) (blank ones not counted): expected '\(pair.0)', "
                + "found '\(pair.1)'"
        }
        return old.count == new.count ? nil : "expected \(old.count) lines, found \(new.count)"
    }
}
