// SPDX-License-Identifier: GPL-2.0-or-later

import CNgtcp2
import NIOCore

/// A bidirectional QUIC stream: bytes in order each way, an end each way, or a reset of both.
///
/// Everything happens on the endpoint's event loop. A stream whose `onData` is not set, or that is
/// paused, keeps what arrives (at most `QUICConfiguration.streamWindow` bytes): the peer gets no
/// credit for it and stops sending. Callbacks never come from inside a call into the stream, with
/// one exception: closing the connection resets its streams at once.
// SAFETY: confined to one event loop; every entry point checks that it runs there.
package final class QUICStream: @unchecked Sendable {
    /// The code of `onReset` when the connection is gone, and not the stream alone.
    package static let connectionLostCode = UInt64.max

    /// QUIC's stream id: unique within the connection.
    package let id: Int64
    /// nil once the stream is over.
    package private(set) var connection: QUICConnection?

    /// Bytes from the peer, in order, at most once a turn of the event loop.
    package var onData: ((ByteBuffer) -> Void)? { didSet { scheduleIfPending() } }
    /// The peer has finished its side; all its bytes have been delivered.
    package var onEnd: (() -> Void)? { didSet { scheduleIfPending() } }
    /// The peer gave up the stream (RESET_STREAM, STOP_SENDING), with its code, or the connection
    /// is lost (`connectionLostCode`). Nothing follows; what was not delivered is dropped.
    package var onReset: ((UInt64) -> Void)? { didSet { scheduleIfPending() } }
    /// The stream was not writable, and is again.
    package var onWritable: (() -> Void)?

    var sendQueue = SendQueue()
    /// The application has finished its side.
    var finishRequested = false
    /// The end is in a packet.
    var finishSent = false
    /// In the connection's list of streams with something to send.
    var isReady = false
    /// The peer's window for this stream is used up.
    var isFlowBlocked = false
    /// In the connection's list of streams with something to deliver.
    var isScheduled = false
    /// `onStream` has been called, or the stream was opened here.
    var isAnnounced: Bool
    /// ngtcp2 has forgotten the stream.
    var isLibraryClosed = false

    private var inbound = ByteBuffer()
    /// What came in one turn lately: the size to begin the next buffer with.
    private var burstBytes = 0
    private var isPaused = false
    private var endReceived = false
    private var endDelivered = false
    private var resetCode: UInt64?
    private var isReset = false
    private var wasUnwritable = false

    init(id: Int64, connection: QUICConnection, isAnnounced: Bool) {
        self.id = id
        self.connection = connection
        self.isAnnounced = isAnnounced
    }

    /// Whether this side opened it.
    package var isLocal: Bool {
        guard let connection else { return false }
        // RFC 9000 section 2.1: bit 0 tells the initiator, 1 is the server.
        return (id & 1 == 1) == connection.isInbound
    }

    // MARK: Sending

    /// Bytes that were written and that no packet has carried yet.
    package var unsentBytes: Int { sendQueue.unsentBytes }
    /// Bytes that are held in memory: not sent, or sent and not yet acknowledged.
    package var heldBytes: Int { sendQueue.heldBytes }
    /// Where the next byte that is written will stand in the stream.
    package var writtenBytes: UInt64 { sendQueue.appendedBytes }
    /// Bytes of the stream, from its beginning, that the peer has acknowledged.
    package var acknowledgedBytes: UInt64 { sendQueue.acknowledgedBytes }
    /// Bytes from the peer that wait to be delivered.
    package var undeliveredBytes: Int { inbound.readableBytes }
    /// False from the high-water mark of unsent bytes until the low-water mark; `onWritable`
    /// tells when. A writer that goes on regardless is not stopped, it only uses memory.
    package var isWritable: Bool { !wasUnwritable && !finishRequested && !isReset }

    /// Queues bytes; they leave at the end of this turn of the event loop, as far as the peer's
    /// window and the network allow. Ignored on a stream that is finished or reset.
    package func write(_ buffer: ByteBuffer) {
        guard let connection, !finishRequested, !isReset else { return }
        connection.checkConfinement()
        sendQueue.append(buffer)
        if sendQueue.unsentBytes >= connection.configuration.streamSendHighWater {
            wasUnwritable = true
        }
        connection.streamHasData(self)
    }

    /// Ends this side after what was written; the peer's side stays open.
    package func finish() {
        guard let connection, !finishRequested, !isReset else { return }
        connection.checkConfinement()
        finishRequested = true
        connection.streamHasData(self)
    }

    /// Gives the stream up, both ways, and tells the peer `code` (at most 2^62 - 1). No callback
    /// comes after this.
    package func reset(code: UInt64) {
        guard let connection, !isReset else { return }
        connection.checkConfinement()
        isReset = true
        resetCode = nil
        sendQueue.dropUnsent()
        dropInbound(connection)
        connection.shutStream(self, code: min(code, (1 << 62) - 1))
        connection.schedule(self)
    }

    // MARK: Receiving

    /// Holds back data from now on, and with it the peer's credit.
    package func pauseReading() { isPaused = true }

    /// Delivers what was held back, on the next turn.
    package func resumeReading() {
        guard isPaused else { return }
        isPaused = false
        scheduleIfPending()
    }

    // MARK: From the connection, inside ngtcp2: only notes what happened

    func receive(_ bytes: UnsafeRawBufferPointer, isEnd: Bool) {
        guard let connection else { return }
        if isReset {
            connection.returnCredit(bytes.count, stream: nil)
        } else {
            if inbound.capacity == 0 {
                inbound = ByteBufferAllocator().buffer(capacity: max(bytes.count, burstBytes))
            }
            inbound.writeBytes(bytes)
        }
        if isEnd { endReceived = true }
        connection.schedule(self)
    }

    func receiveReset(_ code: UInt64) {
        guard let connection, !isReset, resetCode == nil else { return }
        resetCode = code
        connection.schedule(self)
    }

    func markLibraryClosed() {
        guard let connection else { return }
        isLibraryClosed = true
        sendQueue.removeAll()
        connection.schedule(self)
    }

    // MARK: From the connection, outside ngtcp2

    /// Bytes have left: enough of them to go on writing?
    func noteSent() {
        guard wasUnwritable, let connection,
            sendQueue.unsentBytes <= connection.configuration.streamSendLowWater
        else { return }
        connection.schedule(self)
    }

    private func scheduleIfPending() {
        guard let connection, !inbound.isEmpty || endReceived || resetCode != nil else { return }
        connection.schedule(self)
    }

    /// Calls back with all that is due.
    func deliver() {
        guard let connection else { return }
        if resetCode == nil {
            deliverData(connection)
            deliverEnd()
        }
        if let code = resetCode, let onReset, self.connection != nil {
            resetCode = nil
            isReset = true
            sendQueue.dropUnsent()
            dropInbound(connection)
            connection.shutStream(self, code: code)
            onReset(code)
        }
        if wasUnwritable, !isReset, self.connection != nil,
            sendQueue.unsentBytes <= connection.configuration.streamSendLowWater
        {
            wasUnwritable = false
            if !finishRequested { onWritable?() }
        }
        if isLibraryClosed, self.connection != nil, isDrained {
            self.connection = nil
            connection.forget(self)
            dropCallbacks()
        }
    }

    /// Nothing will be told any more: what the callbacks hold on to, this stream perhaps, may go.
    private func dropCallbacks() {
        onData = nil
        onEnd = nil
        onReset = nil
        onWritable = nil
    }

    /// Nothing is left that a callback could still want.
    private var isDrained: Bool {
        if isReset { return true }
        return inbound.isEmpty && resetCode == nil && (!endReceived || endDelivered)
    }

    private func deliverData(_ connection: QUICConnection) {
        guard !isPaused, !isReset, !inbound.isEmpty, let onData else { return }
        let data = inbound
        inbound = ByteBuffer()
        burstBytes = max(data.readableBytes, burstBytes / 2)
        connection.returnCredit(data.readableBytes, stream: id)
        onData(data)
    }

    private func deliverEnd() {
        guard endReceived, !endDelivered, !isReset, inbound.isEmpty, let onEnd else { return }
        endDelivered = true
        onEnd()
    }

    private func dropInbound(_ connection: QUICConnection) {
        connection.returnCredit(inbound.readableBytes, stream: nil)
        inbound = ByteBuffer()
    }

    /// The connection is gone: the last call.
    func connectionLost() {
        guard connection != nil else { return }
        connection = nil
        sendQueue.removeAll()
        inbound = ByteBuffer()
        let isOver = isReset || (endDelivered && finishSent)
        isReset = true
        let tell = onReset
        dropCallbacks()
        if !isOver { tell?(Self.connectionLostCode) }
    }
}

extension ByteBuffer {
    fileprivate var isEmpty: Bool { readableBytes == 0 }
}
