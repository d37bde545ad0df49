// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import NIOCore
import NIOPosix
import ServiceKit

/// Streams to services of other nodes, through `aspend-net`.
package enum NetStream {
    /// Opens a stream to `service` of the node `endpoint`.
    ///
    /// The channel carries the raw bytes of the stream. It closes when the peer ends its side, when
    /// the connection is lost, or when the peer's service goes; what remote half-closure means is
    /// decided by `ChannelOptions.allowRemoteHalfClosure`, which `initialize` may set.
    ///
    /// - Parameter initialize: called on the event loop once the stream is open and before its
    ///   first bytes; add handlers there.
    /// - Throws: `AspenError`, through the future: `unavailable` (no connection to the peer, or no
    ///   net; safe to try again), `permissionDenied`, `resourceExhausted`, `deadlineExceeded`.
    package static func open(
        eventLoop: any EventLoop, socketPath: String, endpoint: EndpointID, alpn: ALPN,
        service: ServiceName, initialize: @escaping @Sendable (any Channel) throws -> Void
    ) -> EventLoopFuture<any Channel> {
        let promise = eventLoop.makePromise(of: (any Channel).self)
        let request = NetRequest.openStream(endpoint: endpoint, alpn: alpn, service: service)
        ClientBootstrap(group: eventLoop)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let opening = StreamOpening(promise: promise, initialize: initialize)
                    let frames = FrameChannel(frameBytesMax: NetRequest.frameBytesMax)
                    frames.onFrame = { opening.received($1, on: $0) }
                    frames.onClosed = { _, _ in opening.closed() }
                    try channel.pipeline.syncOperations.addHandler(frames)
                    opening.startTimer(on: channel)
                }
            }
            .connect(unixDomainSocketPath: socketPath)
            .flatMapThrowing { channel in
                let frames = try channel.pipeline.syncOperations.handler(type: FrameChannel.self)
                frames.send { $0.writeBytes(request.encoded()) }
            }
            .whenFailure { error in
                promise.fail(
                    AspenError(
                        .unavailable, "aspend-net does not answer at \(socketPath): \(error)",
                        retry: .safe))
            }
        return promise.futureResult
    }
}

/// The time between asking for a stream and `opened`. Confined to the channel's event loop; owned by
/// the closures of its `FrameChannel`.
private final class StreamOpening {
    /// Net gives up earlier by itself and says why.
    private static let timeout = TimeAmount.seconds(
        (Limits.connectTimeout + Limits.streamOpenTimeout).components.seconds + 1)

    private var promise: EventLoopPromise<any Channel>?
    private let initialize: @Sendable (any Channel) throws -> Void
    private var timer: Scheduled<Void>?

    init(
        promise: EventLoopPromise<any Channel>,
        initialize: @escaping @Sendable (any Channel) throws -> Void
    ) {
        self.promise = promise
        self.initialize = initialize
    }

    func startTimer(on channel: any Channel) {
        let box = NIOLoopBound(self, eventLoop: channel.eventLoop)
        timer = channel.eventLoop.scheduleTask(in: Self.timeout) {
            box.value.fail(
                AspenError(.deadlineExceeded, "aspend-net did not open the stream in time"))
            channel.close(promise: nil)
        }
    }

    func received(_ frame: ByteBuffer, on frames: FrameChannel) {
        guard let channel = frames.channel, promise != nil else { return }
        do {
            switch try NetReply(decoding: Array(buffer: frame)) {
            case .opened: try open(channel, frames)
            case .failed(let code, let message):
                fail(AspenError(code, message, retry: code == .unavailable ? .safe : .never))
                frames.close()
            default: throw AspenError(.internal, "net.sock answered another question")
            }
        } catch let error as AspenError {
            fail(error)
            frames.close()
        } catch {
            fail(AspenError(.unsupportedVersion, "net.sock sent what we cannot read: \(error)"))
            frames.close()
        }
    }

    private func open(_ channel: any Channel, _ frames: FrameChannel) throws {
        let rest = frames.detach()
        do {
            try initialize(channel)
        } catch {
            fail(error as? AspenError ?? AspenError(.internal, "\(error)"))
            return channel.close(promise: nil)
        }
        timer?.cancel()
        let opened = promise
        promise = nil
        opened?.succeed(channel)
        if rest.readableBytes > 0 {
            channel.pipeline.fireChannelRead(rest)
            channel.pipeline.fireChannelReadComplete()
        }
    }

    func closed() {
        fail(AspenError(.unavailable, "aspend-net went away", retry: .safe))
    }

    private func fail(_ error: AspenError) {
        timer?.cancel()
        let failed = promise
        promise = nil
        failed?.fail(error)
    }
}
