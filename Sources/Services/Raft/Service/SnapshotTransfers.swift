// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import DequeModule
import Logging
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

/// Snapshots on their way out (to peers that need what the log no longer has) and in. Confined to
/// the event loop; the state thread reads the bytes, a thread of their own takes them in.
///
/// The sender keeps what has not been acknowledged, at most `windowBytes`, and sends it again when
/// the link has been away: a transfer goes on where it was, also when the receiver's daemon has ended
/// and is back (see `PartialSnapshot`). When the sender's ends, whoever leads then begins anew.
// SAFETY: confined to the event loop; closures for the state thread only carry the reference.
final class SnapshotTransfers: @unchecked Sendable {
    /// Bytes sent and not acknowledged, per peer.
    static let windowBytes: UInt64 = 4_000_000
    static let intakeNiceness: CInt = 10
    static let noRoom = "no space left on the disk of the leader for a snapshot on its way"
    /// Between two looks at a spool that has no whole piece yet. Nobody waits for it on the state
    /// thread: writes would wait behind him.
    static let spoolPause = TimeAmount.milliseconds(5)

    unowned let node: RaftNode
    private var outgoing: [NodeID: OutgoingSnapshot] = [:]
    var incoming: IncomingSnapshot?
    var resetCompletion: (() -> Void)?
    /// Takes in what comes; others go first. Made with the first snapshot.
    private var intake: WorkerThread<@Sendable () -> Void>?

    init(node: RaftNode) { self.node = node }

    /// The log must be kept from here on; nil while no snapshot is being sent.
    var oldestNeeded: LogIndex? { outgoing.values.compactMap { $0.meta?.index }.min() }

    // MARK: - Sending

    func send(to peer: NodeID) {
        if let running = outgoing[peer] { return running.resend() }
        let transfer = OutgoingSnapshot(peer: peer, id: UInt64.random(in: 1...UInt64.max), self)
        outgoing[peer] = transfer
        let box = NIOLoopBound(transfer, eventLoop: node.loop)
        node.state.perform { [weak self, room = node.space.spoolBytesMax] store in
            do {
                guard let room else { throw StorageError.disk(Self.noRoom) }
                let reader = ReaderBox(try store.makeSnapshot(spoolBytesMax: room))
                return { box.value.opened(reader) }
            } catch let error as StorageError where error.isFull {
                return { [weak self] in self?.ended(box.value, succeeded: false, error.text) }
            }
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

    fileprivate func ended(
        _ transfer: OutgoingSnapshot, succeeded: Bool, _ reason: String? = nil
    ) {
        guard outgoing[transfer.peer] === transfer else { return }
        outgoing[transfer.peer] = nil
        transfer.close()
        if succeeded { node.metrics.snapshotsSent += 1 }
        node.events.record(
            "snapshot-sent",
            "a snapshot of \(transfer.sent) bytes was \(succeeded ? "" : "not ")taken by node "
                + "\(transfer.peer)\(reason.map { ": " + $0 } ?? "")")
        var fields: Logger.Metadata = [
            "peer": "\(transfer.peer)", "bytes": "\(transfer.sent)",
        ]
        if let reason { fields["reason"] = "\(reason)" }
        node.logger.info(
            succeeded ? "sent a snapshot" : "a snapshot was not taken", metadata: fields)
        node.step(
            .snapshotSent(
                to: transfer.peer, index: transfer.meta?.index ?? .zero, succeeded: succeeded))
    }

    fileprivate func post(_ chunk: SnapshotChunk, to peer: NodeID) {
        node.metrics.snapshotBytesSent += UInt64(chunk.bytes.count)
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
            } catch let error as StorageError where error.isFull {
                // The spool did not fit: nothing of the state is lost by that.
                return { then(.failure(error)) }
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

    // MARK: - The thread that takes in

    /// What `body` returns runs on the loop. An error of the disk stops the daemon.
    func takeIn(_ body: @escaping @Sendable () throws -> @Sendable () -> Void) {
        let worker =
            intake
            ?? WorkerThread(niceness: Self.intakeNiceness) { jobs in for job in jobs { job() } }
        intake = worker
        worker.submit { [weak node = node, loop = node.loop] in
            do {
                let then = try body()
                loop.execute { [weak node] in
                    if let node, !node.isStopped { then() }
                }
            } catch {
                let failure = (error as? StorageError) ?? .disk("\(error)")
                loop.execute { [weak node] in node?.fatal(failure) }
            }
        }
    }

    /// Finishes what was given to the thread and ends it. Blocks. What has come so far stays for the next
    /// process.
    func stop() {
        incoming?.writer.pace.hurry()
        intake?.stop()
        intake = nil
        incoming?.writer.writer = nil
        incoming = nil
    }
}

/// A snapshot that is being streamed to one peer.
private final class OutgoingSnapshot {
    let peer: NodeID
    let id: UInt64
    private(set) var meta: SnapshotMeta?
    private(set) var sent: UInt64 = 0
    /// Nil once the node has ended: timers may outlive it.
    private weak var transfers: SnapshotTransfers?
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
        guard !isClosed else { return close(reader) }
        meta = reader.reader.meta
        armStall()
        pump()
    }

    private func pump() {
        guard let transfers, let reader, !isClosed, !isReading, !isAtEnd else { return }
        let acknowledged = unacknowledged.first?.offset ?? sent
        guard sent - acknowledged < SnapshotTransfers.windowBytes else { return }
        isReading = true
        let box = NIOLoopBound(self, eventLoop: transfers.loop)
        guard reader.reader.isReady else {
            transfers.loop.scheduleTask(in: SnapshotTransfers.spoolPause) {
                box.value.isReading = false
                box.value.pump()
            }
            return
        }
        transfers.read(reader) { box.value.didRead($0) }
    }

    private func didRead(_ outcome: Result<[UInt8]?, StorageError>) {
        isReading = false
        guard let transfers, !isClosed, let meta else { return }
        let bytes: [UInt8]?
        switch outcome {
        case .success(let piece): bytes = piece
        case .failure(let error): return transfers.ended(self, succeeded: false, error.text)
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
        for chunk in unacknowledged { transfers?.post(chunk, to: peer) }
    }

    private func close(_ reader: ReaderBox) { transfers?.close(reader) }

    private func armStall() {
        stall?.cancel()
        guard let transfers else { return }
        let box = NIOLoopBound(self, eventLoop: transfers.loop)
        stall = transfers.loop.scheduleTask(in: transfers.node.options.snapshots.stallTimeout) {
            box.value.transfers?.ended(box.value, succeeded: false)
        }
    }

    func close() {
        isClosed = true
        stall?.cancel()
        if let reader { close(reader) }
        reader = nil
    }
}

// SAFETY: made, used and closed on the state thread; elsewhere only the reference, the immutable
// `meta` and `isReady`, which any thread may ask, are touched.
private final class ReaderBox: @unchecked Sendable {
    let reader: any SnapshotReader
    init(_ reader: any SnapshotReader) { self.reader = reader }
}
