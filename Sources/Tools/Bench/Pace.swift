// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import NIOCore
import Synchronization

/// When the requests of one event loop are due, at a fixed rate.
struct Pace {
    /// Nanoseconds between two requests.
    private let interval: Double
    private let begin = NIODeadline.now()
    /// Requests that were due so far and have been taken.
    private var taken = 0
    private var returned: [NIODeadline] = []
    /// A timer is set.
    var isWaking = false

    /// - Parameter rate: requests a second of all event loops.
    init(rate: Int, lanes: Int) { interval = 1e9 * Double(lanes) / Double(rate) }

    private var next: NIODeadline { begin + .nanoseconds(Int64(Double(taken) * interval)) }

    /// The oldest request that is due and nobody has sent.
    mutating func takeDue(_ now: NIODeadline) -> NIODeadline? {
        if let first = returned.popLast() { return first }
        let due = next
        guard due <= now else { return nil }
        taken += 1
        return due
    }

    /// It could not be sent after all.
    mutating func giveBack(_ due: NIODeadline) { returned.append(due) }

    /// When to look again; nil if a timer is set already.
    mutating func nextWake() -> NIODeadline? {
        guard !isWaking else { return nil }
        isWaking = true
        return next
    }
}

/// SIGINT or SIGTERM: somebody wants the report now.
enum Interruption {
    /// Between two looks.
    static let interval = TimeAmount.milliseconds(50)
    private static let flag = Atomic<Bool>(false)

    static var isSet: Bool { flag.load(ordering: .acquiring) }

    static func watch() {
        for number in [SIGINT, SIGTERM] {
            _ = signal(number) { _ in Interruption.flag.store(true, ordering: .releasing) }
        }
    }
}
