// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import DequeModule
import NIOCore

/// Carries requests through lost connections, elections and dead endpoints until their deadline,
/// without ever applying one twice. Confined to its event loop.
///
/// What may be sent again: reads always; writes under a session always, with the same number;
/// anything else only when the server said that it was not carried out (`retry == .safe`).
final class RequestEngine {
    /// Calls that may wait in one client, for a connection, a session or an answer.
    static let callsMax = 10_000
    /// How long one attempt may go unanswered before another endpoint is asked.
    static let attemptTimeout = TimeAmount.seconds(3)
    static let backoffMin = Duration.milliseconds(10)
    static let backoffMax = Duration.milliseconds(250)
    /// With less than this left an attempt is not made again: its answer would come after the deadline,
    /// and what is known not to be carried out would become unknown.
    static let retryTimeMin = TimeAmount.milliseconds(20)
    /// A server is told at most so much less time than there is, and less of a short time: its reason for
    /// giving up then comes before the caller's time is over.
    static let answerTimeMax = TimeAmount.milliseconds(300)
    /// How long `close` waits for the end of the session.
    static let closeTimeout = TimeAmount.milliseconds(250)
    /// So many UNAVAILABLE answers in a row, and another endpoint is tried.
    static let unavailableMax = 2
    /// Ids of the engine's own calls begin here.
    static let firstInternalID = UInt64(1) << 63

    enum Kind {
        case read
        /// Numbered under the session.
        case write
        /// Administration: changes something, but has no place for a number.
        case unnumbered
        /// Sends nothing: done when there is a connection.
        case connect
    }

    typealias Completion = (Result<WireResponse, AspenError>) -> Void

    final class Call {
        let id: UInt64
        var request: WireRequest
        let kind: Kind
        let budget: Duration
        let deadline: NIODeadline
        let completion: Completion
        var attempts = 0
        var lastError: AspenError?
        /// An attempt was sent whose fate is unknown.
        var mayHaveBeenApplied = false
        var numbered: (session: UInt64, number: UInt64)?
        var inFlight: (connection: ClientConnection, id: UInt64)?
        var deadlineTimer: Scheduled<Void>?
        var stepTimer: Scheduled<Void>?

        var changes: Bool { kind == .write || kind == .unnumbered }

        init(
            id: UInt64, _ request: WireRequest, _ kind: Kind, budget: Duration,
            completion: @escaping Completion
        ) {
            self.id = id
            self.request = request
            self.kind = kind
            self.budget = budget
            self.deadline = .now() + TimeAmount(budget)
            self.completion = completion
        }
    }

    let loop: any EventLoop
    let usesSessions: Bool
    /// Of a connection with a watch: then whoever should speak is taken to be gone.
    let watchSilenceMax: TimeAmount
    private let dialer: Dialer
    private var calls: [UInt64: Call] = [:]
    private var nextInternalID = RequestEngine.firstInternalID
    private(set) var isClosed = false
    /// Told when the client is closed.
    var watches: [ObjectIdentifier: ClientWatch] = [:]

    // The connection.
    private(set) var connection: ClientConnection?
    private var isConnecting = false
    private var endpointIndex = 0
    private var connectAttempts = 0
    private var unavailableInARow = 0
    private var waitingForConnection: Deque<UInt64> = []

    // The session; see SessionKeeping.swift.
    var session: ClientSession?
    var isOpeningSession = false
    /// The call that asks for it.
    var sessionCall: UInt64?
    var waitingForSession: Deque<UInt64> = []
    var lastSessionUse = NIODeadline.now()
    var keepAlive: RepeatedTask?

    init(endpoints: [Endpoint], options: AspenClient.Options, loop: any EventLoop) {
        dialer = Dialer(endpoints: endpoints, loop: loop)
        usesSessions = options.usesSessions
        watchSilenceMax = TimeAmount(options.watchSilenceMax)
        self.loop = loop
    }

    // MARK: - A call's life

    /// `completion` is called exactly once, on the loop.
    func submit(_ call: Call) {
        guard !isClosed else {
            return call.completion(
                .failure(AspenError(.unavailable, "this client has been closed", retry: .safe)))
        }
        guard calls.count < Self.callsMax || call.id >= Self.firstInternalID else {
            return call.completion(
                .failure(
                    AspenError(
                        .resourceExhausted,
                        "\(Self.callsMax) requests are waiting in this client: wait for answers "
                            + "before you send more",
                        retry: .safe)))
        }
        calls[call.id] = call
        call.deadlineTimer = loop.assumeIsolated().scheduleTask(deadline: call.deadline) {
            self.expire(call)
        }
        route(call)
    }

    /// A call of the engine's own; its id never meets the callers'.
    @discardableResult
    func submit(
        internal request: WireRequest, budget: Duration, completion: @escaping Completion
    ) -> UInt64 {
        nextInternalID += 1
        let id = nextInternalID
        submit(Call(id: id, request, .read, budget: budget, completion: completion))
        return id
    }

    func call(_ id: UInt64) -> Call? { calls[id] }

    func cancel(_ id: UInt64) {
        guard let call = calls[id] else { return }
        let isUnknown = call.changes && (call.inFlight != nil || call.mayHaveBeenApplied)
        finish(
            call,
            .failure(
                isUnknown
                    ? AspenError(
                        .unknownOutcome,
                        "the caller cancelled the request after it was sent; whether it was "
                            + "carried out is unknown", retry: .withSession)
                    : .cancelled))
    }

    func finish(_ call: Call, _ result: Result<WireResponse, AspenError>) {
        guard calls.removeValue(forKey: call.id) != nil else { return }
        call.deadlineTimer?.cancel()
        call.stepTimer?.cancel()
        if let (connection, id) = call.inFlight { connection.abandon(id) }
        call.inFlight = nil
        releaseNumber(of: call)
        call.completion(result)
    }

    private func expire(_ call: Call) {
        let isInFlight = call.inFlight != nil
        let error = deadlineError(call, isInFlight: isInFlight)
        // A node that swallows requests is not asked again first.
        if isInFlight { tryAnotherEndpoint() }
        finish(call, .failure(error))
    }

    private func deadlineError(_ call: Call, isInFlight: Bool) -> AspenError {
        let isUnknown = call.changes && (isInFlight || call.mayHaveBeenApplied)
        let gaveUp = "gave up after \(call.budget.text)"
        if isInFlight {
            let place = call.inFlight?.connection.endpoint.name ?? "the cluster"
            return AspenError(
                .deadlineExceeded,
                "no answer from \(place) within \(call.budget.text)"
                    + (isUnknown
                        ? "; whether the request was carried out is unknown: read the state before "
                            + "you repeat it"
                        : "; allow more time, or look at `aspen-cli cluster health`"),
                retry: isUnknown ? .withSession : .safe)
        }
        // What waits for the session has been told nothing; who asked for the session has.
        guard let last = call.lastError ?? sessionError(of: call) else {
            return AspenError(
                .unavailable,
                "could not connect to \(dialer.endpoints[endpointIndex].name): \(gaveUp)",
                retry: .safe)
        }
        return AspenError(
            isUnknown ? .unknownOutcome : last.code, "\(last.message) (\(gaveUp))",
            retry: isUnknown ? .withSession : last.retry)
    }

    // MARK: - An attempt

    /// Sends the call, or puts it where it has to wait.
    func route(_ call: Call) {
        guard !isClosed, calls[call.id] != nil else { return }
        if call.kind == .write, usesSessions, !prepareNumber(of: call) { return }
        guard let connection, connection.isOpen else {
            waitingForConnection.append(call.id)
            return connect()
        }
        if call.kind == .connect { return finish(call, .success(WireResponse())) }
        transmit(call, on: connection)
    }

    private func transmit(_ call: Call, on connection: ClientConnection) {
        let left = call.deadline - .now()
        guard left > .nanoseconds(0) else { return }
        let patience = left - Self.answerTime(of: left)
        call.request.timeoutMs = UInt32(clamping: max(1, patience.nanoseconds / 1_000_000))
        if let (_, number) = call.numbered, let session {
            call.request.stamp(session.stamp(number))
            lastSessionUse = .now()
        }
        call.attempts += 1
        let id = connection.send(call.request, isRead: !call.changes) { [weak self] in
            self?.answered(call, $0)
        }
        guard let id else { return }
        call.inFlight = (connection, id)
        guard isRepeatable(call), dialer.endpoints.count > 1, left > Self.attemptTimeout else {
            return
        }
        call.stepTimer = loop.assumeIsolated().scheduleTask(in: Self.attemptTimeout) {
            self.attemptTimedOut(call)
        }
    }

    static func answerTime(of left: TimeAmount) -> TimeAmount {
        min(.nanoseconds(left.nanoseconds / 10), answerTimeMax)
    }

    private func isRepeatable(_ call: Call) -> Bool {
        call.kind == .read || call.numbered != nil
    }

    private func attemptTimedOut(_ call: Call) {
        guard let (connection, id) = call.inFlight else { return }
        connection.abandon(id)
        if connection === self.connection { tryAnotherEndpoint() }
        answered(
            call,
            .failure(
                AspenError(
                    .unavailable, "\(connection.endpoint.name) does not answer",
                    retry: .withSession)))
    }

    private func answered(_ call: Call, _ result: Result<WireResponse, AspenError>) {
        call.inFlight = nil
        call.stepTimer?.cancel()
        guard calls[call.id] != nil else { return }
        switch result {
        case .success:
            unavailableInARow = 0
            finish(call, result)
        case .failure(let error): failed(call, error)
        }
    }

    private func failed(_ call: Call, _ error: AspenError) {
        call.lastError = error
        if error.code == .unavailable {
            unavailableInARow += 1
            if unavailableInARow >= Self.unavailableMax { tryAnotherEndpoint() }
        }
        if error.code == .sessionExpired, call.kind == .write, let (session, _) = call.numbered {
            dropSession(session)
            // Never sent before under this session: it cannot have been carried out.
            if !call.mayHaveBeenApplied { return retry(call) }
            return finish(call, .failure(.expiredUnderARetry))
        }
        switch error.retry {
        case .never:
            // Refused before anybody looked whether an earlier attempt was carried out.
            let isRefusal = error.code == .resourceExhausted
            finish(call, .failure(isRefusal ? deadlineless(call, error) : error))
        case .safe: retry(call)
        case .withSession:
            call.mayHaveBeenApplied = call.changes
            if isRepeatable(call) { retry(call) } else { finish(call, .failure(error)) }
        }
    }

    private func retry(_ call: Call) {
        let delay = Self.backoff(attempt: call.attempts)
        guard .now() + delay + Self.retryTimeMin < call.deadline else {
            // Wait for the deadline's own error only when an answer may still come: here none can.
            return finish(call, .failure(deadlineError(call, isInFlight: false)))
        }
        call.stepTimer = loop.assumeIsolated().scheduleTask(in: delay) { self.route(call) }
    }

    /// Doubles from `backoffMin` to `backoffMax`, and each is drawn from its upper half, so that
    /// clients that failed together do not come back together.
    static func backoff(attempt: Int) -> TimeAmount {
        let exponent = UInt64(min(max(attempt - 1, 0), 16))
        let full = min(backoffMin * Int(1 << exponent), backoffMax)
        let nanoseconds = TimeAmount(full).nanoseconds
        return .nanoseconds(Int64.random(in: nanoseconds / 2...nanoseconds))
    }

    // MARK: - The connection

    func connect() {
        guard !isConnecting, !isClosed, connection == nil else { return }
        isConnecting = true
        connectAttempts += 1
        dialer.dial(from: endpointIndex) { [weak self] outcome in
            guard let self else {
                if case .success(let (connection, _)) = outcome { connection.close() }
                return
            }
            switch outcome {
            case .success(let (connection, index)): self.connected(connection, index)
            case .failure(let failure): self.couldNotConnect(failure)
            }
        }
    }

    /// Dials until there is a connection. `completion` gets nil, or why there is none.
    func waitForConnection(budget: Duration, _ completion: @escaping (AspenError?) -> Void) {
        nextInternalID += 1
        let call = Call(id: nextInternalID, WireRequest(), .connect, budget: budget) { result in
            switch result {
            case .success: completion(nil)
            case .failure(let error): completion(error)
            }
        }
        submit(call)
    }

    private func connected(_ connection: ClientConnection, _ index: Int) {
        isConnecting = false
        guard !isClosed else { return connection.close() }
        connectAttempts = 0
        endpointIndex = index
        self.connection = connection
        connection.onClosed = { [weak self, weak connection] _ in
            guard let self, connection === self.connection else { return }
            self.connection = nil
            self.moveToNextEndpoint()
        }
        guard connection.isOpen else {
            self.connection = nil
            return connect()
        }
        let waiting = waitingForConnection
        waitingForConnection = []
        for id in waiting {
            if let call = calls[id] { route(call) }
        }
    }

    private func couldNotConnect(_ failure: ConnectFailure) {
        isConnecting = false
        let waiting = waitingForConnection.compactMap { calls[$0] }
        waitingForConnection = Deque(waiting.map(\.id))
        for call in waiting { call.lastError = failure.error }
        if failure.isLasting {
            waitingForConnection = []
            for call in waiting {
                finish(call, .failure(deadlineless(call, failure.error)))
            }
            return
        }
        guard !waiting.isEmpty, !isClosed else { return }
        loop.assumeIsolated().scheduleTask(in: Self.backoff(attempt: connectAttempts)) {
            [weak self] in self?.connect()
        }
    }

    private func deadlineless(_ call: Call, _ error: AspenError) -> AspenError {
        guard call.mayHaveBeenApplied else { return error }
        return AspenError(
            .unknownOutcome,
            "\(error.message); whether the request was carried out before is unknown",
            retry: .withSession)
    }

    private func moveToNextEndpoint() {
        endpointIndex = (endpointIndex + 1) % dialer.endpoints.count
    }

    /// What is in flight may still be answered by the old one.
    func tryAnotherEndpoint() {
        unavailableInARow = 0
        guard dialer.endpoints.count > 1, let old = connection else { return }
        connection = nil
        moveToNextEndpoint()
        old.drain()
    }

    // MARK: - The end

    /// Ends the session so that the cluster need not wait for it to expire, then closes.
    func close(_ completion: @escaping () -> Void) {
        guard !isClosed else { return completion() }
        isClosed = true
        keepAlive?.cancel()
        for watch in watches.values { watch.clientClosed() }
        watches = [:]
        let abandoned = calls.values.sorted { $0.id < $1.id }
        for call in abandoned { cancel(call.id) }
        guard let session, let connection, connection.isOpen else {
            connection?.close()
            connection = nil
            return completion()
        }
        var request = WireRequest()
        request.timeoutMs = UInt32(Self.closeTimeout.nanoseconds / 1_000_000)
        request.closeSession.session = session.id
        self.session = nil
        connection.send(request, deadline: .now() + Self.closeTimeout) { _ in
            connection.close()
            self.connection = nil
            completion()
        }
    }
}

extension AspenError {
    static let expiredUnderARetry = AspenError(
        .unknownOutcome,
        "the session expired while the request was being retried; whether it was carried out is "
            + "unknown: read the state before you repeat it",
        retry: .withSession)
}

extension Duration {
    /// "250 ms", "5 s", "1.5 s".
    package var text: String {
        let (seconds, attoseconds) = components
        let milliseconds = seconds * 1000 + attoseconds / 1_000_000_000_000_000
        if milliseconds < 1000 { return "\(milliseconds) ms" }
        let tenths = (milliseconds + 50) / 100
        return tenths % 10 == 0 ? "\(tenths / 10) s" : "\(tenths / 10).\(tenths % 10) s"
    }
}
