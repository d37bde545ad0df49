// SPDX-License-Identifier: GPL-2.0-or-later

import Foundation
import RaftCore
import SimChecks
import SimFaults
import Synchronization

/// Which of the thousand seeds have caught a planted bug before. These are tried first, so that all of
/// them are searched only when a change of the simulator has moved its runs. `ASPEN_REWRITE=1` searches
/// and writes the file anew.
enum KnownSeeds {
    static var areRewritten: Bool { ProcessInfo.processInfo.environment["ASPEN_REWRITE"] == "1" }

    /// A line a bug: its name, then seeds.
    private static let file = URL(filePath: #filePath)
        .deletingLastPathComponent().appending(path: "Fixtures/known-seeds.txt")

    /// Tests run side by side.
    private static let lock = Mutex(())

    static func of(_ bug: PlantedBug) throws -> [UInt64] {
        try lock.withLock { _ in try read() }[bug.rawValue] ?? []
    }

    /// - Parameter failures: lines of a sweep: `seed 7 FAILED safety: …`.
    static func write(_ bug: PlantedBug, from failures: [String]) throws {
        try lock.withLock { _ in
            var all = (try? read()) ?? [:]
            all[bug.rawValue] = failures.compactMap {
                $0.split(separator: " ").lazy.compactMap { UInt64($0) }.first
            }
            let lines = all.sorted { $0.key < $1.key }.map { name, seeds in
                "\(name) \(seeds.map(String.init).joined(separator: " "))\n"
            }
            try lines.joined().write(to: file, atomically: true, encoding: .utf8)
        }
    }

    private static func read() throws -> [String: [UInt64]] {
        var all: [String: [UInt64]] = [:]
        for line in try String(contentsOf: file, encoding: .utf8).split(separator: "\n") {
            let words = line.split(separator: " ")
            guard let name = words.first else { continue }
            all[String(name)] = words.dropFirst().compactMap { UInt64($0) }
        }
        return all
    }
}
