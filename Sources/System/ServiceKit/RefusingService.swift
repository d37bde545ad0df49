// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Logging
import NIOCore

/// What a daemon that cannot start says on one of its sockets, in that socket's protocol.
package struct SocketRefusal: Sendable {
    package enum Answer: Sendable {
        case reply(ByteBuffer)
        /// It expects no answer to this frame.
        case nothing
        case close
    }

    package let socket: String
    /// Called for each connection; what it returns, for each of the connection's frames.
    package let answerer: @Sendable (AspenError) -> (ByteBuffer) -> Answer

    package init(
        socket: String, answerer: @escaping @Sendable (AspenError) -> (ByteBuffer) -> Answer
    ) {
        self.socket = socket
        self.answerer = answerer
    }
}

/// Takes a daemon's place when its configuration, its secrets or its state directory let it not
/// start: accepts connections and answers every request with the reason. Confined to its loop.
///
/// A process that ended instead would be started again and again without ever being of use, and its
/// callers would wait at a socket that nobody serves.
// SAFETY: confined to `loop`; futures and the drain closure only carry the reference.
package final class RefusingService: @unchecked Sendable {
    private let reason: AspenError
    private let loop: any EventLoop
    private let logger: Logger
    private var listeners: [any RunningListener] = []
    private var connections: [ObjectIdentifier: FrameChannel] = [:]

    package init(reason: AspenError, loop: any EventLoop, logger: Logger) {
        self.reason = reason
        self.loop = loop
        self.logger = logger
    }

    /// Whether staying up to say so is better than to end: for what only a person can mend.
    package static func isFor(_ error: any Error) -> Bool {
        guard let error = error as? AspenError else { return false }
        switch error.code {
        case .invalidArgument, .permissionDenied, .unauthenticated, .storage, .corrupt,
            .unsupportedVersion:
            return true
        default: return false
        }
    }

    package func start(
        _ sockets: inout ActivatedSockets, _ refusals: [SocketRefusal]
    ) -> EventLoopFuture<Void> {
        let listening = refusals.flatMap { refusal in
            sockets.take(refusal.socket).map { listen($0, refusal) }
        }
        return EventLoopFuture.andAllSucceed(listening, on: loop)
    }

    private func listen(_ descriptor: CInt, _ refusal: SocketRefusal) -> EventLoopFuture<Void> {
        Listener.start(descriptor: descriptor, on: loop) { [unowned self] channel in
            try accept(channel, refusal)
        }.map { self.listeners.append($0) }
    }

    private func accept(_ channel: any Channel, _ refusal: SocketRefusal) throws {
        guard connections.count < Limits.connectionsMax else {
            throw AspenError(.resourceExhausted, "too many connections")
        }
        let frames = FrameChannel()
        let answer = refusal.answerer(reason)
        connections[ObjectIdentifier(frames)] = frames
        frames.onFrame = { frames, frame in
            switch answer(frame) {
            case .reply(let content): frames.send(content)
            case .nothing: break
            case .close: frames.close()
            }
            // Whoever does not read the answers is not waited for.
            if !frames.isWritable { frames.close() }
        }
        frames.onClosed = { [weak self] frames, _ in
            self?.connections[ObjectIdentifier(frames)] = nil
            frames.onFrame = { _, _ in }
        }
        try channel.pipeline.syncOperations.addHandler(frames)
    }

    package func drain() -> EventLoopFuture<Void> {
        for listener in listeners { listener.close() }
        for frames in connections.values { frames.close() }
        return loop.makeSucceededVoidFuture()
    }
}
