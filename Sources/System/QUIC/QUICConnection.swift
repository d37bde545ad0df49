// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CNgtcp2
import DequeModule
import Glibc
import NIOCore

/// One authenticated QUIC connection: both ends have proved their Ed25519 keys.
///
/// Callers see a connection only after its handshake: an inbound one through
/// `QUICEndpoint.onConnection`, an outbound one through `connect`. It lives until it is closed,
/// lost or idle for too long; `onClosed` tells, exactly once.
// SAFETY: confined to one event loop; every entry point checks that it runs there.
package final class QUICConnection: @unchecked Sendable {
    enum State {
        case handshaking
        case established
        /// ngtcp2's part is gone; the ids stay known for a while, so that late packets are
        /// answered with the same close (or not at all), and not taken for strangers.
        case lingering
        case gone
    }

    /// The peer's proved key.
    package internal(set) var remoteEndpoint: EndpointID
    /// The protocol agreed on.
    package internal(set) var alpn: String
    /// Whether the peer dialled.
    package let isInbound: Bool
    /// Streams that the peer opens; until this is set, they wait. All callbacks are let go of when
    /// the connection is over, so that they may hold on to whatever they like.
    package var onStream: ((QUICStream) -> Void)? {
        didSet { if !unannounced.isEmpty { endpoint?.deliverLater(self) } }
    }
    /// The connection is over, for this reason; its streams have been told before.
    package var onClosed: ((QUICError) -> Void)? {
        didSet { if closeError != nil { endpoint?.deliverLater(self) } }
    }

    /// After `tooManyStreams`: the peer allows more now.
    package var onStreamsAvailable: (() -> Void)?

    let configuration: QUICConfiguration
    let eventLoop: any EventLoop
    var endpoint: QUICEndpoint?
    var state = State.handshaking
    var conn: OpaquePointer?
    var tls: OpaquePointer?
    /// Whom the dialler wants; nil for an inbound connection.
    let expectedEndpoint: EndpointID?
    /// The outcome of an outbound handshake, told once.
    var onHandshake: ((Result<Void, QUICError>) -> Void)?
    /// Where the peer was at the beginning.
    var initialRemote: SocketAddress
    /// The local address that the peer's packets come to, where the socket is bound to a wildcard.
    var localSource: SocketAddress?

    var streams: [Int64: QUICStream] = [:]
    /// Streams with bytes or an end to send, in turn.
    var ready = Deque<QUICStream>()
    /// Streams with something to deliver, in order of arrival.
    var scheduled: [QUICStream] = []
    /// Peer-opened streams that `onStream` has not seen.
    var unannounced = Deque<QUICStream>()
    /// Our connection ids, by which packets find us.
    var ownIDs: [UInt64] = []
    var clientOriginalID: ConnectionID?
    var peerResetTokens: [ResetToken] = []

    /// What ngtcp2 reported during the packet at hand; acted upon after it.
    var handshakeCompleted = false
    var handshakeConfirmed = false
    var establishPending = false
    /// `openStream` has failed, and `onStreamsAvailable` not been called since.
    var isShortOfStreams = false
    var streamsAllowedPending = false
    var verifyFailure: QUICError?
    var refusal: String?
    var claimedEndpoint: EndpointID?
    var gotStatelessReset = false
    /// Why the system does not send to the peer of an attempt to connect.
    var sendError: String?
    /// In `QUICEndpoint.dirty`.
    var isDirty = false
    /// In `QUICEndpoint.delivering`.
    var isDeliveryScheduled = false
    /// ngtcp2 wants to be told that time has passed, before the next packet.
    var isExpiryDue = false
    var timer: NIOScheduledCallback?
    var timerDeadline: UInt64?
    var closeError: QUICError?
    /// What answers late packets after a close by this side.
    var closePacket: [UInt8] = []
    var latePackets = 0
    private var isTrusted = false
    private var lastRoundTrip: UInt64 = 0
    /// When the last packet came, in nanoseconds.
    var heardAt: UInt64

    init(
        endpoint: QUICEndpoint, remote: SocketAddress, expected: EndpointID?, alpn: String
    ) {
        self.endpoint = endpoint
        configuration = endpoint.configuration
        eventLoop = endpoint.eventLoop
        heardAt = endpoint.turnTime()
        initialRemote = remote
        expectedEndpoint = expected
        isInbound = expected == nil
        // Replaced by the proved key before anybody sees the connection.
        remoteEndpoint = expected ?? endpoint.key.endpoint
        self.alpn = alpn
    }

    deinit {
        // Set only if it was given up before its first packet.
        if let conn { ngtcp2_conn_del(conn) }
        aspen_tls_session_free(tls)
    }

    @inline(__always)
    func checkConfinement() { eventLoop.preconditionInEventLoop() }

    // MARK: For callers

    /// False once it is closed or lost.
    package var isOpen: Bool { state == .established }

    /// Where the peer's packets come from; it may move.
    package var remoteAddress: SocketAddress {
        guard let conn else { return initialRemote }
        var storage = sockaddr_storage()
        guard aspen_quic_remote(conn, &storage) > 0 else { return initialRemote }
        return SocketAddress(storage) ?? initialRemote
    }

    /// The smoothed round-trip time of RFC 9002 section 5.3.
    package var smoothedRTT: Duration {
        if let conn { lastRoundTrip = aspen_quic_smoothed_rtt(conn) }
        return .nanoseconds(Int64(clamping: lastRoundTrip))
    }

    /// Streams that are open, both sides' together.
    package var streamCount: Int { streams.count }

    /// Streams that `openStream` would give right now. A stream counts until both ends are done
    /// with it and know so, which is a round trip after the last byte.
    package var availableStreams: Int {
        guard state == .established, let conn else { return 0 }
        return Int(clamping: ngtcp2_conn_get_streams_bidi_left(conn))
    }

    /// The peer is no stranger: from now on it may send `connectionWindow` bytes beyond what was
    /// read, and not only `inboundConnectionWindow`.
    package func trust() {
        checkConfinement()
        let more = configuration.connectionWindow - configuration.inboundConnectionWindow
        guard isInbound, !isTrusted, more > 0, let conn else { return }
        isTrusted = true
        ngtcp2_conn_extend_max_offset(conn, UInt64(more))
        endpoint?.flushLater(self)
    }

    /// Opens a stream. The peer learns of it with its first bytes.
    /// - Throws: `tooManyStreams` (see `onStreamsAvailable`), or `connectionLost` on a connection that is not open.
    package func openStream() throws(QUICError) -> QUICStream {
        checkConfinement()
        guard state == .established, let conn else {
            throw closeError ?? .connectionLost("the connection is closed")
        }
        var id: Int64 = -1
        let result = ngtcp2_conn_open_bidi_stream(conn, &id, nil)
        guard result == 0 else {
            if result == NGTCP2_ERR_STREAM_ID_BLOCKED {
                isShortOfStreams = true
                throw .tooManyStreams
            }
            throw .library(Self.text(result))
        }
        let stream = QUICStream(id: id, connection: self, isAnnounced: true)
        streams[id] = stream
        ngtcp2_conn_set_stream_user_data(
            conn, id, Unmanaged.passUnretained(stream).toOpaque())
        return stream
    }

    /// Keying material that both ends, and nobody else, can compute: equal on both, different for
    /// each connection (RFC 8446 section 7.5).
    /// - Parameter length: at most 255 times the hash length, in practice 32.
    package func exporter(
        label: String, context: [UInt8], length: Int
    ) throws(QUICError) -> [UInt8] {
        checkConfinement()
        guard let tls, handshakeCompleted else {
            throw .connectionLost("there are no keys to export from")
        }
        var output = [UInt8](repeating: 0, count: length)
        let code = aspen_tls_export(
            tls, label, label.utf8.count, context, context.count, &output, output.count)
        guard code == 0 else { throw .library("the TLS exporter failed (\(code))") }
        return output
    }

    /// Closes the connection with the application's `code` (at most 2^62 - 1) and a text of at
    /// most 256 bytes. Its streams are reset at once; `onClosed` follows with `closedLocally`.
    package func close(code: UInt64, reason: String) {
        checkConfinement()
        switch state {
        case .established:
            finish(
                .closedLocally,
                sending: .init(ASPEN_CLOSE_APPLICATION, Int64(min(code, (1 << 62) - 1)), reason))
        case .handshaking:
            // An application's close would not be protected yet (RFC 9000 section 10.2.3).
            finish(
                .closedLocally,
                sending: .init(ASPEN_CLOSE_TRANSPORT, Int64(NGTCP2_APPLICATION_ERROR), ""))
        case .lingering, .gone: return
        }
    }

    // MARK: For streams

    /// The stream has bytes, or its end, to send.
    func streamHasData(_ stream: QUICStream) {
        guard conn != nil, !stream.isReady, !stream.isFlowBlocked else { return }
        stream.isReady = true
        ready.append(stream)
        endpoint?.flushLater(self)
    }

    /// The stream has something to deliver.
    func schedule(_ stream: QUICStream) {
        if !stream.isScheduled {
            stream.isScheduled = true
            scheduled.append(stream)
        }
        endpoint?.deliverLater(self)
    }

    func shutStream(_ stream: QUICStream, code: UInt64) {
        guard let conn, !stream.isLibraryClosed else { return }
        _ = ngtcp2_conn_shutdown_stream(conn, stream.id, code)
        endpoint?.flushLater(self)
    }

    /// The application has the bytes: the peer may send as many more.
    func returnCredit(_ count: Int, stream: Int64?) {
        guard count > 0, let conn else { return }
        ngtcp2_conn_extend_max_offset(conn, UInt64(count))
        if let stream { _ = ngtcp2_conn_extend_max_stream_offset(conn, stream, UInt64(count)) }
        endpoint?.flushLater(self)
    }

    /// The stream is over, for ngtcp2 and for the application.
    func forget(_ stream: QUICStream) {
        guard streams.removeValue(forKey: stream.id) != nil else { return }
        if let conn, ngtcp2_conn_is_local_stream(conn, stream.id) == 0 {
            ngtcp2_conn_extend_max_streams_bidi(conn, 1)
            endpoint?.flushLater(self)
        }
    }

    // MARK: Delivery

    /// Calls back with all that the packets of this turn have brought. Runs outside ngtcp2, so
    /// that a callback may do anything, closing included.
    func deliver() {
        if let sendError {
            self.sendError = nil
            finish(.unreachable(sendError), sending: nil, lingers: false)
        }
        if establishPending {
            establishPending = false
            endpoint?.established(self)
        }
        if state == .established || closeError != nil { deliverStreams() }
        if streamsAllowedPending, state == .established {
            streamsAllowedPending = false
            isShortOfStreams = false
            onStreamsAvailable?()
        }
        if let error = closeError { deliverClose(error) }
    }

    private func deliverStreams() {
        while let onStream, let stream = unannounced.popFirst() {
            stream.isAnnounced = true
            onStream(stream)
        }
        let due = scheduled
        scheduled.removeAll(keepingCapacity: true)
        for stream in due {
            stream.isScheduled = false
            if stream.isAnnounced {
                stream.deliver()
            } else {
                // Not yet shown to anybody: keep it for when `onStream` is set.
                stream.isScheduled = true
                scheduled.append(stream)
            }
        }
    }

    private func deliverClose(_ error: QUICError) {
        abandonStreams()
        onStream = nil
        onStreamsAvailable = nil
        guard let onClosed else { return }
        closeError = nil
        self.onClosed = nil
        onClosed(error)
    }

    func abandonStreams() {
        let open = streams.values.sorted { $0.id < $1.id }
        streams.removeAll()
        ready.removeAll()
        scheduled.removeAll()
        unannounced.removeAll()
        for stream in open { stream.connectionLost() }
    }

    static func text(_ code: CInt) -> String {
        guard let name = ngtcp2_strerror(code) else { return "error \(code)" }
        return String(cString: name)
    }
}

extension SocketAddress {
    /// nil for an address family other than IPv4 and IPv6.
    init?(_ storage: sockaddr_storage) {
        switch CInt(storage.ss_family) {
        case AF_INET:
            let address = withUnsafeBytes(of: storage) { $0.load(as: sockaddr_in.self) }
            self.init(address)
        case AF_INET6:
            let address = withUnsafeBytes(of: storage) { $0.load(as: sockaddr_in6.self) }
            self.init(address)
        default: return nil
        }
    }
}
