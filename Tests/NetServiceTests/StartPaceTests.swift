// SPDX-License-Identifier: GPL-2.0-or-later

import ServiceKit
import Testing

/// How a daemon that dies of its own start is kept from costing a processor.
@Suite struct StartPaceTests {
    @Test func killsAreFree() {
        var pace = StartPace()
        for kill in 0..<Int(StartPace.burst) {
            #expect(pace.start(at: .milliseconds(1000 + kill)) == .zero)
        }
        #expect(pace.start(at: .milliseconds(1030)) > .milliseconds(900))
    }

    @Test func aLoopIsHeldToOneStartInAnInterval() {
        var pace = StartPace()
        var now = Duration.seconds(1000)
        for _ in 0..<1000 { now += pace.start(at: now) + .milliseconds(60) }
        let begun = now
        for _ in 0..<100 { now += pace.start(at: now) + .milliseconds(60) }
        #expect(now - begun >= StartPace.interval * 99)
    }

    @Test func whoDiesWhileItWaitsDoesNotPutOffTheNext() {
        var pace = StartPace()
        for start in 0..<10_000 {
            #expect(pace.start(at: .milliseconds(5000 + start)) <= StartPace.interval)
        }
    }

    @Test func whatWasUsedComesBack() {
        var pace = StartPace()
        for start in 0..<50 { _ = pace.start(at: .milliseconds(start)) }
        #expect(pace.start(at: .seconds(1)) > .zero)
        #expect(pace.start(at: .seconds(30)) == .zero)
    }
}
