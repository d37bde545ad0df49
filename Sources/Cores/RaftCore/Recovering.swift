// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// When a majority of the voters is lost for good, nothing can be agreed upon any more, and a person
// has to say that those who are left are the cluster. What only the lost ones had is lost; an entry
// that was not committed may be committed by this.
//
// Others of the old cluster may still live, or come back: two of three, even, that were only cut
// off. They must never mix with what begins here, for both may have committed different entries at
// the same index. So the cluster gets another id, under which nobody of the old one exchanges a
// message, and the term goes far ahead of any that the old ones can have reached meanwhile: should
// a message slip through (a stream that was open already), it is of an old term and has no effect.
extension RaftCore {
    /// Whether what this log holds is not less than what that one holds: by the term of the last
    /// entry, then by length. Of several nodes that are left, one that has most is to be chosen.
    package func hasAtLeast(_ other: borrowing RaftCore) -> Bool {
        Position(log.lastIndex, log.lastTerm)
            .isAtLeastAsUpToDate(as: Position(other.log.lastIndex, other.log.lastTerm))
    }

    /// Elections that the rest of the old cluster can hold without reaching the new term.
    static let recoveryTermStep: UInt64 = 1 << 20

    mutating func recover(_ cluster: ClusterID, _ id: ProposalID, _ turn: inout Turn) {
        func refuse(_ reason: String) { turn.emit(.proposalFailed(id, .refused(reason))) }
        guard role != .leader else { return refuse("this node leads: nothing is to be recovered") }
        guard isTailTrusted else {
            return refuse("the end of this node's log is damaged: recover on another node")
        }
        guard let current = membership, let own = current.member(node),
            configuration.replica == nil || configuration.replica == own.replica
        else { return refuse("this node is no member of its cluster") }
        becomeFollower(of: nil, in: term, &turn)
        hardState = HardState(
            term: Term(term.rawValue + Self.recoveryTermStep), votedFor: node)
        isHardStateDirty = true
        agreedIndex = .zero
        let alone = Membership(cluster: cluster, voters: [node], members: [own])
        var dropped: LogIndex?
        if bugs.recoveryDropsTail, commitIndex < log.lastIndex {
            dropped = commitIndex
            log.truncate(after: commitIndex)
        }
        let entry = Entry(
            index: log.lastIndex.next, term: term, kind: .membership, origin: id, time: lastTime,
            payload: alone.payload)
        log.append(entry, settled: handedIndex)
        role = .candidate
        ballots.removeAll()
        isTransferCampaign = false
        candidacy = write(entries: [entry], truncateAfter: dropped, &turn)
        adopt(alone, at: entry.index, &turn)
        restartElectionTimer(&turn)
    }
}
