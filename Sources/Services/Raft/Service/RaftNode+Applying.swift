// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

// What is committed goes to the state, in order; what the state says comes back.

extension RaftNode {
    /// Payload bytes read from the log in one piece to be applied after a restart.
    static let replayBytesMax = 4_000_000

    func scheduleApply() {
        guard !isApplyScheduled else { return }
        isApplyScheduled = true
        // A write of the same turn goes first: others wait for its acknowledgement.
        loop.execute { [self] in
            if isDiskScheduled {
                isApplyScheduled = false
                return scheduleApply()
            }
            isApplyScheduled = false
            applyCommitted()
        }
    }

    private func applyCommitted() {
        // What a snapshot is about to overtake must not be given to the state behind it.
        while !isStopped, !isPaused, let action = committed.next() { carryOut(action) }
    }

    private func carryOut(_ action: ApplyQueue.Action) {
        switch action {
        case .apply(let entries, let bytes):
            maintenanceBytes -= bytes
            state.apply(entries, bytes: bytes)
        case .fetch(let from, let upTo):
            log.submitToThread(
                .fetch(for: nil, from: from, upTo: upTo, bytesMax: Self.replayBytesMax))
        }
    }

    /// A piece of the log that the core no longer has in memory.
    func replay(_ entries: [Entry], from: LogIndex) {
        if isPaused {
            heldReplay = (entries, from)
            return
        }
        guard !entries.isEmpty else {
            return fatal(.corrupt("the log has no entry \(from), which is committed"))
        }
        if let action = committed.fetched(entries, from: from) { carryOut(action) }
        scheduleApply()
    }

    func take(_ events: [StateEvent]) {
        if isStopped { return }
        for event in events {
            switch event {
            case .applied(let batch): didApply(batch)
            case .answered(let round, let answers): client?.answered(round, answers)
            case .performed(let then): then()
            case .failed(let error): fatal(error)
            }
        }
    }

    private func didApply(_ batch: AppliedBatch) {
        let count = Int(batch.index.rawValue - applied.index.rawValue)
        applied = batch
        let isFollowed = stages.applied(batch.index, Self.now)
        applied.changes = nil
        if let index = batch.membershipIndex { membershipAppliedIndex = index }
        space.applied(committed.applied(batch.index))
        scheduleApply()
        step(.applied(batch.index))
        client?.applied(batch.answers, batch: batch)
        if isFollowed { noteAnswered() }
        if let last = batch.answers.last { landed(last.number) }
        releaseRounds()
        maintenanceCountdown -= count
        if maintenanceCountdown <= 0 || maintenanceBytes <= 0 || batch.facts.isCheckpointDue {
            maintenanceCountdown = Self.maintenanceEntries
            maintenanceBytes = space.limits.walBytes
            maintain()
        }
    }

    /// Once the answers of this turn are written.
    private func noteAnswered() {
        loop.execute { [self] in
            if let slow = stages.answered(Self.now) { events.record("slow-commit", slow) }
        }
    }

    /// A snapshot of somebody else's state has taken the place of ours.
    func installed(_ batch: AppliedBatch, _ meta: SnapshotMeta) {
        applied = batch
        membershipAppliedIndex = batch.membershipIndex ?? membershipAppliedIndex
        committed.clear()
        space.caughtUp()
        heldReplay = nil
        step(.snapshotInstalled(meta))
        client?.skipped()
        client?.applied([], batch: batch)
        releaseRounds()
    }

    /// Between the moment a snapshot is put in force and the core's knowing it, the core neither
    /// hears messages nor campaigns: whatever it appended then would be swept away.
    /// Nor is anything more applied: the state is ahead of what is committed here.
    func pause() { isPaused = true }

    /// Call `installed` first if the snapshot is in force.
    func resume() {
        isPaused = false
        armTimer()
        if let held = heldReplay {
            heldReplay = nil
            replay(held.entries, from: held.from)
        }
        scheduleApply()
    }

    // MARK: - Housekeeping

    private func maintain() {
        // What was applied before it has begun says again that it is due.
        guard !isMaintaining else { return }
        isMaintaining = true
        state.perform { [self] store in
            let durable = try store.checkpointIfDue()
            return { [self] in
                isMaintaining = false
                maintained(durable)
            }
        }
    }

    private func maintained(_ durable: LogIndex?) {
        guard let durable else { return }
        metrics.checkpoints += 1
        discardLog(durable: durable)
    }

    /// Looks of `SpaceWatch` without anything new to apply, before memory and WAL are given back.
    private static let quietLooks = 5

    /// Gives back the memory and the WAL that a busy time took, once it is over.
    func restIfQuiet() {
        guard applied.index == quiet.index else {
            quiet = (applied.index, 0)
            return
        }
        quiet.looks += 1
        guard quiet.looks == Self.quietLooks else { return }
        state.perform { [self] store in
            try store.rest()
            let durable = try store.checkpointIfDue()
            ProcessMemory.giveBack()
            return { [self] in maintained(durable) }
        }
    }

    /// Gives back log that neither this node (its state is durable up to `durable`) nor a peer that
    /// is a little behind will ask for.
    func discardLog(durable: LogIndex) {
        let tail = space.level == .ample ? UInt64(options.logTailEntries) : 0
        guard durable.rawValue > tail else { return }
        var upTo = LogIndex(durable.rawValue - tail)
        if let needed = space.oldestForPeers, needed < upTo { upTo = needed }
        if let needed = snapshots.oldestNeeded, needed < upTo { upTo = needed }
        guard upTo >= firstLogIndex else { return }
        log.submitToThread(.discard(upTo: upTo))
    }
}
