// SPDX-License-Identifier: GPL-2.0-or-later

import CNgtcp2
import NIOCore

/// How a connection is closed towards the peer.
struct CloseMessage {
    let kind: aspen_close_kind
    let code: Int64
    let reason: String

    init(_ kind: aspen_close_kind, _ code: Int64, _ reason: String) {
        self.kind = kind
        self.code = code
        self.reason = reason
    }
}

// Packets in, packets out, time.
extension QUICConnection {
    /// Most stream chunks that one packet is built from.
    private static let vectorsMax = 8
    /// How long what has been received may wait for data to ride on with its acknowledgement, in
    /// nanoseconds. The answer to a message comes from another process, after a sync: a packet that
    /// only acknowledges would go before almost each of them, and wake the peer for nothing.
    private static let acknowledgementPatience: UInt64 = 5_000_000

    private func settings(now: UInt64) -> aspen_quic_settings {
        let window =
            isInbound ? configuration.inboundConnectionWindow : configuration.connectionWindow
        return aspen_quic_settings(
            now: now,
            handshake_timeout: configuration.handshakeTimeout.nanosecondCount,
            idle_timeout: configuration.idleTimeout.nanosecondCount,
            initial_rtt: configuration.initialRoundTrip.nanosecondCount,
            streams_max: UInt64(configuration.maxStreams),
            stream_window: UInt64(configuration.streamWindow),
            connection_window: UInt64(window))
    }

    /// Prepares the first packet of an outbound connection.
    func startClient(path: aspen_quic_path, now: UInt64) throws(QUICError) {
        guard let endpoint else { throw .endpointClosed }
        try startTLS(protocols: [alpn])
        var destination = ngtcp2_cid.random(length: 18)
        var source = ngtcp2_cid(endpoint.newID(for: self))
        var events = QUICEvents.table
        var settings = settings(now: now)
        var path = path
        try attach(
            aspen_quic_client_new(
                &conn, &destination, &source, &path, &events, &settings, opaque))
        if let conn {
            ngtcp2_conn_set_keep_alive_timeout(conn, configuration.keepAlive.nanosecondCount)
        }
    }

    /// Prepares to answer a client's first packet.
    func startServer(
        initial: aspen_quic_initial, original: ngtcp2_cid?, path: aspen_quic_path, now: UInt64
    ) throws(QUICError) {
        guard let endpoint else { throw .endpointClosed }
        try startTLS(protocols: endpoint.serverProtocols)
        var initial = initial
        var source = ngtcp2_cid(endpoint.newID(for: self))
        var token = [UInt8](repeating: 0, count: Int(ASPEN_RESET_TOKEN_LENGTH))
        guard endpoint.resetToken(of: &source, into: &token) else {
            throw .library("no reset token")
        }
        var events = QUICEvents.table
        var settings = settings(now: now)
        var path = path
        let result: CInt
        if var original {
            result = aspen_quic_server_new(
                &conn, &initial, &original, &source, token, &path, &events, &settings, opaque)
        } else {
            result = aspen_quic_server_new(
                &conn, &initial, nil, &source, token, &path, &events, &settings, opaque)
        }
        try attach(result)
    }

    private var opaque: UnsafeMutableRawPointer { Unmanaged.passUnretained(self).toOpaque() }

    private func startTLS(protocols: [String]) throws(QUICError) {
        var names: [UInt8] = []
        for name in protocols {
            precondition((1...255).contains(name.utf8.count), "an ALPN name has 1 to 255 bytes")
            names.append(UInt8(name.utf8.count))
            names.append(contentsOf: name.utf8)
        }
        tls = aspen_tls_session_new(
            endpoint?.tlsContext, isInbound, names, protocols.count, QUICEvents.verify, opaque)
        if tls == nil { throw .library("cannot make a TLS session") }
    }

    private func attach(_ result: CInt) throws(QUICError) {
        guard result == 0, let conn else { throw .library(Self.text(result)) }
        aspen_tls_session_attach(tls, conn)
    }

    // MARK: In

    func read(
        _ packet: UnsafeRawBufferPointer, path: inout aspen_quic_path, now: UInt64
    ) {
        guard let conn else {
            answerLate()
            return
        }
        guard !endsInSilence(now: now) else { return }
        heardAt = now
        let bytes = packet.baseAddress?.assumingMemoryBound(to: UInt8.self)
        let result = aspen_quic_read(conn, &path, bytes, packet.count, now)
        if result == 0 {
            endpoint?.flushLater(self)
        } else {
            readFailed(result)
        }
    }

    private func readFailed(_ result: CInt) {
        switch result {
        case NGTCP2_ERR_DRAINING:
            finish(peerCloseError(), sending: nil)
        case NGTCP2_ERR_DROP_CONN, NGTCP2_ERR_RETRY:
            finish(.connectionLost("the handshake made no sense"), sending: nil, lingers: false)
        case NGTCP2_ERR_CRYPTO:
            finish(cryptoError(), sending: .init(ASPEN_CLOSE_LIBRARY, Int64(result), ""))
        default:
            finish(
                .connectionLost("the peer broke the protocol: \(Self.text(result))"),
                sending: .init(ASPEN_CLOSE_LIBRARY, Int64(result), ""))
        }
    }

    /// TLS said no on this side: why.
    private func cryptoError() -> QUICError {
        if let verifyFailure { return verifyFailure }
        if let refusal { return .handshakeRefused(refusal) }
        guard let conn else { return .handshakeRefused("TLS failed") }
        return .handshakeRefused(Self.alertText(ngtcp2_conn_get_tls_alert(conn)))
    }

    static func alertText(_ alert: UInt8) -> String {
        guard let name = aspen_tls_alert_name(alert) else { return "TLS alert \(alert)" }
        return "TLS alert \(alert), \(String(cString: name))"
    }

    private func peerCloseError() -> QUICError {
        if gotStatelessReset { return .connectionLost("the peer has restarted") }
        var close = aspen_quic_close()
        aspen_quic_peer_close(conn, &close)
        let reason = withUnsafeBytes(of: close.reason) {
            String(decoding: $0.prefix(close.reason_length), as: UTF8.self)
        }
        if close.application { return .closedByPeer(code: close.code, reason: reason) }
        // RFC 9000 section 20.1: the TLS alert stands in the low byte.
        if (0x100...0x1ff).contains(close.code) {
            return .handshakeRefused(Self.alertText(UInt8(close.code & 0xff)))
        }
        if close.code == UInt64(NGTCP2_CONNECTION_REFUSED) || state == .handshaking {
            return .handshakeRefused(
                reason.isEmpty ? "refused (QUIC error \(close.code))" : reason)
        }
        return .closedByPeer(code: close.code, reason: reason)
    }

    /// A packet for a connection that this side has closed: say so again, ever more rarely.
    private func answerLate() {
        latePackets += 1
        guard !closePacket.isEmpty, latePackets & (latePackets - 1) == 0 else { return }
        endpoint?.sendDatagram(closePacket, to: initialRemote, source: localSource)
    }

    // MARK: Out

    /// Writes what is due, as far as the congestion controller, the pacer and the peer allow.
    func flush(now: UInt64) {
        guard let conn, let endpoint, !endsInSilence(now: now) else { return }
        if isExpiryDue {
            isExpiryDue = false
            guard handleExpiry(conn, now: now) else { return }
        }
        let batch = endpoint.batch
        batch.begin(connection: self, payload: aspen_quic_path_payload(conn))
        let capacity = ngtcp2_conn_get_max_tx_udp_payload_size(conn)
        let quantum = max(ngtcp2_conn_get_send_quantum(conn), capacity)
        var written = 0
        while written + capacity <= quantum, !endpoint.isSendBlocked {
            let result = writePacket(conn, batch.reserve(capacity), now: now)
            if result < 0 {
                batch.end()
                finish(
                    .connectionLost("cannot go on: \(Self.text(CInt(result)))"),
                    sending: .init(ASPEN_CLOSE_LIBRARY, Int64(result), ""))
                return
            }
            if result == 0 { break }
            batch.commit(result)
            written += result
        }
        batch.end()
        // Pacing begins with the first real measurement: before, it would hold back the first
        // application packet for milliseconds.
        if written > 0, handshakeCompleted { ngtcp2_conn_update_pkt_tx_time(conn, now) }
        armTimer(conn, wrote: written > 0)
    }

    /// Builds one packet from as many streams as fit, in turn.
    /// - Returns: its length; 0 when nothing may be sent now; negative when the connection fails.
    private func writePacket(
        _ conn: OpaquePointer, _ out: UnsafeMutableBufferPointer<UInt8>, now: UInt64
    ) -> Int {
        let writer = endpoint?.writer
        var accepted: ngtcp2_ssize = -1
        while let stream = nextReady(conn) {
            let result = withUnsafeTemporaryAllocation(
                of: ngtcp2_vec.self, capacity: Self.vectorsMax
            ) { vectors -> Int in
                let (count, bytes) = stream.sendQueue.gather(into: vectors)
                let ends = stream.finishRequested && bytes == stream.sendQueue.unsentBytes
                let flags = ASPEN_WRITE_MORE | (ends ? ASPEN_WRITE_FIN : 0)
                let result = aspen_quic_write(
                    writer, conn, out.baseAddress, out.count, &accepted, flags, stream.id,
                    vectors.baseAddress, count, now)
                if accepted >= 0 {
                    stream.sendQueue.markSent(accepted)
                    if ends, accepted == bytes { stream.finishSent = true }
                }
                return result
            }
            if result == 0 { return 0 }
            settle(stream, conn, result: result)
            switch CInt(result) {
            case NGTCP2_ERR_WRITE_MORE, NGTCP2_ERR_STREAM_DATA_BLOCKED,
                NGTCP2_ERR_STREAM_SHUT_WR, NGTCP2_ERR_STREAM_NOT_FOUND:
                continue
            default: return result
            }
        }
        return aspen_quic_write(
            writer, conn, out.baseAddress, out.count, &accepted, 0, -1, nil, 0, now)
    }

    /// The stream whose turn it is; nil when none may send, or the connection's window is used up
    /// (an end without bytes needs no window).
    private func nextReady(_ conn: OpaquePointer) -> QUICStream? {
        while let first = ready.first {
            if first.sendQueue.unsentBytes > 0 {
                return ngtcp2_conn_get_max_data_left(conn) == 0 ? nil : first
            }
            if first.finishRequested, !first.finishSent { return first }
            drop(first)
        }
        return nil
    }

    /// After a write for `stream`: does it stay in the list, and where?
    private func settle(_ stream: QUICStream, _ conn: OpaquePointer, result: Int) {
        switch CInt(truncatingIfNeeded: result) {
        case NGTCP2_ERR_STREAM_DATA_BLOCKED:
            // When it is the connection's window, `nextReady` waits; the stream keeps its place.
            if ngtcp2_conn_get_max_data_left(conn) > 0 {
                stream.isFlowBlocked = true
                drop(stream)
            }
        case NGTCP2_ERR_STREAM_SHUT_WR, NGTCP2_ERR_STREAM_NOT_FOUND:
            stream.sendQueue.dropUnsent()
            drop(stream)
        default:
            stream.noteSent()
            let hasMore =
                stream.sendQueue.unsentBytes > 0
                || (stream.finishRequested && !stream.finishSent)
            if !hasMore {
                drop(stream)
            } else if result > 0, ready.count > 1 {
                ready.append(ready.removeFirst())
            }
        }
    }

    private func drop(_ stream: QUICStream) {
        stream.isReady = false
        precondition(ready.first === stream, "only the first stream is written")
        ready.removeFirst()
    }

    // MARK: Time

    /// Asks to be woken when ngtcp2 has something to do. A timer that fires too early costs less
    /// than setting it anew for each packet, so that only an earlier deadline replaces it.
    /// - Parameter wrote: packets have just been written. The pacer may have fallen due meanwhile:
    ///   then the next turn of the loop goes on, without a timer, after others had theirs.
    private func armTimer(_ conn: OpaquePointer, wrote: Bool = false) {
        guard let endpoint else { return }
        let expiry = ngtcp2_conn_get_expiry(conn)
        if wrote, expiry <= endpoint.clock {
            isExpiryDue = true
            endpoint.flushNextTurn(self)
        }
        // Nothing waits for the pacer; a loss, which is rare, is noticed that much later.
        var due = expiry
        if !wrote, ready.isEmpty, handshakeCompleted {
            due = max(due, endpoint.clock + Self.acknowledgementPatience)
        }
        let next = isExpiryDue ? silenceEnds : min(due, silenceEnds)
        if next != UInt64.max { arm(at: next) }
    }

    /// When a connection has been silent for too long; `UInt64.max`: never.
    private var silenceEnds: UInt64 {
        let idle = configuration.idleTimeout.nanosecondCount
        return state == .established && idle > 0 ? heardAt + idle : .max
    }

    /// Gives the connection up when the peer has been silent for the idle timeout.
    ///
    /// ngtcp2 sees to that as well, but not after this process was stopped for a while: packets
    /// that waited in the socket look new, and revive a connection that the peer has given up. A live
    /// peer is never silent for so long: the side that dialled keeps the connection alive.
    /// - Parameter isOverdue: it should have ended before, and a peer that still has it may believe
    ///   in it for long; when the timeout has just come, the peer comes to the same end by itself.
    /// - Returns: whether it has ended.
    private func endsInSilence(now: UInt64, isOverdue: Bool = true) -> Bool {
        guard now >= silenceEnds else { return false }
        let message = isOverdue ? CloseMessage(ASPEN_CLOSE_APPLICATION, 0, "silence") : nil
        finish(.timedOut, sending: message, lingers: false)
        return true
    }

    private func arm(at deadline: UInt64) {
        if let timerDeadline, timerDeadline <= deadline { return }
        timer?.cancel()
        timerDeadline = deadline
        let lead = endpoint?.clockLead ?? 0
        timer = try? eventLoop.scheduleCallback(
            at: .uptimeNanoseconds(min(max(deadline, lead) - lead, UInt64(Int64.max))),
            handler: self)
    }

    private func timerFired() {
        timer = nil
        timerDeadline = nil
        guard let endpoint else { return }
        if state == .lingering {
            endpoint.remove(self)
            return
        }
        guard let conn else { return }
        let now = endpoint.turnTime()
        guard !endsInSilence(now: now, isOverdue: false) else { return }
        if ngtcp2_conn_get_expiry(conn) > now {
            armTimer(conn)
        } else if handleExpiry(conn, now: now) {
            endpoint.flushLater(self)
        }
    }

    /// - Returns: false when the connection has ended.
    private func handleExpiry(_ conn: OpaquePointer, now: UInt64) -> Bool {
        let result = ngtcp2_conn_handle_expiry(conn, now)
        switch result {
        case 0: return true
        case NGTCP2_ERR_IDLE_CLOSE, NGTCP2_ERR_HANDSHAKE_TIMEOUT:
            finish(.timedOut, sending: nil, lingers: false)
        default:
            finish(
                .connectionLost(Self.text(result)),
                sending: .init(ASPEN_CLOSE_LIBRARY, Int64(result), ""))
        }
        return false
    }

    // MARK: The end

    /// Ends the connection: tells the peer (if `message` is set), frees ngtcp2's part at once, and
    /// keeps the ids for three probe timeouts (RFC 9000 section 10.2).
    func finish(_ error: QUICError, sending message: CloseMessage?, lingers: Bool = true) {
        guard state == .handshaking || state == .established else { return }
        let wasEstablished = state == .established
        state = .lingering
        guard let conn, let endpoint else { return }
        _ = smoothedRTT
        initialRemote = remoteAddress
        let linger = 3 * ngtcp2_conn_get_pto(conn)
        if let message { sendClose(message, conn) }
        self.conn = nil
        ngtcp2_conn_del(conn)
        aspen_tls_session_free(tls)
        tls = nil
        timer?.cancel()
        timer = nil
        timerDeadline = nil
        endpoint.ended(self, error, wasEstablished: wasEstablished)
        if lingers {
            arm(at: endpoint.turnTime() + linger)
        } else {
            endpoint.remove(self)
        }
        if wasEstablished {
            closeError = error
            endpoint.deliverLater(self)
        }
    }

    private func sendClose(_ message: CloseMessage, _ conn: OpaquePointer) {
        guard let endpoint else { return }
        var packet = [UInt8](repeating: 0, count: Int(NGTCP2_MAX_UDP_PAYLOAD_SIZE))
        let reason = Array(message.reason.utf8.prefix(256))
        let length = aspen_quic_write_close(
            endpoint.writer, conn, &packet, packet.count, message.kind, message.code, reason,
            reason.count, endpoint.turnTime())
        guard length > 0 else { return }
        packet.removeLast(packet.count - length)
        closePacket = packet
        endpoint.sendDatagram(packet, to: initialRemote, source: localSource)
    }
}

extension QUICConnection: NIOScheduledCallbackHandler {
    package func handleScheduledCallback(eventLoop: some EventLoop) { timerFired() }
}
