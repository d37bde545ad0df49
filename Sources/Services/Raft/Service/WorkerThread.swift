// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// A thread that owns a resource which is used from one thread at a time, and a queue in front of it.
///
/// Everything that is queued when the thread gets to it is run as one batch: under load, batches
/// grow by themselves. When nothing is queued and nobody uses the resource, the owner of the queue
/// may also run a piece of work on its own thread (`runInline`), which saves two wake-ups of a
/// sleeping thread (10–20 µs each).
///
/// The queue is bounded by what feeds it: see the limits of in-flight proposals and reads.
// SAFETY: `queue`, `isHeld` and `isStopping` are touched under `mutex` only; the resource behind
// `run` is touched only by whoever holds `isHeld`.
final class WorkerThread<Job>: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var queue: [Job] = []
    private var isHeld = false
    private var isStopping = false
    private var thread: pthread_t?
    private let niceness: CInt
    private let run: ([Job]) -> Void

    /// - Parameters:
    ///   - niceness: above 0: where processors are short, others go first (see nice(7)).
    ///   - run: called on the thread with everything that was queued, in order.
    init(niceness: CInt = 0, run: @escaping ([Job]) -> Void) {
        self.run = run
        self.niceness = niceness
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(condition, nil)
        start()
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    private func start() {
        let start = ThreadStart { [self] in work() }
        var created = pthread_t()
        let result = pthread_create(
            &created, nil,
            { raw in
                guard let raw else { return nil }
                Unmanaged<ThreadStart>.fromOpaque(raw).takeRetainedValue().body()
                return nil
            }, Unmanaged.passRetained(start).toOpaque())
        precondition(result == 0, "no thread can be started")
        thread = created
    }

    private func work() {
        // Refused by some sandboxes: then it competes as all others do.
        if niceness > 0 { _ = setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, niceness) }
        pthread_mutex_lock(mutex)
        while true {
            while isHeld || (queue.isEmpty && !isStopping) { pthread_cond_wait(condition, mutex) }
            if queue.isEmpty { break }
            var batch: [Job] = []
            swap(&batch, &queue)
            isHeld = true
            pthread_mutex_unlock(mutex)
            run(batch)
            batch = []
            pthread_mutex_lock(mutex)
            isHeld = false
        }
        pthread_mutex_unlock(mutex)
    }

    /// Queues one piece of work for the thread.
    func submit(_ job: Job) {
        pthread_mutex_lock(mutex)
        queue.append(job)
        let isFirst = queue.count == 1 && !isHeld
        pthread_mutex_unlock(mutex)
        if isFirst { pthread_cond_signal(condition) }
    }

    /// Runs `body` here and now if nothing is queued or running; it has the resource to itself.
    /// - Returns: false if it was not run.
    func runInline(_ body: () -> Void) -> Bool {
        pthread_mutex_lock(mutex)
        guard queue.isEmpty, !isHeld, !isStopping else {
            pthread_mutex_unlock(mutex)
            return false
        }
        isHeld = true
        pthread_mutex_unlock(mutex)
        body()
        pthread_mutex_lock(mutex)
        isHeld = false
        let isWaitedFor = !queue.isEmpty || isStopping
        pthread_mutex_unlock(mutex)
        if isWaitedFor { pthread_cond_signal(condition) }
        return true
    }

    /// Finishes what is queued, then ends the thread. Later jobs are never run.
    func stop() {
        pthread_mutex_lock(mutex)
        isStopping = true
        let joined = thread
        thread = nil
        pthread_mutex_unlock(mutex)
        pthread_cond_signal(condition)
        if let joined { pthread_join(joined, nil) }
    }
}

private final class ThreadStart {
    let body: () -> Void
    init(_ body: @escaping () -> Void) { self.body = body }
}
