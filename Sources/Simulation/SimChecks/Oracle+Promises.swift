// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore
import SimFaults

/// What a node may say, and what it must find again after it has said it.
extension Oracle {
    package func sent(_ node: Int, _ message: Message) throws(Violation) {
        switch message.body {
        case .voteReply(granted: true, isConditional: false):
            let before = votes[node][message.term]
            if let before, before != message.to {
                throw breach(
                    "one vote a term",
                    "n\(node + 1) votes for n\(message.to) in term \(message.term), after n\(before)"
                )
            }
            votes[node][message.term] = message.to
            guard strictness == .rules else { return }
            let promise = HardState(term: message.term, votedFor: message.to)
            // A later term on disk keeps the promise as well.
            let durable = disks[node].durableHardState
            if durable != promise, durable.term <= message.term {
                throw breach(
                    "durable before said",
                    "n\(node + 1) grants its vote of term \(message.term) before it is durable")
            }
        case .appendAccepted(let match):
            guard strictness == .rules else { return }
            let (end, term) = (disks[node].durable.lastIndex, disks[node].durableHardState.term)
            // Said under a term that is over, it may have waited while a later leader cut the entry
            // off; it was accepted before this node could help anyone to a later term.
            guard term <= message.term else { return }
            if end < match || term < message.term {
                throw breach(
                    "durable before said",
                    "n\(node + 1) acknowledges \(match) in term \(message.term); durable are "
                        + "\(end) and term \(term)")
            }
        case .vote, .preVote: try checkCandidate(node, in: message.term)
        default: break
        }
    }

    package func readBegan(_ node: Int, number: UInt64) {
        disks[node].reads[number] = committedIndex
        looks[node][number] = committedIndex
    }

    /// Whatever anybody held for committed when the read came is covered by its answer.
    package func readReady(
        _ node: Int, number: UInt64, index: LogIndex
    ) throws(Violation) {
        guard strictness == .rules, let began = disks[node].reads.removeValue(forKey: number),
            index < began
        else { return }
        throw breach(
            "reads are current",
            "n\(node + 1) may answer from \(index) a read that came when \(began) was committed")
    }

    package func ended(_ node: Int) {
        disks[node].reads = [:]
        looks[node] = [:]
        disks[node].standing = nil
        disks[node].memberships = []
        disks[node].membershipsSinceApplied = []
        disks[node].isMembershipNew = false
    }

    package func wiped(_ node: Int, _ replica: ReplicaID) {
        lostDisks[replica] = disks[node].durable
        disks[node] = ShadowDisk()
        votes[node] = [:]
    }

    /// After a crash the log must be what was durable, and then some beginning of what was not yet;
    /// nothing else, in no other order.
    package func recovered(
        _ node: Int, _ recovery: RaftRecovery, entries: [Entry]
    ) throws(Violation) {
        let log = try readBack(node, recovery, entries)
        let end = "\(recovery.lastIndex) of term \(log.lastTerm)"
        let disk = disks[node]
        if strictness == .rules {
            let ends = disk.possibleEnds()
            let isPossible = ends.contains { $0 == (log.lastIndex, log.lastTerm) }
            let isOwnedUp =
                !recovery.isTailTrusted && recovery.untrustedBelow >= disk.durable.lastIndex
            if !isPossible, !isOwnedUp {
                throw breach(
                    "durable survives",
                    "n\(node + 1) finds a log that ends at \(end); durable was "
                        + "\(disk.durable.lastIndex) of term \(disk.durable.lastTerm), "
                        + "\(disk.pending.count) writes were pending")
            }
            // An entry may be there without the hard state written with it: then its term is known,
            // and nothing was promised in that term.
            let implied = HardState(term: log.lastTerm)
            let isImplied =
                recovery.hardState == implied && log.lastTerm > disk.durableHardState.term
            if !isImplied, !disk.possibleHardStates().contains(recovery.hardState) {
                throw breach(
                    "durable survives",
                    "n\(node + 1) finds \(recovery.hardState), durable was "
                        + "\(disk.durableHardState)")
            }
        }
        if !recovery.isTailTrusted, disk.durable.lastIndex > log.lastIndex {
            disks[node].beforeDamage = disk.durable
        }
        disks[node].written = log
        disks[node].durable = log
        disks[node].durableHardState = recovery.hardState
        disks[node].pending.removeAll()
        disks[node].restart = nil
        disks[node].committed = .zero
    }

    private func readBack(
        _ node: Int, _ recovery: RaftRecovery, _ entries: [Entry]
    ) throws(Violation) -> ShadowLog {
        var log = ShadowLog()
        log.restart(after: recovery.snapshotIndex, term: recovery.snapshotTerm)
        for entry in entries {
            let mark = EntryMark(entry)
            let known = places[entry.index, entry.term]
            guard entry.index == log.lastIndex.next, let known, known.mark == mark,
                known.previousTerm == log.lastTerm
            else {
                throw breach(
                    "a log holds what was written",
                    "n\(node + 1) finds an entry \(entry.index) of term \(entry.term) after "
                        + "\(log.lastIndex) of term \(log.lastTerm): nobody wrote that")
            }
            log.append(mark)
        }
        guard log.lastIndex == recovery.lastIndex else {
            throw breach(
                "a log holds what was written",
                "n\(node + 1) says its log ends at \(recovery.lastIndex), but it reads up to "
                    + "\(log.lastIndex)")
        }
        return log
    }
}
