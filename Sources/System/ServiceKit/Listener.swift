// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenSystem
import Glibc
import NIOCore
import NIOPosix

/// Accepts connections from an inherited descriptor: a listening Unix socket (systemd), or one end
/// of a socket pair over which the supervisor's other child passes connected sockets (aspen-node
/// uses it for NAME.peer.sock, which must be reachable by aspend-net alone).
package enum Listener {
    /// Callers that wait to be accepted: as many as systemd's sockets take while a daemon is away.
    private static let backlog: Int32 = 4096

    /// - Parameter initialize: called on the event loop for each new connection, before its first
    ///   read; add handlers there.
    package static func start(
        descriptor: CInt, on loop: any EventLoop,
        initialize: @escaping @Sendable (any Channel) throws -> Void
    ) -> EventLoopFuture<any RunningListener> {
        if aspen_is_listening(descriptor) == 1 {
            return ServerBootstrap(group: loop)
                .childChannelOption(.maxMessagesPerRead, value: 4)
                .childChannelInitializer { channel in
                    channel.eventLoop.makeCompletedFuture { try initialize(channel) }
                }
                .withBoundSocket(descriptor)
                .map {
                    // NIO has listened anew, with a queue of 128, before it looked at the option.
                    _ = listen(descriptor, backlog)
                    return ChannelListener(channel: $0) as any RunningListener
                }
        }
        let passed = PassedSockets(descriptor: descriptor, loop: loop, initialize: initialize)
        return passed.start().map { passed as any RunningListener }
    }
}

package protocol RunningListener: AnyObject, Sendable {
    /// Takes no further connections; those accepted go on.
    func close()
}

private final class ChannelListener: RunningListener {
    let channel: any Channel
    init(channel: any Channel) { self.channel = channel }
    func close() { channel.close(promise: nil) }
}

/// Receives descriptors on a thread of its own: NIO has no channel for SCM_RIGHTS, and connections
/// between daemons are rare (one a peer and lane).
private final class PassedSockets: RunningListener {
    private let descriptor: CInt
    private let loop: any EventLoop
    private let initialize: @Sendable (any Channel) throws -> Void

    init(
        descriptor: CInt, loop: any EventLoop,
        initialize: @escaping @Sendable (any Channel) throws -> Void
    ) {
        self.descriptor = descriptor
        self.loop = loop
        self.initialize = initialize
    }

    func start() -> EventLoopFuture<Void> {
        let thread = NIOThreadPool(numberOfThreads: 1)
        thread.start()
        thread.submit { [descriptor, loop, initialize] _ in
            while true {
                let received = aspen_receive_fd(descriptor)
                if received == -EBADMSG { continue }
                guard received >= 0 else { return }
                loop.execute {
                    ClientBootstrap(group: loop)
                        .channelInitializer { channel in
                            channel.eventLoop.makeCompletedFuture { try initialize(channel) }
                        }
                        .withConnectedSocket(received)
                        .whenFailure { _ in _ = Glibc.close(received) }
                }
            }
        }
        return loop.makeSucceededVoidFuture()
    }

    // The far end is held by the supervisor for our successor: nothing to close.
    func close() {}
}

/// Connects to a sibling's peer socket: by path (systemd), or by passing one end of a new pair.
package enum PeerConnector: Sendable {
    case path(String)
    case passing(descriptor: CInt)

    package func connect(
        on loop: any EventLoop,
        initialize: @escaping @Sendable (any Channel) throws -> Void
    ) -> EventLoopFuture<any Channel> {
        let bootstrap = ClientBootstrap(group: loop).channelInitializer { channel in
            channel.eventLoop.makeCompletedFuture { try initialize(channel) }
        }
        switch self {
        case .path(let path): return bootstrap.connect(unixDomainSocketPath: path)
        case .passing(let descriptor):
            var pair: [CInt] = [-1, -1]
            let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
            guard socketpair(AF_UNIX, kind, 0, &pair) == 0 else {
                return loop.makeFailedFuture(IOError(errnoCode: errno, reason: "socketpair"))
            }
            let sent = aspen_send_fd(descriptor, pair[1])
            Glibc.close(pair[1])
            guard sent == 0 else {
                Glibc.close(pair[0])
                return loop.makeFailedFuture(IOError(errnoCode: -sent, reason: "passing a socket"))
            }
            return bootstrap.withConnectedSocket(pair[0])
        }
    }
}
