// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import NIOCore
import QUIC
import Synchronization

/// Frames on one QUIC stream (ALPN "aspen-client", service raft) of a connection of its own.
final class QUICTransport: FrameTransport {
    var onFrame: (ByteBuffer) -> Void = { _ in }
    var onClosed: (TransportEnd) -> Void = { _ in }

    private let connection: QUICConnection
    private let stream: QUICStream
    private let socket: ClientSocket
    private let loop: any EventLoop
    private var incoming = ByteBuffer()
    private var outgoing = ByteBuffer()
    private var isInBurst = false
    private var isFlushScheduled = false
    private var isDone = false

    private init(
        _ connection: QUICConnection, _ stream: QUICStream, _ socket: ClientSocket,
        token: [UInt8]?, loop: any EventLoop
    ) {
        self.connection = connection
        self.stream = stream
        self.socket = socket
        self.loop = loop
        stream.write(Self.header(token))
        stream.onData = { [weak self] in self?.received($0) }
        stream.onEnd = { [weak self] in self?.finish(.lost("the node ended the stream")) }
        stream.onReset = { [weak self] code in
            // The connection says in a moment why.
            guard code != QUICStream.connectionLostCode else { return }
            self?.finish(Self.end(code: code))
        }
        connection.onClosed = { [weak self] in self?.finish(Self.end($0)) }
    }

    /// Version and service; with a token, that follows.
    private static func header(_ token: [UInt8]?) -> ByteBuffer {
        guard let token else {
            return ByteBuffer(bytes: [ProtocolVersion.stream, ServiceName.raft.rawValue])
        }
        var buffer = ByteBuffer(
            bytes: [ProtocolVersion.streamWithToken, ServiceName.raft.rawValue])
        buffer.writeInteger(UInt32(token.count), endianness: .little)
        buffer.writeBytes(token)
        return buffer
    }

    deinit { socket.release() }

    /// Fails with a `ConnectFailure`.
    static func connect(
        to endpoint: EndpointID, addresses: [String], _ credential: ClientCredential?,
        on loop: any EventLoop
    ) -> EventLoopFuture<NIOLoopBound<any FrameTransport>> {
        loop.flatSubmit {
            let dialled = addresses.compactMap(socketAddress)
            let socket = ClientSocket.shared(on: loop, key: credential?.key)
            return socket.bound.flatMap {
                socket.endpoint.connect(
                    to: endpoint, addresses: dialled, alpn: ALPN.client.rawValue)
            }.flatMapThrowing { connection in
                // A new connection has room for a stream, or the peer allows none at all.
                let stream: QUICStream
                do {
                    stream = try connection.openStream()
                } catch {
                    connection.close(code: StreamErrorCode.none.rawValue, reason: "")
                    throw error
                }
                let transport = QUICTransport(
                    connection, stream, socket, token: credential?.chain, loop: loop)
                return NIOLoopBound(transport as any FrameTransport, eventLoop: loop)
            }.flatMapErrorThrowing { error in
                socket.release()
                throw failure(endpoint, addresses, error)
            }
        }
    }

    /// "192.0.2.1:7001" or "[2001:db8::1]:7001"; nil for anything else.
    static func socketAddress(_ text: String) -> SocketAddress? {
        guard let colon = text.lastIndex(of: ":"),
            let port = UInt16(text[text.index(after: colon)...]), port > 0
        else { return nil }
        var host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = host.dropFirst().dropLast()
        } else if host.contains(":") {
            return nil
        }
        return try? SocketAddress(ipAddress: String(host), port: Int(port))
    }

    private static func failure(
        _ endpoint: EndpointID, _ addresses: [String], _ error: any Error
    ) -> ConnectFailure {
        let name = Endpoint.node(endpoint, addresses: addresses).name
        switch error as? QUICError {
        case .handshakeRefused(let reason):
            // TLS tells no more than its alert.
            return ConnectFailure(
                error: AspenError(
                    .unauthenticated,
                    "\(name) refuses this client (\(reason)); its journal says why "
                        + "(`journalctl -u aspend-net`)"),
                isLasting: true)
        case .identityMismatch(_, let found):
            return ConnectFailure(
                error: AspenError(
                    .unavailable,
                    "another node (\(Base32.encode(found.bytes).prefix(10))…) answers where "
                        + "\(name) should be: the ticket is old, ask for a new one",
                    retry: .safe),
                isLasting: true)
        default:
            return ConnectFailure(
                error: AspenError(
                    .unavailable,
                    "cannot reach \(name): \(error); is the node up, and does UDP reach it?",
                    retry: .safe),
                isLasting: false)
        }
    }

    /// Codes that a node's net uses before a byte has reached the service mean that nothing was
    /// carried out.
    private static func end(code: UInt64) -> TransportEnd {
        switch StreamErrorCode(rawValue: code) {
        case .refused:
            .refused(AspenError(.permissionDenied, "the node does not let this client in"))
        case .noSuchService:
            .refused(
                AspenError(.unavailable, "the node has no aspend-raft to ask", retry: .safe))
        case .resourceExhausted:
            .refused(
                AspenError(.unavailable, "the node takes no more connections", retry: .safe))
        case .serviceGone: .lost("the node's aspend-raft went away")
        case .shuttingDown: .lost("the node is shutting down")
        default: .lost("the stream was reset (code \(code))")
        }
    }

    private static func end(_ error: QUICError) -> TransportEnd {
        guard case .closedByPeer(StreamErrorCode.unauthenticated.rawValue, let reason) = error
        else { return .lost("\(error)") }
        return .refused(
            AspenError(
                .unauthenticated,
                "the node does not let this client in: \(printable(reason)). Ask an administrator "
                    + "for a token for your client key (`aspen-token client-key` prints it), and give "
                    + "it with --token or ASPEN_TOKEN"))
    }

    /// What another machine says is shown on a terminal.
    private static func printable(_ text: String) -> String {
        String(
            text.unicodeScalars.map {
                $0.isASCII && $0.value >= 32 && $0.value != 127 ? Character($0) : "?"
            })
    }

    // MARK: - Frames

    var isOpen: Bool { !isDone && connection.isOpen }

    private func received(_ data: ByteBuffer) {
        var data = data
        if incoming.readableBytes == 0 { incoming = data } else { incoming.writeBuffer(&data) }
        isInBurst = true
        while !isDone,
            let length = incoming.getInteger(
                at: incoming.readerIndex, endianness: .little, as: UInt32.self)
        {
            guard length <= Limits.rpcMessageBytesMax else {
                return finish(.lost("the node sent a frame of \(length) bytes"))
            }
            guard incoming.readableBytes >= 4 + Int(length) else { break }
            incoming.moveReaderIndex(forwardBy: 4)
            guard let frame = incoming.readSlice(length: Int(length)) else { break }
            onFrame(frame)
        }
        incoming.discardReadBytes()
        isInBurst = false
        flush()
    }

    func send(_ body: (inout ByteBuffer) -> Void) {
        guard !isDone else { return }
        let start = outgoing.writerIndex
        outgoing.writeInteger(UInt32(0), endianness: .little)
        body(&outgoing)
        let length = outgoing.writerIndex - start - 4
        outgoing.setInteger(UInt32(length), at: start, endianness: .little)
        guard !isInBurst, !isFlushScheduled else { return }
        isFlushScheduled = true
        loop.assumeIsolated().execute {
            self.isFlushScheduled = false
            self.flush()
        }
    }

    private func flush() {
        guard outgoing.readableBytes > 0, !isDone else { return }
        stream.write(outgoing)
        outgoing = ByteBuffer()
    }

    private func finish(_ end: TransportEnd) {
        guard !isDone else { return }
        isDone = true
        onClosed(end)
        connection.close(code: StreamErrorCode.none.rawValue, reason: "")
    }

    func close() {
        flush()
        finish(.lost("closed by this client"))
    }
}

/// The UDP socket of one event loop's clients of one key; without one, of a key made for this
/// process. It is opened with the first connection and closed after the last.
private final class ClientSocket: Sendable {
    private struct Place: Hashable {
        var loop: ObjectIdentifier
        var client: EndpointID
    }

    private static let ownKey = NodeKey.generate()
    private static let sockets = Mutex<[Place: ClientSocket]>([:])

    private let place: Place
    let endpoint: QUICEndpoint
    let bound: EventLoopFuture<Void>
    private let users = Mutex(0)

    private init(_ place: Place, _ key: NodeKey, on loop: any EventLoop) {
        self.place = place
        let endpoint = QUICEndpoint(
            eventLoop: loop, key: key, configuration: QUICConfiguration())
        self.endpoint = endpoint
        // A kernel without IPv6 has no "::".
        bound = endpoint.bind(host: "::", port: 0).flatMapError { _ in
            endpoint.bind(host: "0.0.0.0", port: 0)
        }
    }

    /// For one user, who has to `release` it.
    static func shared(on loop: any EventLoop, key: NodeKey?) -> ClientSocket {
        let key = key ?? ownKey
        let place = Place(loop: ObjectIdentifier(loop), client: key.endpoint)
        return sockets.withLock { sockets in
            let socket = sockets[place] ?? ClientSocket(place, key, on: loop)
            sockets[place] = socket
            socket.users.withLock { $0 += 1 }
            return socket
        }
    }

    func release() {
        Self.sockets.withLock { sockets in
            let isLast = users.withLock { users in
                precondition(users > 0, "released more often than taken")
                users -= 1
                return users == 0
            }
            guard isLast else { return }
            sockets[place] = nil
            _ = bound.flatMap { [endpoint] in endpoint.close() }
        }
    }
}
