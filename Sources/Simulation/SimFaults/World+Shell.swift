// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimKit
import WatchCore

/// How a raft daemon carries out what its core wants: the same orders as in production, in virtual
/// time.
extension World {
    // MARK: - Stepping the core

    func feed(_ shell: RaftShell, _ input: RaftInput) throws(Violation) {
        precondition(effects.isEmpty, "a core is never stepped while it is being obeyed")
        let (standing, committed) = (shell.standing, shell.figures.commitIndex)
        shell.figures = shell.core.checkedStep(
            input, now: shell.clock.reading(at: now), random: &shell.random, into: &effects)
        // Two buffers change places: emptied while it is shared, one would be allocated anew.
        var wanted = spareEffects
        spareEffects = []
        swap(&wanted, &effects)
        defer {
            wanted.removeAll(keepingCapacity: true)
            spareEffects = wanted
        }
        // Announced last, in force for the whole step.
        for case .standing(let standing) in wanted { try changed(standing, shell) }
        for effect in wanted { try obey(effect, shell) }
        let reached = shell.figures.commitIndex
        if reached > committed {
            note("n\(shell.node.id) committed up to \(reached)")
            trace.fold(reached.rawValue)
            noteProgress(reached)
            // Who commits its own removal steps down in the same step.
            let leading = [shell.standing, standing].first { $0.role == .leader }
            try observer.committed(shell.index, upTo: reached, leading: leading?.term)
        }
        try startStorage(shell)
        arrangeWake(shell)
    }

    private func obey(_ effect: RaftEffect, _ shell: RaftShell) throws(Violation) {
        let index = shell.index
        switch effect {
        case .write(let write):
            trace.fold(write.ticket.number)
            try observer.wrote(index, write)
            try checkUncommitted(write, shell)
            shell.writes.append(write)
            if write.endsRepair { publishPeers(shell) }
        case .send(let message, let after): try send(message, after: after, shell)
        case .commit(let entries, let upTo):
            trace.fold(upTo.rawValue)
            shell.committed.append(.entries(entries))
            scheduleApply(shell)
        case .commitFromLog(let from, let upTo):
            trace.fold(upTo.rawValue)
            shell.committed.append(.inLog(from: from, upTo: upTo))
            scheduleApply(shell)
        case .readReady(let id, let readIndex):
            shell.asking[id.number] = nil
            try observer.readReady(index, number: id.number, index: readIndex)
            shell.waitingReads.append(.init(index: readIndex, number: id.number))
            try answerReads(shell)
        case .readFailed(let id):
            shell.readsBegan[id.number] = nil
            shell.asking[id.number] = nil
            if let request = shell.reads.removeValue(forKey: id.number) {
                answer(request, .unavailable)
            }
        case .proposalFailed(let id, let failure):
            try proposalFailed(id, failure, shell)
        case .standing(let standing): try proposeWaiting(standing, shell)
        case .membership(let membership):
            statistics.memberships += 1
            note("n\(shell.node.id) membership \(Self.brief(membership))")
            shell.membership = membership
            publishPeers(shell)
            observer.membership(index, membership)
            learnReplicas(membership, shell)
        case .fetch(let peer, let from, let upTo, let bytesMax):
            schedule(
                .fetch(
                    node: index, life: shell.life, peer: peer, from: from, upTo: upTo,
                    bytesMax: bytesMax),
                after: storageRandom.uniform(.microseconds(5), .microseconds(100)))
        case .sendSnapshot(let peer): try startSnapshot(shell, to: peer)
        case .regressed(let peer, let acknowledged, let found):
            note("n\(shell.node.id) found n\(peer) at \(found), had acknowledged \(acknowledged)")
            try observer.regressed(index, peer: peer, acknowledged: acknowledged, found: found)
        case .contradicted(let peer, let place, let committed, let found):
            note("n\(shell.node.id) committed \(place)/\(committed), n\(peer) has /\(found)")
            try observer.contradicted(index, by: peer, at: place, committed, found: found)
        }
    }

    private func changed(_ standing: RaftStanding, _ shell: RaftShell) throws(Violation) {
        trace.fold(standing.term.rawValue << 3 | (standing.role == .leader ? 1 : 0))
        if standing.role == .leader, shell.standing.role != .leader {
            statistics.elections += 1
            if let killed = leaderKilledAt { statistics.takeovers.append(now - killed) }
            leaderKilledAt = nil
            shell.ends = []
            shell.uncommitted = []
            stallDisks()
        }
        shell.standing = standing
        note(
            "n\(shell.node.id) \(standing.role) in term \(standing.term), leader "
                + (standing.leader.map { "n\($0)" } ?? "unknown"))
        try observer.standing(shell.index, standing)
    }

    private func noteProgress(_ index: LogIndex) {
        guard index > newestCommit.index else { return }
        if part == .trouble {
            statistics.commitGapMax = max(statistics.commitGapMax, now - newestCommit.at)
        }
        newestCommit = (index, now)
    }

    private func arrangeWake(_ shell: RaftShell) {
        guard let deadline = shell.figures.deadline else { return }
        if shell.wakeAt != nil, shell.wakeReading <= deadline { return }
        let time = shell.clock.time(showing: deadline, from: now)
        if let planned = shell.wakeAt, planned <= time { return }
        shell.wakeAt = time
        shell.wakeReading = deadline
        heap.schedule(.wake(node: shell.index, life: shell.life), at: time)
    }

    func wake(_ shell: RaftShell) throws(Violation) {
        if let planned = shell.wakeAt, planned > now { return }
        shell.wakeAt = nil
        if let deadline = shell.figures.deadline, deadline <= shell.clock.reading(at: now) {
            try feed(shell, .timeout)
            try checkReads(shell)
            try checkLearners(shell)
        } else {
            arrangeWake(shell)
        }
    }

    /// A read waits for the one before it at the longest, and then as long again.
    private func checkReads(_ shell: RaftShell) throws(Violation) {
        let clock = shell.clock.reading(at: now)
        let patience = scenario.electionTimeoutMin * 2 + scenario.heartbeatInterval
        guard shell.asking.contains(where: { clock - $0.value > patience }) else { return }
        throw Violation(
            .liveness, "reads end", "n\(shell.node.id) has neither answered nor refused a read")
    }

    // MARK: - Messages

    private func send(
        _ message: Message, after: DurabilityTicket?, _ shell: RaftShell
    ) throws(Violation) {
        // What is sent while there is no stream is dropped.
        guard let peer = position(message.to), shell.peers[peer].isUp(message.lane) else { return }
        let slot = peer * Lane.allCases.count + Int(message.lane.rawValue)
        let waits = after.map { $0 > shell.durable } ?? false
        // Order within a lane: behind one that waits, all wait.
        if waits || !shell.held[slot].isEmpty {
            shell.held[slot].append(.init(message: message, after: after))
        } else {
            try transmit(message, shell)
        }
    }

    private func releaseHeld(_ shell: RaftShell) throws(Violation) {
        for slot in shell.held.indices where !shell.held[slot].isEmpty {
            var count = 0
            for item in shell.held[slot] {
                if let after = item.after, after > shell.durable { break }
                try transmit(item.message, shell)
                count += 1
            }
            shell.held[slot].removeFirst(count)
        }
    }

    func transmit(_ message: Message, _ shell: RaftShell) throws(Violation) {
        guard let peer = position(message.to), shell.peers[peer].isUp(message.lane),
            !isForeign(peer, to: shell) || message.isAnswer
        else { return }
        statistics.messages += 1
        try checkSize(message, shell)
        var writer = ByteWriter(capacity: 1 + message.byteCountEstimate)
        writer.byte(PeerFrameKind.message.rawValue)
        message.encode(into: &writer)
        let bytes = writer.bytes
        trace.fold(bytes)
        note("n\(message.from) -> n\(message.to) t\(message.term) \(Self.brief(message.body))")
        try observer.sent(shell.index, message)
        network.send(
            from: shell.index, to: peer, lane: Int(message.lane.rawValue), payload: bytes,
            now: now)
    }

    /// Several entries go together only as far as they have room.
    private func checkSize(_ message: Message, _ shell: RaftShell) throws(Violation) {
        guard case .append(_, _, _, let entries) = message.body, entries.count > 1,
            entries.reduce(0, { $0 + $1.payload.count }) > scenario.appendBytesMax
        else { return }
        throw Violation(
            .safety, "queues keep their limits", "n\(shell.node.id) appends more than is allowed")
    }

    func received(_ bytes: [UInt8], _ shell: RaftShell) throws(Violation) {
        let message: Message
        do {
            var reader = ByteReader(bytes)
            guard try reader.byte("kind") == PeerFrameKind.message.rawValue else {
                throw DecodeError.unknown(field: "kind")
            }
            message = try Message.decode(&reader)
            try reader.end()
        } catch {
            throw Violation(.safety, "codec", "a message sent is not understood: \(error)")
        }
        guard let sender = position(message.from),
            !isForeign(sender, to: shell) || !message.isAnswer
        else { return }
        note("n\(message.to) <- n\(message.from) t\(message.term) \(Self.brief(message.body))")
        switch message.body {
        case .snapshotChunk(let chunk): try take(chunk, message, shell)
        case .snapshotReply(let id, let received, let installed, let refused):
            try snapshotReply(
                shell, from: message.from, id: id, received: received, installed: installed,
                refused: refused)
        default: try feed(shell, .received(message))
        }
    }

    func position(_ id: NodeID) -> Int? {
        let position = Int(id.rawValue) - 1
        return nodes.indices.contains(position) ? position : nil
    }

    // MARK: - Storage

    /// One batch at a time: everything that has arrived while the last one was synced.
    func startStorage(_ shell: RaftShell) throws(Violation) {
        guard !shell.writes.isEmpty, shell.syncing == nil else { return }
        let batch = shell.writes
        shell.writes.removeAll(keepingCapacity: true)
        do throws(StorageError) {
            for write in batch { try shell.log.write(write) }
        } catch {
            try stop(shell, error)
            return
        }
        shell.syncing = batch
        var latency = storageRandom.uniform(scenario.syncLatencyMin, scenario.syncLatencyMax)
        if shell.node.isDiskSlow { latency = latency * 30 }
        heap.schedule(
            .synced(node: shell.index, life: shell.life),
            at: max(now + latency, shell.node.diskStalledUntil))
    }

    func synced(_ shell: RaftShell) throws(Violation) {
        guard let batch = shell.syncing, let last = batch.last else { return }
        do throws(StorageError) { try shell.log.sync() } catch {
            try stop(shell, error)
            return
        }
        shell.syncing = nil
        shell.durable = last.ticket
        // A batch without a byte proves nothing of the one before.
        let isEmpty = batch.allSatisfy { $0.entries.isEmpty && $0.hardState == nil }
        if !isEmpty { shell.provenIndex = shell.durableIndex }
        for write in batch {
            if let cut = write.truncateAfter {
                shell.durableIndex = min(shell.durableIndex, cut)
                shell.provenIndex = min(shell.provenIndex, cut)
            }
            if let entry = write.entries.last { shell.durableIndex = entry.index }
        }
        try observer.synced(shell.index, batch)
        try releaseHeld(shell)
        try feed(shell, .durable(last.ticket))
    }

    func fetch(
        _ shell: RaftShell, for peer: NodeID, from: LogIndex, upTo: LogIndex, bytesMax: Int
    ) throws(Violation) {
        var entries: [Entry] = []
        if from >= shell.log.firstIndex, from <= shell.log.lastIndex {
            do throws(StorageError) {
                entries = try shell.log.read(
                    from: from, upTo: min(upTo, shell.log.lastIndex), bytesMax: bytesMax)
            } catch {
                try stop(shell, error)
                return
            }
        }
        try feed(shell, .fetched(for: peer, from: from, entries: entries))
    }

    // MARK: - Applying

    func scheduleApply(_ shell: RaftShell) {
        guard !shell.committed.isEmpty, !shell.isApplyScheduled else { return }
        shell.isApplyScheduled = true
        schedule(
            .apply(node: shell.index, life: shell.life),
            after: storageRandom.uniform(.microseconds(1), scenario.applyLatencyMax))
    }

    func apply(_ shell: RaftShell) throws(Violation) {
        shell.isApplyScheduled = false
        let batch: [Entry]
        let results: [CommandResult]
        /// What the database says.
        let stored: [CommandResult]?
        shell.watching?.deliver()
        do throws(StorageError) {
            batch = try nextBatch(shell)
            if batch.isEmpty { return scheduleApply(shell) }
        } catch {
            try stop(shell, error)
            return
        }
        guard batch.allSatisfy({ shell.node.knows($0) }) else { return try meetUnknown(shell) }
        do throws(StorageError) {
            shell.state.localTime = shell.core.time(
                now: shell.clock.reading(at: now))
            results = try shell.state.apply(batch)
            stored = try shell.node.database?.apply(batch)
        } catch {
            try stop(shell, error)
            return
        }
        if let stored { try compare(stored, with: results, batch, shell) }
        let hash = shell.state.contentHash()
        trace.fold(hash)
        try observer.applied(shell.index, batch, contentHash: hash)
        try observer.applied(shell.index, batch, results, shell.state)
        try answerWrites(batch, results, shell)
        try answerReads(shell)
        guard shell.node.shell === shell else { return }
        shell.watching?.feed.applied(
            shell.state.takeRecording(), upTo: shell.state.revision,
            now: shell.clock.reading(at: now))
        try feed(shell, .applied(shell.state.appliedIndex))
        try checkpointIfDue(shell)
        scheduleApply(shell)
        try keepHouse(shell)
    }

    private func nextBatch(_ shell: RaftShell) throws(StorageError) -> [Entry] {
        let next = shell.state.appliedIndex.next
        guard let first = shell.committed.first else { return [] }
        switch first {
        case .entries(let entries):
            // An installed snapshot may have overtaken some.
            let left = entries.drop { $0.index < next }
            let batch = Array(left.prefix(scenario.applyBatchMax))
            if batch.count == left.count {
                shell.committed.removeFirst()
            } else {
                shell.committed[0] = .entries(Array(left.dropFirst(batch.count)))
            }
            return batch
        case .inLog(let from, let upTo):
            let start = max(from, next)
            guard start <= upTo else {
                shell.committed.removeFirst()
                return []
            }
            let last = min(upTo, start.advanced(by: scenario.applyBatchMax - 1))
            let batch = try shell.log.read(from: start, upTo: last, bytesMax: .max)
            if let end = batch.last?.index, end < upTo {
                shell.committed[0] = .inLog(from: end.next, upTo: upTo)
            } else {
                shell.committed.removeFirst()
            }
            return batch
        }
    }

    func answerReads(_ shell: RaftShell) throws(Violation) {
        let applied = shell.state.appliedIndex
        guard shell.waitingReads.contains(where: { $0.index <= applied }) else { return }
        let ready = shell.waitingReads.filter { $0.index <= applied }
        shell.waitingReads.removeAll { $0.index <= applied }
        for read in ready {
            if let began = shell.readsBegan.removeValue(forKey: read.number) {
                shell.freshness.confirm(since: began)
                shell.answeredSince = max(shell.answeredSince ?? began, began)
            }
            guard let request = shell.reads[read.number], case .read(let look) = request.body
            else { continue }
            let index = shell.index
            let found = look.answer(from: shell.state)
            try compare(found, with: look, shell)
            guard shell.node.shell === shell else { return }
            shell.reads[read.number] = nil
            if let found {
                try observer.looked(index, number: read.number, look, found)
                answer(request, .read(found))
            } else {
                try observer.lookCompacted(index, number: read.number, look.at ?? .zero)
                answer(request, .compacted)
            }
        }
    }

    /// What may be stale asks nobody where the state is young enough.
    func answerAtOnce(
        _ request: ClientRequest, _ read: SimRead, _ shell: RaftShell
    ) throws(Violation) {
        guard let found = read.answer(from: shell.state) else {
            return answer(request, .compacted)
        }
        statistics.staleReads += 1
        try observer.lookedStale(shell.index, read, found, now: now)
        answer(request, .read(found))
    }

    private func makeCheckpoint(_ shell: RaftShell) {
        let copy = shell.state.copy()
        guard scenario.planted.contains(.discardBeyondCheckpoint) else {
            shell.node.checkpoint = copy
            return
        }
        let late = shell.lateCheckpoint
        shell.lateCheckpoint = copy
        if let late, late.appliedIndex > shell.node.checkpoint.appliedIndex {
            shell.node.checkpoint = late
        }
    }

    private func checkpointIfDue(_ shell: RaftShell) throws(Violation) {
        let applied = shell.state.appliedIndex
        let last = (shell.lateCheckpoint ?? shell.node.checkpoint).appliedIndex
        guard applied.rawValue >= last.rawValue + scenario.checkpointInterval else {
            do throws(StorageError) { try shell.node.database?.checkpointIfDue() } catch {
                try stop(shell, error)
            }
            return
        }
        try backUpIfDue(shell)
        makeCheckpoint(shell)
        do throws(StorageError) { try shell.node.database?.checkpoint() } catch {
            return try stop(shell, error)
        }
        let keep = scenario.logTail
        let target = LogIndex(applied.rawValue > keep ? applied.rawValue - keep : 0)
        let cut = min(target, shell.durableIndex, shell.node.database?.durable ?? applied)
        guard cut >= shell.log.firstIndex, cut <= shell.log.lastIndex else { return }
        let term: Term
        do throws(StorageError) {
            guard let entry = try shell.log.read(from: cut, upTo: cut, bytesMax: 1).first else {
                return
            }
            term = entry.term
            try shell.log.discard(upTo: cut, term: term)
        } catch {
            try stop(shell, error)
            return
        }
        observer.discarded(shell.index, upTo: cut)
        // The thread of the log says so when its turn comes; it may be asked for what is gone until then.
        schedule(
            .discarded(node: shell.index, life: shell.life, upTo: cut, term: term),
            after: storageRandom.uniform(.zero, .microseconds(200)))
    }
}
