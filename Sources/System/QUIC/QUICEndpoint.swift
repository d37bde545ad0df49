// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CNgtcp2
import CSodium
import NIOCore
import NIOPosix

/// One UDP socket that dials and accepts QUIC version 1 connections under one Ed25519 key.
///
/// TLS 1.3 with raw public keys on both sides (RFC 7250), no tickets, no early data. Everything
/// happens on `eventLoop`: set the callbacks and call the methods there (`bind`, `connect` and
/// `close` may be called from anywhere). What the packets of one turn of the loop bring is
/// delivered together, then all that is to be sent leaves together.
// SAFETY: confined to one event loop; every entry point checks that it runs there.
package final class QUICEndpoint: @unchecked Sendable {
    package let eventLoop: any EventLoop
    package let configuration: QUICConfiguration
    let key: NodeKey

    /// Protocols (ALPN) that inbound connections may speak, the preferred one first; none: nothing
    /// is accepted.
    package var serverProtocols: [String] = []
    /// Who may come in. Asked in the verify step of TLS (the key is then only a claim), and again
    /// when the key is proved. nil accepts, a text refuses, before any byte of an application; it
    /// goes to `onRefused`, not to the peer. Must not call into the endpoint.
    package var acceptPolicy: (EndpointID, _ alpn: String, SocketAddress) -> String? = { _, _, _ in
        nil
    }
    /// An inbound connection whose peer has proved its key.
    package var onConnection: (QUICConnection) -> Void = {
        $0.close(code: 0, reason: "nobody serves here")
    }
    /// An inbound handshake that failed, with the key claimed, if it came that far.
    package var onRefused: (EndpointID?, SocketAddress, String) -> Void = { _, _, _ in }
    /// The socket has failed; all connections are lost and `bind` may be called again.
    package var onSocketFailed: (String) -> Void = { _ in }
    /// What has happened so far, for status pages and tests.
    package internal(set) var counters = QUICCounters()

    var channel: (any Channel)?
    var socket: CInt = -1
    var hasSegmentation = false
    /// The kernel takes no more for the moment: the datagram that waits.
    var blocked: BlockedDatagram?
    var isSendBlocked: Bool { blocked != nil }
    let tlsContext: OpaquePointer
    let writer: OpaquePointer
    private(set) lazy var batch = SendBatch(endpoint: self)
    let resetSecret: [UInt8]
    let retrySecret: [UInt8]

    var connections: [UInt64: QUICConnection] = [:]
    var originalIDs: [ConnectionID: QUICConnection] = [:]
    var resetTokens: [ResetToken: QUICConnection] = [:]
    var establishedCount = 0
    /// Inbound connections whose handshake is not finished, the oldest first.
    var halfOpen: [QUICConnection] = []
    var halfOpenCount: Int { halfOpen.count }

    private var dirty: [QUICConnection] = []
    /// Has more to send, but others come first.
    private var dirtyNextTurn: [QUICConnection] = []
    private var delivering: [QUICConnection] = []
    private var isTurnScheduled = false
    private var isInTurn = false
    var isReading = false
    private var readTime: UInt64 = 0
    private var lastTime: UInt64 = 0
    /// How far time here is ahead of the loop's, in nanoseconds: in tests, what a process sees that
    /// was stopped for a while.
    var clockLead: UInt64 = 0
    private var resetWindow: UInt64 = 0
    private var resetsInWindow = 0

    package init(eventLoop: any EventLoop, key: NodeKey, configuration: QUICConfiguration) {
        self.eventLoop = eventLoop
        self.configuration = configuration
        self.key = key
        guard let context = aspen_tls_context_new(key.seed, key.endpoint.bytes),
            let writer = aspen_quic_writer_new()
        else { preconditionFailure("GnuTLS refuses an Ed25519 key") }
        tlsContext = context
        self.writer = writer
        resetSecret = key.derive("aspen quic stateless reset v1")
        retrySecret = key.derive("aspen quic retry token v1")
    }

    deinit {
        aspen_tls_context_free(tlsContext)
        aspen_quic_writer_free(writer)
    }

    /// The public half of the key: how peers name this endpoint.
    package var id: EndpointID { key.endpoint }

    /// Where the socket is bound; nil before `bind` and after `close`.
    package var localAddress: SocketAddress? { channel?.localAddress }

    /// Connections with a finished handshake.
    package var connectionCount: Int { establishedCount }

    // MARK: Opening and closing

    /// Takes over a bound UDP socket, such as systemd hands over; it is closed with the endpoint.
    package func bind(inheritedDatagramSocket fd: CInt) -> EventLoopFuture<Void> {
        eventLoop.flatSubmit { self.adopt(fd) }
    }

    /// Opens a UDP socket.
    /// - Parameters:
    ///   - host: a numeric address; `::` takes IPv4 and IPv6.
    ///   - port: 0 for any.
    package func bind(host: String, port: Int) -> EventLoopFuture<Void> {
        eventLoop.flatSubmit {
            do {
                let address = try SocketAddress(ipAddress: host, port: port)
                let fd = address.withSockAddr { aspen_udp_open($0, socklen_t($1)) }
                if fd >= 0 { return self.adopt(fd) }
                return self.eventLoop.makeFailedFuture(QUICError.socket(systemText(-fd)))
            } catch {
                return self.eventLoop.makeFailedFuture(
                    QUICError.socket("\(host) is not a numeric address"))
            }
        }
    }

    private func adopt(_ fd: CInt) -> EventLoopFuture<Void> {
        precondition(channel == nil, "the endpoint is bound already")
        aspen_udp_configure(fd, CInt(clamping: configuration.socketBufferBytes))
        let offload = configuration.useSegmentationOffload
        let bootstrap = DatagramBootstrap(group: eventLoop)
            .channelOption(.maxMessagesPerRead, value: 1)
            .channelOption(.datagramVectorReadMessageCount, value: 8)
            .channelOption(
                .recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 8 << 16)
            )
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(DatagramHandler(self))
                }
            }
        return bootstrap.withBoundSocket(fd).flatMap { channel -> EventLoopFuture<Void> in
            self.channel = channel
            self.socket = fd
            self.hasSegmentation = offload && aspen_udp_has_segmentation(fd)
            return self.enableReceiveOptions(channel, offload: offload)
        }.flatMapErrorThrowing { error in
            throw (error as? QUICError) ?? QUICError.socket("\(error)")
        }
    }

    /// Options that a kernel may refuse: the endpoint works without them.
    private func enableReceiveOptions(
        _ channel: any Channel, offload: Bool
    ) -> EventLoopFuture<Void> {
        let ignored = eventLoop.makeSucceededVoidFuture()
        var done = ignored
        if channel.localAddress?.isWildcard == true {
            done = channel.setOption(.receivePacketInfo, value: true).flatMapError { _ in ignored }
        }
        guard offload else { return done }
        // Both, or aggregates arrive without the size to cut them by.
        return done.flatMap {
            channel.setOption(.datagramReceiveOffload, value: true).flatMap {
                channel.setOption(.datagramReceiveSegmentSize, value: true)
            }.flatMapError { _ in ignored }
        }
    }

    /// Closes all connections (code 0) and the socket.
    package func close() -> EventLoopFuture<Void> {
        eventLoop.flatSubmit {
            for connection in self.connectionsInOrder() {
                connection.close(code: 0, reason: "shutting down")
            }
            guard let channel = self.channel else {
                return self.eventLoop.makeSucceededVoidFuture()
            }
            return channel.close().flatMapErrorThrowing { error in
                guard case ChannelError.alreadyClosed = error else { throw error }
            }
        }
    }

    /// The socket is gone, on purpose or not.
    func socketClosed(_ reason: String?) {
        guard channel != nil else { return }
        channel = nil
        socket = -1
        blocked = nil
        for connection in connectionsInOrder() {
            connection.finish(
                .connectionLost(reason ?? "the socket is closed"), sending: nil, lingers: false)
            remove(connection)
        }
        if let reason { onSocketFailed(reason) }
        scheduleTurn()
    }

    private func connectionsInOrder() -> [QUICConnection] {
        var seen = Set<ObjectIdentifier>()
        return connections.sorted { $0.key < $1.key }.compactMap {
            seen.insert(ObjectIdentifier($0.value)).inserted ? $0.value : nil
        }
    }

    // MARK: Turns

    /// The time of this turn, in nanoseconds: one reading for all packets of a burst, and never
    /// less than before.
    func turnTime() -> UInt64 {
        if isReading, readTime != 0 { return readTime }
        lastTime = max(lastTime, clock)
        if isReading { readTime = lastTime }
        return lastTime
    }

    /// The time of this moment; within a turn see `turnTime`.
    var clock: UInt64 { NIODeadline.now().uptimeNanoseconds + clockLead }

    func readComplete() {
        isReading = false
        readTime = 0
        turn()
    }

    func flushLater(_ connection: QUICConnection) {
        if !connection.isDirty {
            connection.isDirty = true
            dirty.append(connection)
        }
        scheduleTurn()
    }

    /// As `flushLater`, but not in the turn that is going on.
    func flushNextTurn(_ connection: QUICConnection) {
        dirtyNextTurn.append(connection)
        scheduleTurn()
    }

    func deliverLater(_ connection: QUICConnection) {
        if !connection.isDeliveryScheduled {
            connection.isDeliveryScheduled = true
            delivering.append(connection)
        }
        scheduleTurn()
    }

    func scheduleTurn() {
        guard !isTurnScheduled, !isReading, !isInTurn else { return }
        isTurnScheduled = true
        eventLoop.assumeIsolatedUnsafeUnchecked().execute {
            self.isTurnScheduled = false
            self.turn()
        }
    }

    /// Delivers, then sends, until nothing is left, or others should have the loop.
    private func turn() {
        guard !isInTurn else { return }
        isInTurn = true
        for _ in 0..<8 {
            if delivering.isEmpty, dirty.isEmpty || isSendBlocked { break }
            let due = delivering
            delivering = []
            for connection in due {
                connection.isDeliveryScheduled = false
                connection.deliver()
            }
            if !isSendBlocked { flushDirty() }
        }
        isInTurn = false
        let later = dirtyNextTurn
        dirtyNextTurn = []
        for connection in later { flushLater(connection) }
        if !delivering.isEmpty || !(dirty.isEmpty || isSendBlocked) { scheduleTurn() }
    }

    private func flushDirty() {
        let now = turnTime()
        let due = dirty
        dirty = []
        for connection in due {
            connection.isDirty = false
            if isSendBlocked {
                flushLater(connection)
            } else {
                connection.flush(now: now)
                // Cut off in the middle: it goes on when the socket does.
                if isSendBlocked { flushLater(connection) }
            }
        }
    }

    // MARK: Connections

    /// The handshake is over: the last word on whether the peer is welcome.
    func established(_ connection: QUICConnection) {
        guard connection.state == .handshaking else { return }
        var refusal = connection.judgeProved()
        if refusal == nil, establishedCount >= configuration.maxConnections {
            refusal = .tooManyConnections
        }
        if let refusal {
            connection.finish(
                refusal,
                sending: .init(ASPEN_CLOSE_TRANSPORT, Int64(NGTCP2_CONNECTION_REFUSED), ""))
            return
        }
        connection.state = .established
        if connection.isInbound { halfOpen.removeAll { $0 === connection } }
        establishedCount += 1
        counters.established += 1
        if connection.isInbound {
            onConnection(connection)
        } else {
            let tell = connection.onHandshake
            connection.onHandshake = nil
            tell?(.success(()))
        }
    }

    /// The connection has lost ngtcp2's part.
    func ended(_ connection: QUICConnection, _ error: QUICError, wasEstablished: Bool) {
        for token in connection.peerResetTokens { resetTokens[token] = nil }
        connection.peerResetTokens = []
        if wasEstablished {
            establishedCount -= 1
            return
        }
        if connection.isInbound {
            halfOpen.removeAll { $0 === connection }
            counters.refused += 1
            onRefused(connection.claimedEndpoint, connection.initialRemote, "\(error)")
        } else {
            let tell = connection.onHandshake
            connection.onHandshake = nil
            tell?(.failure(error))
        }
    }

    /// Nothing remembers the connection after this.
    func remove(_ connection: QUICConnection) {
        guard connection.state != .gone else { return }
        connection.state = .gone
        for id in connection.ownIDs { connections[id] = nil }
        connection.ownIDs = []
        if let original = connection.clientOriginalID { originalIDs[original] = nil }
        connection.closePacket = []
        connection.timer?.cancel()
        connection.timer = nil
    }

    // MARK: Ids

    func newID(for connection: QUICConnection) -> UInt64 {
        while true {
            var id: UInt64 = 0
            randombytes_buf(&id, MemoryLayout<UInt64>.size)
            if connections[id] != nil { continue }
            connections[id] = connection
            connection.ownIDs.append(id)
            return id
        }
    }

    func resetToken(
        of cid: UnsafePointer<ngtcp2_cid>, into token: UnsafeMutablePointer<UInt8>
    ) -> Bool {
        aspen_quic_reset_token(token, resetSecret, resetSecret.count, cid) == 0
    }

    /// Whether one more stateless reset may be sent in this second.
    func mayReset(now: UInt64) -> Bool {
        if now >= resetWindow + 1_000_000_000 {
            resetWindow = now
            resetsInWindow = 0
        }
        guard resetsInWindow < configuration.maxStatelessResetsPerSecond else { return false }
        resetsInWindow += 1
        return true
    }
}

/// What an endpoint has seen.
package struct QUICCounters: Sendable, Equatable {
    /// Datagrams that belong to nothing and were dropped.
    package var strayDatagrams = 0
    /// Inbound handshakes that failed.
    package var refused = 0
    /// Handshakes that succeeded, both ways.
    package var established = 0
    /// Retries sent.
    package var retries = 0
    /// Stateless resets sent.
    package var statelessResets = 0
    /// Version negotiations sent.
    package var versionNegotiations = 0
}

extension SocketAddress {
    var isWildcard: Bool { ipAddress == "0.0.0.0" || ipAddress == "::" }
}
