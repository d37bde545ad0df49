// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CNgtcp2
import CSodium

// What ngtcp2 calls while it reads or writes a packet. Nothing here calls out to the application,
// and nothing writes packets: events are noted on the connection and its streams, and delivered
// when the burst of packets is over. (The one exception is the policy in the TLS verify step.)

private func connection(_ owner: UnsafeMutableRawPointer?) -> QUICConnection? {
    guard let owner else { return nil }
    return Unmanaged<QUICConnection>.fromOpaque(owner).takeUnretainedValue()
}

private func stream(_ pointer: UnsafeMutableRawPointer?) -> QUICStream? {
    guard let pointer else { return nil }
    return Unmanaged<QUICStream>.fromOpaque(pointer).takeUnretainedValue()
}

enum QUICEvents {
    /// The callbacks of every connection. They capture nothing.
    static let table: aspen_quic_events = {
        var table = aspen_quic_events()
        addHandshake(&table)
        addStreams(&table)
        addConnectionIDs(&table)
        return table
    }()

    private static func addHandshake(_ table: inout aspen_quic_events) {
        table.handshake_completed = { _, owner in
            guard let connection = connection(owner) else { return NGTCP2_ERR_CALLBACK_FAILURE }
            connection.handshakeCompleted = true
            if connection.isInbound { connection.noteEstablished() }
            return 0
        }
        table.handshake_confirmed = { _, owner in
            guard let connection = connection(owner) else { return NGTCP2_ERR_CALLBACK_FAILURE }
            connection.handshakeConfirmed = true
            if !connection.isInbound { connection.noteEstablished() }
            return 0
        }
        table.stateless_reset = { _, _, owner in
            connection(owner)?.gotStatelessReset = true
            return 0
        }
    }

    private static func addStreams(_ table: inout aspen_quic_events) {
        table.stream_data = { _, flags, _, _, data, count, _, user in
            guard let stream = stream(user) else { return 0 }
            stream.receive(
                UnsafeRawBufferPointer(start: data, count: count),
                isEnd: flags & NGTCP2_STREAM_DATA_FLAG_FIN != 0)
            return 0
        }
        table.stream_acked = { _, _, offset, count, _, user in
            stream(user)?.sendQueue.acknowledge(upTo: offset + count)
            return 0
        }
        table.stream_opened = { conn, id, owner in
            guard let connection = connection(owner) else { return NGTCP2_ERR_CALLBACK_FAILURE }
            let stream = connection.peerOpened(id)
            return ngtcp2_conn_set_stream_user_data(
                conn, id, Unmanaged.passUnretained(stream).toOpaque())
        }
        table.stream_closed = { _, flags, _, code, _, user in
            guard let stream = stream(user) else { return 0 }
            if flags & NGTCP2_STREAM_CLOSE_FLAG_APP_ERROR_CODE_SET != 0 {
                stream.receiveReset(code)
            }
            stream.markLibraryClosed()
            return 0
        }
        table.stream_reset = { _, _, _, code, _, user in
            stream(user)?.receiveReset(code)
            return 0
        }
        table.stream_stopped = { _, _, code, _, user in
            stream(user)?.receiveReset(code)
            return 0
        }
        table.streams_allowed = { _, _, owner in
            connection(owner)?.noteStreamsAllowed()
            return 0
        }
        table.stream_extended = { _, _, _, owner, user in
            guard let stream = stream(user), stream.isFlowBlocked else { return 0 }
            stream.isFlowBlocked = false
            connection(owner)?.streamHasData(stream)
            return 0
        }
    }

    private static func addConnectionIDs(_ table: inout aspen_quic_events) {
        table.connection_id_new = { _, cid, token, length, owner in
            guard let cid, let token, length == ASPEN_CID_LENGTH,
                let connection = connection(owner), let endpoint = connection.endpoint
            else { return NGTCP2_ERR_CALLBACK_FAILURE }
            let id = endpoint.newID(for: connection)
            cid.pointee = ngtcp2_cid(id)
            return endpoint.resetToken(of: cid, into: token) ? 0 : NGTCP2_ERR_CALLBACK_FAILURE
        }
        table.connection_id_retired = { _, cid, owner in
            guard let cid, let connection = connection(owner), let id = UInt64(cid.pointee)
            else { return 0 }
            connection.ownIDs.removeAll { $0 == id }
            connection.endpoint?.connections[id] = nil
            return 0
        }
        table.peer_id_status = { _, kind, _, _, token, owner in
            guard let token, let connection = connection(owner), let endpoint = connection.endpoint
            else { return 0 }
            let value = ResetToken(token)
            if kind == Int32(NGTCP2_CONNECTION_ID_STATUS_TYPE_ACTIVATE.rawValue) {
                connection.peerResetTokens.append(value)
                endpoint.resetTokens[value] = connection
            } else {
                connection.peerResetTokens.removeAll { $0 == value }
                endpoint.resetTokens[value] = nil
            }
            return 0
        }
        table.random = { out, count, _ in
            guard let out else { return }
            randombytes_buf(out, count)
        }
    }

    /// Judges the key that the peer claims, before anything is said on its behalf.
    static let verify: aspen_tls_verify = { owner, key in
        guard let connection = connection(owner), let key,
            let claimed = EndpointID(
                bytes: UnsafeBufferPointer(start: key, count: Int(ASPEN_KEY_LENGTH)))
        else { return -1 }
        return connection.judge(claimed) ? 0 : -1
    }
}

extension QUICConnection {
    func noteEstablished() {
        guard !establishPending, state == .handshaking else { return }
        establishPending = true
        endpoint?.deliverLater(self)
    }

    func noteStreamsAllowed() {
        guard isShortOfStreams else { return }
        streamsAllowedPending = true
        endpoint?.deliverLater(self)
    }

    func peerOpened(_ id: Int64) -> QUICStream {
        let stream = QUICStream(id: id, connection: self, isAnnounced: false)
        streams[id] = stream
        unannounced.append(stream)
        endpoint?.deliverLater(self)
        return stream
    }

    /// The verify step of TLS. The proof of the key comes after it: what passes here is a claim.
    func judge(_ claimed: EndpointID) -> Bool {
        claimedEndpoint = claimed
        if let expectedEndpoint {
            guard claimed == expectedEndpoint else {
                verifyFailure = .identityMismatch(expected: expectedEndpoint, found: claimed)
                return false
            }
            return true
        }
        guard let endpoint, let tls else { return false }
        let name = Self.selectedProtocol(tls)
        if let reason = endpoint.acceptPolicy(claimed, name, initialRemote) {
            refusal = reason
            return false
        }
        return true
    }

    /// The handshake is over, and the peer's key is proved: is it still welcome?
    /// - Returns: nil, or why not.
    func judgeProved() -> QUICError? {
        guard let tls else { return .library("no TLS session") }
        var key = [UInt8](repeating: 0, count: EndpointID.byteCount)
        guard aspen_tls_peer_key(tls, &key) == 0, let proved = EndpointID(bytes: key) else {
            return .handshakeRefused("the peer has shown no key")
        }
        claimedEndpoint = proved
        if let expectedEndpoint, proved != expectedEndpoint {
            return .identityMismatch(expected: expectedEndpoint, found: proved)
        }
        let name = Self.selectedProtocol(tls)
        if isInbound, let reason = endpoint?.acceptPolicy(proved, name, remoteAddress) {
            return .handshakeRefused(reason)
        }
        remoteEndpoint = proved
        alpn = name
        return nil
    }

    private static func selectedProtocol(_ tls: OpaquePointer) -> String {
        let bytes = [UInt8](unsafeUninitializedCapacity: 256) { buffer, count in
            count = aspen_tls_protocol(tls, buffer.baseAddress)
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
