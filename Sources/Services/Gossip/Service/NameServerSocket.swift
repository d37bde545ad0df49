// SPDX-License-Identifier: GPL-2.0-or-later

import DNSWire
import NIOCore
import NIOPosix

/// Reads what comes by a socket that is connected to a name server. Confined to its event loop.
enum NameServerSocket {
    enum Answer {
        case message([UInt8])
        /// The socket is of no use any more.
        case failed
    }

    /// The socket is the channel's from here on, also where this fails.
    /// - Parameter onAnswer: called on the loop.
    static func start(
        _ socket: CInt, isStream: Bool, on loop: any EventLoop,
        onAnswer: @escaping (Answer) -> Void
    ) -> EventLoopFuture<any Channel> {
        let answer = NIOLoopBound(onAnswer, eventLoop: loop)
        let initialize: @Sendable (any Channel) -> EventLoopFuture<Void> = { channel in
            channel.eventLoop.makeCompletedFuture {
                let handlers = channel.pipeline.syncOperations
                if isStream {
                    try handlers.addHandler(StreamReader(answer.value))
                } else {
                    try handlers.addHandler(DatagramReader(answer.value))
                }
            }
        }
        if isStream {
            return ClientBootstrap(group: loop).channelInitializer(initialize)
                .withConnectedSocket(socket)
        }
        return DatagramBootstrap(group: loop)
            .channelOption(.maxMessagesPerRead, value: 4)
            .channelOption(
                .recvAllocator,
                value: FixedSizeRecvByteBufferAllocator(capacity: DNSMessage.bytesMax + 1)
            )
            .channelInitializer(initialize)
            .withBoundSocket(socket)
    }
}

private final class DatagramReader: ChannelInboundHandler {
    typealias InboundIn = AddressedEnvelope<ByteBuffer>
    private let onAnswer: (NameServerSocket.Answer) -> Void

    init(_ onAnswer: @escaping (NameServerSocket.Answer) -> Void) { self.onAnswer = onAnswer }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        onAnswer(.message(Array(buffer: unwrapInboundIn(data).data)))
    }

    /// As when nobody is at that port of the server.
    func errorCaught(context: ChannelHandlerContext, error: any Error) { onAnswer(.failed) }
}

/// Messages with their lengths before them (RFC 1035 section 4.2.2).
private final class StreamReader: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    private let onAnswer: (NameServerSocket.Answer) -> Void
    private var received: [UInt8] = []

    init(_ onAnswer: @escaping (NameServerSocket.Answer) -> Void) { self.onAnswer = onAnswer }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        received += Array(buffer: unwrapInboundIn(data))
        while received.count >= 2 {
            let length = Int(received[0]) << 8 | Int(received[1])
            guard length <= DNSMessage.bytesMax else { return onAnswer(.failed) }
            guard received.count >= 2 + length else { return }
            let message = Array(received[2..<2 + length])
            received.removeFirst(2 + length)
            onAnswer(.message(message))
        }
    }

    func channelInactive(context: ChannelHandlerContext) { onAnswer(.failed) }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { onAnswer(.failed) }
}
