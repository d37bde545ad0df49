// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import WatchCore

/// Snapshots are streamed by the shell, chunk by chunk, each asked for by the answer to the last.
extension World {
    private func snapshotPatience() -> Duration { scenario.electionTimeoutMax * 2 }

    func startSnapshot(_ shell: RaftShell, to peer: NodeID) throws(Violation) {
        shell.outgoing.removeAll { $0.peer == peer }
        let (meta, bytes): (SnapshotMeta, [UInt8])
        do throws(StorageError) {
            let stored = try shell.node.database?.snapshot()
            (meta, bytes) = if let stored { stored } else { try snapshot(of: shell.state) }
        } catch {
            try stop(shell, error)
            return
        }
        let transfer = SnapshotTransfer(
            id: shell.random.next(), peer: peer, meta: meta, bytes: bytes)
        note("n\(shell.node.id) sends n\(peer) a snapshot at \(meta.index), \(bytes.count) bytes")
        shell.outgoing.append(transfer)
        try sendChunk(shell, transfer)
    }

    private func snapshot(
        of state: MemoryState
    ) throws(StorageError) -> (meta: SnapshotMeta, bytes: [UInt8]) {
        let reader = try state.makeSnapshot()
        defer { reader.close() }
        var bytes: [UInt8] = []
        while let piece = try reader.next() { bytes += piece }
        return (reader.meta, bytes)
    }

    private func sendChunk(_ shell: RaftShell, _ transfer: SnapshotTransfer) throws(Violation) {
        // A slow network still gets a large snapshot across within everyone's patience.
        let size = max(scenario.snapshotChunkBytes, transfer.bytes.count / 40)
        let end = min(transfer.sent + size, transfer.bytes.count)
        let chunk = SnapshotChunk(
            id: transfer.id, meta: transfer.meta, offset: UInt64(transfer.sent),
            bytes: Array(transfer.bytes[transfer.sent..<end]), isLast: end == transfer.bytes.count)
        schedule(
            .snapshotTimeout(
                node: shell.index, life: shell.life,
                transfer: transfer.id ^ UInt64(transfer.sent)),
            after: snapshotPatience())
        try transmit(
            Message(
                from: shell.node.id, to: transfer.peer, term: shell.standing.term,
                body: .snapshotChunk(chunk)), shell)
    }

    func snapshotTimeout(_ shell: RaftShell, _ mark: UInt64) throws(Violation) {
        guard let slot = shell.outgoing.firstIndex(where: { $0.id ^ UInt64($0.sent) == mark })
        else { return }
        let transfer = shell.outgoing.remove(at: slot)
        try feed(
            shell,
            .snapshotSent(to: transfer.peer, index: transfer.meta.index, succeeded: false))
    }

    func snapshotReply(
        _ shell: RaftShell, from: NodeID, id: UInt64, received: UInt64, installed: Bool,
        refused: Bool
    ) throws(Violation) {
        guard let slot = shell.outgoing.firstIndex(where: { $0.id == id && $0.peer == from })
        else { return }
        let transfer = shell.outgoing[slot]
        if installed || refused {
            shell.outgoing.remove(at: slot)
            try feed(
                shell,
                .snapshotSent(to: from, index: transfer.meta.index, succeeded: installed))
            return
        }
        // An old answer asks for what has been sent already.
        guard received > transfer.sent, received < transfer.bytes.count else { return }
        shell.outgoing[slot].sent = Int(received)
        try sendChunk(shell, shell.outgoing[slot])
    }

    func take(
        _ chunk: SnapshotChunk, _ message: Message, _ shell: RaftShell
    ) throws(Violation) {
        if message.term < shell.standing.term {
            try reply(shell, to: message, chunk, received: 0, refused: true)
            return
        }
        if chunk.offset == 0 {
            shell.incoming = SnapshotIntakeInProgress(
                id: chunk.id, from: message.from, meta: chunk.meta)
        }
        guard var intake = shell.incoming, intake.id == chunk.id,
            chunk.offset == UInt64(intake.bytes.count)
        else { return }
        intake.bytes += chunk.bytes
        shell.incoming = intake
        guard chunk.isLast else {
            try reply(shell, to: message, chunk, received: UInt64(intake.bytes.count))
            return
        }
        shell.incoming = nil
        let isInstalled = try install(intake, shell)
        guard shell.node.shell === shell else { return }
        try reply(
            shell, to: message, chunk, received: UInt64(intake.bytes.count),
            installed: isInstalled, refused: !isInstalled)
    }

    private func install(
        _ intake: SnapshotIntakeInProgress, _ shell: RaftShell
    ) throws(Violation) -> Bool {
        shell.watching?.deliver()
        // What is on its way to the log goes first: the order of writes is the order of tickets.
        try flush(shell)
        guard shell.node.shell === shell, shell.core.takesSnapshot(intake.meta) else {
            return false
        }
        guard shell.node.understands(intake.bytes) else {
            try meetUnknown(shell)
            return false
        }
        do throws(StorageError) {
            let writer = shell.state.receiveSnapshot(intake.meta)
            try writer.append(intake.bytes)
            try writer.finish()
            // The state is durable before the log lets go of what it held.
            shell.node.checkpoint = shell.state.copy()
            try shell.node.database?.install(intake.meta, intake.bytes)
            observer.installs(shell.index, intake.meta)
            try shell.log.reset(to: intake.meta.index, term: intake.meta.term)
        } catch {
            try stop(shell, error)
            return false
        }
        statistics.snapshots += 1
        shell.durableIndex = intake.meta.index
        note("n\(shell.node.id) installed a snapshot at \(intake.meta.index)")
        try observer.installed(
            shell.index, intake.meta, contentHash: shell.state.contentHash())
        shell.watching?.feed.skipped()
        try skipped(shell)
        try answerReads(shell)
        guard shell.node.shell === shell else { return true }
        try feed(shell, .snapshotInstalled(intake.meta))
        return true
    }

    /// Makes everything written so far durable.
    private func flush(_ shell: RaftShell) throws(Violation) {
        while shell.node.shell === shell, shell.syncing != nil || !shell.writes.isEmpty {
            try startStorage(shell)
            try synced(shell)
        }
    }

    private func reply(
        _ shell: RaftShell, to message: Message, _ chunk: SnapshotChunk, received: UInt64,
        installed: Bool = false, refused: Bool = false
    ) throws(Violation) {
        try transmit(
            Message(
                from: shell.node.id, to: message.from, term: shell.standing.term,
                body: .snapshotReply(
                    id: chunk.id, received: received, installed: installed, refused: refused)),
            shell)
    }
}
