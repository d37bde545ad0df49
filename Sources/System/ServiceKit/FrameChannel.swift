// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore

/// Length-prefixed frames on one channel: u32 little-endian length, then that many bytes.
///
/// A whole read burst is parsed at once, and everything sent meanwhile leaves in one write at the
/// end of the burst (0.12 µs a request instead of 0.36, see the measurements). Confined to the
/// channel's event loop.
package final class FrameChannel: ChannelInboundHandler, RemovableChannelHandler {
    package typealias InboundIn = ByteBuffer

    package enum Closed: Error, Sendable {
        case peer
        case oversized(bytes: Int)
        case failed(String)
    }

    /// Called for each frame's content. The buffer holds exactly that frame.
    package var onFrame: (FrameChannel, ByteBuffer) -> Void = { _, _ in }
    /// Called when a read burst has been parsed, before the answers are written.
    package var onBurstEnd: (FrameChannel) -> Void = { _ in }
    package var onClosed: (FrameChannel, Closed) -> Void = { _, _ in }
    /// The channel takes bytes again after `isWritable` was false.
    package var onWritable: (FrameChannel) -> Void = { _ in }

    /// A beginning of a frame so long lets expect more.
    private static let expectingBytesMin = 32_768

    private let frameBytesMax: Int
    private var context: ChannelHandlerContext?
    private var incoming = ByteBuffer()
    private var outgoing = ByteBuffer()
    private var isInBurst = false
    private var isFlushScheduled = false
    /// Something was written to the channel since it was flushed.
    private var isFlushDue = false
    private var isRaw = false
    private var isPaused = false
    private var isDone = false

    package init(frameBytesMax: Int = Limits.rpcMessageBytesMax) {
        self.frameBytesMax = frameBytesMax
    }

    package var isWritable: Bool { context?.channel.isWritable ?? false }
    package var channel: (any Channel)? { context?.channel }
    /// The kernel's word on who is at the other end; nil when it is no Unix socket.
    package private(set) var peer: LocalPeer?

    package func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        readPeer(context)
    }

    package func handlerRemoved(context: ChannelHandlerContext) { self.context = nil }

    package func channelActive(context: ChannelHandlerContext) {
        readPeer(context)
        context.fireChannelActive()
    }

    private func readPeer(_ context: ChannelHandlerContext) {
        guard peer == nil else { return }
        peer =
            (try? context.channel.pipeline.syncOperations.withUnsafeTransportIfAvailable(
                of: CInt.self
            ) { LocalPeer(descriptor: $0) }) ?? nil
    }

    package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        if isRaw { return context.fireChannelRead(data) }
        var buffer = unwrapInboundIn(data)
        if incoming.readableBytes == 0 { incoming = buffer } else { incoming.writeBuffer(&buffer) }
        parse()
    }

    private func parse() {
        isInBurst = true
        while !isDone, !isRaw, !isPaused,
            let length = incoming.getInteger(
                at: incoming.readerIndex, endianness: .little, as: UInt32.self)
        {
            guard length <= frameBytesMax else {
                return finish(.oversized(bytes: Int(length)))
            }
            guard incoming.readableBytes >= 4 + Int(length) else {
                expect(4 + Int(length))
                break
            }
            incoming.moveReaderIndex(forwardBy: 4)
            guard let frame = incoming.readSlice(length: Int(length)) else { break }
            onFrame(self, frame)
        }
        if !isRaw { incoming.discardReadBytes() }
    }

    /// Makes room for the rest of a frame, so that it is not copied over and over as it comes. Nobody
    /// gets much memory for a length alone: it is a small multiple of what has come.
    private func expect(_ bytes: Int) {
        guard incoming.readableBytes >= Self.expectingBytesMin else { return }
        let wanted = min(bytes, 8 * incoming.readableBytes)
        if incoming.capacity < wanted {
            incoming.reserveCapacity(minimumWritableBytes: wanted - incoming.readableBytes)
        }
    }

    package func channelReadComplete(context: ChannelHandlerContext) {
        isInBurst = false
        if isRaw { return context.fireChannelReadComplete() }
        onBurstEnd(self)
        flush()
    }

    /// Appends one frame whose content `body` writes. It leaves at the end of the read burst, or at
    /// the next turn of the loop when none is under way.
    package func send(_ body: (inout ByteBuffer) -> Void) {
        guard context != nil, !isDone else { return }
        let start = outgoing.writerIndex
        outgoing.writeInteger(UInt32(0), endianness: .little)
        body(&outgoing)
        let length = outgoing.writerIndex - start - 4
        outgoing.setInteger(UInt32(length), at: start, endianness: .little)
        scheduleFlush()
    }

    package func send(_ content: ByteBuffer) {
        send { $0.writeImmutableBuffer(content) }
    }

    /// One frame of three parts. The one in the middle is not copied: for much.
    package func send(
        _ head: (inout ByteBuffer) -> Void, _ middle: ByteBuffer,
        _ tail: (inout ByteBuffer) -> Void
    ) {
        guard let context, !isDone else { return }
        let start = outgoing.writerIndex
        outgoing.writeInteger(UInt32(0), endianness: .little)
        head(&outgoing)
        let cut = outgoing.writerIndex
        tail(&outgoing)
        let length = outgoing.writerIndex - start - 4 + middle.readableBytes
        outgoing.setInteger(UInt32(length), at: start, endianness: .little)
        if middle.readableBytes > 0 {
            let end = outgoing.getSlice(at: cut, length: outgoing.writerIndex - cut)
            outgoing.moveWriterIndex(to: cut)
            writeOutgoing(context)
            context.write(NIOAny(middle), promise: nil)
            if var end { outgoing.writeBuffer(&end) }
        }
        scheduleFlush()
    }

    private func scheduleFlush() {
        guard !isInBurst, !isFlushScheduled, let context else { return }
        isFlushScheduled = true
        let box = NIOLoopBound(self, eventLoop: context.eventLoop)
        context.eventLoop.execute {
            box.value.isFlushScheduled = false
            box.value.flush()
        }
    }

    package func flush() {
        guard let context else { return }
        writeOutgoing(context)
        guard isFlushDue else { return }
        isFlushDue = false
        context.flush()
    }

    private func writeOutgoing(_ context: ChannelHandlerContext) {
        guard outgoing.readableBytes > 0 else { return }
        let buffer = outgoing
        outgoing = context.channel.allocator.buffer(capacity: min(buffer.readableBytes, 65_536))
        isFlushDue = true
        context.write(NIOAny(buffer), promise: nil)
    }

    package func channelWritabilityChanged(context: ChannelHandlerContext) {
        if context.channel.isWritable { onWritable(self) }
        context.fireChannelWritabilityChanged()
    }

    package func errorCaught(context: ChannelHandlerContext, error: any Error) {
        if isRaw { return context.fireErrorCaught(error) }
        finish(.failed("\(error)"))
    }

    package func channelInactive(context: ChannelHandlerContext) {
        finish(.peer)
        context.fireChannelInactive()
    }

    private func finish(_ reason: Closed) {
        guard !isDone else { return }
        isDone = true
        onClosed(self, reason)
        context?.close(promise: nil)
    }

    /// No frame is handed on any more, not even of the same read burst, and nothing more is read: whoever
    /// sends has to wait. What was read already (a burst of the channel's) is kept.
    package func pause() {
        guard !isPaused else { return }
        isPaused = true
        try? context?.channel.syncOptions?.setOption(.autoRead, value: false)
    }

    /// Goes on with what was kept, at once, and then with reading, unless it is paused again meanwhile.
    /// Not to be called from `onFrame`.
    package func resume() {
        guard isPaused else { return }
        isPaused = false
        parse()
        isInBurst = false
        onBurstEnd(self)
        flush()
        guard !isPaused, !isDone else { return }
        try? context?.channel.syncOptions?.setOption(.autoRead, value: true)
    }

    /// Sends what is waiting, then closes. `onClosed` is called with `.peer`.
    package func close() {
        flush()
        context?.close(promise: nil)
    }

    /// Ends framing: what has been read beyond the last frame is returned, later bytes go to the
    /// next handler of the pipeline unparsed (a spliced stream).
    package func detach() -> ByteBuffer {
        flush()
        isRaw = true
        isDone = true
        let rest = incoming
        incoming = ByteBuffer()
        return rest
    }
}
