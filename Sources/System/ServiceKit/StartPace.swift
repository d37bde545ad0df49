// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenSystem
import Glibc
import Logging

/// How often the processes of a daemon may follow one another.
///
/// systemd starts a daemon that has died again at once (`RestartSec=0`): a killed one is back in a
/// tenth of a second. One that dies of its own start would go round and round, and cost a processor.
/// So starts are counted as a leaky bucket counts (GCRA): `burst` of them are free, and come back at
/// one every `interval`; who is beyond waits for the next. The one number that this needs lies in a
/// memory file that systemd keeps from process to process (FDSTORE), and ends with `systemctl stop`.
package struct StartPace: Equatable, Sendable {
    static let name = "starts"
    /// More than a person's kills, or a test's, ever come to in this short a time.
    package static let burst: Int64 = 25
    package static let interval = Duration.seconds(1)
    private static let heading = Array("aspen starts v1\n".utf8)

    /// When, by the monotonic clock, all starts so far would be used up at one every `interval`.
    package private(set) var due: Duration

    package init(due: Duration = .zero) { self.due = due }

    /// Counts a start at `now`.
    /// - Returns: how long it has to wait, at most one `interval`: processes that die while they
    ///   wait do not put off the next.
    package mutating func start(at now: Duration) -> Duration {
        let free = now + Self.interval * Int(Self.burst)
        due = min(max(due, now) + Self.interval, free + Self.interval)
        return max(.zero, due - free)
    }

    // MARK: - From process to process

    /// Counts this process's start, and waits if it must; only under systemd.
    /// - Returns: a signal that came meanwhile, of those in `signals`, which are blocked; else 0.
    static func keep(
        _ sockets: inout ActivatedSockets, _ signals: sigset_t, _ logger: Logger
    ) -> CInt {
        guard Supervision.isBySystemd else { return 0 }
        let kept = sockets.take(name)
        var pace = kept.first.flatMap { StartPace(keptIn: $0) } ?? StartPace()
        for descriptor in kept { close(descriptor) }
        if !kept.isEmpty { Notifier.discard(name: name) }
        let pause = pace.start(at: monotonicNow())
        if let file = pace.file() {
            Notifier.keep(file, name: name)
            close(file)
        }
        guard pause > .zero else { return 0 }
        logger.warning("has been started too often: waits", metadata: ["pause": "\(pause)"])
        Notifier.status("started too often: waits for \(pause)")
        var signals = signals
        let (seconds, attoseconds) = pause.components
        var time = timespec(tv_sec: Int(seconds), tv_nsec: Int(attoseconds / 1_000_000_000))
        return max(0, sigtimedwait(&signals, nil, &time))
    }

    private init?(keptIn descriptor: CInt) {
        var bytes = [UInt8](repeating: 0, count: Self.heading.count + 9)
        guard aspen_is_sealed(descriptor) == 1,
            pread(descriptor, &bytes, bytes.count, 0) == bytes.count - 1,
            bytes.starts(with: Self.heading)
        else { return nil }
        let value = bytes[Self.heading.count...].prefix(8).reduce(UInt64(0)) {
            $0 << 8 | UInt64($1)
        }
        due = .nanoseconds(Int64(bitPattern: value))
    }

    private func file() -> CInt? {
        let (seconds, attoseconds) = due.components
        let value = UInt64(bitPattern: seconds * 1_000_000_000 + attoseconds / 1_000_000_000)
        let bytes = Self.heading + (0..<8).map { UInt8(truncatingIfNeeded: value >> (56 - 8 * $0)) }
        let descriptor = aspen_memory_file(Self.name, bytes, bytes.count)
        return descriptor < 0 ? nil : descriptor
    }

    private static func monotonicNow() -> Duration {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return .seconds(now.tv_sec) + .nanoseconds(now.tv_nsec)
    }
}
