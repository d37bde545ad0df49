// SPDX-License-Identifier: GPL-2.0-or-later

import Foundation
import Testing

/// Histories of real clients, as `aspen-sim judge` reads them.
@Suite struct JudgeTests {
    static let put7 =
        #"{"client":0,"key":0,"op":"put","value":7,"begin":1,"end":2,"version":1,"revision":5}"#

    static let good = [
        put7,
        #"{"client":1,"key":0,"op":"get","begin":3,"end":4,"result":7,"version":1,"revision":5}"#,
        #"{"client":1,"key":0,"op":"put","value":8,"begin":5}"#,
        #"{"client":0,"key":0,"op":"cas","expected":8,"value":9,"begin":6,"end":7,"result":true,"revision":7}"#,
        #"{"client":0,"key":0,"op":"put","value":10,"begin":8,"end":9,"refused":true}"#,
        #"{"client":0,"key":0,"op":"delete","begin":8,"end":9,"result":true,"revision":8}"#,
        #"{"client":2,"key":0,"op":"get","begin":10,"end":11,"version":0,"revision":8}"#,
    ]

    /// Each after `put7`.
    static let bad = [
        // A lost write.
        #"{"client":1,"key":0,"op":"get","begin":3,"end":4,"version":0,"revision":5}"#,
        // A stale read.
        #"{"client":1,"key":0,"op":"put","value":8,"begin":3,"end":4,"version":2,"revision":6}"#
            + "\n"
            + #"{"client":1,"key":0,"op":"get","begin":5,"end":6,"result":7,"version":1,"revision":6}"#,
        // A refused write that shows.
        #"{"client":1,"key":0,"op":"put","value":8,"begin":3,"end":4,"refused":true}"# + "\n"
            + #"{"client":1,"key":0,"op":"get","begin":5,"end":6,"result":8,"version":2,"revision":6}"#,
        // A revision that goes back.
        #"{"client":1,"key":0,"op":"get","begin":3,"end":4,"result":7,"version":1,"revision":4}"#,
        // Two writes at one revision.
        #"{"client":1,"key":1,"op":"put","value":8,"begin":1,"end":4,"version":1,"revision":5}"#,
    ]

    static let malformed = [
        "{", #"{"client":1,"key":0,"op":"get","begin":3,"end":4}"#,
        #"{"client":1,"key":0,"op":"get","begin":5,"end":4,"version":0}"#,
        #"{"client":1,"key":0,"op":"put","begin":5}"#,
        #"{"client":1,"key":0,"op":"jump","begin":5}"#,
    ]

    private func judge(_ lines: [String]) throws -> AspenSim {
        let path = NSTemporaryDirectory() + "/aspen-history-\(UUID().uuidString)"
        try lines.joined(separator: "\n").write(toFile: path, atomically: false, encoding: .utf8)
        defer { unlink(path) }
        return try AspenSim.run("judge", path)
    }

    @Test func acceptsWhatCanBeExplained() throws {
        let judged = try judge(Self.good)
        #expect(judged.exitCode == 0, "\(judged.lines)")
    }

    @Test(arguments: bad) func refusesWhatCannot(_ rest: String) throws {
        let judged = try judge([Self.put7, rest])
        #expect(judged.exitCode == 10, "\(judged.lines)")
    }

    @Test(arguments: malformed) func namesTheLineThatIsMalformed(_ line: String) throws {
        let judged = try judge([Self.put7, line])
        #expect(judged.exitCode == 2 && judged.lastLine.contains(":2: "), "\(judged.lines)")
    }
}
