// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import LinkCore
import Logging
import NIOCore
import QUIC
import ServiceKit

/// A local caller whose stream waits for a connection to its peer.
struct StreamWaiter {
    let done: (Result<PeerSession, AspenError>) -> Void
    let timer: Scheduled<Void>
    let number: UInt64
}

/// An inbound stream that is being joined, or is joined, to a service here.
final class JoinedStream {
    let service: ServiceName
    let splice: Splice
    let isClient: Bool
    init(service: ServiceName, splice: Splice, isClient: Bool) {
        self.service = service
        self.splice = splice
        self.isClient = isClient
    }
}

/// On whose behalf a stream comes.
enum StreamOrigin {
    case member(PeerSession)
    /// Has proved the cookie, and is no more than that.
    case gossip(PeerSession)
    /// With the token chain that it showed; checked, but for what only the service knows.
    case client(QUICConnection, token: [UInt8])

    var principal: Principal {
        switch self {
        case .member(let session):
            Principal(
                endpoint: session.endpoint, alpn: .raft, hasProvedCookie: true,
                remoteAddress: NetAddress.text(session.connection.remoteAddress))
        case .gossip(let session):
            Principal(
                endpoint: session.endpoint, alpn: .gossip, hasProvedCookie: true,
                remoteAddress: NetAddress.text(session.connection.remoteAddress))
        case .client(let connection, let token):
            Principal(
                endpoint: connection.remoteEndpoint, alpn: .client, hasProvedCookie: false,
                tokenChain: token, remoteAddress: NetAddress.text(connection.remoteAddress))
        }
    }

    var isClient: Bool { if case .client = self { true } else { false } }
}

extension NetService {
    // MARK: - Streams from other machines

    /// - Parameter carried: called when the stream is over.
    func join(
        _ stream: QUICStream, to service: ServiceName, rest: ByteBuffer, for origin: StreamOrigin,
        carried: @escaping () -> Void
    ) {
        let principal = origin.principal
        if let code = refusal(of: service, principal.alpn, isClient: origin.isClient) {
            stream.reset(code: code.rawValue)
            return carried()
        }
        guard let connector = configuration.connectors[service] else {
            stream.reset(code: StreamErrorCode.noSuchService.rawValue)
            return carried()
        }
        let splice = Splice(stream: stream, lostCode: .serviceGone)
        joined[ObjectIdentifier(splice)] = JoinedStream(
            service: service, splice: splice, isClient: origin.isClient)
        if origin.isClient {
            joinedClientStreams += 1
            watchClients()
            splice.onTaken = { [self] in tookFromClients($0) }
        }
        splice.onFinished = { [self] in
            joined[ObjectIdentifier(splice)] = nil
            if origin.isClient { joinedClientStreams -= 1 }
            carried()
        }
        // Written before anything else: who speaks, then what the peer has said so far.
        var first = ByteBuffer()
        let introduction = principal.encoded()
        first.writeInteger(UInt32(introduction.count), endianness: .little)
        first.writeBytes(introduction)
        first.writeImmutableBuffer(rest)
        let box = NIOLoopBound(splice, eventLoop: eventLoop)
        connector.connect(on: eventLoop) { channel in
            try Splice.prepare(channel)
            try channel.pipeline.syncOperations.addHandler(box.value)
        }.whenComplete { [first, logger] result in
            switch result {
            case .success: box.value.start(toLocal: first)
            case .failure(let error):
                logger.warning(
                    "cannot join a stream to a service",
                    metadata: ["service": "\(service.name)", "reason": "\(error)"])
                box.value.abort(.serviceGone)
            }
        }
    }

    private func refusal(
        of service: ServiceName, _ alpn: ALPN, isClient: Bool
    ) -> StreamErrorCode? {
        guard AccessTable.serves(service, over: alpn) else { return .noSuchService }
        if service == .raft, raftState != .serving { return .serviceGone }
        if joined.count >= NetLimits.streamsMax { return .resourceExhausted }
        if isClient, joinedClientStreams >= NetLimits.clientStreamsMax {
            return .resourceExhausted
        }
        return nil
    }

    /// Adds up, now and then, what clients hold, and frees what is too much.
    private func watchClients() {
        guard clientWatch == nil, !isDraining else { return }
        clientWatch = eventLoop.scheduleTask(in: TimeAmount(NetLimits.clientSweepInterval)) {
            [self] in
            clientWatch = nil
            freeClientMemory()
            if joinedClientStreams > 0 { watchClients() }
        }
    }

    /// Much can arrive between two looks: so a look also follows each part of the budget taken in.
    private func tookFromClients(_ bytes: Int) {
        clientBytesTaken += bytes
        guard clientBytesTaken > configuration.clientBytesMax / NetLimits.clientLooksPerBudget,
            !isLookDue
        else { return }
        isLookDue = true
        let box = NIOLoopBound(self, eventLoop: eventLoop)
        // Not from within a stream that may be reset by it.
        eventLoop.execute { box.value.freeClientMemory() }
    }

    private func freeClientMemory() {
        isLookDue = false
        clientBytesTaken = 0
        let streams = joined.values.filter(\.isClient).map { ($0.splice, $0.splice.heldBytes) }
        var held = streams.reduce(0) { $0 + $1.1 }
        guard held > configuration.clientBytesMax else { return }
        edgeLog.warning(
            "clients hold too much memory: the streams that hold most are reset",
            culprit: "client memory", ["bytes": "\(held)", "streams": "\(streams.count)"])
        for (splice, bytes) in streams.sorted(by: { $0.1 > $1.1 }) {
            guard held > configuration.clientBytesMax else { return }
            splice.abort(.resourceExhausted)
            held -= bytes
        }
    }

    /// How the raft daemon here is: from its control connection, the surest sign there is.
    func setRaftState(_ state: ServiceState) {
        guard raftState != state else { return }
        raftState = state
        logger.info("local raft", metadata: ["state": "\(state)"])
        for session in sessions.values { session.notify(.raft, state) }
        guard state == .gone else { return }
        letRaftGo()
        for stream in Array(joined.values) where stream.service == .raft {
            stream.splice.abort(.serviceGone)
        }
    }

    // MARK: - Streams to other machines

    /// A raw stream to `service` of a peer, its header already written.
    func openStream(
        to peer: EndpointID, alpn: ALPN, service: ServiceName,
        done: @escaping (Result<(QUICStream, release: () -> Void), AspenError>) -> Void
    ) {
        guard AccessTable.serves(service, over: alpn) else {
            return done(
                .failure(
                    AspenError(
                        .invalidArgument, "\(alpn.rawValue) has no service \(service.name)")))
        }
        guard peer != configuration.key.endpoint else {
            return done(
                .failure(AspenError(.invalidArgument, "a node needs no stream to itself")))
        }
        switch alpn {
        case .raft:
            withSession(to: peer) { [self] result in
                done(result.flatMap { begin($0, service) })
            }
        case .client:
            let addresses = machine.addresses(of: peer).compactMap { NetAddress.parse($0) }
            clients.openStream(to: peer, addresses: addresses) { result in
                done(
                    result.map { stream, release in
                        stream.write(StreamHeader.bytes(for: service))
                        return (stream, release)
                    })
            }
        case .gossip:
            let addresses = machine.addresses(of: peer).compactMap { NetAddress.parse($0) }
            gossip.openStream(to: peer, addresses: addresses, done: done)
        case .blob, .forge:
            done(
                .failure(AspenError(.invalidArgument, "\(alpn.rawValue) is not carried yet")))
        }
    }

    private func begin(
        _ session: PeerSession, _ service: ServiceName
    ) -> Result<(QUICStream, release: () -> Void), AspenError> {
        do {
            let stream = try session.connection.openStream()
            stream.write(StreamHeader.bytes(for: service))
            return .success((stream, session.carry()))
        } catch .tooManyStreams {
            return .failure(
                AspenError(
                    .resourceExhausted,
                    "more than \(Limits.streamsPerConnectionMax) streams to \(session.endpoint)"))
        } catch {
            return .failure(unreachable(session.endpoint, "\(error)"))
        }
    }

    private func withSession(
        to peer: EndpointID, done: @escaping (Result<PeerSession, AspenError>) -> Void
    ) {
        if let id = machine.primary(of: peer), let session = sessions[id] {
            return done(.success(session))
        }
        guard machine.isExpected(peer) else {
            return done(.failure(unreachable(peer, "it is neither a member nor configured")))
        }
        waiterCount += 1
        let number = waiterCount
        let timer = eventLoop.scheduleTask(in: TimeAmount(Limits.streamOpenTimeout)) { [self] in
            guard let place = waiting[peer]?.firstIndex(where: { $0.number == number }),
                let waiter = waiting[peer]?.remove(at: place)
            else { return }
            waiter.done(.failure(unreachable(peer, "not within the stream-open timeout")))
        }
        waiting[peer, default: []].append(StreamWaiter(done: done, timer: timer, number: number))
        drive(.wanted(peer))
    }

    func releaseWaiting(for peer: EndpointID, _ result: Result<PeerSession, AspenError>) {
        for waiter in waiting.removeValue(forKey: peer) ?? [] {
            waiter.timer.cancel()
            waiter.done(result)
        }
    }
}
