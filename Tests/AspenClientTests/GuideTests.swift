// SPDX-License-Identifier: GPL-2.0-or-later

import AspenClient
import AspenTypes
import Glibc
import Testing

/// The documentation's example is compiled with these tests, runs, and is what the page shows.
@Suite struct GuideTests {
    @Test func theExampleWorks() async throws {
        try await withServer { _, client in
            let one = try await Claims(client, worker: "one")
            let two = try await Claims(client, worker: "two")
            #expect(try await one.claim("paint"))
            #expect(try await !two.claim("paint"))
            let holding = Task { try await one.hold() }
            let freed = Task {
                var jobs: [String] = []
                try await two.free { job in
                    jobs.append(job)
                    if jobs.count == 2 { throw CancellationError() }
                }
                return jobs
            }
            // Tried until the watch has begun, and heard the second time.
            let watching = Task {
                while !Task.isCancelled {
                    _ = try await two.claim("wash")
                    try await client.delete("jobs/wash")
                }
            }
            await #expect(throws: CancellationError.self) { _ = try await freed.value }
            watching.cancel()
            _ = await watching.result
            holding.cancel()
            _ = await holding.result
            _ = try await client.revokeLease(one.lease)
            #expect(try await two.claim("paint"))
        }
    }

    @Test func thePageShowsTheExample() throws {
        let folder = "/" + #filePath.split(separator: "/").dropLast().joined(separator: "/")
        let example = try #require(Self.read(folder + "/GuideExample.swift"))
        let page = try #require(
            Self.read(folder + "/../../Sources/Documentation/Aspen.docc/Client.md"))
        let code = try #require(example.components(from: "import AspenClient"))
        let shown = try #require(page.components(from: "```swift\n")?.dropFirst("```swift\n".count))
        #expect(shown == code + "```\n")
    }

    private static func read(_ path: String) -> String? {
        guard let file = fopen(path, "r") else { return nil }
        defer { fclose(file) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while case let count = fread(&buffer, 1, buffer.count, file), count > 0 {
            bytes += buffer[..<count]
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

extension String {
    /// From the first place where `mark` stands.
    fileprivate func components(from mark: String) -> Substring? {
        var rest = self[...]
        while !rest.isEmpty {
            if rest.hasPrefix(mark) { return rest }
            rest = rest.dropFirst()
        }
        return nil
    }
}
