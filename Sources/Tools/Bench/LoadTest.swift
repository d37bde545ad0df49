// SPDX-License-Identifier: GPL-2.0-or-later

import AspenCLI
import AspenClient
import AspenTypes
import AspenWire
import DequeModule
import Histogram
import NIOCore
import NIOPosix

/// One run: connect, write the keys if they are to be read, warm up, measure.
struct LoadTest {
    /// Transactions in flight while keys are written.
    static let loadersMax = 8

    let plan: LoadPlan

    init(_ plan: LoadPlan) { self.plan = plan }

    func run() async throws -> LoadReport {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: plan.threads)
        let result: Result<LoadReport, any Error>
        do {
            let started = NIODeadline.now()
            if plan.isLoaded { try await load() }
            if plan.kind == .load {
                try? await group.shutdownGracefully()
                var filled = LaneResult()
                filled.written = plan.keys
                let elapsed = Duration.nanoseconds((NIODeadline.now() - started).nanoseconds)
                return LoadReport(plan, [filled], elapsed: elapsed)
            }
            let loops = Array(group.makeIterator())
            let lanes = try await connect(loops)
            result = .success(try await measure(lanes))
        } catch {
            result = .failure(error)
        }
        try? await group.shutdownGracefully()
        return try result.get()
    }

    /// Through the client that retries: missing keys would falsify the reads.
    private func load() async throws {
        guard let endpoint = plan.endpoints.first else { return }
        var options = AspenClient.Options()
        options.timeout = .seconds(30)
        let client = try await AspenClient.connect(endpoint.target, options: options)
        let batch = Limits.transactionOperationsMax
        // A transaction fits into a message.
        let size = max(1, min(batch, 4_000_000 / (plan.keySize + plan.valueSize + 16)))
        let batches = stride(from: 0, to: plan.keys, by: size).map {
            $0..<min($0 + size, plan.keys)
        }
        try await withThrowingTaskGroup { group in
            for loader in 0..<Self.loadersMax {
                group.addTask {
                    var workload = Workload(plan, seed: plan.seed &+ 1000 &+ UInt64(loader))
                    for index in stride(from: loader, to: batches.count, by: Self.loadersMax) {
                        _ = try await client.transaction(
                            if: [], then: workload.loadOperations(batches[index]))
                    }
                }
            }
            try await group.waitForAll()
        }
        await client.close()
    }

    private func connect(_ loops: [any EventLoop]) async throws -> [NIOLoopBound<Lane>] {
        try await withThrowingTaskGroup { group in
            for (number, loop) in loops.enumerated() {
                group.addTask {
                    try await loop.flatSubmit {
                        let lane = Lane(plan, number: number, of: loops.count, loop: loop)
                        let bound = NIOLoopBound(lane, eventLoop: loop)
                        return lane.connect().map { bound }
                    }.get()
                }
            }
            var lanes: [NIOLoopBound<Lane>] = []
            for try await lane in group { lanes.append(lane) }
            return lanes
        }
    }

    private func measure(_ lanes: [NIOLoopBound<Lane>]) async throws -> LoadReport {
        Interruption.watch()
        for lane in lanes { lane.eventLoop.execute { lane.value.start() } }
        try await Task.sleep(for: plan.warmup)
        let started = NIODeadline.now()
        let results = try await withThrowingTaskGroup { group in
            for lane in lanes {
                group.addTask {
                    try await lane.eventLoop.flatSubmit { lane.value.measure() }.get()
                }
            }
            var results: [LaneResult] = []
            for try await result in group { results.append(result) }
            return results
        }
        let elapsed = Duration.nanoseconds((NIODeadline.now() - started).nanoseconds)
        for lane in lanes { lane.eventLoop.execute { lane.value.stop() } }
        return LoadReport(plan, results, elapsed: elapsed)
    }
}

extension Endpoint {
    fileprivate var target: AspenClient.Target {
        switch self {
        case .socket(let path): .socket(path)
        case .node(let id, let addresses, _):
            .ticket(
                Ticket(
                    cluster: ClusterID(0),
                    endpoints: [.init(endpoint: id, addresses: addresses)]))
        }
    }
}

/// What one event loop measured.
struct LaneResult: Sendable {
    /// Nanoseconds from sending to the answer, of right answers.
    var latency = Histogram<UInt64>(numberOfSignificantValueDigits: .three)
    var errors: [String: Int] = [:]
    /// The text of the first error of each code: a count alone helps nobody.
    var texts: [String: String] = [:]
    var wrong = 0
    /// Keys written by `load`.
    var written = 0
    /// Of right answers, if asked for: when the request was due, and its latency, in nanoseconds of
    /// the monotonic clock.
    var samples: [(start: UInt64, latency: UInt64)] = []

    mutating func count(_ error: AspenError) {
        errors[error.code.name, default: 0] += 1
        if texts[error.code.name] == nil { texts[error.code.name] = error.message }
    }
}

/// The clients of one event loop. Confined to it.
final class Lane {
    /// How long a client waits before it redials, or sends again after an error.
    static let pause = TimeAmount.milliseconds(10)

    /// A connection that is redialled when it goes, and the clients that use it.
    private final class Line {
        let endpoint: Endpoint
        var connection: ClientConnection?
        var idleClients = 0
        init(_ endpoint: Endpoint) { self.endpoint = endpoint }
    }

    private let plan: LoadPlan
    private let loop: any EventLoop
    private var workload: Workload
    private let lines: [Line]
    private let clientCount: Int
    private let share: Int?
    /// Nil: a closed loop.
    private var pace: Pace?
    /// With a pace: the lines of clients that have nothing to do.
    private var idle: Deque<Line> = []
    private var isStopped = false
    private var isMeasuring = false
    /// Requests that may still be counted, when the run ends by count.
    private var left = Int.max
    private var result = LaneResult()
    private var done: EventLoopPromise<LaneResult>?

    init(_ plan: LoadPlan, number: Int, of lanes: Int, loop: any EventLoop) {
        self.plan = plan
        self.loop = loop
        func part(_ whole: Int) -> Int { whole / lanes + (number < whole % lanes ? 1 : 0) }
        workload = Workload(plan, seed: plan.seed &+ UInt64(number))
        let first = (0..<number).reduce(0) { sum, lane in
            sum + plan.connections / lanes + (lane < plan.connections % lanes ? 1 : 0)
        }
        lines = (0..<part(plan.connections)).map {
            Line(plan.endpoints[(first + $0) % plan.endpoints.count])
        }
        clientCount = part(plan.clients)
        if case .count(let count) = plan.end { share = part(count) } else { share = nil }
        pace = plan.rate.map { Pace(rate: $0, lanes: lanes) }
    }

    func connect() -> EventLoopFuture<Void> {
        let futures = lines.map { line in
            ClientConnection.connect(to: line.endpoint, on: loop)
                .assumeIsolated()
                .map { self.connected(line, $0.value) }
                .nonisolated()
        }
        return EventLoopFuture.andAllSucceed(futures, on: loop)
            .flatMapErrorThrowing { throw ($0 as? ConnectFailure)?.error ?? $0 }
    }

    func start() {
        guard !lines.isEmpty else { return }
        for client in 0..<clientCount { step(lines[client % lines.count]) }
    }

    func measure() -> EventLoopFuture<LaneResult> {
        let promise = loop.makePromise(of: LaneResult.self)
        done = promise
        isMeasuring = true
        if let share { left = share }
        switch plan.end {
        case .count: if left == 0 { finish() }
        case .time(let duration):
            loop.assumeIsolated().scheduleTask(in: TimeAmount(duration)) { self.finish() }
        }
        heedInterruption()
        return promise.futureResult
    }

    private func heedInterruption() {
        guard isMeasuring else { return }
        if Interruption.isSet { return finish() }
        loop.assumeIsolated().scheduleTask(in: Interruption.interval) { self.heedInterruption() }
    }

    private func finish() {
        isMeasuring = false
        done?.succeed(result)
        done = nil
    }

    func stop() {
        isStopped = true
        for line in lines { line.connection?.close() }
    }

    // MARK: - A client

    private func step(_ line: Line) {
        guard !isStopped else { return }
        guard let connection = line.connection, connection.isOpen else {
            line.idleClients += 1
            return
        }
        guard pace == nil else {
            idle.append(line)
            return dispatch()
        }
        send(on: line, connection, due: .now())
    }

    /// Gives what is due to the clients that are free.
    private func dispatch() {
        while !isStopped, let line = idle.first {
            guard let due = pace?.takeDue(.now()) else { return awaitDue() }
            idle.removeFirst()
            guard let connection = line.connection, connection.isOpen else {
                line.idleClients += 1
                pace?.giveBack(due)
                continue
            }
            send(on: line, connection, due: due)
        }
    }

    private func awaitDue() {
        guard let next = pace?.nextWake() else { return }
        loop.assumeIsolated().scheduleTask(deadline: next) {
            self.pace?.isWaking = false
            self.dispatch()
        }
    }

    private func send(on line: Line, _ connection: ClientConnection, due start: NIODeadline) {
        // A request sent before the measuring began would be counted with its whole latency.
        let counts = isMeasuring
        connection.send(workload.next(), deadline: .now() + TimeAmount(plan.timeout)) {
            [self] in
            switch $0 {
            case .success(let response):
                record(counts) { result in
                    if workload.isRight(response) {
                        let elapsed = UInt64(max(1, (NIODeadline.now() - start).nanoseconds))
                        result.latency.record(elapsed)
                        if plan.samples != nil {
                            result.samples.append((start.uptimeNanoseconds, elapsed))
                        }
                    } else {
                        result.wrong += 1
                    }
                }
                step(line)
            case .failure(let error):
                record(counts) { $0.count(error) }
                loop.assumeIsolated().scheduleTask(in: Self.pause) { self.step(line) }
            }
        }
    }

    private func record(_ counts: Bool, _ body: (inout LaneResult) -> Void) {
        guard counts, isMeasuring else { return }
        body(&result)
        guard share != nil else { return }
        left -= 1
        if left == 0 { finish() }
    }

    // MARK: - A connection

    private func connected(_ line: Line, _ connection: ClientConnection) {
        line.connection = connection
        connection.onClosed = { [weak self, weak line] _ in
            guard let self, let line else { return }
            line.connection = nil
            self.redial(line)
        }
        if !connection.isOpen { return redial(line) }
        let waiting = line.idleClients
        line.idleClients = 0
        for _ in 0..<waiting { step(line) }
    }

    private func redial(_ line: Line) {
        guard !isStopped else { return }
        loop.assumeIsolated().scheduleTask(in: Self.pause) {
            guard !self.isStopped else { return }
            ClientConnection.connect(to: line.endpoint, on: self.loop)
                .assumeIsolated()
                .whenComplete { result in
                    switch result {
                    case .success(let connection): self.connected(line, connection.value)
                    case .failure: self.redial(line)
                    }
                }
        }
    }
}
