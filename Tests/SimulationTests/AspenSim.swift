// SPDX-License-Identifier: GPL-2.0-or-later

import Foundation

/// The program under test, as people start it.
struct AspenSim {
    var lines: [String]
    var exitCode: Int32
    /// Not zero if a signal ended it.
    var signal: Int32

    /// It lies beside the test runner.
    private static var path: URL {
        URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
            .deletingLastPathComponent().appendingPathComponent("aspen-sim")
    }

    static func run(_ arguments: String...) throws -> AspenSim { try run(arguments) }

    static func run(_ arguments: [String]) throws -> AspenSim {
        let (process, output) = try start(arguments)
        let text = try output.readToEnd() ?? Data()
        process.waitUntilExit()
        return finished(process, text)
    }

    /// - Returns: the process and where its output can be read.
    static func start(_ arguments: [String]) throws -> (Process, FileHandle) {
        let process = Process()
        let pipe = Pipe()
        process.executableURL = path
        process.arguments = arguments
        process.standardOutput = pipe
        process.standardError = pipe
        try process.run()
        return (process, pipe.fileHandleForReading)
    }

    static func finished(_ process: Process, _ text: Data) -> AspenSim {
        let lines = String(decoding: text, as: UTF8.self).split(separator: "\n").map(String.init)
        let isExit = process.terminationReason == .exit
        return AspenSim(
            lines: lines, exitCode: isExit ? process.terminationStatus : -1,
            signal: isExit ? 0 : process.terminationStatus)
    }

    var lastLine: String { lines.last ?? "" }
    var failures: [String] { lines.filter { $0.contains(" FAILED ") } }
}
