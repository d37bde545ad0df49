// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import NIOPosix

/// A page of the executable manual:
///
///     # Prose.
///     $ a shell command
///     what it prints, both streams
///     ? 3
///
/// `[..]` in an expected line stands for any text. The last line of a step, `? N`, is its exit
/// status when that is not 0.
struct ManualPage {
    enum Part: Equatable {
        case prose(String)
        case step(command: String, output: [String], status: Int32)
    }

    var parts: [Part]

    init(_ text: String) {
        parts = []
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false)[...]
        if lines.last == "" { lines.removeLast() }
        while let line = lines.popFirst() {
            guard line.hasPrefix("$ ") else {
                parts.append(.prose(String(line)))
                continue
            }
            var output: [String] = []
            var status: Int32 = 0
            while let next = lines.first, !next.hasPrefix("$ ") {
                // A blank line before prose belongs to the prose, and tells it from output that
                // begins with "# ", as a file's does.
                if next.isEmpty, lines.dropFirst().first?.hasPrefix("# ") ?? true { break }
                lines.removeFirst()
                if next.hasPrefix("? "), let number = Int32(next.dropFirst(2)) {
                    status = number
                    break
                }
                output.append(String(next))
            }
            parts.append(
                .step(command: String(line.dropFirst(2)), output: output, status: status))
        }
    }

    var text: String {
        var text = ""
        for part in parts {
            switch part {
            case .prose(let line): text += line + "\n"
            case .step(let command, let output, let status):
                text += "$ \(command)\n"
                for line in output { text += line + "\n" }
                if status != 0 { text += "? \(status)\n" }
            }
        }
        return text
    }

    /// Whether `line` is what `pattern` allows.
    static func matches(_ line: String, _ pattern: String) -> Bool {
        var pieces = split(pattern)
        guard pieces.count > 1 else { return line == pattern }
        var rest = line[...]
        let first = pieces.removeFirst()
        guard rest.hasPrefix(first) else { return false }
        rest = rest.dropFirst(first.count)
        let last = pieces.removeLast()
        for piece in pieces {
            guard let end = firstEnd(of: piece, in: rest) else { return false }
            rest = rest[end...]
        }
        return rest.hasSuffix(last)
    }

    private static func split(_ pattern: String) -> [String] {
        var pieces = [""]
        var rest = pattern[...]
        while !rest.isEmpty {
            if rest.hasPrefix("[..]") {
                pieces.append("")
                rest = rest.dropFirst(4)
            } else {
                pieces[pieces.count - 1].append(rest.removeFirst())
            }
        }
        return pieces
    }

    private static func firstEnd(of piece: String, in text: Substring) -> String.Index? {
        var start = text.startIndex
        while true {
            if text[start...].hasPrefix(piece) { return text.index(start, offsetBy: piece.count) }
            guard start < text.endIndex else { return nil }
            start = text.index(after: start)
        }
    }
}

/// A real shell with the programs just built first in its path.
struct Shell: Sendable {
    let directory: String
    var environment: [(String, String)]

    init(socket: String) {
        var template = Array("/tmp/aspen-manual-XXXXXX".utf8CString)
        directory = mkdtemp(&template).map { String(cString: $0) } ?? "/tmp"
        environment = [("ASPEN_SOCKET", socket), ("LC_ALL", "C.UTF-8")]
    }

    /// Where the build put this test program, and `aspen-cli` beside it.
    static let programs: String = {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        let path = String(
            decoding: buffer.prefix(max(0, count)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return path.split(separator: "/").dropLast().reduce("") { $0 + "/" + $1 }
    }()

    /// - Returns: both streams' bytes, and the exit status (128 + signal for a killed command).
    ///
    /// Waits on a thread of its own: the tests' pool has few, and the server under test wants one.
    func run(_ command: String) async throws -> (output: [UInt8], status: Int32) {
        try await NIOThreadPool.singleton.runIfActive { runHere(command) }
    }

    private func runHere(_ command: String) -> (output: [UInt8], status: Int32) {
        let exports = environment.map { "export \($0)='\($1)'; " }.joined()
        let script =
            "exec 2>&1; unset ASPEN_TICKET NO_COLOR COLUMNS; \(exports)cd \(directory); "
            + "PATH=\(Self.programs):$PATH; (\(command)\n)"
        guard let pipe = popen(script, "r") else { return ([], -1) }
        var output: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = fread(&chunk, 1, chunk.count, pipe)
            if count == 0 { break }
            output += chunk[..<count]
        }
        let status = pclose(pipe)
        return (output, status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f))
    }

    func remove() async throws { _ = try await run("rm -rf \(directory)") }
}
