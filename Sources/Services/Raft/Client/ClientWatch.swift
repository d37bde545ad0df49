// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import DequeModule
import FoundationEssentials
import NIOCore

/// One watch of a client, through lost connections and dead nodes. Confined to the event loop.
///
/// What it knows is one number: the revision up to which everything has been handed over or waits in
/// `buffer`. Wherever it is opened again it asks for what follows that one, so nothing is missed and
/// nothing comes twice. A consumer that is too slow makes it end the watch on the server, and open it
/// again when the buffer is empty: other requests share the connection, which is never left unread.
final class ClientWatch {
    /// What may wait for the consumer.
    static let bufferBytesMax = 4_194_304
    static let bufferCountMax = 1024
    /// How long it is tried to reach anybody before it is tried anew.
    static let connectBudget = Duration.seconds(10)

    private enum State {
        case idle
        case connecting
        /// Waits before it is tried again.
        case resting
        case open(ClientConnection, id: UInt64)
        /// The buffer is full.
        case paused
        case ended
    }

    typealias Consumer = (Result<WatchUpdate?, AspenError>) -> Void

    private let engine: RequestEngine
    private let loop: any EventLoop
    private let range: KeyRange
    private let options: WatchOptions
    /// The first revision that is wanted; 0: whatever comes after now.
    private var next: UInt64
    private var state = State.idle
    private var buffer: Deque<(update: WatchUpdate, bytes: Int)> = []
    private var bufferBytes = 0
    private var consumer: Consumer?
    private var failure: AspenError?
    private var attempts = 0
    private var openedAt = NIODeadline.now()
    private var silence: Scheduled<Void>?

    init(_ engine: RequestEngine, _ range: KeyRange, from: Revision?, _ options: WatchOptions) {
        self.engine = engine
        self.loop = engine.loop
        self.range = range
        self.options = options
        next = from?.rawValue ?? 0
    }

    // MARK: - The consumer

    /// One at a time.
    func take(_ consumer: @escaping Consumer) {
        if let first = buffer.popFirst() {
            bufferBytes -= first.bytes
            consumer(.success(first.update))
            if buffer.isEmpty, case .paused = state { open() }
            return
        }
        if let failure {
            self.failure = nil
            return consumer(.failure(failure))
        }
        if case .ended = state { return consumer(.success(nil)) }
        self.consumer = consumer
        switch state {
        case .idle:
            engine.watches[ObjectIdentifier(self)] = self
            open()
        case .paused: open()
        default: break
        }
    }

    /// Nobody wants to hear more.
    func cancel() {
        closeOnServer()
        end(nil)
        buffer = []
    }

    func clientClosed() {
        end(AspenError(.unavailable, "this client has been closed", retry: .safe))
    }

    private func deliver(_ update: WatchUpdate, bytes: Int) {
        if let consumer {
            self.consumer = nil
            return consumer(.success(update))
        }
        // Progress replaces progress.
        if update.events.isEmpty, let last = buffer.last, last.update.events.isEmpty {
            buffer.removeLast()
            bufferBytes -= last.bytes
        }
        buffer.append((update, bytes))
        bufferBytes += bytes
        guard bufferBytes > Self.bufferBytesMax || buffer.count > Self.bufferCountMax else {
            return
        }
        closeOnServer()
        state = .paused
    }

    private func end(_ error: AspenError?) {
        if case .ended = state { return }
        state = .ended
        silence?.cancel()
        engine.watches[ObjectIdentifier(self)] = nil
        guard let consumer else {
            failure = error
            return
        }
        self.consumer = nil
        consumer(error.map { .failure($0) } ?? .success(nil))
    }

    // MARK: - The server

    private func open() {
        guard !engine.isClosed else { return clientClosed() }
        guard let connection = engine.connection, connection.isOpen else {
            state = .connecting
            return engine.waitForConnection(budget: Self.connectBudget) { [weak self] failure in
                guard let self, case .connecting = self.state else { return }
                if let failure, failure.code != .unavailable, failure.code != .deadlineExceeded {
                    return self.end(failure)
                }
                if failure == nil { self.open() } else { self.rest() }
            }
        }
        openedAt = .now()
        let id = connection.open(request) { [weak self] in self?.received($0) }
        guard let id else { return rest() }
        guard case .ended = state else {
            state = .open(connection, id: id)
            return scheduleSilence()
        }
    }

    private var request: WireRequest {
        var request = WireRequest()
        request.watch.from = Data(range.from)
        request.watch.to = Data(range.to ?? [])
        request.watch.startRevision = next
        request.watch.previousValues = options.previousValues
        request.watch.noPuts = options.kinds == .deletes
        request.watch.noDeletes = options.kinds == .puts
        request.watch.progress = true
        return request
    }

    private func received(_ result: Result<WireResponse, AspenError>) {
        switch result {
        case .success(let response):
            guard case .watch(let answer)? = response.response else {
                return end(.mismatchedAnswer)
            }
            attempts = 0
            let isNews = next == 0 || answer.revision >= next
            next = max(next, answer.revision + 1)
            guard isNews, !answer.events.isEmpty || options.progress else { return }
            let update = WatchUpdate(
                revision: Revision(answer.revision), events: answer.events.map(KeyEvent.init(wire:))
            )
            var bytes = 64
            for event in answer.events {
                bytes +=
                    128 + event.entry.key.count + event.entry.value.count
                    + event.previous.value.count
            }
            deliver(update, bytes: bytes)
        case .failure(let error):
            switch error.code {
            // The request changes nothing: it may always be sent again.
            case .unavailable, .unknownOutcome, .deadlineExceeded: rest()
            default: end(error)
            }
        }
    }

    private func rest() {
        guard !engine.isClosed else { return clientClosed() }
        silence?.cancel()
        state = .resting
        attempts += 1
        let box = NIOLoopBound(self, eventLoop: loop)
        loop.scheduleTask(in: RequestEngine.backoff(attempt: attempts)) {
            if case .resting = box.value.state { box.value.open() }
        }
    }

    private func closeOnServer() {
        silence?.cancel()
        guard case .open(let connection, let id) = state else { return }
        connection.abandon(id)
        guard connection.isOpen else { return }
        var cancel = WireRequest()
        cancel.cancelWatch.watch = id
        connection.send(cancel, deadline: .now() + engine.watchSilenceMax) { _ in }
    }

    /// A server says something every 5 s, but not to each watch: one may have to wait while others
    /// take all that the connection carries.
    private func scheduleSilence() {
        silence?.cancel()
        guard case .open(let connection, _) = state else { return }
        let heardAt = max(openedAt, connection.heardAt)
        let box = NIOLoopBound(self, eventLoop: loop)
        silence = loop.scheduleTask(deadline: heardAt + engine.watchSilenceMax) {
            box.value.checkSilence()
        }
    }

    private func checkSilence() {
        guard case .open(let connection, _) = state else { return }
        guard .now() - max(openedAt, connection.heardAt) >= engine.watchSilenceMax else {
            return scheduleSilence()
        }
        // There may be no other to go to: then the same server must not serve this one for ever.
        closeOnServer()
        if connection === engine.connection { engine.tryAnotherEndpoint() }
        rest()
    }
}
