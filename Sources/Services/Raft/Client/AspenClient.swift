// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import NIOCore
import NIOPosix
import Synchronization

/// A connection to an Aspen cluster.
///
/// One client carries any number of requests at once over one connection; share it between tasks.
/// It follows the cluster through elections, restarts and lost nodes: a request is repeated until
/// its time is up, and never applied twice.
///
/// ```swift
/// let client = try await AspenClient.connect(.socket("/run/aspen/raft.sock"))
/// try await client.set("greeting", to: "hello world")
/// if let entry = try await client.get("greeting").entry {
///     print(String(decoding: entry.value, as: UTF8.self))
/// }
/// await client.close()
/// ```
///
/// Every failure is an `AspenError`: a code for programs, a message for people, and whether the same
/// request may be sent again. A cancelled task gets `unknownOutcome` if a change was already under
/// way, else `deadlineExceeded`.
public final class AspenClient: Sendable {
    /// Where the cluster is.
    public enum Target: Sendable {
        /// The local daemon's Unix socket, "/run/aspen/raft.sock" on a node.
        case socket(String)
        /// Several local sockets, tried in order (a development cluster on one machine).
        case sockets([String])
        /// A cluster anywhere, over QUIC.
        case ticket(Ticket)

        /// - Parameter ticket: the word that `aspen-cli cluster ticket` prints.
        /// - Throws: `invalidArgument` or `unsupportedVersion`.
        public static func ticket(parsing ticket: String) throws(AspenError) -> Target {
            .ticket(try Ticket(ticket))
        }

        package var endpoints: [Endpoint] { endpoints(nil) }

        package func endpoints(_ credential: ClientCredential?) -> [Endpoint] {
            switch self {
            case .socket(let path): [.socket(path: path)]
            case .sockets(let paths): paths.map { .socket(path: $0) }
            case .ticket(let ticket):
                ticket.endpoints.map {
                    .node($0.endpoint, addresses: $0.addresses, credential: credential)
                }
            }
        }
    }

    public struct Options: Sendable {
        /// How long a call may take when it names no time of its own.
        public var timeout = Limits.readTimeout
        /// Number writes under a session, so that they can be repeated after a lost connection
        /// without being applied twice. Without it such a write fails with `unknownOutcome`.
        /// The session costs one write when the first write is made.
        public var usesSessions = true

        /// What a cluster reached by a ticket wants to see; local sockets go by who the caller is.
        public var credential: ClientCredential?

        /// A server says something every 5 s to those who watch; silence for so long means that it is
        /// not there any more.
        package var watchSilenceMax = Duration.seconds(15)

        public init() {}
    }

    let options: Options
    let engine: NIOLoopBound<RequestEngine>
    private let nextID = Atomic<UInt64>(1)
    private let isClosed = Atomic<Bool>(false)

    /// One thread serves all clients of a process. Never shut down: it lives as long as the process.
    package static let sharedGroup = MultiThreadedEventLoopGroup(numberOfThreads: 1)

    private init(engine: NIOLoopBound<RequestEngine>, options: Options) {
        self.engine = engine
        self.options = options
    }

    /// Makes a client and its first connection.
    ///
    /// - Parameters:
    ///   - target: where the cluster is.
    ///   - options: what holds for all calls of this client.
    /// - Throws: `unavailable` when no endpoint can be reached within `options.timeout` (at once
    ///   when the socket does not exist), `permissionDenied` when the socket may not be opened,
    ///   `invalidArgument` for a target without an endpoint.
    public static func connect(
        _ target: Target, options: Options = Options()
    ) async throws(AspenError) -> AspenClient {
        let endpoints = target.endpoints(options.credential)
        guard !endpoints.isEmpty else {
            throw AspenError(.invalidArgument, "the target names no endpoint")
        }
        let loop = sharedGroup.any()
        let timeout = options.timeout
        let connected: Result<NIOLoopBound<RequestEngine>, AspenError>
        connected = await withCheckedContinuation { continuation in
            loop.execute {
                let engine = RequestEngine(endpoints: endpoints, options: options, loop: loop)
                engine.waitForConnection(budget: timeout) { failure in
                    continuation.resume(
                        returning: failure.map { .failure($0) }
                            ?? .success(NIOLoopBound(engine, eventLoop: loop)))
                }
            }
        }
        return AspenClient(engine: try connected.get(), options: options)
    }

    /// Ends the session, fails what is in flight and closes the connection. Takes at most a quarter
    /// of a second; later calls fail with `unavailable`.
    public func close() async {
        guard !isClosed.exchange(true, ordering: .relaxed) else { return }
        await withCheckedContinuation { continuation in
            engine.eventLoop.execute { [engine] in
                engine.value.close { continuation.resume() }
            }
        }
    }

    deinit {
        guard !isClosed.load(ordering: .relaxed) else { return }
        engine.eventLoop.execute { [engine] in engine.value.close {} }
    }

    // MARK: - From tasks to the loop

    /// A request with several answers, over the present connection and no other.
    func stream(
        _ request: WireRequest, timeout: Duration,
        part: @escaping @Sendable (WireResponse) -> Bool
    ) async throws(AspenError) {
        let cancelled = Cancellation()
        /// Gives the request up, as long as it is under way.
        let abandon = NIOLoopBoundBox.makeBoxSendingValue(
            (() -> Void)?.none, eventLoop: engine.eventLoop)
        let result: Result<Void, AspenError> = await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                engine.eventLoop.execute { [engine, options] in
                    engine.value.waitForConnection(budget: options.timeout) { failure in
                        if let failure { return continuation.resume(returning: .failure(failure)) }
                        guard let connection = engine.value.connection else {
                            return continuation.resume(returning: .failure(.closedConnection))
                        }
                        if cancelled.isRequested {
                            return continuation.resume(returning: .failure(.cancelled))
                        }
                        let id = connection.send(
                            request, deadline: .now() + TimeAmount(timeout), part: part
                        ) { result in
                            abandon.value = nil
                            continuation.resume(returning: result.map { _ in () })
                        }
                        guard let id else { return }
                        abandon.value = {
                            connection.abandon(id)
                            continuation.resume(returning: .failure(.cancelled))
                        }
                    }
                }
            }
        } onCancel: {
            cancelled.request()
            engine.eventLoop.execute {
                let giveUp = abandon.value
                abandon.value = nil
                giveUp?()
            }
        }
        try result.get()
    }

    func perform<Answer: Sendable>(
        _ request: WireRequest, _ kind: RequestEngine.Kind, timeout: Duration?,
        _ answer: @escaping @Sendable (WireResponse.OneOf_Response) -> Answer?
    ) async throws(AspenError) -> Answer {
        let budget = timeout ?? options.timeout
        guard budget > .zero else {
            throw AspenError(.deadlineExceeded, "no time was allowed for the request", retry: .safe)
        }
        let id = nextID.wrappingAdd(1, ordering: .relaxed).newValue
        let cancelled = Cancellation()
        let result: Result<Answer, AspenError> = await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                engine.eventLoop.execute { [engine] in
                    let call = RequestEngine.Call(id: id, request, kind, budget: budget) { result in
                        continuation.resume(
                            returning: result.flatMap { response in
                                response.response.flatMap(answer).map { .success($0) }
                                    ?? .failure(.mismatchedAnswer)
                            })
                    }
                    engine.value.submit(call)
                    if cancelled.isRequested { engine.value.cancel(id) }
                }
            }
        } onCancel: {
            cancelled.request()
            engine.eventLoop.execute { [engine] in engine.value.cancel(id) }
        }
        return try result.get()
    }
}

extension AspenError {
    /// Of a request that changes nothing.
    static var cancelled: AspenError {
        AspenError(.deadlineExceeded, "the caller cancelled the request", retry: .safe)
    }

    fileprivate static var closedConnection: AspenError {
        AspenError(.unavailable, "the connection is closed", retry: .safe)
    }
}

/// Set before the loop is told, so that a call submitted afterwards sees it.
private final class Cancellation: Sendable {
    private let flag = Atomic<Bool>(false)
    func request() { flag.store(true, ordering: .releasing) }
    var isRequested: Bool { flag.load(ordering: .acquiring) }
}
