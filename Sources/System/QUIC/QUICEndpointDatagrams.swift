// SPDX-License-Identifier: GPL-2.0-or-later

import CNgtcp2
import CSodium
import Glibc
import NIOCore

/// Bridges NIO's channel to the endpoint.
final class DatagramHandler: ChannelInboundHandler {
    typealias InboundIn = AddressedEnvelope<ByteBuffer>
    private let endpoint: QUICEndpoint
    private var failure: String?

    init(_ endpoint: QUICEndpoint) { self.endpoint = endpoint }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        endpoint.received(unwrapInboundIn(data))
    }

    func channelReadComplete(context: ChannelHandlerContext) { endpoint.readComplete() }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { failure = "\(error)" }

    func channelInactive(context: ChannelHandlerContext) { endpoint.socketClosed(failure) }
}

/// A datagram, or several of one size, that the kernel did not take at once.
struct BlockedDatagram {
    let bytes: [UInt8]
    let segment: Int
    let remote: SocketAddress
    let source: SocketAddress?
}

// Datagrams that come in.
extension QUICEndpoint {
    func received(_ envelope: AddressedEnvelope<ByteBuffer>) {
        isReading = true
        guard let local = channel?.localAddress else { return }
        let now = turnTime()
        let remote = envelope.remoteAddress
        let source = envelope.metadata?.packetInfo?.destinationAddress
        local.withSockAddr { localAddress, localLength in
            remote.withSockAddr { remoteAddress, remoteLength in
                var path = aspen_quic_path(
                    local: localAddress, local_length: socklen_t(localLength),
                    remote: remoteAddress, remote_length: socklen_t(remoteLength))
                envelope.data.withUnsafeReadableBytes { bytes in
                    let segment = max(envelope.metadata?.segmentSize ?? bytes.count, 1)
                    var start = 0
                    while start < bytes.count {
                        let end = min(start + segment, bytes.count)
                        let packet = UnsafeRawBufferPointer(rebasing: bytes[start..<end])
                        handle(packet, path: &path, remote: remote, source: source, now: now)
                        start = end
                    }
                }
            }
        }
    }

    /// One UDP datagram: finds its connection, or what else to answer.
    private func handle(
        _ packet: UnsafeRawBufferPointer, path: inout aspen_quic_path, remote: SocketAddress,
        source: SocketAddress?, now: UInt64
    ) {
        guard let bytes = packet.baseAddress?.assumingMemoryBound(to: UInt8.self) else { return }
        var ids = ngtcp2_version_cid()
        let result = ngtcp2_pkt_decode_version_cid(
            &ids, bytes, packet.count, Int(ASPEN_CID_LENGTH))
        let isLong = bytes[0] & 0x80 != 0
        let isForeign =
            result == NGTCP2_ERR_VERSION_NEGOTIATION
            || (isLong && ids.version != 0 && ids.version != NGTCP2_PROTO_VER_V1)
        if isForeign {
            negotiateVersion(ids, packet.count, to: remote, source: source)
            return
        }
        guard result == 0 else {
            counters.strayDatagrams += 1
            return
        }
        if let connection = lookUp(ids) {
            if source != nil { connection.localSource = source }
            connection.read(packet, path: &path, now: now)
        } else if isLong {
            accept(packet, path: &path, remote: remote, source: source, now: now)
        } else if let connection = connection(resetBy: packet) {
            connection.read(packet, path: &path, now: now)
        } else {
            reset(ids, packet.count, to: remote, source: source, now: now)
        }
    }

    private func lookUp(_ ids: ngtcp2_version_cid) -> QUICConnection? {
        guard let bytes = ids.dcid else { return nil }
        if ids.dcidlen == Int(ASPEN_CID_LENGTH),
            let connection = connections[UnsafeRawPointer(bytes).loadUnaligned(as: UInt64.self)]
        {
            return connection
        }
        if originalIDs.isEmpty { return nil }
        return ConnectionID(UnsafeBufferPointer(start: bytes, count: ids.dcidlen))
            .flatMap { originalIDs[$0] }
    }

    /// The connection whose peer says, by its token at the end, that it knows nothing of it.
    private func connection(resetBy packet: UnsafeRawBufferPointer) -> QUICConnection? {
        let tokenLength = Int(ASPEN_RESET_TOKEN_LENGTH)
        guard packet.count >= tokenLength + 5, !resetTokens.isEmpty else { return nil }
        let tail = UnsafeRawBufferPointer(rebasing: packet[(packet.count - tokenLength)...])
        guard let base = tail.baseAddress?.assumingMemoryBound(to: UInt8.self) else { return nil }
        return resetTokens[ResetToken(base)]
    }

    // MARK: Answers without a connection

    private func negotiateVersion(
        _ ids: ngtcp2_version_cid, _ count: Int, to remote: SocketAddress, source: SocketAddress?
    ) {
        // Smaller ones must not be answered (RFC 9000 section 6.1), and a client has no use for it.
        guard count >= Int(NGTCP2_MAX_UDP_PAYLOAD_SIZE), !serverProtocols.isEmpty else {
            counters.strayDatagrams += 1
            return
        }
        var ids = ids
        send(to: remote, source: source) { buffer in
            aspen_quic_write_version_negotiation(
                buffer.baseAddress, buffer.count, UInt8(randombytes_uniform(256)), &ids)
        }
        counters.versionNegotiations += 1
    }

    /// Tells a peer of a connection that we have forgotten (we restarted): it may know our token.
    private func reset(
        _ ids: ngtcp2_version_cid, _ count: Int, to remote: SocketAddress, source: SocketAddress?,
        now: UInt64
    ) {
        // Shorter than what it answers, so that two endpoints never go on for ever; a keep-alive
        // of ngtcp2 is still long enough (RFC 9000 section 10.3.3).
        let length = min(count - 1, 40)
        guard length >= 21, ids.dcidlen == Int(ASPEN_CID_LENGTH), mayReset(now: now) else {
            counters.strayDatagrams += 1
            return
        }
        var cid = ngtcp2_cid()
        ngtcp2_cid_init(&cid, ids.dcid, ids.dcidlen)
        var token = [UInt8](repeating: 0, count: Int(ASPEN_RESET_TOKEN_LENGTH))
        guard resetToken(of: &cid, into: &token) else { return }
        var noise = [UInt8](repeating: 0, count: length - token.count)
        randombytes_buf(&noise, noise.count)
        send(to: remote, source: source) { buffer in
            ngtcp2_pkt_write_stateless_reset(
                buffer.baseAddress, length, token, noise, noise.count)
        }
        counters.statelessResets += 1
    }

    // MARK: New connections

    private func accept(
        _ packet: UnsafeRawBufferPointer, path: inout aspen_quic_path, remote: SocketAddress,
        source: SocketAddress?, now: UInt64
    ) {
        var initial = aspen_quic_initial()
        let bytes = packet.baseAddress?.assumingMemoryBound(to: UInt8.self)
        guard !serverProtocols.isEmpty,
            aspen_quic_accept(&initial, bytes, packet.count) == 0
        else {
            counters.strayDatagrams += 1
            return
        }
        if establishedCount >= configuration.maxConnections {
            refuse(initial, NGTCP2_CONNECTION_REFUSED, to: remote, source: source)
            onRefused(nil, remote, "\(QUICError.tooManyConnections)")
            return
        }
        var original: ngtcp2_cid?
        if aspen_quic_is_retry_token(&initial) {
            var found = ngtcp2_cid()
            let lifetime = 2 * configuration.handshakeTimeout.nanosecondCount
            guard
                aspen_quic_verify_retry(
                    &found, &initial, retrySecret, retrySecret.count, path.remote,
                    path.remote_length, lifetime, now) == 0
            else {
                refuse(initial, NGTCP2_INVALID_TOKEN, to: remote, source: source)
                return
            }
            original = found
        } else if halfOpenCount >= configuration.retryThreshold {
            retry(initial, path: path, to: remote, source: source, now: now)
            return
        }
        if halfOpenCount >= configuration.maxHalfOpen { giveUpOldestHandshake() }
        open(initial, original, path: &path, remote: remote, source: source, now: now)?
            .read(packet, path: &path, now: now)
    }

    /// Whoever stalls makes room for whoever comes: a flood of handshakes that go nowhere would
    /// otherwise keep everybody out for as long as each may take.
    private func giveUpOldestHandshake() {
        halfOpen.first { !$0.establishPending }?.finish(
            .tooManyConnections,
            sending: .init(ASPEN_CLOSE_TRANSPORT, Int64(NGTCP2_CONNECTION_REFUSED), ""),
            lingers: false)
    }

    private func open(
        _ initial: aspen_quic_initial, _ original: ngtcp2_cid?, path: inout aspen_quic_path,
        remote: SocketAddress, source: SocketAddress?, now: UInt64
    ) -> QUICConnection? {
        let connection = QUICConnection(endpoint: self, remote: remote, expected: nil, alpn: "")
        connection.localSource = source
        do {
            try connection.startServer(initial: initial, original: original, path: path, now: now)
        } catch {
            remove(connection)
            onRefused(nil, remote, "\(error)")
            return nil
        }
        halfOpen.append(connection)
        // The client goes on using the id that it made up until it has seen ours.
        if let id = ConnectionID(initial.destination) {
            connection.clientOriginalID = id
            originalIDs[id] = connection
        }
        return connection
    }

    private func retry(
        _ initial: aspen_quic_initial, path: aspen_quic_path, to remote: SocketAddress,
        source: SocketAddress?, now: UInt64
    ) {
        var initial = initial
        var id = ngtcp2_cid.random(length: Int(ASPEN_CID_LENGTH))
        send(to: remote, source: source) { buffer in
            aspen_quic_write_retry(
                buffer.baseAddress, buffer.count, &initial, &id, retrySecret, retrySecret.count,
                path.remote, path.remote_length, now)
        }
        counters.retries += 1
    }

    private func refuse(
        _ initial: aspen_quic_initial, _ code: UInt32, to remote: SocketAddress,
        source: SocketAddress?
    ) {
        var initial = initial
        send(to: remote, source: source) { buffer in
            aspen_quic_write_refusal(buffer.baseAddress, buffer.count, &initial, UInt64(code))
        }
        counters.refused += 1
    }
}

// Datagrams that go out.
extension QUICEndpoint {
    private func send(
        to remote: SocketAddress, source: SocketAddress?,
        _ write: (UnsafeMutableBufferPointer<UInt8>) -> ngtcp2_ssize
    ) {
        var packet = [UInt8](repeating: 0, count: Int(NGTCP2_MAX_UDP_PAYLOAD_SIZE))
        let length = packet.withUnsafeMutableBufferPointer { write($0) }
        guard length > 0 else { return }
        packet.removeLast(packet.count - length)
        sendDatagram(packet, to: remote, source: source)
    }

    /// Sends a datagram that nobody repeats: lost when the socket is busy.
    func sendDatagram(_ packet: [UInt8], to remote: SocketAddress, source: SocketAddress?) {
        guard !isSendBlocked else { return }
        packet.withUnsafeBytes { bytes in
            remote.withSockAddr { address, length in
                transmit(
                    bytes, segment: 0, to: address, socklen_t(length), source: source, for: nil)
            }
        }
    }

    /// One system call. A full socket makes the endpoint wait; other errors mean a lost packet,
    /// and, for an attempt to connect, a reason to give up.
    func transmit(
        _ bytes: UnsafeRawBufferPointer, segment: Int, to remote: UnsafePointer<sockaddr>,
        _ length: socklen_t, source: SocketAddress?, for connection: QUICConnection?
    ) {
        guard socket >= 0 else { return }
        let code = sendNow(bytes, segment: segment, to: remote, length, source: source)
        switch -code {
        case 0, EMSGSIZE, ENOBUFS, ENOMEM:
            break
        case EAGAIN:
            block(bytes, segment, remote, source)
        case EIO where segment > 0, EINVAL where segment > 0:
            // The device cannot do it after all.
            hasSegmentation = false
            sendSingly(bytes, segment: segment, to: remote, length, source: source)
        default:
            connection?.sendFailed(-code)
        }
    }

    private func sendNow(
        _ bytes: UnsafeRawBufferPointer, segment: Int, to remote: UnsafePointer<sockaddr>,
        _ length: socklen_t, source: SocketAddress?
    ) -> CInt {
        let start = bytes.baseAddress?.assumingMemoryBound(to: UInt8.self)
        guard let source else {
            return aspen_udp_send(
                socket, start, bytes.count, UInt16(segment), remote, length, nil)
        }
        return source.withSockAddr { from, _ in
            aspen_udp_send(socket, start, bytes.count, UInt16(segment), remote, length, from)
        }
    }

    private func sendSingly(
        _ bytes: UnsafeRawBufferPointer, segment: Int, to remote: UnsafePointer<sockaddr>,
        _ length: socklen_t, source: SocketAddress?
    ) {
        var start = 0
        while start < bytes.count {
            let end = min(start + segment, bytes.count)
            let packet = UnsafeRawBufferPointer(rebasing: bytes[start..<end])
            _ = sendNow(packet, segment: 0, to: remote, length, source: source)
            start = end
        }
    }

    private func block(
        _ bytes: UnsafeRawBufferPointer, _ segment: Int, _ remote: UnsafePointer<sockaddr>,
        _ source: SocketAddress?
    ) {
        guard let address = SocketAddress(remote) else { return }
        blocked = BlockedDatagram(
            bytes: Array(bytes), segment: segment, remote: address, source: source)
        eventLoop.assumeIsolatedUnsafeUnchecked().scheduleTask(in: .milliseconds(1)) {
            self.unblock()
        }
    }

    private func unblock() {
        guard let waiting = blocked else { return }
        blocked = nil
        waiting.bytes.withUnsafeBytes { bytes in
            waiting.remote.withSockAddr { address, length in
                transmit(
                    bytes, segment: waiting.segment, to: address, socklen_t(length),
                    source: waiting.source, for: nil)
            }
        }
        if !isSendBlocked { scheduleTurn() }
    }
}

extension QUICConnection {
    /// The system refuses to send to the peer. An attempt to connect gives up; a connection that
    /// stands may see better times, and has its idle timeout.
    func sendFailed(_ code: CInt) {
        guard state == .handshaking, !isInbound else { return }
        sendError = systemText(code)
        endpoint?.deliverLater(self)
    }
}

func systemText(_ code: CInt) -> String {
    guard let text = strerror(code) else { return "error \(code)" }
    return String(cString: text)
}
