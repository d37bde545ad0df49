// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import Glibc
import NIOCore
import NIOPosix
import ServiceKit

/// Frames over something that carries bytes: a Unix socket or a QUIC stream. Confined to one event
/// loop; all callbacks come on it.
package protocol FrameTransport: AnyObject {
    /// The content of each frame received.
    var onFrame: (ByteBuffer) -> Void { get set }
    /// Called once.
    var onClosed: (TransportEnd) -> Void { get set }
    /// False from the moment the other end is known to be gone, called back or not.
    var isOpen: Bool { get }
    /// Appends a frame whose content `body` writes; frames of one burst leave together.
    func send(_ body: (inout ByteBuffer) -> Void)
    /// Sends what is waiting, then closes.
    func close()
}

/// How a transport ended.
package enum TransportEnd: Sendable {
    /// What was under way may have been carried out; the text says why, for people.
    case lost(String)
    /// The far end let nothing through: nothing was carried out.
    case refused(AspenError)
}

/// One place where a cluster can be reached.
package enum Endpoint: Sendable, Equatable {
    case socket(path: String)
    /// Without a credential, the client has a key made for this process, and no token.
    case node(EndpointID, addresses: [String], credential: ClientCredential? = nil)

    /// As it stands in error texts.
    package var name: String {
        switch self {
        case .socket(let path): path
        case .node(let id, let addresses, _):
            "node \(Base32.encode(id.bytes).prefix(10))… at "
                + (addresses.isEmpty ? "no known address" : addresses.joined(separator: ", "))
        }
    }

    package func connect(on loop: any EventLoop) -> EventLoopFuture<
        NIOLoopBound<any FrameTransport>
    > {
        switch self {
        case .socket(let path): SocketTransport.connect(path: path, on: loop)
        case .node(let id, let addresses, let credential):
            QUICTransport.connect(to: id, addresses: addresses, credential, on: loop)
        }
    }
}

/// Why a connection could not be made, and whether waiting may help.
package struct ConnectFailure: Error {
    package var error: AspenError
    /// The socket does not exist or may not be opened: trying again soon is pointless.
    package var isLasting: Bool
}

final class SocketTransport: FrameTransport {
    var onFrame: (ByteBuffer) -> Void = { _ in }
    var onClosed: (TransportEnd) -> Void = { _ in }
    private let frames: FrameChannel

    private init(_ frames: FrameChannel) {
        self.frames = frames
        frames.onFrame = { [weak self] _, buffer in self?.onFrame(buffer) }
        frames.onClosed = { [weak self] _, reason in self?.onClosed(.lost(Self.describe(reason))) }
    }

    static func connect(
        path: String, on loop: any EventLoop
    ) -> EventLoopFuture<NIOLoopBound<any FrameTransport>> {
        ClientBootstrap(group: loop)
            .connectTimeout(.seconds(Limits.connectTimeout.components.seconds))
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(FrameChannel())
                }
            }
            .connect(unixDomainSocketPath: path)
            .flatMapThrowing { channel in
                let frames = try channel.pipeline.syncOperations.handler(type: FrameChannel.self)
                return NIOLoopBound(
                    SocketTransport(frames) as any FrameTransport, eventLoop: channel.eventLoop)
            }
            .flatMapErrorThrowing { throw Self.failure(path: path, $0) }
    }

    var isOpen: Bool { frames.channel?.isActive ?? false }
    func send(_ body: (inout ByteBuffer) -> Void) { frames.send(body) }
    func close() { frames.close() }

    private static func describe(_ reason: FrameChannel.Closed) -> String {
        switch reason {
        case .peer: "the daemon closed the connection"
        case .oversized(let bytes):
            "the daemon sent a frame of \(bytes) bytes, more than the limit of "
                + "\(Limits.rpcMessageBytesMax)"
        case .failed(let text): text
        }
    }

    private static func failure(path: String, _ error: any Error) -> ConnectFailure {
        let code = (error as? IOError)?.errnoCode ?? 0
        let reason = code == 0 ? "\(error)" : String(cString: strerror(code))
        switch code {
        case ENOENT, ENOTDIR:
            return ConnectFailure(
                error: AspenError(
                    .unavailable,
                    "there is no socket \(path): is aspend-raft running here "
                        + "(`systemctl status aspend-raft.socket`)? On another machine, name the "
                        + "cluster with --ticket or ASPEN_TICKET",
                    retry: .safe),
                isLasting: true)
        case EACCES, EPERM:
            return ConnectFailure(
                error: AspenError(
                    .permissionDenied,
                    "you may not open \(path): become a member of group aspen "
                        + "(`adduser $USER aspen`, then log in again)"),
                isLasting: true)
        default:
            return ConnectFailure(
                error: AspenError(
                    .unavailable,
                    "cannot connect to \(path): \(reason); look at `journalctl -u aspend-raft`",
                    retry: .safe),
                isLasting: false)
        }
    }
}
