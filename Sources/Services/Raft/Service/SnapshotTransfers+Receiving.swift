// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Logging
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

// Snapshots on their way in.

extension SnapshotTransfers {
    func received(_ chunk: SnapshotChunk, from message: Message) {
        guard message.term >= node.standing.term else { return }
        if incoming?.id != chunk.id {
            // One database at a time is made; who sends another snapshot tries again.
            guard incoming?.isFinishing != true, incoming?.isOpening != true else { return }
            abandon()
            guard node.core.takesSnapshot(chunk.meta), node.space.level < .short else {
                return reply(chunk.id, to: message.from, received: 0, refused: true)
            }
            if chunk.offset > 0 { return resume(chunk, from: message.from) }
            begin(chunk, from: message.from)
        }
        take(chunk)
    }

    private func take(_ chunk: SnapshotChunk) {
        guard let incoming, incoming.id == chunk.id, !incoming.isFinishing else { return }
        guard !incoming.isHolding else { return incoming.hold(chunk) }
        guard chunk.offset == incoming.accepted else {
            return reply(incoming.id, to: incoming.from, received: incoming.written)
        }
        node.space.appending(chunk.bytes.count, pending: false)
        guard node.space.level < .exhausted else {
            abandon()
            return reply(chunk.id, to: incoming.from, received: 0, refused: true)
        }
        node.metrics.snapshotBytesReceived += UInt64(chunk.bytes.count)
        incoming.accepted += UInt64(chunk.bytes.count)
        incoming.isFinishing = chunk.isLast
        let (bytes, isLast, keeps) = (chunk.bytes, chunk.isLast, node.space.level == .ample)
        let box = NIOLoopBound(incoming, eventLoop: node.loop)
        takeIn { [weak self, writer = incoming.writer] in
            // A damaged stream is the sender's fault, not our disk's: the transfer ends, we go on.
            let failure = try writer.append(bytes, keeps: keeps)
            return { [weak self] in self?.wrote(box.value, UInt64(bytes.count), isLast, failure) }
        }
    }

    private func begin(_ chunk: SnapshotChunk, from: NodeID) {
        node.logger.info(
            "receives a snapshot", metadata: ["peer": "\(from)", "index": "\(chunk.meta.index)"])
        let writer = WriterBox()
        let transfer = IncomingSnapshot(
            id: chunk.id, from: from, meta: chunk.meta, writer: writer)
        incoming = transfer
        // Twice the bytes: not where space is short.
        let keeps = node.space.level == .ample
        let id = chunk.id
        open(transfer) { directory in
            if keeps, let directory {
                writer.partial = PartialSnapshot.begin(directory: directory, transfer: id)
            }
            return true
        } then: { [weak self] in
            self?.release(transfer)
        }
    }

    /// Makes room for the new state, when the last transfer's is gone. Until then pieces wait.
    ///
    /// - Parameters:
    ///   - prepare: on the state thread, with the place of partial snapshots; false: refuse.
    ///   - then: on the loop, when bytes can be taken in.
    private func open(
        _ transfer: IncomingSnapshot, prepare: @escaping @Sendable (String?) -> Bool,
        then: @escaping () -> Void
    ) {
        transfer.isHolding = true
        transfer.isOpening = true
        let box = NIOLoopBound((transfer, then), eventLoop: node.loop)
        let (meta, writer) = (transfer.meta, transfer.writer)
        takeIn { [weak self] in
            // On the loop, behind whatever the thread still did for an earlier transfer.
            return { [weak self] in
                self?.node.state.perform { [weak self] store in
                    guard prepare(store.partialSnapshots) else {
                        return { [weak self] in
                            box.value.0.isOpening = false
                            self?.refuse(box.value.0)
                        }
                    }
                    do {
                        writer.writer = try store.receiveSnapshot(meta)
                    } catch let error as StorageError where error.isFull {
                        // The first piece finds that there is no place for it.
                        writer.writer = nil
                    }
                    return { [weak self] in
                        let (transfer, then) = box.value
                        transfer.isOpening = false
                        if self?.incoming === transfer { then() } else { writer.writer = nil }
                    }
                }
            }
        }
    }

    private func release(_ transfer: IncomingSnapshot) {
        transfer.isHolding = false
        let held = transfer.held
        transfer.held = []
        for chunk in held { take(chunk.dropping(below: transfer.accepted)) }
    }

    // MARK: Going on after a restart

    /// A piece from the middle of a transfer that this process has not seen: an earlier one may have
    /// kept what came before it.
    private func resume(_ chunk: SnapshotChunk, from: NodeID) {
        let writer = WriterBox()
        let (id, offset) = (chunk.id, chunk.offset)
        let transfer = IncomingSnapshot(id: id, from: from, meta: chunk.meta, writer: writer)
        transfer.held = [chunk]
        incoming = transfer
        open(transfer) { directory in
            writer.partial = directory.flatMap { PartialSnapshot.find(directory: $0, transfer: id) }
            return writer.partial.map { $0.byteCount >= offset } ?? false
        } then: { [weak self] in
            self?.takeAgain(transfer)
        }
    }

    /// Puts the next piece of what an earlier process received into the new state.
    private func takeAgain(_ transfer: IncomingSnapshot) {
        guard incoming === transfer else { return }
        let offset = transfer.written
        let box = NIOLoopBound(transfer, eventLoop: node.loop)
        takeIn { [weak self, writer = transfer.writer] in
            guard let piece = writer.partial?.read(at: offset, count: Limits.snapshotChunkBytesMax)
            else {
                return { [weak self] in self?.refuse(box.value) }
            }
            let failure = piece.isEmpty ? nil : try writer.takeIn(piece)
            return { [weak self] in
                self?.tookAgain(box.value, UInt64(piece.count), failure)
            }
        }
    }

    private func tookAgain(_ transfer: IncomingSnapshot, _ count: UInt64, _ failure: String?) {
        guard incoming === transfer else { return }
        guard failure == nil else { return refuse(transfer) }
        transfer.written += count
        transfer.accepted = transfer.written
        if count > 0 {
            // The sender waits while it hears of progress.
            reply(transfer.id, to: transfer.from, received: transfer.written)
            return takeAgain(transfer)
        }
        node.events.record(
            "snapshot-resumed",
            "a snapshot of node \(transfer.from) goes on behind \(transfer.written) bytes that came "
                + "before this process was started")
        node.logger.info(
            "goes on with a snapshot",
            metadata: ["peer": "\(transfer.from)", "bytes": "\(transfer.written)"])
        release(transfer)
    }

    /// There is nothing to go on from: the sender begins anew.
    private func refuse(_ transfer: IncomingSnapshot) {
        guard incoming === transfer else { return }
        abandon()
        reply(transfer.id, to: transfer.from, received: 0, refused: true)
    }

    /// What an earlier process has kept is of no use any more, if nobody has asked for it by then.
    func forgetPartial() {
        guard incoming == nil else { return }
        node.state.perform { store in
            if let directory = store.partialSnapshots {
                PartialSnapshot.removeAny(directory: directory)
            }
            return {}
        }
    }

    // MARK: Taking in

    private func wrote(
        _ transfer: IncomingSnapshot, _ count: UInt64, _ isLast: Bool, _ failure: String?
    ) {
        guard incoming === transfer else { return }
        transfer.written += count
        if let failure {
            node.logger.error(
                "the snapshot received cannot be used", metadata: ["reason": "\(failure)"])
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
                "the snapshot received cannot be used", metadata: ["reason": "\(failure)"])
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
        takeIn { [writer = incoming.writer] in
            writer.abandon()
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

extension SnapshotChunk {
    /// What is not known yet, if `offset` lies within it.
    fileprivate func dropping(below offset: UInt64) -> SnapshotChunk {
        guard self.offset < offset, offset <= self.offset + UInt64(bytes.count) else { return self }
        var rest = self
        rest.offset = offset
        rest.bytes = Array(bytes[Int(offset - self.offset)...])
        return rest
    }
}

/// A snapshot that is coming in.
final class IncomingSnapshot {
    let id: UInt64
    let from: NodeID
    let meta: SnapshotMeta
    let writer: WriterBox
    /// Bytes given to the state thread.
    var accepted: UInt64 = 0
    /// Bytes it has taken in.
    var written: UInt64 = 0
    var isFinishing = false
    /// Nothing can be taken in yet: the place for it is being made, or what an earlier process received
    /// comes first. Until then pieces wait.
    var isHolding = false
    /// The state thread makes the place for it: `writer` is that thread's.
    var isOpening = false
    var held: [SnapshotChunk] = []

    /// The sender sends again what it has in flight, a window at most, each time the link is back.
    func hold(_ chunk: SnapshotChunk) {
        if held.isEmpty { return held.append(chunk) }
        guard let last = held.last, last.offset + UInt64(last.bytes.count) == chunk.offset,
            !last.isLast
        else { return }
        held.append(chunk)
    }

    init(id: UInt64, from: NodeID, meta: SnapshotMeta, writer: WriterBox) {
        self.id = id
        self.from = from
        self.meta = meta
        self.writer = writer
    }
}

// SAFETY: used by one thread at a time, the state thread before and after the thread that takes in;
// each hands over to the other by way of the loop.
final class WriterBox: @unchecked Sendable {
    /// Taken in between two looks at whether others wait for the processor: some milliseconds.
    private static let sliceBytes = 65_536

    var writer: (any SnapshotWriter)?
    var partial: PartialSnapshot?
    /// Of the thread that takes in, which may be hurried.
    let pace = ThreadPace()

    /// - Parameter keeps: there is room for what the next process would need.
    /// - Returns: why the bytes cannot be a snapshot, or that they do not fit. A failing disk is thrown.
    func append(_ bytes: [UInt8], keeps: Bool) throws -> String? {
        if !keeps { dropPartial() }
        let failure = try takeIn(bytes)
        // Before they are acknowledged: what this process has said it has, the next one finds.
        if failure == nil, let partial, !partial.append(bytes) { dropPartial() }
        return failure
    }

    private func dropPartial() {
        partial?.remove()
        partial = nil
    }

    func abandon() {
        writer?.abandon()
        writer = nil
        dropPartial()
    }

    /// The same, of bytes that are in the file.
    func takeIn(_ bytes: [UInt8]) throws -> String? {
        guard let writer else { return "the transfer has ended" }
        do {
            for start in stride(from: 0, to: bytes.count, by: Self.sliceBytes) {
                let end = min(start + Self.sliceBytes, bytes.count)
                try writer.append(Array(bytes[start..<end]))
                pace.rest()
            }
            return nil
        } catch {
            writer.abandon()
            self.writer = nil
            return try error.endOfTransfer()
        }
    }

    func finish() throws -> String? {
        guard let writer else { return "the transfer has ended" }
        self.writer = nil
        defer { dropPartial() }
        do {
            try writer.finish()
            return nil
        } catch {
            writer.abandon()
            return try error.endOfTransfer()
        }
    }
}

extension StorageError {
    /// Why a snapshot was not taken in although the state is as it was: the stream was none, or the disk
    /// has no room for another state. Anything else is thrown.
    fileprivate func endOfTransfer() throws -> String {
        if case .corrupt(let reason) = self { return reason }
        if case .disk(let reason) = self, isFull { return reason }
        throw self
    }
}
