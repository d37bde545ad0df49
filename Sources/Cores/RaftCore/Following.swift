// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// The follower's and learner's side of replication (Raft §5.3).

extension RaftCore {
    /// Up to where this node answers for what it has acknowledged: with a damaged log, for what it
    /// may have lost too (it knows, and asks for repair).
    var accountableIndex: LogIndex {
        max(ledger.durableIndex, untrustedBelow ?? .zero)
    }

    /// - Returns: false if the message cannot come from this term's leader.
    private mutating func follow(_ from: NodeID, _ turn: inout Turn) -> Bool {
        guard role != .leader, leader == nil || leader == from else { return false }
        if leader == nil || role == .candidate || role == .preCandidate {
            becomeFollower(of: from, in: term, &turn)
        }
        leaderHeardAt = turn.now
        hurriedTries = 0
        restartElectionTimer(&turn)
        return true
    }

    mutating func receiveHeartbeat(
        _ from: NodeID, commit: LogIndex, round: UInt64, time: ClusterTime, successor: NodeID?,
        _ turn: inout Turn
    ) {
        guard follow(from, &turn) else { return }
        self.successor = successor
        lastTime = max(lastTime, time)
        learnCommit(commit, &turn)
        if round != 0 {
            send(.heartbeatReply(round: round, lastIndex: accountableIndex), to: from, &turn)
        }
    }

    mutating func receiveAppend(
        _ from: NodeID, _ previous: Position, commit: LogIndex, _ entries: [Entry],
        _ turn: inout Turn
    ) {
        guard isWellFormed(entries, after: previous), follow(from, &turn) else { return }
        // What is committed agrees with any leader's log: of that, one look at the last is enough (§5.3).
        let settled = min(commitIndex, previous.index.advanced(by: entries.count))
        if !bugs.any, let term = Self.term(at: settled, in: entries, after: previous),
            let committed = log.term(at: settled), committed != term
        {
            turn.emit(
                .contradicted(by: from, at: settled, committed: committed, found: term))
            return
        }
        if previous.index >= commitIndex, log.term(at: previous.index) != previous.term {
            reject(from, previous, &turn)
            return
        }
        var first = Int(settled.rawValue - min(settled, previous.index).rawValue)
        while first < entries.count, log.term(at: entries[first].index) == entries[first].term {
            first += 1
        }
        if bugs.changeTwice { adoptAgain(entries[..<first], &turn) }
        if first < entries.count {
            guard take(first == 0 ? entries : Array(entries[first...]), &turn) else { return }
        }
        let last = max(previous.index.advanced(by: entries.count), commitIndex)
        agreedIndex = max(agreedIndex, last)
        acknowledge(upTo: last, to: from, &turn)
        learnCommit(commit, &turn)
    }

    private static func term(
        at index: LogIndex, in entries: [Entry], after previous: Position
    ) -> Term? {
        guard index >= previous.index else { return nil }
        let place = Int(index.rawValue - previous.index.rawValue)
        return place == 0 ? previous.term : entries[place - 1].term
    }

    /// Contiguous, and terms that never fall and are not beyond the leader's.
    private func isWellFormed(_ entries: [Entry], after previous: Position) -> Bool {
        var end = previous
        for entry in entries {
            guard entry.index == end.index.next, entry.term >= end.term else { return false }
            end = Position(entry.index, entry.term)
        }
        return end.term <= term
    }

    /// Appends what is new, cutting off what conflicts with it.
    ///
    /// - Returns: false if an entry makes no sense.
    mutating func take(_ entries: [Entry], _ turn: inout Turn) -> Bool {
        guard let first = entries.first, let last = entries.last else { return true }
        guard let before = log.term(at: first.index.previous), before <= first.term else {
            return false
        }
        var changes: [(index: LogIndex, membership: Membership)] = []
        for entry in entries where entry.kind == .membership {
            guard let membership = Membership(payload: entry.payload) else { return false }
            changes.append((entry.index, membership))
        }
        var cut: LogIndex?
        if first.index <= log.lastIndex {
            require(first.index > commitIndex, "a committed entry is never replaced")
            cut = first.index.previous
            truncate(after: first.index.previous, &turn)
        }
        for entry in entries { log.append(entry, settled: handedIndex) }
        lastTime = max(lastTime, last.time)
        write(entries: entries, truncateAfter: cut, &turn)
        for change in changes { adopt(change.membership, at: change.index, &turn) }
        handOut(&turn)
        return true
    }

    /// The planted bug.
    private mutating func adoptAgain(_ entries: ArraySlice<Entry>, _ turn: inout Turn) {
        for entry in entries where entry.kind == .membership {
            guard let membership = Membership(payload: entry.payload) else { continue }
            adopt(membership, at: entry.index, &turn)
        }
    }

    private mutating func truncate(after index: LogIndex, _ turn: inout Turn) {
        log.truncate(after: index)
        agreedIndex = min(agreedIndex, index)
        if bugs.any {
            handedIndex = min(handedIndex, index)
            commitIndex = min(commitIndex, index)
        }
        dropMemberships(after: index, &turn)
    }

    private mutating func acknowledge(upTo index: LogIndex, to from: NodeID, _ turn: inout Turn) {
        // The term under which this is said goes to disk first, even when no entry does.
        if isHardStateDirty { write(&turn) }
        let ticket = bugs.acknowledgeBeforeDurable ? nil : ledger.ticket(covering: index)
        guard let below = untrustedBelow, !bugs.damagedNodeVotes else {
            send(.appendAccepted(match: index), to: from, after: ticket, &turn)
            return
        }
        send(
            .repairing(nonce: repairNonce, from: index.next, isAgreed: true, below: below),
            to: from, after: ticket, &turn)
    }

    private mutating func reject(_ from: NodeID, _ previous: Position, _ turn: inout Turn) {
        let hint = log.agreement(
            atMost: min(log.lastIndex, previous.index), term: previous.term)
        guard let below = untrustedBelow else {
            send(
                .appendRejected(
                    rejected: previous.index, hintIndex: hint.index, hintTerm: hint.term,
                    lastIndex: log.lastIndex), to: from, &turn)
            return
        }
        let next = max(commitIndex, min(hint.index, previous.index.previous)).next
        send(
            .repairing(nonce: repairNonce, from: next, isAgreed: false, below: below), to: from,
            &turn)
    }

    // MARK: Snapshots

    /// Whether the shell should put a snapshot of the leader in force: only one that brings this
    /// node entries which it neither has nor can get. Ask again just before doing so. Then the log
    /// store is reset behind it, and `snapshotInstalled` tells the core.
    package func takesSnapshot(_ meta: SnapshotMeta) -> Bool {
        if bugs.installOlderSnapshot { return true }
        return meta.index > commitIndex && log.term(at: meta.index) != meta.term
    }

    mutating func snapshotInstalled(_ meta: SnapshotMeta, _ turn: inout Turn) {
        promise(takesSnapshot(meta), "a snapshot that takes this node back")
        // The snapshot may have overtaken all else that was said in its term.
        if meta.term > term { becomeFollower(of: nil, in: meta.term, &turn) }
        log.reset(to: Position(meta.index, meta.term))
        ledger.reset(to: meta.index)
        commitIndex = meta.index
        handedIndex = meta.index
        appliedIndex = meta.index
        agreedIndex = .zero
        lastTime = max(lastTime, meta.time)
        memberships.removeAll()
        adopt(meta.membership, at: meta.index, &turn)
        guard let leader, role != .leader else { return }
        agreedIndex = meta.index
        acknowledge(upTo: meta.index, to: leader, &turn)
    }

    /// The log was cut after a checkpoint. Only applied entries may go.
    mutating func logDiscarded(upTo index: LogIndex, term: Term) {
        promise(index <= handedIndex, "entries were discarded that are not applied")
        log.discard(upTo: index, term: term)
    }
}
