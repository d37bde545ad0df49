// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import NIOCore
import SwiftProtobuf

/// One connection with many requests in flight, paired with their answers by id.
///
/// This is the callback interface: no task, no retry, no session; `aspen-bench` drives it directly,
/// `RequestEngine` puts retries and sessions on top. Confined to its event loop.
package final class ClientConnection {
    package typealias Response = Aspen_Client_V1_ClientResponse
    package typealias Completion = (Result<Response, AspenError>) -> Void

    /// Requests waiting for an answer on one connection.
    package static let requestsInFlightMax = 10_000
    /// Bytes of requests waiting for an answer on one connection: 64 MiB.
    package static let bytesInFlightMax = 67_108_864
    /// A frame shorter than this is copied: that is cheaper than to share its memory.
    private static let copiedBytesMax = 4096
    /// The length and the request id.
    private static let frameHeadBytes = 12
    /// How precisely `deadline` is kept.
    package static let sweepInterval = TimeAmount.milliseconds(50)

    private struct Pending {
        var deadline: NIODeadline
        var bytes: Int
        var completion: Completion
        /// Takes an answer and says whether more are to come; nil: there is only one.
        var part: ((Response) -> Bool)?
        /// Answers come until the first failure: a drain does not wait for it.
        var isStream = false
        /// Changes nothing: there is nothing about it that could be unknown.
        var isRead = false
    }

    package let endpoint: Endpoint
    private let transport: any FrameTransport
    private let loop: any EventLoop
    private var pending: [UInt64: Pending] = [:]
    private var bytesInFlight = 0
    private var nextID: UInt64 = 1
    private var sweep: Scheduled<Void>?
    private var isClosing = false
    /// Called once, after every waiting request has been failed.
    package var onClosed: (AspenError) -> Void = { _ in }
    package private(set) var isOpen = true
    /// Bytes of frames so far, their heads included; what a transport adds is not counted.
    package private(set) var bytesSent: UInt64 = 0
    package private(set) var bytesReceived: UInt64 = 0
    /// When something came last.
    private(set) var heardAt = NIODeadline.now()
    /// What the server said about the connection as a whole, before it closed it.
    private var farewell: AspenError?

    package static func connect(
        to endpoint: Endpoint, on loop: any EventLoop
    ) -> EventLoopFuture<NIOLoopBound<ClientConnection>> {
        endpoint.connect(on: loop).map { transport in
            NIOLoopBound(
                ClientConnection(endpoint, transport.value, loop: transport.eventLoop),
                eventLoop: transport.eventLoop)
        }
    }

    package init(_ endpoint: Endpoint, _ transport: any FrameTransport, loop: any EventLoop) {
        self.endpoint = endpoint
        self.transport = transport
        self.loop = loop
        transport.onFrame = { [weak self] in self?.received($0) }
        transport.onClosed = { [weak self] in self?.lost($0) }
        // It may have been closed before anyone listened.
        if !transport.isOpen { isOpen = false }
    }

    package var inFlightCount: Int { pending.count }

    /// Sends one request. `completion` is called exactly once: with the answer, with the server's
    /// error, `resourceExhausted` before sending when too much is in flight, `unknownOutcome` when
    /// the connection is lost, or `deadlineExceeded` within `sweepInterval` after `deadline`.
    ///
    /// - Parameter isRead: it changes nothing, and gets `unavailable` when the connection is lost.
    /// - Returns: an id for `abandon`, or nil when the request failed before it was sent.
    @discardableResult
    package func send(
        _ request: Aspen_Client_V1_ClientRequest, deadline: NIODeadline = .distantFuture,
        isRead: Bool = false, completion: @escaping Completion
    ) -> UInt64? {
        send(
            request, deadline: deadline, part: nil, isStream: false, isRead: isRead,
            completion: completion)
    }

    /// The same for a request with several answers: `part` gets each, on the loop, and says whether
    /// more are to come; `completion` gets the last one, or the error. While `part` blocks, nothing
    /// more is read.
    @discardableResult
    package func send(
        _ request: Aspen_Client_V1_ClientRequest, deadline: NIODeadline = .distantFuture,
        part: @escaping (Response) -> Bool, completion: @escaping Completion
    ) -> UInt64? {
        send(request, deadline: deadline, part: part, isStream: false, completion: completion)
    }

    /// Sends a request that is answered by a stream. `each` is called with every answer, and for the
    /// last time with a failure, unless the stream is abandoned before. A drain ends it.
    package func open(
        _ request: Aspen_Client_V1_ClientRequest, each: @escaping Completion
    ) -> UInt64? {
        let part: (Response) -> Bool = { response in
            each(.success(response))
            return true
        }
        return send(
            request, deadline: .distantFuture, part: part, isStream: true, completion: each)
    }

    private func send(
        _ request: Aspen_Client_V1_ClientRequest, deadline: NIODeadline,
        part: ((Response) -> Bool)?, isStream: Bool, isRead: Bool = false,
        completion: @escaping Completion
    ) -> UInt64? {
        guard isOpen, !isClosing else {
            completion(.failure(AspenError(.unavailable, "the connection is closed", retry: .safe)))
            return nil
        }
        guard let bytes = try? request.serializedBytes() as [UInt8] else {
            completion(.failure(AspenError(.internal, "the request cannot be encoded")))
            return nil
        }
        if let refusal = refusal(bytes.count) {
            completion(.failure(refusal))
            return nil
        }
        let id = nextID
        nextID += 1
        pending[id] = Pending(
            deadline: deadline, bytes: bytes.count, completion: completion, part: part,
            isStream: isStream, isRead: isRead)
        bytesInFlight += bytes.count
        bytesSent += UInt64(bytes.count + Self.frameHeadBytes)
        transport.send { buffer in
            buffer.writeInteger(id, endianness: .little)
            buffer.writeBytes(bytes)
        }
        if deadline != .distantFuture { scheduleSweep() }
        return id
    }

    private func refusal(_ bytes: Int) -> AspenError? {
        guard bytes + 8 <= Limits.rpcMessageBytesMax else {
            return AspenError(
                .invalidArgument,
                "the request has \(bytes) bytes, more than the \(Limits.rpcMessageBytesMax) that "
                    + "one message may have: split it")
        }
        guard pending.count < Self.requestsInFlightMax,
            bytesInFlight + bytes <= Self.bytesInFlightMax
        else {
            return AspenError(
                .resourceExhausted,
                "too much is in flight on this connection (\(pending.count) requests, "
                    + "\(bytesInFlight) bytes): wait for answers first",
                retry: .safe)
        }
        return nil
    }

    /// Forgets a request: its completion will not be called, its answer will be dropped.
    package func abandon(_ id: UInt64) { _ = take(id) }

    /// Closes as soon as the last request in flight has been answered.
    package func drain() {
        isClosing = true
        let error = AspenError(
            .unavailable, "\(endpoint.name) does not answer as it should", retry: .safe)
        for id in pending.filter({ $0.value.isStream }).keys.sorted() {
            take(id)?(.failure(error))
        }
        closeIfDrained()
    }

    /// Fails what is in flight and closes.
    package func close() {
        isClosing = true
        transport.close()
        lost(.lost("closed by this client"))
    }

    // MARK: - Events

    private func received(_ frame: ByteBuffer) {
        heardAt = .now()
        bytesReceived += UInt64(frame.readableBytes + Self.frameHeadBytes - 8)
        var frame = frame
        guard let id: UInt64 = frame.readInteger(endianness: .little),
            let response = try? Response(answer: Self.data(of: frame))
        else {
            transport.close()
            return lost(.lost("the daemon sent bytes that are no answer"))
        }
        // No request has that number.
        if id == 0, response.hasError { farewell = AspenError(wire: response.error) }
        if let part = pending[id]?.part, !response.hasError, part(response) { return }
        // An abandoned request's answer finds nobody.
        guard let completion = take(id) else { return }
        if response.hasError {
            completion(.failure(AspenError(wire: response.error)))
        } else {
            completion(.success(response))
        }
        closeIfDrained()
    }

    /// Of a large frame, its own memory, which stays as long as the bytes are needed.
    private static func data(of frame: ByteBuffer) -> Data {
        guard frame.readableBytes >= copiedBytesMax else { return Data(frame.readableBytesView) }
        return frame.withUnsafeReadableBytesWithStorageManagement { bytes, storage in
            guard let start = bytes.baseAddress else { return Data() }
            _ = storage.retain()
            return Data(
                bytesNoCopy: UnsafeMutableRawPointer(mutating: start), count: bytes.count,
                deallocator: .custom { _, _ in storage.release() })
        }
    }

    private func take(_ id: UInt64) -> Completion? {
        guard let entry = pending.removeValue(forKey: id) else { return nil }
        bytesInFlight -= entry.bytes
        return entry.completion
    }

    private func closeIfDrained() {
        if isClosing, isOpen, pending.isEmpty { close() }
    }

    private func lost(_ end: TransportEnd) {
        guard isOpen else { return }
        isOpen = false
        sweep?.cancel()
        let (error, errorOfReads) = errors(end)
        let waiting = pending.sorted { $0.key < $1.key }
        pending.removeAll()
        bytesInFlight = 0
        // A stream that was refused with its connection begins again on another one.
        let isRefused = farewell?.retry == .safe
        let errorOfStreams =
            isRefused ? AspenError(.unavailable, error.message, retry: .safe) : error
        for (_, entry) in waiting {
            entry.completion(
                .failure(entry.isStream ? errorOfStreams : entry.isRead ? errorOfReads : error))
        }
        onClosed(error)
        onClosed = { _ in }
    }

    private func errors(_ end: TransportEnd) -> (AspenError, ofReads: AspenError) {
        // It says that nothing was carried out.
        if let farewell, farewell.retry == .safe { return (farewell, farewell) }
        switch end {
        case .refused(let error): return (error, error)
        case .lost(let reason):
            let what =
                "the connection to \(endpoint.name) was lost before the answer came "
                + "(\(farewell?.message ?? reason))"
            let change = AspenError(
                .unknownOutcome,
                "\(what); whether the request was carried out is unknown: read the state before "
                    + "you repeat it", retry: .withSession)
            return (change, AspenError(.unavailable, what, retry: .safe))
        }
    }

    // MARK: - Deadlines

    private func scheduleSweep() {
        guard sweep == nil else { return }
        let box = NIOLoopBound(self, eventLoop: loop)
        sweep = loop.assumeIsolated().scheduleTask(in: Self.sweepInterval) {
            box.value.sweepDeadlines()
        }
    }

    private func sweepDeadlines() {
        sweep = nil
        let now = NIODeadline.now()
        let expired = pending.filter { $0.value.deadline <= now }.keys.sorted()
        for id in expired {
            take(id)?(
                .failure(
                    AspenError(
                        .deadlineExceeded,
                        "\(endpoint.name) did not answer in time; whether the request was carried "
                            + "out is unknown",
                        retry: .withSession)))
        }
        if isOpen, pending.contains(where: { $0.value.deadline != .distantFuture }) {
            scheduleSweep()
        }
    }
}
