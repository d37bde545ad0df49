// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import Glibc
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

/// What the node asks of its log.
enum LogJob: Sendable {
    case write(LogWrite)
    /// Entries for a peer that is behind, or (nil) for our own state machine after a restart.
    case fetch(for: NodeID?, from: LogIndex, upTo: LogIndex, bytesMax: Int)
    /// Everything up to `upTo` is durable in the state; `upTo` and later entries may still be asked
    /// for by peers.
    case discard(upTo: LogIndex)
    /// A snapshot has taken the place of the log.
    case reset(to: LogIndex, term: Term)
    /// A segment to go over into, made elsewhere.
    case adopt(PreparedSegment)
    case preparationFailed(SegmentPreparation)
    /// There may be space now.
    case prepareAgain
}

/// What came of it, in the order of the jobs.
enum LogEvent: Sendable {
    case durable(DurabilityTicket, LogTimes)
    /// A sync took longer than `LogThread.slowSync`.
    case slowSync(Duration)
    case fetched(for: NodeID?, from: LogIndex, entries: [Entry])
    case discarded(upTo: LogIndex, term: Term, firstIndex: LogIndex)
    case reset(to: LogIndex, term: Term)
    /// To be made on another thread.
    case preparation(SegmentPreparation)
    case nothing
    case failed(StorageError)
}

/// The log and the thread that may block on it. However many writes are queued, they share one
/// fdatasync.
///
/// A sync that takes 30 µs is cheaper on the event loop than two thread wake-ups around it; one that
/// takes 4 ms would hold up heartbeats. Which it will be is judged by the last ones: see
/// `isInlineAllowed`.
// SAFETY: `store` and `failure` are touched only while holding the worker; the rest only on the
// event loop.
final class LogThread: @unchecked Sendable {
    /// A sync that takes longer is worth a line in the log: everyone waits for it.
    static let slowSync = Duration.milliseconds(250)
    /// Payload above which a batch always goes to the thread, in bytes.
    static let inlineBytesMax = 262_144
    /// Average sync above which the loop does not wait for the disk, in nanoseconds.
    static let inlineNanosecondsMax: UInt64 = 1_000_000
    /// How long a single slow sync sends all work to the thread, in nanoseconds.
    static let slowPauseNanoseconds: UInt64 = 100_000_000

    private var store: any LogStore
    private let loop: any EventLoop
    private var failure: StorageError?
    /// Jobs given to the thread whose events have not been delivered: nothing may overtake them.
    private var outstanding = 0
    private var worker: WorkerThread<LogJob>?
    private var preparer: WorkerThread<SegmentPreparation>?
    private var averageNanoseconds: UInt64 = 50_000
    private var slowUntil: UInt64 = 0

    /// Called on the event loop with what came of the jobs.
    var onEvents: ([LogEvent]) -> Void = { _ in }
    /// Called on the event loop when a segment was made, or could not be made for want of space.
    var onPreparation: (Bool) -> Void = { _ in }
    /// A preparation that failed is not tried again before.
    private var preparesAgainAt: MonotonicInstant?
    static let preparationPause = Duration.milliseconds(250)

    init(store: any LogStore, loop: any EventLoop) {
        self.store = store
        self.loop = loop
    }

    func start() {
        worker = WorkerThread { [self] jobs in
            let events = carryOut(jobs)
            loop.execute {
                self.outstanding -= jobs.count
                self.onEvents(events)
            }
        }
    }

    /// Carries out `jobs` in order: at once on this loop if the disk is quick and the thread idle,
    /// else on the thread. Events are delivered on the loop either way.
    func submit(_ jobs: [LogJob], bytes: Int) {
        loop.assertInEventLoop()
        if outstanding == 0, bytes <= Self.inlineBytesMax, isInlineAllowed {
            var events: [LogEvent] = []
            let begin = NIODeadline.now().uptimeNanoseconds
            if worker?.runInline({ events = carryOut(jobs) }) == true {
                note(NIODeadline.now().uptimeNanoseconds - begin)
                return onEvents(events)
            }
        }
        for job in jobs { submitToThread(job) }
    }

    /// Only for reads and housekeeping, which may take their time.
    func submitToThread(_ job: LogJob) {
        outstanding += 1
        worker?.submit(job)
    }

    private var isInlineAllowed: Bool {
        averageNanoseconds <= Self.inlineNanosecondsMax
            && (slowUntil == 0 || NIODeadline.now().uptimeNanoseconds >= slowUntil)
    }

    private func note(_ nanoseconds: UInt64) {
        averageNanoseconds = (averageNanoseconds * 15 + nanoseconds) / 16
        let isSlow = nanoseconds > 4 * Self.inlineNanosecondsMax
        if isSlow {
            slowUntil = NIODeadline.now().uptimeNanoseconds + Self.slowPauseNanoseconds
            averageNanoseconds = min(averageNanoseconds, Self.inlineNanosecondsMax)
        } else {
            slowUntil = 0
        }
    }

    private func carryOut(_ jobs: [LogJob]) -> [LogEvent] {
        var events: [LogEvent] = []
        if failure != nil { return events }
        do {
            var written: DurabilityTicket?
            var began = RaftNode.now
            for job in jobs {
                switch job {
                case .write(let write):
                    try store.write(write)
                    written = write.ticket
                default:
                    try sync(&written, began, &events)
                    events.append(try carryOut(job))
                    began = RaftNode.now
                }
            }
            try sync(&written, began, &events)
            // The next segment is prepared beside the log, never in the middle of a write.
            if !isPreparationPaused, let preparation = store.preparation() {
                events.append(.preparation(preparation))
            }
        } catch {
            let failed = (error as? StorageError) ?? .disk("\(error)")
            failure = failed
            events.append(.failed(failed))
        }
        return events
    }

    private var isPreparationPaused: Bool {
        preparesAgainAt.map { RaftNode.now < $0 } ?? false
    }

    private func sync(
        _ ticket: inout DurabilityTicket?, _ began: MonotonicInstant, _ events: inout [LogEvent]
    ) throws {
        guard let written = ticket else { return }
        var times = LogTimes(began: began, written: RaftNode.now, synced: began)
        try store.sync()
        times.synced = RaftNode.now
        let duration = times.synced - times.written
        if duration >= Self.slowSync { events.append(.slowSync(duration)) }
        events.append(.durable(written, times))
        ticket = nil
    }

    private func carryOut(_ job: LogJob) throws -> LogEvent {
        switch job {
        case .write: preconditionFailure("writes are batched by the caller")
        case .fetch(let peer, let from, let upTo, let bytesMax):
            guard from >= store.firstIndex, upTo <= store.lastIndex, from <= upTo else {
                return .fetched(for: peer, from: from, entries: [])
            }
            let entries = try store.read(from: from, upTo: upTo, bytesMax: bytesMax)
            return .fetched(for: peer, from: from, entries: entries)
        case .discard(let upTo):
            let last = min(upTo, store.lastIndex)
            guard last >= store.firstIndex,
                let entry = try store.read(from: last, upTo: last, bytesMax: 1).first
            else {
                let before = store.firstIndex.previous
                return .discarded(upTo: before, term: .zero, firstIndex: store.firstIndex)
            }
            try store.discard(upTo: last, term: entry.term)
            return .discarded(upTo: last, term: entry.term, firstIndex: store.firstIndex)
        case .reset(let index, let term):
            try store.reset(to: index, term: term)
            return .reset(to: index, term: term)
        case .adopt(let segment):
            store.adopt(segment)
            return .nothing
        case .preparationFailed(let preparation):
            preparesAgainAt = RaftNode.now + Self.preparationPause
            store.preparationFailed(preparation)
            return .nothing
        case .prepareAgain: return .nothing
        }
    }

    /// Zeroes a segment: tens of milliseconds of writing, a few times an hour.
    func prepare(_ preparation: SegmentPreparation) {
        if preparer == nil {
            preparer = WorkerThread { [self] preparations in
                for preparation in preparations {
                    let made = Result { try preparation.run() }
                    loop.execute { self.prepared(preparation, made) }
                }
            }
        }
        preparer?.submit(preparation)
    }

    private func prepared(
        _ preparation: SegmentPreparation, _ made: Result<PreparedSegment, any Error>
    ) {
        switch made {
        case .success(let segment):
            submitToThread(.adopt(segment))
            onPreparation(true)
        case .failure(let error):
            // Anything but a full disk is noticed by whoever has to write to it.
            submitToThread(.preparationFailed(preparation))
            if (error as? StorageError)?.isFull == true { onPreparation(false) }
        }
    }

    /// Finishes what is queued and closes the log. Blocks.
    func stop() {
        preparer?.stop()
        preparer = nil
        worker?.stop()
        worker = nil
        store.close()
        // Lets go of the directory's lock.
        store = MemoryLog()
        failure = .disk("the log is closed")
    }
}
