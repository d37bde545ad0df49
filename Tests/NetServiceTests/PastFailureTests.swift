// SPDX-License-Identifier: GPL-2.0-or-later

import Testing

@testable import ServiceKit

/// What a process leaves to the next one about why it ended.
@Suite struct PastFailureTests {
    @Test func aFailureIsSaidForLongerEachTime() throws {
        let delays = try (1...6).map { count in
            let past = try #require(PastFailure("74 \(count)\nno space\nleft"))
            #expect(past.exit == 74 && past.text == "no space\nleft" && !past.isRefusal)
            return past.delaySeconds
        }
        #expect(delays == [1, 2, 4, 8, 15, 15])
    }

    @Test func aRefusalIsTriedAgainAtOnceAndRepeatedForLongerEachTime() {
        var past: PastFailure?
        var delays: [Int] = []
        for count in 1...5 {
            delays.append(PastFailure.refusalSeconds(after: past))
            past = PastFailure("78 \(count)\n")
            #expect(past?.isRefusal == true)
        }
        #expect(delays == [2, 4, 8, 15, 15])
    }

    @Test(arguments: ["", "\n", "78", "78 x\ntext", "text"]) func nonsenseIsNoFailure(
        record: String
    ) {
        #expect(PastFailure(record) == nil)
    }
}
