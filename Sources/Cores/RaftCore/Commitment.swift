// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// When entries are committed, and how they reach the shell: in order, each exactly once, and only
// those that are durable here too, so that the state never gets ahead of the log it is replayed
// from.

extension RaftCore {
    mutating func becameDurable(_ ticket: DurabilityTicket, _ turn: inout Turn) {
        ledger.settle(ticket)
        candidacyBecameDurable(&turn)
        salvageBecameDurable(&turn)
        if role == .leader {
            // A leader's own copy counts like any other: when it is durable.
            commitWhatQuorumHolds(&turn)
        }
        handOut(&turn)
    }

    mutating func becameApplied(_ index: LogIndex) {
        require(index <= handedIndex, "applied what was never handed out")
        appliedIndex = max(appliedIndex, index)
    }

    /// Raft §5.4.2: entries of older terms are committed only together with one of this term.
    mutating func commitWhatQuorumHolds(_ turn: inout Turn) {
        let own = bugs.acknowledgeBeforeDurable ? log.lastIndex : ledger.durableIndex
        let held = LogIndex(reachedByQuorum(own: own.rawValue) { $0.countedMatch })
        guard held > commitIndex else { return }
        guard log.term(at: held) == term || bugs.commitOldTermByCounting else { return }
        let isFirstOfTerm = commitIndex < termFirstIndex
        commit(upTo: held, &turn)
        for peer in peers.indices { tellCommit(to: peer, &turn) }
        if isFirstOfTerm, commitIndex >= termFirstIndex { beginRoundIfDue(&turn) }
        membershipCommitted(&turn)
    }

    /// A leader said so; this log may not reach that far yet.
    mutating func learnCommit(_ index: LogIndex, _ turn: inout Turn) {
        let known = min(index, agreedIndex)
        guard known > commitIndex else { return }
        commit(upTo: known, &turn)
    }

    private mutating func commit(upTo index: LogIndex, _ turn: inout Turn) {
        require(index > commitIndex && index <= log.lastIndex, "committed what is not there")
        commitIndex = index
        handOut(&turn)
    }

    mutating func handOut(_ turn: inout Turn) {
        let settled = min(commitIndex, ledger.durableIndex)
        let upTo = bugs.applyBeforeCommit ? log.lastIndex : settled
        guard upTo > handedIndex else { return }
        if handedIndex.next < log.cacheFirst {
            let last = min(upTo, log.cacheFirst.previous)
            turn.emit(.commitFromLog(from: handedIndex.next, upTo: last))
            countCommitted(upTo: last, bytes: 0)
        }
        if handedIndex < upTo, let entries = log.cached(from: handedIndex.next, upTo: upTo) {
            // Only what this leader has appended itself was counted.
            let bytes = entries.reduce(0) {
                $0 + ($1.index >= termFirstIndex ? $1.payload.count : 0)
            }
            countCommitted(upTo: upTo, bytes: bytes)
            turn.emit(.commit(entries: entries, upTo: upTo))
        }
        require(handedIndex == upTo, "entries were lost on the way to the state")
        forgetOldMemberships()
    }

    private mutating func countCommitted(upTo index: LogIndex, bytes: Int) {
        handedIndex = index
        uncommittedBytes = max(0, uncommittedBytes - bytes)
    }
}
