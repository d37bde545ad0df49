// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import NIOCore
import RaftCore
import RaftStorage

/// One question to the state.
enum StateQuery: Sendable {
    case get([UInt8])
    case range(RangeRequest)
    /// The same, for a client.
    case page(RangeRequest)
    case keys([[UInt8]], at: Revision?)
    case count(CountRequest)
    case history([UInt8], before: Revision?, limit: Int)
    /// `keys`: how many of those attached to it.
    case lease(LeaseID, keys: Int)
    case leases(after: LeaseID, limit: Int)
}

enum StateAnswer: Sendable {
    case value(KeyValue?, revision: Revision)
    case range(RangeOutcome)
    case page(ReadOutcome<ScanPage>)
    case keys(ReadOutcome<KeysPage>)
    case count(ReadOutcome<CountPage>)
    case history(HistoryPage)
    /// `time`: cluster time as of the last entry applied.
    case lease(LeaseRow?, keys: [[UInt8]], time: ClusterTime)
    case leases(LeasesPage, time: ClusterTime)

    /// About what it takes.
    var byteCount: Int {
        switch self {
        case .value(let entry, _): entry?.byteCount ?? 0
        case .range(.page(let page)): page.entries.reduce(0) { $0 + $1.byteCount }
        case .page(.value(let page)): page.body.readableBytes
        case .keys(.value(let page)): page.entries.reduce(0) { $0 + ($1?.byteCount ?? 0) }
        case .history(let page): page.events.reduce(0) { $0 + $1.byteCount }
        case .lease(_, let keys, _): keys.reduce(0) { $0 + $1.count }
        case .range, .page, .keys, .count, .leases: 0
        }
    }
}

/// The answer to a proposal of this process, found in the log by its number.
struct AppliedAnswer: Sendable {
    var number: UInt64
    var index: LogIndex
    var term: Term
    var result: CommandResult
}

/// What the state is after a batch.
struct AppliedBatch: Sendable {
    var index: LogIndex
    var term: Term
    var revision: Revision
    var answers: [AppliedAnswer]
    var facts: HousekeepingFacts
    /// The newest membership of the batch, if it has one.
    var membershipIndex: LogIndex?
    /// What it changed; nil when nobody follows that.
    var changes: ChangeRecording?
    /// What reserved keys say after the batch, if it may have changed them.
    var system: SystemTables?
}

enum StateJob: Sendable {
    /// All applies that are queued one after the other become one transaction.
    case apply([Entry])
    case read(round: UInt64, [StateQuery])
    /// Anything else: runs on the thread, and what it returns runs on the loop.
    case perform(@Sendable (any StateStore) throws -> @Sendable () -> Void)
}

enum StateEvent: Sendable {
    case applied(AppliedBatch)
    /// Perhaps of the first ones only: see `StateThread.answersBytesMax`.
    case answered(round: UInt64, [StateAnswer])
    case performed(@Sendable () -> Void)
    case failed(StorageError)
}

/// The applied state and the thread that may block on it.
// SAFETY: `store`, `failure`, `held`, `answerBytes` and `goesOn` are touched only while holding the
// worker; the rest only on the event loop.
final class StateThread: @unchecked Sendable {
    /// Entries up to which the loop applies by itself when the thread is idle: a wake-up there and
    /// back costs about as much as three entries, more where processors are short. At about 10 µs
    /// each, the loop is then held up no longer than by a sync.
    static let inlineEntriesMax = 24
    /// Entries whose results are small enough together whatever they are.
    static let unboundedEntriesMax = 4
    static let inlineBytesMax = 65_536
    /// Entries in one transaction: bounds how long a reader waits behind it.
    static let batchEntriesMax = 4096
    /// Queries up to which the loop answers by itself, when each looks up one key.
    static let inlineReadsMax = 64
    /// Bytes of answers after which no further query of a round is answered, and nothing more applied
    /// before the loop has taken them: whoever gets them may not read them.
    static let answersBytesMax = 4_194_304
    /// Bytes that the results of entries applied in one go may have. Those that nobody on this node
    /// waits for are gone right after.
    static let resultBytesMax = 16_777_216

    private var store: any StateStore
    private let loop: any EventLoop
    private let node: NodeID
    private let incarnation: UInt64
    let compaction: CompactionPolicy
    private var failure: StorageError?
    /// Entries that wait until there is room for them on the disk, or until the loop has taken the
    /// answers to those before them, and all that came after these.
    private var held: [Entry] = []
    /// Of the answers made since the loop last took what there was.
    private var answerBytes = 0
    /// Entries are held only until the loop has taken the answers.
    private var goesOn = false
    /// Jobs given to the thread whose events have not been delivered: nothing may overtake them.
    private var outstanding = 0
    /// Every batch may end with a checkpoint: nothing for the loop to wait for.
    private var isSpaceTight = false
    private var worker: WorkerThread<StateJob>?

    var onEvents: ([StateEvent]) -> Void = { _ in }

    /// - Parameter incarnation: answers are reported for entries that this process proposed.
    init(
        store: any StateStore, loop: any EventLoop, node: NodeID, incarnation: UInt64,
        compaction: CompactionPolicy
    ) {
        self.compaction = compaction
        self.store = store
        self.loop = loop
        self.node = node
        self.incarnation = incarnation
    }

    func start() {
        worker = WorkerThread { [self] jobs in
            let events = carryOut(jobs)
            let goesOn = goesOn
            loop.execute {
                self.outstanding -= jobs.count
                self.onEvents(events)
                if goesOn { self.tryAgain() }
            }
        }
    }

    func apply(_ entries: [Entry], bytes: Int) {
        loop.assertInEventLoop()
        let isSmall = entries.count <= Self.inlineEntriesMax && bytes <= Self.inlineBytesMax
        run(.apply(entries), inline: isSmall && !isSpaceTight)
    }

    /// - Parameter isCheap: every query looks up one key.
    func read(round: UInt64, _ queries: [StateQuery], isCheap: Bool) {
        loop.assertInEventLoop()
        run(
            .read(round: round, queries),
            inline: isCheap && queries.count <= Self.inlineReadsMax)
    }

    func perform(_ body: @escaping @Sendable (any StateStore) throws -> @Sendable () -> Void) {
        submit(.perform(body))
    }

    private func run(_ job: StateJob, inline isSmall: Bool) {
        if isSmall, outstanding == 0 {
            var events: [StateEvent] = []
            var goesOn = false
            let isDone = worker?.runInline {
                events = carryOut([job])
                goesOn = self.goesOn
            }
            if isDone == true {
                onEvents(events)
                if goesOn { tryAgain() }
                return
            }
        }
        submit(job)
    }

    private func submit(_ job: StateJob) {
        outstanding += 1
        worker?.submit(job)
    }

    private func carryOut(_ jobs: [StateJob]) -> [StateEvent] {
        var events: [StateEvent] = []
        answerBytes = 0
        goesOn = false
        if failure != nil { return events }
        do {
            var waiting: [Entry] = []
            for job in jobs {
                if case .apply(let entries) = job {
                    if waiting.isEmpty { waiting = entries } else { waiting += entries }
                    if waiting.count >= Self.batchEntriesMax { try apply(&waiting, &events) }
                    continue
                }
                try apply(&waiting, &events)
                events.append(try carryOut(job))
            }
            try apply(&waiting, &events)
        } catch {
            let failed = (error as? StorageError) ?? .disk("\(error)")
            failure = failed
            events.append(.failed(failed))
        }
        return events
    }

    private func carryOut(_ job: StateJob) throws -> StateEvent {
        switch job {
        case .apply: preconditionFailure("applies are batched by the caller")
        case .read(let round, let queries):
            var answers: [StateAnswer] = []
            answers.reserveCapacity(queries.count)
            var bytes = 0
            for query in queries where bytes < Self.answersBytesMax {
                let answer = try store.answer(query)
                bytes += answer.byteCount
                answers.append(answer)
            }
            return .answered(round: round, answers)
        case .perform(let body): return .performed(try body(store))
        }
    }

    /// Applies what waits for room and then `entries`, as far as there is room, for them on the disk and
    /// for their answers here: of a full disk nothing is asked that it cannot do. Reads go on meanwhile.
    /// With each job, and each `tryAgain`, it is tried again.
    private func apply(_ entries: inout [Entry], _ events: inout [StateEvent]) throws {
        if !held.isEmpty { held.removeAll { $0.index <= store.appliedIndex } }
        if held.isEmpty { swap(&held, &entries) } else { held += entries }
        entries.removeAll(keepingCapacity: true)
        while !held.isEmpty {
            guard answerBytes < Self.answersBytesMax else {
                goesOn = true
                return
            }
            let room = store.fitting(held)
            guard room > 0 else { return }
            let count = Self.boundedCount(of: held[..<room])
            var batch: [Entry] = []
            if count == held.count {
                swap(&batch, &held)
            } else {
                batch = Array(held.prefix(count))
                held.removeFirst(count)
            }
            try apply(batch, &events)
        }
    }

    /// How many of the entries may be applied in one go, for the results that they may have.
    private static func boundedCount(of entries: ArraySlice<Entry>) -> Int {
        guard entries.count > unboundedEntriesMax else { return entries.count }
        var bound = AnswerBound()
        var bytes = 0
        for (count, entry) in entries.enumerated() {
            bytes += bound.bytes(of: entry)
            if bytes > resultBytesMax { return max(1, count) }
        }
        return entries.count
    }

    private func apply(_ entries: [Entry], _ events: inout [StateEvent]) throws {
        guard let last = entries.last else { return }
        let results = try store.apply(entries)
        precondition(results.count == entries.count, "one result an entry")
        var answers: [AppliedAnswer] = []
        var membershipIndex: LogIndex?
        var isSystemTouched = false
        for (entry, result) in zip(entries, results) {
            if entry.kind == .membership { membershipIndex = entry.index }
            if SystemTables.mayBeChanged(by: entry) { isSystemTouched = true }
            guard let origin = entry.origin, origin.node == node,
                origin.incarnation == incarnation
            else { continue }
            answerBytes += result.byteCount
            answers.append(
                AppliedAnswer(
                    number: origin.number, index: entry.index, term: entry.term, result: result))
        }
        events.append(
            .applied(
                AppliedBatch(
                    index: last.index, term: last.term, revision: store.revision, answers: answers,
                    facts: HousekeepingFacts(store, compaction), membershipIndex: membershipIndex,
                    changes: store.takeRecording(),
                    system: isSystemTouched ? try SystemTables(reading: store) : nil)))
    }

    /// There may be room on the disk now.
    func tryAgain() { submit(.perform { _ in {} }) }

    func setSpaceTight(_ isTight: Bool) {
        isSpaceTight = isTight
        submit(
            .perform { store in
                try store.setSpaceTight(isTight)
                return {}
            })
    }

    /// Finishes what is queued, writes a last checkpoint and closes the state. Blocks.
    func stop() {
        worker?.submit(
            .perform { store in
                _ = try store.checkpoint()
                return {}
            })
        worker?.stop()
        worker = nil
        store.close()
        store = MemoryState()
        failure = .disk("the state is closed")
    }
}
