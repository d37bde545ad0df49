// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CNgtcp2
import Glibc
import NIOCore

extension QUICEndpoint {
    /// Dials a peer that must prove the key `endpoint`.
    ///
    /// The addresses are tried in order, each next one after `connectStagger` or as soon as the
    /// one before has failed; the first to succeed wins. Succeeds when the peer has accepted our
    /// key (HANDSHAKE_DONE): in TLS 1.3 a dialler's own view of a finished handshake says nothing
    /// of that.
    /// - Returns: fails with a `QUICError`, after `handshakeTimeout` at the latest.
    package func connect(
        to endpoint: EndpointID, addresses: [SocketAddress], alpn: String
    ) -> EventLoopFuture<QUICConnection> {
        let promise = eventLoop.makePromise(of: QUICConnection.self)
        let work: @Sendable () -> Void = {
            ConnectRace(
                endpoint: self, target: endpoint, alpn: alpn, addresses: addresses,
                promise: promise
            ).start()
        }
        if eventLoop.inEventLoop { work() } else { eventLoop.execute(work) }
        return promise.futureResult
    }
}

/// The attempts at the addresses of one peer. Kept alive by its attempts and its timers.
private final class ConnectRace {
    private let endpoint: QUICEndpoint
    private let target: EndpointID
    private let alpn: String
    private var addresses: ArraySlice<SocketAddress>
    private let promise: EventLoopPromise<QUICConnection>
    private var attempts: [QUICConnection] = []
    private var failure: QUICError?
    private var isOver = false
    private var stagger: Scheduled<Void>?
    private var deadline: Scheduled<Void>?

    init(
        endpoint: QUICEndpoint, target: EndpointID, alpn: String, addresses: [SocketAddress],
        promise: EventLoopPromise<QUICConnection>
    ) {
        self.endpoint = endpoint
        self.target = target
        self.alpn = alpn
        self.addresses = addresses.prefix(Limits.addressesMax)
        self.promise = promise
    }

    func start() {
        guard endpoint.channel != nil else { return fail(.endpointClosed) }
        guard !addresses.isEmpty else { return fail(.unreachable("no address is known")) }
        guard endpoint.establishedCount < endpoint.configuration.maxConnections else {
            return fail(.tooManyConnections)
        }
        deadline = schedule(endpoint.configuration.handshakeTimeout) { race in
            race.fail(race.failure ?? .timedOut)
        }
        next()
    }

    private func schedule(
        _ delay: Duration, _ work: @escaping (ConnectRace) -> Void
    ) -> Scheduled<Void> {
        endpoint.eventLoop.assumeIsolated().scheduleTask(in: TimeAmount(delay)) { work(self) }
    }

    private func next() {
        stagger?.cancel()
        stagger = nil
        guard !isOver else { return }
        guard let address = addresses.popFirst() else {
            if attempts.isEmpty { fail(failure ?? .timedOut) }
            return
        }
        switch endpoint.dial(target, address, alpn: alpn) {
        case .success(let attempt):
            attempts.append(attempt)
            attempt.onHandshake = { self.settled(attempt, $0) }
        case .failure(let error):
            note(error)
            return next()
        }
        if !addresses.isEmpty {
            stagger = schedule(endpoint.configuration.connectStagger) { $0.next() }
        }
    }

    private func settled(_ attempt: QUICConnection, _ result: Result<Void, QUICError>) {
        attempts.removeAll { $0 === attempt }
        switch result {
        case .success:
            guard !isOver else { return attempt.close(code: 0, reason: "not needed") }
            end()
            promise.succeed(attempt)
        case .failure(let error):
            guard !isOver else { return }
            note(error)
            next()
        }
    }

    /// Of several failures, the one that tells most is reported: a refusal rather than silence.
    private func note(_ error: QUICError) {
        switch failure {
        case nil, .timedOut, .unreachable: failure = error
        default: break
        }
    }

    private func fail(_ error: QUICError) {
        guard !isOver else { return }
        end()
        promise.fail(error)
    }

    private func end() {
        isOver = true
        stagger?.cancel()
        deadline?.cancel()
        let losers = attempts
        attempts = []
        for loser in losers { loser.close(code: 0, reason: "not needed") }
    }
}

extension QUICEndpoint {
    /// Sends the first packet of a connection.
    fileprivate func dial(
        _ target: EndpointID, _ address: SocketAddress, alpn: String
    ) -> Result<QUICConnection, QUICError> {
        guard let local = channel?.localAddress else { return .failure(.endpointClosed) }
        guard let remote = address.reachable(from: local) else {
            return .failure(.unreachable("\(address) is of another family than the socket"))
        }
        let connection = QUICConnection(
            endpoint: self, remote: remote, expected: target, alpn: alpn)
        do {
            try local.withSockAddr { localAddress, localLength in
                try remote.withSockAddr { remoteAddress, remoteLength in
                    let path = aspen_quic_path(
                        local: localAddress, local_length: socklen_t(localLength),
                        remote: remoteAddress, remote_length: socklen_t(remoteLength))
                    try connection.startClient(path: path, now: turnTime())
                }
            }
        } catch {
            remove(connection)
            return .failure((error as? QUICError) ?? .library("\(error)"))
        }
        flushLater(connection)
        return .success(connection)
    }
}

extension SocketAddress {
    /// The address as a socket bound to `local` must be given it: IPv4 addresses are mapped for an
    /// IPv6 socket. nil when it cannot be reached from there.
    func reachable(from local: SocketAddress) -> SocketAddress? {
        switch (self, local) {
        case (.v4, .v4), (.v6, .v6): return self
        case (.v4, .v6):
            guard let text = ipAddress, let port else { return nil }
            return try? SocketAddress(ipAddress: "::ffff:\(text)", port: port)
        default: return nil
        }
    }

    init?(_ address: UnsafePointer<sockaddr>) {
        switch CInt(address.pointee.sa_family) {
        case AF_INET:
            let raw = UnsafeRawPointer(address).loadUnaligned(as: sockaddr_in.self)
            self.init(raw)
        case AF_INET6:
            let raw = UnsafeRawPointer(address).loadUnaligned(as: sockaddr_in6.self)
            self.init(raw)
        default: return nil
        }
    }
}
