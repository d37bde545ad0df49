// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import Synchronization

/// How long work that nobody waits for rests after a slice of it, so that whoever shares the
/// processors with it hardly notices.
///
/// Niceness says that only within a control group and a session (sched(7), autogroups); between two
/// services the kernel shares processors as if both were urgent. But it also counts how long a
/// thread stood in a queue for a processor: where that is nothing, nobody else wanted it and the work
/// goes on at once; where it is not, others wait for this thread as well, and it rests.
struct BackgroundPace {
    /// Rests so many times as long as it had to wait for a processor.
    static let waitShare = 4
    /// But no longer than so many times what it was busy: it gets a fifth of a processor at least.
    static let busyShare = 4
    /// Nor than this, in nanoseconds.
    static let restMax = 50_000_000

    /// What the kernel has counted of a thread, in nanoseconds.
    struct Figures: Equatable {
        var busy: Int
        var waited: Int
    }

    private var last: Figures?

    /// - Parameter now: of the same thread each time; nil where the kernel does not count.
    /// - Returns: nanoseconds to rest before the next slice.
    mutating func rest(after now: Figures?) -> Int {
        defer { last = now }
        guard let last, let now else { return 0 }
        let (busy, waited) = (now.busy - last.busy, now.waited - last.waited)
        return max(0, min(waited * Self.waitShare, busy * Self.busyShare, Self.restMax))
    }
}

/// What the kernel counts of one thread: `/proc/thread-self/schedstat` (proc(5)).
final class SchedulerFigures {
    private let descriptor: CInt

    /// Of the thread that calls.
    init() { descriptor = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC) }

    deinit { if descriptor >= 0 { close(descriptor) } }

    /// Nil where the kernel does not count, or `/proc` is hidden.
    func read() -> BackgroundPace.Figures? {
        guard descriptor >= 0 else { return nil }
        let text = withUnsafeTemporaryAllocation(byteCount: 128, alignment: 1) { buffer in
            let count = pread(descriptor, buffer.baseAddress, buffer.count, 0)
            return String(decoding: buffer.prefix(max(0, count)), as: UTF8.self)
        }
        return Self.parse(text)
    }

    static func parse(_ text: String) -> BackgroundPace.Figures? {
        let fields = text.split(whereSeparator: \.isWhitespace)
        guard fields.count == 3, let busy = Int(fields[0]), let waited = Int(fields[1])
        else { return nil }
        return BackgroundPace.Figures(busy: busy, waited: waited)
    }
}

/// The two together.
// SAFETY: `isHurried` is atomic; the rest belongs to the thread that rests, always the same one.
final class ThreadPace: @unchecked Sendable {
    private var pace = BackgroundPace()
    private lazy var figures = SchedulerFigures()
    private let isHurried = Atomic(false)

    /// Blocks for as long as the pace says.
    func rest() {
        guard !isHurried.load(ordering: .relaxed) else { return }
        let nanoseconds = pace.rest(after: figures.read())
        guard nanoseconds > 0 else { return }
        var time = timespec(tv_sec: 0, tv_nsec: nanoseconds)
        // A signal that ends it early does no harm.
        nanosleep(&time, nil)
    }

    /// Somebody waits now: no further rest. On any thread.
    func hurry() { isHurried.store(true, ordering: .relaxed) }
}
