// SPDX-License-Identifier: GPL-2.0-or-later

import AspenWire
import FakeRaftServer
import Glibc
import Testing

/// Runs every page of the manual. With ASPEN_REWRITE=1 the pages are rewritten to what the programs
/// print; read the diff.
@Suite struct ManualTests {
    static let directory =
        "/" + #filePath.split(separator: "/").dropLast().joined(separator: "/") + "/Manual"

    static let pages: [String] = {
        guard let handle = opendir(directory) else { return [] }
        defer { closedir(handle) }
        var names: [String] = []
        while let entry = readdir(handle) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasSuffix(".txt") { names.append(name) }
        }
        return names.sorted()
    }()

    @Test func thereAreAllPages() { #expect(Self.pages.count >= 6) }

    @Test(arguments: ManualTests.pages)
    func page(name: String) async throws {
        let server = FakeRaftServer()
        try await server.start()
        let gossip = FakeGossipServer(
            beside: server.path, answer: .reply(.peers(PeerLine.examples)))
        try await gossip.start()
        let shell = Shell(socket: server.path)
        let path = Self.directory + "/" + name
        let page = ManualPage(try #require(Self.read(path)))
        let isRewriting = getenv("ASPEN_REWRITE").map { String(cString: $0) } == "1"
        var result = page
        for (position, part) in page.parts.enumerated() {
            guard case .step(let command, let expected, let status) = part else { continue }
            let (bytes, actualStatus) = try await shell.run(command)
            let actual = Self.lines(bytes)
            let isSame =
                actualStatus == status && actual.count == expected.count
                && zip(actual, expected).allSatisfy { ManualPage.matches($0, $1) }
            if isSame { continue }
            result.parts[position] = .step(
                command: command, output: actual, status: actualStatus)
            if !isRewriting {
                Issue.record(
                    """
                    \(name): $ \(command)
                    expected (\(status)):
                    \(expected.joined(separator: "\n"))
                    actual (\(actualStatus)):
                    \(actual.joined(separator: "\n"))
                    """)
            }
        }
        if isRewriting, result.parts != page.parts { Self.write(result.text, to: path) }
        try await shell.remove()
        await gossip.stop()
        await server.stop()
    }

    /// A last line without its end is shown with a mark, as diff does.
    static func lines(_ bytes: [UInt8]) -> [String] {
        var lines = String(decoding: bytes, as: UTF8.self)
            .split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        if lines.last == "" { lines.removeLast() } else { lines[lines.count - 1] += "␄" }
        return lines
    }

    static func read(_ path: String) -> String? {
        guard let file = fopen(path, "r") else { return nil }
        defer { fclose(file) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = fread(&chunk, 1, chunk.count, file)
            if count == 0 { return String(decoding: bytes, as: UTF8.self) }
            bytes += chunk[..<count]
        }
    }

    static func write(_ text: String, to path: String) {
        guard let file = fopen(path, "w") else { return }
        fputs(text, file)
        fclose(file)
    }

    @Test(arguments: [
        ("revision 12", "revision [..]", true), ("revision 12", "revision 12", true),
        ("abc", "a[..]c", true), ("abc", "a[..]d", false), ("ab", "ab[..]ba", false),
        ("a-b-c", "a[..]b[..]c", true), ("a-c", "a[..]b[..]c", false), ("x", "[..]", true),
    ])
    func wildcards(line: String, pattern: String, matches: Bool) {
        #expect(ManualPage.matches(line, pattern) == matches)
    }
}
