// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import DequeModule
import NIOCore

// The engine's session: opened by the first write, kept alive while idle, replaced when it expires.
extension RequestEngine {
    /// Gives the call a number of the present session.
    ///
    /// - Returns: false when the call has to wait for a session or for room in its window, or has
    ///   been finished because its old session is gone.
    func prepareNumber(of call: Call) -> Bool {
        guard let session else {
            if call.mayHaveBeenApplied {
                finish(call, .failure(.expiredUnderARetry))
                return false
            }
            call.numbered = nil
            waitingForSession.append(call.id)
            openSession()
            return false
        }
        if let (id, _) = call.numbered, id == session.id { return true }
        if call.mayHaveBeenApplied {
            finish(call, .failure(.expiredUnderARetry))
            return false
        }
        call.numbered = nil
        guard session.hasRoom else {
            waitingForSession.append(call.id)
            return false
        }
        call.numbered = (session.id, takeNumber())
        return true
    }

    private func takeNumber() -> UInt64 {
        guard var session else { preconditionFailure("only called with a session") }
        let number = session.takeNumber()
        self.session = session
        return number
    }

    func releaseNumber(of call: Call) {
        guard let (id, number) = call.numbered else { return }
        call.numbered = nil
        guard session?.id == id else { return }
        session?.finish(number)
        admitWaiting()
    }

    private func admitWaiting() {
        while !isClosed, session?.hasRoom == true, let id = waitingForSession.popFirst() {
            if let call = call(id) { route(call) }
        }
    }

    func dropSession(_ id: UInt64) {
        guard session?.id == id else { return }
        session = nil
        keepAlive?.cancel()
        keepAlive = nil
    }

    private func openSession() {
        guard !isOpeningSession else { return }
        isOpeningSession = true
        var request = WireRequest()
        request.openSession = .init()
        let patience = waitingForSession.compactMap { call($0)?.deadline }.max() ?? .now()
        let left = Duration.nanoseconds(max(1, (patience - .now()).nanoseconds))
        sessionCall = submit(internal: request, budget: left) { [weak self] result in
            self?.sessionAnswered(result)
        }
    }

    /// Why there is no session yet, for a call that waits for one.
    func sessionError(of call: Call) -> AspenError? {
        guard isOpeningSession, waitingForSession.contains(call.id),
            let opening = sessionCall.flatMap({ self.call($0) })
        else { return nil }
        return opening.lastError
            ?? opening.inFlight.map {
                AspenError(
                    .deadlineExceeded, "no answer from \($0.connection.endpoint.name)",
                    retry: .safe)
            }
    }

    private func sessionAnswered(_ result: Result<WireResponse, AspenError>) {
        isOpeningSession = false
        sessionCall = nil
        switch result {
        case .success(let response):
            guard case .openSession(let opened) = response.response, opened.session != 0 else {
                return failWaiting(.mismatchedAnswer)
            }
            session = ClientSession(id: opened.session)
            lastSessionUse = .now()
            startKeepAlive(timeoutMilliseconds: opened.timeoutMs)
            admitWaiting()
        case .failure(let error): failWaiting(error)
        }
    }

    private func failWaiting(_ error: AspenError) {
        let waiting = waitingForSession
        waitingForSession = []
        for id in waiting {
            if let call = call(id) { finish(call, .failure(error)) }
        }
    }

    /// A third of the time-out, so that two signs of life may be lost.
    private func startKeepAlive(timeoutMilliseconds: UInt64) {
        let interval = TimeAmount.milliseconds(Int64(clamping: max(300, timeoutMilliseconds) / 3))
        let box = NIOLoopBound(self, eventLoop: loop)
        keepAlive = loop.scheduleRepeatedTask(initialDelay: interval, delay: interval) { _ in
            box.value.keepSessionAlive(after: interval)
        }
    }

    private func keepSessionAlive(after interval: TimeAmount) {
        guard let session, .now() - lastSessionUse >= interval else { return }
        lastSessionUse = .now()
        var request = WireRequest()
        request.keepSessionAlive.session = session.id
        submit(internal: request, budget: .nanoseconds(interval.nanoseconds)) {
            [weak self] result in
            if case .failure(let error) = result, error.code == .sessionExpired {
                self?.dropSession(session.id)
            }
        }
    }
}
