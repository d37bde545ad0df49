// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DequeModule

// Linearizable reads without log entries (thesis §6.4): the leader notes its commit index, then
// shows by a round of heartbeats that no other leader had been elected when the read arrived. One
// round serves all reads that were waiting when it began; reads that arrive meanwhile wait for the
// next. Only as many voters are asked as make a quorum, those whose answers take the least; all, if
// these are not heard soon: a round costs whoever is asked as much as the leader. Reads fail, and may simply be asked again, when the leader is lost or takes longer than an
// election timeout.

/// A read that waits for a round at the leader.
struct WaitingRead {
    /// Nil: one of this node's own, with its `ReadID`; else a follower's, with its number.
    let from: NodeID?
    let number: UInt64
    let deadline: MonotonicInstant
}

struct ReadQueue {
    /// The newest round of heartbeats, reads or not.
    var round: UInt64 = 0
    /// Arrived after the round under way had begun.
    var waiting: [WaitingRead] = []
    var asking: [WaitingRead] = []
    /// The round that `asking` waits for, and the commit index when it began.
    var askingRound: UInt64 = 0
    var askingIndex = LogIndex.zero
    /// When everybody is asked, if only some were so far.
    var asksAllAt: MonotonicInstant?

    var count: Int { waiting.count + asking.count }
    var deadline: MonotonicInstant? {
        asksAllAt ?? asking.first?.deadline ?? waiting.first?.deadline
    }
}

/// A follower's reads on their way to the leader: one question at a time for all that wait.
struct AskQueue {
    var number: UInt64
    var waiting: [ReadID] = []
    var asked: [ReadID] = []
    /// When to give up on what was asked.
    var deadline: MonotonicInstant?

    init(firstNumber: UInt64) { number = firstNumber }

    var count: Int { waiting.count + asked.count }
}

extension RaftCore {
    /// How long a round waits for those who are asked first, whose answers take `delay` as a rule.
    private func roundPatience(_ delay: Duration) -> Duration {
        min(max(.milliseconds(10), delay * 2), configuration.heartbeatInterval / 4)
    }

    mutating func read(_ id: ReadID, _ turn: inout Turn) {
        if role == .leader {
            enqueue(
                WaitingRead(
                    from: nil, number: id.number,
                    deadline: turn.now + configuration.electionTimeoutMin), &turn)
        } else if let leader, asks.count < Limits.readsInFlightMax {
            asks.waiting.append(id)
            if asks.asked.isEmpty { ask(leader, &turn) }
        } else {
            turn.emit(.readFailed(id))
        }
    }

    // MARK: At the leader

    mutating func receiveReadIndex(_ from: NodeID, number: UInt64, _ turn: inout Turn) {
        guard role == .leader else {
            send(.readIndexReply(number: number, index: nil), to: from, &turn)
            return
        }
        enqueue(
            WaitingRead(
                from: from, number: number,
                deadline: turn.now + configuration.electionTimeoutMin), &turn)
    }

    private mutating func enqueue(_ read: WaitingRead, _ turn: inout Turn) {
        guard reads.count < Limits.readsInFlightMax else {
            fail(read, &turn)
            return
        }
        reads.waiting.append(read)
        beginRoundIfDue(&turn)
    }

    mutating func beginRoundIfDue(_ turn: inout Turn) {
        // Before an entry of its own term is committed a leader does not know what is.
        guard role == .leader, reads.asking.isEmpty, !reads.waiting.isEmpty,
            commitIndex >= termFirstIndex || bugs.readBeforeOwnEntry
        else { return }
        swap(&reads.asking, &reads.waiting)
        reads.askingIndex = commitIndex
        reads.askingRound = reads.round + 1
        // A single voter is its own quorum: nobody has to be asked.
        if isRoundConfirmed(own: reads.askingRound) {
            reads.round = reads.askingRound
        } else {
            askQuickest(&turn)
        }
        confirmRound(&turn)
    }

    private mutating func askQuickest(_ turn: inout Turn) {
        reads.round += 1
        let round = reads.round
        var delay = Duration.zero
        while reachedByQuorum(own: round, { $0.askedRound }) < round {
            var quickest: Int?
            for peer in peers.indices where peers[peer].isVoter && peers[peer].isLinked {
                guard peers[peer].askedRound < round else { continue }
                if let best = quickest, peers[best].answerDelay <= peers[peer].answerDelay {
                    continue
                }
                quickest = peer
            }
            guard let quickest else { return broadcastHeartbeat(&turn) }
            delay = max(delay, peers[quickest].answerDelay)
            sendHeartbeat(to: quickest, round: round, &turn)
        }
        reads.asksAllAt = turn.now + roundPatience(delay)
    }

    private mutating func askAll(_ turn: inout Turn) {
        reads.asksAllAt = nil
        for peer in peers.indices where peers[peer].round < peers[peer].askedRound {
            // It is as slow as that at least.
            let silence = turn.now - peers[peer].askedAt
            peers[peer].answerDelay = max(peers[peer].answerDelay, silence)
        }
        broadcastHeartbeat(&turn)
    }

    private mutating func isRoundConfirmed(own: UInt64) -> Bool {
        bugs.skipReadRound || reachedByQuorum(own: own) { $0.round } >= reads.askingRound
    }

    mutating func confirmRound(_ turn: inout Turn) {
        guard !reads.asking.isEmpty, isRoundConfirmed(own: reads.round) else { return }
        for read in reads.asking { answer(read, &turn) }
        reads.asking.removeAll(keepingCapacity: true)
        reads.asksAllAt = nil
        beginRoundIfDue(&turn)
    }

    private func answer(_ read: WaitingRead, _ turn: inout Turn) {
        if let from = read.from {
            send(
                .readIndexReply(number: read.number, index: reads.askingIndex), to: from, &turn)
        } else {
            turn.emit(.readReady(ReadID(read.number), index: reads.askingIndex))
        }
    }

    private func fail(_ read: WaitingRead, _ turn: inout Turn) {
        if let from = read.from {
            send(.readIndexReply(number: read.number, index: nil), to: from, &turn)
        } else {
            turn.emit(.readFailed(ReadID(read.number)))
        }
    }

    /// The leader leaves office.
    mutating func failReads(_ turn: inout Turn) {
        for read in reads.asking { fail(read, &turn) }
        for read in reads.waiting { fail(read, &turn) }
        let round = reads.round
        reads = ReadQueue()
        reads.round = round
    }

    // MARK: At the others

    private mutating func ask(_ leader: NodeID, _ turn: inout Turn) {
        swap(&asks.asked, &asks.waiting)
        asks.number += 1
        asks.deadline = turn.now + configuration.electionTimeoutMin
        send(.readIndex(number: asks.number), to: leader, &turn)
    }

    /// The link to the leader is new: the question, or its answer, went with the old one.
    mutating func repeatAsk(_ turn: inout Turn) {
        guard let leader, role != .leader, !asks.asked.isEmpty else { return }
        send(.readIndex(number: asks.number), to: leader, &turn)
    }

    mutating func receiveReadIndexReply(
        _ from: NodeID, number: UInt64, index: LogIndex?, _ turn: inout Turn
    ) {
        guard from == leader, number == asks.number, !asks.asked.isEmpty else { return }
        for id in asks.asked {
            turn.emit(index.map { .readReady(id, index: $0) } ?? .readFailed(id))
        }
        asks.asked.removeAll(keepingCapacity: true)
        asks.deadline = nil
        // What the leader read at is committed: no need to wait for the next append to say so.
        if let index { learnCommit(index, &turn) }
        if !asks.waiting.isEmpty { ask(from, &turn) }
    }

    mutating func failAsks(_ turn: inout Turn) {
        for id in asks.asked { turn.emit(.readFailed(id)) }
        for id in asks.waiting { turn.emit(.readFailed(id)) }
        asks.asked.removeAll(keepingCapacity: true)
        asks.waiting.removeAll(keepingCapacity: true)
        asks.deadline = nil
    }

    mutating func expireReads(_ turn: inout Turn) {
        if let due = reads.asksAllAt, due <= turn.now { askAll(&turn) }
        while let read = reads.asking.first, read.deadline <= turn.now {
            fail(read, &turn)
            reads.asking.removeFirst()
        }
        while let read = reads.waiting.first, read.deadline <= turn.now {
            fail(read, &turn)
            reads.waiting.removeFirst()
        }
        beginRoundIfDue(&turn)
        if let due = asks.deadline, due <= turn.now {
            // Those that came later wait no longer than those that asked: the leader is silent.
            failAsks(&turn)
        }
    }
}
