// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import DequeModule
import LinkCore
import NIOCore
import QUIC

/// Connections for `aspen-gossip`, in both directions: with whoever proves the cookie, member or
/// not, so that nodes can meet before one of them has admitted the other. Nothing but streams
/// between two gossip daemons goes over them. Made when a stream is wanted, and closed when there
/// has been none for `NetLimits.gossipLinger`. Confined to the event loop.
final class GossipConnections {
    typealias Opened = Result<(QUICStream, release: () -> Void), AspenError>

    /// A stream that the peer has opened, after the proof. The closure is to be called when it is over.
    var onStream: (PeerSession, QUICStream, ServiceName, ByteBuffer, @escaping () -> Void) -> Void =
        { _, _, _, _, release in release() }
    /// An inbound connection has ended before the cookie was proved.
    var onUnproved: (PeerSession, PeerSession.Failure) -> Void = { _, _ in }

    private final class Entry {
        /// Proved ones; the oldest carries what is opened here.
        var sessions: [PeerSession] = []
        var waiting: [(Opened) -> Void] = []
        var isDialling = false
    }

    private let endpoint: QUICEndpoint
    private let makeSession: (QUICConnection) -> PeerSession
    private var entries: [EndpointID: Entry] = [:]
    /// By number; those that have not proved the cookie included.
    private var all: [LinkNumber: PeerSession] = [:]
    private var lingers: [LinkNumber: Scheduled<Void>] = [:]
    private typealias LinkNumber = ObjectIdentifier

    init(endpoint: QUICEndpoint, makeSession: @escaping (QUICConnection) -> PeerSession) {
        self.endpoint = endpoint
        self.makeSession = makeSession
    }

    /// Why nobody else may come from there just now; nil: welcome.
    func refusal(from origin: Origin) -> String? {
        if all.count >= NetLimits.gossipConnectionsMax {
            return "more than \(NetLimits.gossipConnectionsMax) connections for gossip"
        }
        let unproved = all.values.filter { !$0.isProved && $0.connection.isInbound }
        if unproved.count >= NetLimits.gossipUnprovedMax {
            return "more than \(NetLimits.gossipUnprovedMax) strangers before the proof"
        }
        let here = unproved.count { Origin($0.connection.remoteAddress) == origin }
        return here < NetLimits.gossipUnprovedPerAddressMax
            ? nil
            : "more than \(NetLimits.gossipUnprovedPerAddressMax) strangers at one address "
                + "before the proof"
    }

    func accepted(_ connection: QUICConnection) { adopt(connection) }

    func openStream(
        to peer: EndpointID, addresses: [SocketAddress], done: @escaping (Opened) -> Void
    ) {
        if let session = entries[peer]?.sessions.first { return done(begin(session)) }
        guard !addresses.isEmpty else {
            return done(
                .failure(AspenError(.unavailable, "no address of \(peer) is known", retry: .safe)))
        }
        guard all.count + dialling < NetLimits.gossipConnectionsMax else {
            return done(
                .failure(AspenError(.resourceExhausted, "too many connections for gossip")))
        }
        let entry = entries[peer] ?? Entry()
        entries[peer] = entry
        entry.waiting.append(done)
        guard !entry.isDialling else { return }
        entry.isDialling = true
        endpoint.connect(to: peer, addresses: addresses, alpn: ALPN.gossip.rawValue)
            .assumeIsolated().whenComplete { [self] result in
                switch result {
                case .success(let connection): adopt(connection)
                case .failure(let error):
                    let failure = (error as? QUICError) ?? .library("\(error)")
                    failed(peer, .connection(failure))
                }
            }
    }

    /// One for each peer, ascending by endpoint.
    var connections: [NetConnection] {
        entries.sorted { $0.key < $1.key }.compactMap { peer, entry in
            entry.sessions.first.map { session in
                NetConnection(
                    endpoint: peer, address: NetAddress.text(session.connection.remoteAddress),
                    roundTripMicroseconds: UInt32(
                        clamping: Int64(session.connection.smoothedRTT / .microseconds(1))))
            }
        }
    }

    private var dialling: Int { entries.values.count(where: \.isDialling) }

    /// Has each peer acknowledge something.
    /// - Returns: what, by session.
    func askAll() -> [ObjectIdentifier: UInt64] {
        all.filter(\.value.isProved).mapValues { $0.ask(.raft, .unknown) }
    }

    /// Ends those that have not.
    func closeSilent(_ asked: [ObjectIdentifier: UInt64], _ reason: String) {
        for (number, mark) in asked {
            guard let session = all[number], !session.hasAnswered(mark) else { continue }
            session.close(.none, reason)
            remove(session)
        }
    }

    // MARK: - Sessions

    private func adopt(_ connection: QUICConnection) {
        let session = makeSession(connection)
        let number = ObjectIdentifier(session)
        all[number] = session
        session.onProved = { [self] session, _, _ in proved(session) }
        let pace = StreamPace(on: endpoint.eventLoop)
        session.onStream = { [self] session, stream, service, rest in
            let carried = session.carry()
            pace.admit(stream, gone: carried) { [self] in
                onStream(session, stream, service, rest, carried)
            }
        }
        session.onEnded = { [self] in ended($0, $1) }
        session.onCarrying = { [self] in linger($0, unless: $1) }
        session.start(on: endpoint.eventLoop)
    }

    private func proved(_ session: PeerSession) {
        let entry = entries[session.endpoint] ?? Entry()
        entries[session.endpoint] = entry
        entry.sessions.append(session)
        if !session.connection.isInbound { entry.isDialling = false }
        linger(session, unless: false)
        let waiting = entry.waiting
        entry.waiting = []
        for done in waiting { done(begin(session)) }
    }

    private func begin(_ session: PeerSession) -> Opened {
        do {
            let stream = try session.connection.openStream()
            stream.write(StreamHeader.bytes(for: .gossip))
            return .success((stream, session.carry()))
        } catch .tooManyStreams {
            return .failure(
                AspenError(
                    .resourceExhausted,
                    "more than \(Limits.streamsPerConnectionMax) streams to \(session.endpoint)"))
        } catch {
            return .failure(
                AspenError(
                    .unavailable, "no connection to \(session.endpoint): \(error)", retry: .safe))
        }
    }

    private func linger(_ session: PeerSession, unless isCarrying: Bool) {
        let number = ObjectIdentifier(session)
        lingers.removeValue(forKey: number)?.cancel()
        guard !isCarrying, session.isProved else { return }
        lingers[number] = endpoint.eventLoop.assumeIsolated().scheduleTask(
            in: TimeAmount(NetLimits.gossipLinger)
        ) { [self] in
            session.close(.none, "idle")
            remove(session)
        }
    }

    private func ended(_ session: PeerSession, _ failure: PeerSession.Failure) {
        remove(session)
        guard !session.isProved else { return }
        if session.connection.isInbound {
            onUnproved(session, failure)
        } else {
            failed(session.endpoint, failure)
        }
    }

    private func failed(_ peer: EndpointID, _ failure: PeerSession.Failure) {
        guard let entry = entries[peer] else { return }
        entry.isDialling = false
        let waiting = entry.waiting
        entry.waiting = []
        forget(peer)
        let code: AspenErrorCode =
            switch failure.dialFailure {
            case .cookie: .unauthenticated
            case .refused: .permissionDenied
            case .unreachable: .unavailable
            }
        let error = AspenError(
            code, "no connection to \(peer): \(failure.dialFailure.reason)",
            retry: code == .unavailable ? .safe : .never)
        for done in waiting { done(.failure(error)) }
    }

    private func remove(_ session: PeerSession) {
        let number = ObjectIdentifier(session)
        all[number] = nil
        lingers.removeValue(forKey: number)?.cancel()
        entries[session.endpoint]?.sessions.removeAll { $0 === session }
        forget(session.endpoint)
    }

    private func forget(_ peer: EndpointID) {
        guard let entry = entries[peer], entry.sessions.isEmpty, entry.waiting.isEmpty,
            !entry.isDialling
        else { return }
        entries[peer] = nil
    }

    /// Nothing runs on; the endpoint closes the connections.
    func stop() {
        for linger in lingers.values { linger.cancel() }
        lingers = [:]
    }
}

/// Lets the streams of one connection in as `NetLimits.gossipStreams` allows, in the order in which
/// they came; the rest wait unread, and whoever opens more is stopped by QUIC. Confined to the event
/// loop.
private final class StreamPace {
    private struct Waiting {
        let stream: QUICStream
        let begin: () -> Void
    }

    private let loop: any EventLoop
    private var bucket = TokenBucket()
    private var waiting: Deque<Waiting> = []
    private var timer: Scheduled<Void>?

    init(on loop: any EventLoop) { self.loop = loop }

    /// - Parameters:
    ///   - gone: called instead of `begin` when the peer, or the connection, is tired of waiting.
    ///   - begin: called at once or later.
    func admit(_ stream: QUICStream, gone: @escaping () -> Void, begin: @escaping () -> Void) {
        if waiting.isEmpty, bucket.take(NetLimits.gossipStreams, now: .now) { return begin() }
        waiting.append(Waiting(stream: stream, begin: begin))
        stream.onReset = { [weak self] _ in
            self?.waiting.removeAll { $0.stream === stream }
            gone()
        }
        schedule()
    }

    private func schedule() {
        guard timer == nil, !waiting.isEmpty else { return }
        let at = bucket.availableAt(NetLimits.gossipStreams, now: .now)
        timer = loop.assumeIsolated().scheduleTask(
            deadline: .uptimeNanoseconds(at.nanoseconds)
        ) { [weak self] in
            guard let self else { return }
            timer = nil
            if let next = waiting.first, bucket.take(NetLimits.gossipStreams, now: .now) {
                waiting.removeFirst()
                next.stream.onReset = nil
                next.begin()
            }
            schedule()
        }
    }
}
