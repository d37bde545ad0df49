// SPDX-License-Identifier: GPL-2.0-or-later

import AspenClient
import AspenTypes
import AspenWire
import DequeModule
import NIOCore

/// The clients of one event loop. Confined to it.
final class Lane {
    /// How long a client waits before it redials, or sends again after an error.
    static let pause = TimeAmount.milliseconds(10)

    /// A connection that is redialled when it goes, and the clients that use it.
    private final class Line {
        let endpoint: Endpoint
        var connection: ClientConnection?
        /// Those who wait for a connection.
        var waiting: [Client] = []
        /// Watches that each connection of this line follows.
        var watchers = 0
        init(_ endpoint: Endpoint) { self.endpoint = endpoint }
    }

    /// Has one request in flight at most.
    private final class Client {
        let line: Line
        var progress: Workload.Progress
        init(_ line: Line, number: Int) {
            self.line = line
            progress = Workload.Progress(client: number)
        }
    }

    private let plan: LoadPlan
    private let loop: any EventLoop
    private var workload: Workload
    private let lines: [Line]
    private let clientCount: Int
    private let firstClient: Int
    private let share: Int?
    /// Nil: a closed loop.
    private var pace: Pace?
    /// With a pace: the clients that have nothing to do.
    private var idle: Deque<Client> = []
    private var isStopped = false
    private var isMeasuring = false
    private var measuringSince = NIODeadline.now()
    /// Bytes of connections that are gone, and of all of them before the measuring began.
    private var bytesOfGone = (sent: UInt64(0), received: UInt64(0))
    private var bytesBefore = (sent: UInt64(0), received: UInt64(0))
    /// Requests that may still be counted, when the run ends by count.
    private var left = Int.max
    private var result = LaneResult()
    private var done: EventLoopPromise<LaneResult>?

    init(_ plan: LoadPlan, number: Int, of lanes: Int, loop: any EventLoop) {
        self.plan = plan
        self.loop = loop
        func part(_ whole: Int) -> Int { whole / lanes + (number < whole % lanes ? 1 : 0) }
        func sumBefore(_ whole: Int) -> Int {
            (0..<number).reduce(0) { $0 + whole / lanes + ($1 < whole % lanes ? 1 : 0) }
        }
        workload = Workload(
            plan, seed: plan.seed &+ UInt64(number), firstKey: plan.keys / lanes * number)
        let first = sumBefore(plan.connections)
        lines = (0..<part(plan.connections)).map {
            Line(plan.endpoints[(first + $0) % plan.endpoints.count])
        }
        for watcher in 0..<part(plan.watchers) where !lines.isEmpty {
            lines[watcher % lines.count].watchers += 1
        }
        clientCount = part(plan.clients)
        firstClient = sumBefore(plan.clients)
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
        for client in 0..<clientCount {
            step(Client(lines[client % lines.count], number: firstClient + client))
        }
    }

    func measure() -> EventLoopFuture<LaneResult> {
        let promise = loop.makePromise(of: LaneResult.self)
        done = promise
        isMeasuring = true
        measuringSince = .now()
        bytesBefore = bytes
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
        guard isMeasuring else { return }
        isMeasuring = false
        result.bytesSent = bytes.sent - bytesBefore.sent
        result.bytesReceived = bytes.received - bytesBefore.received
        done?.succeed(result)
        done = nil
    }

    private var bytes: (sent: UInt64, received: UInt64) {
        lines.reduce(into: bytesOfGone) {
            $0.sent += $1.connection?.bytesSent ?? 0
            $0.received += $1.connection?.bytesReceived ?? 0
        }
    }

    func stop() {
        isStopped = true
        for line in lines { line.connection?.close() }
    }

    // MARK: - A client

    private func step(_ client: Client) {
        guard !isStopped else { return }
        guard let connection = client.line.connection, connection.isOpen else {
            client.line.waiting.append(client)
            return
        }
        guard pace == nil else {
            idle.append(client)
            return dispatch()
        }
        send(for: client, connection, due: .now())
    }

    /// Gives what is due to the clients that are free.
    private func dispatch() {
        while !isStopped, let client = idle.first {
            guard let due = pace?.takeDue(.now()) else { return awaitDue() }
            idle.removeFirst()
            guard let connection = client.line.connection, connection.isOpen else {
                client.line.waiting.append(client)
                pace?.giveBack(due)
                continue
            }
            send(for: client, connection, due: due)
        }
    }

    private func awaitDue() {
        guard let next = pace?.nextWake() else { return }
        loop.assumeIsolated().scheduleTask(deadline: next) {
            self.pace?.isWaking = false
            self.dispatch()
        }
    }

    private func send(for client: Client, _ connection: ClientConnection, due start: NIODeadline) {
        // A request sent before the measuring began would be counted with its whole latency.
        let counts = isMeasuring
        let request = workload.next(&client.progress)
        connection.send(request, deadline: .now() + TimeAmount(plan.timeout)) { [self] in
            switch $0 {
            case .success(let response):
                Workload.learn(response, &client.progress)
                record(counts) { result in
                    if !workload.isRight(response) {
                        result.wrong += 1
                    } else if plan.watchers > 0 {
                        result.puts += 1
                    } else {
                        countRight(since: start, &result)
                    }
                }
                step(client)
            case .failure(let error):
                client.progress.lease = 0
                record(counts) { $0.count(error) }
                loop.assumeIsolated().scheduleTask(in: Self.pause) { self.step(client) }
            }
        }
    }

    private func countRight(since start: NIODeadline, _ result: inout LaneResult) {
        let now = NIODeadline.now()
        let elapsed = UInt64(max(1, (now - start).nanoseconds))
        result.countRight(latency: elapsed, at: (now - measuringSince).nanoseconds)
        if plan.samples != nil { result.samples.append((start.uptimeNanoseconds, elapsed)) }
    }

    private func record(_ counts: Bool, _ body: (inout LaneResult) -> Void) {
        guard counts, isMeasuring else { return }
        body(&result)
        guard share != nil else { return }
        left -= 1
        if left == 0 { finish() }
    }

    // MARK: - A watch

    private func follow(_ connection: ClientConnection) {
        _ = connection.open(Workload.watch) { [weak self] in
            guard let self, self.isMeasuring else { return }
            switch $0 {
            case .success(let response): self.told(response.watch.events)
            // The next connection begins anew; what was written meanwhile is seen by nobody.
            case .failure(let error): self.result.count(error)
            }
        }
    }

    private func told(_ events: [Aspen_Client_V1_Event]) {
        for event in events {
            guard let stamp = Workload.stamp(event.entry.value) else { continue }
            let written = NIODeadline.uptimeNanoseconds(stamp)
            guard written >= measuringSince, written <= .now() else { continue }
            countRight(since: written, &result)
        }
    }

    // MARK: - A connection

    private func connected(_ line: Line, _ connection: ClientConnection) {
        line.connection = connection
        connection.onClosed = { [weak self, weak line] _ in
            guard let self, let line else { return }
            self.bytesOfGone.sent += line.connection?.bytesSent ?? 0
            self.bytesOfGone.received += line.connection?.bytesReceived ?? 0
            line.connection = nil
            self.redial(line)
        }
        if !connection.isOpen { return redial(line) }
        for _ in 0..<line.watchers { follow(connection) }
        let waiting = line.waiting
        line.waiting = []
        for client in waiting { step(client) }
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
