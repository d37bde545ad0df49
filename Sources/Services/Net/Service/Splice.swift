// SPDX-License-Identifier: GPL-2.0-or-later

import AspenWire
import NIOCore
import QUIC

/// Joins a QUIC stream to a local socket: bytes go both ways untouched, each end of input is passed
/// on as such, and a side that cannot keep up makes the other wait. Sits at the end of the local
/// channel's pipeline. Confined to the event loop.
///
/// A socket that is closed as a whole while the peer is still speaking is not an end but a loss: the
/// stream is then reset with `lostCode`, unless bytes for the peer are on their way, which are
/// delivered first.
final class Splice: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// Called once, when neither side will bring anything more.
    var onFinished: () -> Void = {}
    /// Told how many bytes were taken in, from either side, before they are passed on.
    var onTaken: ((Int) -> Void)?

    private var stream: QUICStream?
    private let lostCode: StreamErrorCode
    private var context: ChannelHandlerContext?
    private var hasPeerEnded = false
    private var hasLocalEnded = false
    private var isOutputClosed = false
    private var hasFailed = false

    init(stream: QUICStream, lostCode: StreamErrorCode) {
        self.stream = stream
        self.lostCode = lostCode
    }

    /// Sets what a channel needs that is going to be spliced.
    static func prepare(_ channel: any Channel) throws {
        guard let options = channel.syncOptions else { throw ChannelError.operationUnsupported }
        try options.setOption(.allowRemoteHalfClosure, value: true)
        try options.setOption(.writeBufferWaterMark, value: NetLimits.localWriteWaterMark)
        try options.setOption(.maxMessagesPerRead, value: NetLimits.localReadsPerTurn)
    }

    /// Begins to carry. What is already at hand for one of the sides goes first.
    func start(toLocal first: ByteBuffer = ByteBuffer(), toPeer rest: ByteBuffer = ByteBuffer()) {
        guard let context, let stream, stream.connection != nil else { return abort() }
        if first.readableBytes > 0 { context.writeAndFlush(wrapOutboundOut(first), promise: nil) }
        if rest.readableBytes > 0 { stream.write(rest) }
        stream.onReset = { [self] _ in peerReset() }
        stream.onWritable = { [self] in setLocalReading(true) }
        stream.onEnd = { [self] in peerEnded() }
        stream.onData = { [self] in received($0) }
        stream.resumeReading()
        if !context.channel.isActive { channelInactive(context: context) }
    }

    /// Gives both sides up; the peer is told `code`.
    func abort(_ code: StreamErrorCode? = nil) {
        let stream = self.stream
        finish()
        stream?.reset(code: (code ?? lostCode).rawValue)
        context?.close(promise: nil)
    }

    /// Memory of the bytes that wait for one of the sides. Buffers come in powers of two, so that they
    /// may take up twice what is in them; that is what is counted.
    var heldBytes: Int {
        guard let stream else { return 0 }
        let local = try? context?.channel.syncOptions?.getOption(.bufferedWritableBytes)
        return 2 * (stream.heldBytes + stream.undeliveredBytes + (local ?? 0))
    }

    private func finish() {
        guard let stream else { return }
        self.stream = nil
        stream.onData = nil
        stream.onEnd = nil
        stream.onReset = nil
        stream.onWritable = nil
        onTaken = nil
        let tell = onFinished
        onFinished = {}
        tell()
    }

    // MARK: - From the peer

    private func received(_ data: ByteBuffer) {
        guard let context else { return }
        onTaken?(data.readableBytes)
        context.writeAndFlush(wrapOutboundOut(data), promise: nil)
        if !context.channel.isWritable { stream?.pauseReading() }
    }

    private func peerEnded() {
        hasPeerEnded = true
        guard let context else { return }
        // NIO closes a socket whose other half is closed already without writing what waits: so
        // the close waits for the writes.
        let last = context.eventLoop.makePromise(of: Void.self)
        context.writeAndFlush(wrapOutboundOut(ByteBuffer()), promise: last)
        last.futureResult.assumeIsolated().whenSuccess { [self] in
            isOutputClosed = true
            self.context?.close(mode: hasLocalEnded ? .all : .output, promise: nil)
        }
    }

    private func peerReset() {
        finish()
        context?.close(promise: nil)
    }

    // MARK: - From the local socket

    func handlerAdded(context: ChannelHandlerContext) { self.context = context }
    func handlerRemoved(context: ChannelHandlerContext) { self.context = nil }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard let stream else { return }
        let bytes = unwrapInboundIn(data)
        onTaken?(bytes.readableBytes)
        stream.write(bytes)
        if !stream.isWritable { setLocalReading(false) }
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        if context.channel.isWritable { stream?.resumeReading() }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        guard case ChannelEvent.inputClosed? = event as? ChannelEvent else {
            return context.fireUserInboundEventTriggered(event)
        }
        hasLocalEnded = true
        stream?.finish()
        if isOutputClosed { context.close(promise: nil) }
    }

    func channelInactive(context: ChannelHandlerContext) {
        guard let stream else { return }
        if hasPeerEnded, hasLocalEnded || !hasFailed {
            // NIO does not tell the end of input apart when the output is closed already.
            finish()
            stream.finish()
        } else if hasPeerEnded || stream.unsentBytes == 0 {
            finish()
            stream.reset(code: lostCode.rawValue)
        } else {
            // A last word is on its way: let it arrive. What the peer still says goes nowhere, and
            // who says more than he can have had on the way does not listen.
            finish()
            stream.finish()
            let lostCode = lostCode
            var unheard = 0
            stream.onData = { [unowned stream] data in
                unheard += data.readableBytes
                if unheard > NetLimits.unheardBytesMax { stream.reset(code: lostCode.rawValue) }
            }
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        hasFailed = true
        context.close(promise: nil)
    }

    private func setLocalReading(_ isReading: Bool) {
        guard let context else { return }
        try? context.channel.syncOptions?.setOption(.autoRead, value: isReading)
    }
}
