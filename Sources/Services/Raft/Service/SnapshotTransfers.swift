// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import DequeModule
import Logging
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

/// Snapshots on their way out (to peers that need what the log no longer has) and in. Confined to
/// the event loop; the state thread reads and writes the bytes.
///
/// The sender keeps what has not been acknowledged, at most `windowBytes`, and sends it again when
/// the link has been away: a transfer goes on where it was.
// SAFETY: confined to the event loop; closures for the state thread only carry the reference.
final class SnapshotTransfers: @unchecked Sendable {
    /// Bytes sent and not acknowledged, per peer.
    static let windowBytes: UInt64 = 4_000_000
    /// A transfer without any progress ends after this time.
    static let stallTimeout = TimeAmount.seconds(30)

    private unowned let node: RaftNode
    private var outgoing: [NodeID: OutgoingSnapshot] = [:]
    private var incoming: IncomingSnapshot?
    private var resetCompletion: (() -> Void)?

    init(node: RaftNode) { self.node = node }

    /// The log must be kept from here on; nil while no snapshot is being sent.
    var oldestNeeded: LogIndex? { outgoing.values.compactMap { $0.meta?.index }.min() }

    // MARK: - Sending

    func send(to peer: NodeID) {
        if let running = outgoing[peer] { return running.resend() }
        let transfer = OutgoingSnapshot(peer: peer, id: UInt64.random(in: 1...UInt64.max), self)
        outgoing[peer] = transfer
        let box = NIOLoopBound(transfer, eventLoop: node.loop)
        node.state.perform { [weak self, spare = node.space.spareBytes] store in
            // The spool is as large as the state at most; the reserve is not for that.
            guard store.byteCount < spare else {
                return { [weak self] in self?.ended(box.value, succeeded: false) }
            }
            let reader = ReaderBox(try store.makeSnapshot())
            return { box.value.opened(reader) }
        }
    }

    func linkRestored(_ peer: NodeID) { outgoing[peer]?.resend() }

    func standingChanged(_ standing: RaftStanding) {
        guard standing.role != .leader else { return }
        for peer in outgoing.keys.sorted() { outgoing.removeValue(forKey: peer)?.close() }
    }

    func answered(id: UInt64, by peer: NodeID, received: UInt64, installed: Bool, refused: Bool) {
        guard let transfer = outgoing[peer], transfer.id == id else { return }
        if installed || refused { return ended(transfer, succeeded: installed) }
        transfer.acknowledged(received)
    }

    fileprivate func ended(_ transfer: OutgoingSnapshot, succeeded: Bool) {
        guard outgoing[transfer.peer] === transfer else { return }
        outgoing[transfer.peer] = nil
        transfer.close()
        if succeeded { node.metrics.snapshotsSent += 1 }
        node.events.record(
            "snapshot-sent",
            "a snapshot of \(transfer.sent) bytes was \(succeeded ? "" : "not ")taken by node "
                + "\(transfer.peer)")
        node.logger.info(
            succeeded ? "sent a snapshot" : "a snapshot was not taken",
            metadata: ["peer": "\(transfer.peer)", "bytes": "\(transfer.sent)"])
        node.step(
            .snapshotSent(
                to: transfer.peer, index: transfer.meta?.index ?? .zero, succeeded: succeeded))
    }

    fileprivate func post(_ chunk: SnapshotChunk, to peer: NodeID) {
        node.links.send(
            Message(
                from: node.options.raft.node, to: peer, term: node.standing.term,
                body: .snapshotChunk(chunk)), after: nil)
    }

    fileprivate func read(
        _ reader: ReaderBox, then: @escaping @Sendable (Result<[UInt8]?, StorageError>) -> Void
    ) {
        node.state.perform { _ in
            do {
                let bytes = try reader.reader.next()
                return { then(.success(bytes)) }
            } catch StorageError.disk(let reason) where JournalEvent.ofDisk(reason) == .diskFull {
                // The spool did not fit: nothing of the state is lost by that.
                return { then(.failure(.disk(reason))) }
            }
        }
    }

    fileprivate func close(_ reader: ReaderBox) {
        node.state.perform { _ in
            reader.reader.close()
            return {}
        }
    }

    fileprivate var loop: any EventLoop { node.loop }

    // MARK: - Receiving

    func received(_ chunk: SnapshotChunk, from message: Message) {
        guard message.term >= node.standing.term else { return }
        if incoming?.id != chunk.id {
            guard incoming?.isFinishing != true else { return }
            guard chunk.offset == 0 else {
                return reply(chunk.id, to: message.from, received: 0, refused: true)
            }
            abandon()
            guard node.core.takesSnapshot(chunk.meta), node.space.level < .short else {
                return reply(chunk.id, to: message.from, received: 0, refused: true)
            }
            begin(chunk, from: message.from)
        }
        guard let incoming, !incoming.isFinishing else { return }
        guard chunk.offset == incoming.accepted else {
            return reply(incoming.id, to: incoming.from, received: incoming.written)
        }
        node.space.appending(chunk.bytes.count, pending: false)
        guard node.space.level < .exhausted else {
            abandon()
            return reply(chunk.id, to: message.from, received: 0, refused: true)
        }
        incoming.accepted += UInt64(chunk.bytes.count)
        incoming.isFinishing = chunk.isLast
        let (bytes, isLast) = (chunk.bytes, chunk.isLast)
        let box = NIOLoopBound(incoming, eventLoop: node.loop)
        node.state.perform { [unowned self, writer = incoming.writer] _ in
            // A damaged stream is the sender's fault, not our disk's: the transfer ends, we go on.
            let failure = try writer.append(bytes)
            return { self.wrote(box.value, UInt64(bytes.count), isLast, failure) }
        }
    }

    private func begin(_ chunk: SnapshotChunk, from: NodeID) {
        node.logger.info(
            "receives a snapshot", metadata: ["peer": "\(from)", "index": "\(chunk.meta.index)"])
        let writer = WriterBox()
        let meta = chunk.meta
        incoming = IncomingSnapshot(id: chunk.id, from: from, meta: meta, writer: writer)
        node.state.perform { store in
            writer.writer = try store.receiveSnapshot(meta)
            return {}
        }
    }

    private func wrote(
        _ transfer: IncomingSnapshot, _ count: UInt64, _ isLast: Bool, _ failure: String?
    ) {
        guard incoming === transfer else { return }
        transfer.written += count
        if let failure {
            node.logger.error(
                "the snapshot received is damaged", metadata: ["reason": "\(failure)"])
            abandon()
            return reply(transfer.id, to: transfer.from, received: 0, refused: true)
        }
        guard isLast else {
            return reply(transfer.id, to: transfer.from, received: transfer.written)
        }
        guard node.core.takesSnapshot(transfer.meta) else {
            abandon()
            return reply(transfer.id, to: transfer.from, received: 0, refused: true)
        }
        install(transfer)
    }

    /// State first, then the log: a crash in between leaves a state ahead of its log, which
    /// recovery knows how to mend; the other way round entries would be missing.
    private func install(_ transfer: IncomingSnapshot) {
        node.pause()
        let box = NIOLoopBound(transfer, eventLoop: node.loop)
        let policy = node.options.compaction
        node.state.perform { [unowned self, writer = transfer.writer] store in
            let failure = try writer.finish()
            let batch = AppliedBatch(
                index: store.appliedIndex, term: store.appliedTerm, revision: store.revision,
                answers: [], facts: HousekeepingFacts(store, policy),
                membershipIndex: store.membership?.index)
            return { self.finished(box.value, batch, failure) }
        }
    }

    private func finished(
        _ transfer: IncomingSnapshot, _ batch: AppliedBatch, _ failure: String?
    ) {
        incoming = nil
        if let failure {
            node.logger.error(
                "the snapshot received is damaged", metadata: ["reason": "\(failure)"])
            node.resume()
            return reply(transfer.id, to: transfer.from, received: 0, refused: true)
        }
        resetCompletion = { [unowned self] in
            node.installed(batch, transfer.meta)
            node.resume()
            node.metrics.snapshotsReceived += 1
            node.events.record(
                "snapshot-received",
                "put a snapshot of node \(transfer.from) in force, up to index \(batch.index)")
            node.logger.info("installed a snapshot", metadata: ["index": "\(batch.index)"])
            reply(
                transfer.id, to: transfer.from, received: transfer.written, installed: true)
        }
        node.resetLog(to: transfer.meta.index, term: transfer.meta.term)
    }

    /// A state that was put in force, and the log that is to begin behind it. The node is paused.
    func putInForce(_ batch: AppliedBatch, _ meta: SnapshotMeta, then: @escaping () -> Void) {
        resetCompletion = { [unowned self] in
            node.installed(batch, meta)
            node.resume()
            then()
        }
        node.resetLog(to: meta.index, term: meta.term)
    }

    func logWasReset() {
        let completion = resetCompletion
        resetCompletion = nil
        completion?()
    }

    private func abandon() {
        guard let incoming else { return }
        self.incoming = nil
        node.state.perform { [writer = incoming.writer] _ in
            writer.writer?.abandon()
            writer.writer = nil
            return {}
        }
    }

    private func reply(
        _ id: UInt64, to peer: NodeID, received: UInt64, installed: Bool = false,
        refused: Bool = false
    ) {
        node.links.send(
            Message(
                from: node.options.raft.node, to: peer, term: node.standing.term,
                body: .snapshotReply(
                    id: id, received: received, installed: installed, refused: refused)),
            after: nil)
    }
}

/// A snapshot that is being streamed to one peer.
private final class OutgoingSnapshot {
    let peer: NodeID
    let id: UInt64
    private(set) var meta: SnapshotMeta?
    private(set) var sent: UInt64 = 0
    private unowned let transfers: SnapshotTransfers
    private var reader: ReaderBox?
    private var unacknowledged: Deque<SnapshotChunk> = []
    private var isReading = false
    private var isAtEnd = false
    private var stall: Scheduled<Void>?
    private var isClosed = false

    init(peer: NodeID, id: UInt64, _ transfers: SnapshotTransfers) {
        self.peer = peer
        self.id = id
        self.transfers = transfers
    }

    func opened(_ reader: ReaderBox) {
        self.reader = reader
        guard !isClosed else { return transfers.close(reader) }
        meta = reader.reader.meta
        armStall()
        pump()
    }

    private func pump() {
        guard let reader, !isClosed, !isReading, !isAtEnd else { return }
        let acknowledged = unacknowledged.first?.offset ?? sent
        guard sent - acknowledged < SnapshotTransfers.windowBytes else { return }
        isReading = true
        let box = NIOLoopBound(self, eventLoop: transfers.loop)
        transfers.read(reader) { box.value.didRead($0) }
    }

    private func didRead(_ outcome: Result<[UInt8]?, StorageError>) {
        isReading = false
        guard !isClosed, let meta else { return }
        guard case .success(let bytes) = outcome else {
            return transfers.ended(self, succeeded: false)
        }
        isAtEnd = bytes == nil
        let chunk = SnapshotChunk(
            id: id, meta: meta, offset: sent, bytes: bytes ?? [], isLast: isAtEnd)
        sent += UInt64(chunk.bytes.count)
        unacknowledged.append(chunk)
        transfers.post(chunk, to: peer)
        pump()
    }

    func acknowledged(_ received: UInt64) {
        armStall()
        while let first = unacknowledged.first, !first.isLast,
            first.offset + UInt64(first.bytes.count) <= received
        {
            unacknowledged.removeFirst()
        }
        pump()
    }

    func resend() {
        for chunk in unacknowledged { transfers.post(chunk, to: peer) }
    }

    private func armStall() {
        stall?.cancel()
        let box = NIOLoopBound(self, eventLoop: transfers.loop)
        stall = transfers.loop.scheduleTask(in: SnapshotTransfers.stallTimeout) {
            box.value.transfers.ended(box.value, succeeded: false)
        }
    }

    func close() {
        isClosed = true
        stall?.cancel()
        if let reader { transfers.close(reader) }
        reader = nil
    }
}

/// A snapshot that is coming in.
private final class IncomingSnapshot {
    let id: UInt64
    let from: NodeID
    let meta: SnapshotMeta
    let writer: WriterBox
    /// Bytes given to the state thread.
    var accepted: UInt64 = 0
    /// Bytes it has taken in.
    var written: UInt64 = 0
    var isFinishing = false

    init(id: UInt64, from: NodeID, meta: SnapshotMeta, writer: WriterBox) {
        self.id = id
        self.from = from
        self.meta = meta
        self.writer = writer
    }
}

// SAFETY: made, used and closed on the state thread; elsewhere only the reference and the immutable
// `meta` are touched.
private final class ReaderBox: @unchecked Sendable {
    let reader: any SnapshotReader
    init(_ reader: any SnapshotReader) { self.reader = reader }
}

// SAFETY: used on the state thread only.
private final class WriterBox: @unchecked Sendable {
    var writer: (any SnapshotWriter)?

    /// - Returns: why the bytes cannot be a snapshot. A failing disk is thrown.
    func append(_ bytes: [UInt8]) throws -> String? {
        guard let writer else { return "the transfer has ended" }
        do {
            try writer.append(bytes)
            return nil
        } catch StorageError.corrupt(let reason) {
            writer.abandon()
            self.writer = nil
            return reason
        }
    }

    func finish() throws -> String? {
        guard let writer else { return "the transfer has ended" }
        self.writer = nil
        do {
            try writer.finish()
            return nil
        } catch StorageError.corrupt(let reason) {
            writer.abandon()
            return reason
        }
    }
}
