// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore
import SimFaults

extension Oracle {
    /// Raft §6: from one set of voters to another only through a membership that needs both, one
    /// change at a time. Looked at where an entry appears first: at the leader that makes it, which
    /// writes it before it is in force.
    func checkChange(_ node: Int, _ entry: Entry) throws(Violation) {
        guard strictness == .rules,
            places[entry.index, entry.term] == nil,
            let before = disks[node].memberships.last,
            let after = Membership(payload: entry.payload)
        else { return }
        // What remains of a cluster that lost its quorum is another cluster.
        if after.cluster != before.cluster, after.voters.map({ Int($0.rawValue) }) == [node + 1] {
            return
        }
        let isRight =
            after.isJoint
            ? !before.isJoint && after.votersOutgoing == before.voters
            : after.voters == before.voters
        if isRight { return }
        throw breach(
            "joint consensus",
            "n\(node + 1) goes from voters \(before.voters) (leaving \(before.votersOutgoing)) to "
                + "\(after.voters) (leaving \(after.votersOutgoing)) in entry \(entry.index)")
    }

    /// The newest one in the log is in force, from the moment it is written. Where the log holds
    /// none, the state or a snapshot told it.
    func checkMembershipInForce(_ node: Int) throws(Violation) {
        guard disks[node].isMembershipNew, strictness == .rules else { return }
        disks[node].isMembershipNew = false
        let log = disks[node].written
        var index = log.lastIndex
        while index > log.base {
            if let term = log.term(at: index), let said = changes[Place(index: index, term: term)] {
                if disks[node].memberships.last?.payload == said { return }
                throw breach(
                    "the newest membership is in force",
                    "n\(node + 1) goes by another one than that of entry \(index)")
            }
            index = index.previous
        }
    }

    /// The entry that the membership in force came with; where the log begins if it was before that.
    func membershipIndex(_ node: Int) -> LogIndex {
        let log = disks[node].written
        var index = log.lastIndex
        while index > log.base {
            if let term = log.term(at: index), changes[Place(index: index, term: term)] != nil {
                return index
            }
            index = index.previous
        }
        return log.base
    }

    func noteAppliedChanges(_ node: Int, _ entries: [Entry]) {
        for entry in entries where entry.kind == .membership {
            let known = disks[node].membershipsSinceApplied
            guard let place = known.lastIndex(where: { $0.index <= entry.index }) else { continue }
            disks[node].membershipsSinceApplied.removeFirst(place)
        }
    }

    /// Only a voter may call an election; or one that may still be one for all it knows. It asks once what
    /// it has to write is durable, and may have been told meanwhile that it is none, or have begun to
    /// campaign for a later term.
    func checkCandidate(_ node: Int, in term: Term) throws(Violation) {
        guard strictness == .rules, !mayHaveVote(node), (disks[node].campaign ?? .zero) < term
        else { return }
        let known = disks[node].membershipsSinceApplied
        throw breach(
            "who was removed is quiet",
            "n\(node + 1) asks for votes; it has no vote in "
                + "\(known.map(\.membership.voters))")
    }

    func noteCampaign(_ node: Int, _ standing: RaftStanding) {
        guard mayHaveVote(node) else { return }
        switch standing.role {
        case .candidate: disks[node].campaign = standing.term
        case .preCandidate: disks[node].campaign = standing.term.next
        default: break
        }
    }

    private func mayHaveVote(_ node: Int) -> Bool {
        let id = NodeID(UInt64(node + 1))
        return disks[node].membershipsSinceApplied.contains { $0.membership.isVoter(id) }
    }

    /// A state that a start finds must reach to where its log begins.
    func checkJoin(_ node: Int, applied: LogIndex) throws(Violation) {
        let base = disks[node].durable.base
        guard strictness == .rules, applied < base else { return }
        throw breach(
            "a log reaches back to its state",
            "n\(node + 1) starts with a state at \(applied) and a log that begins behind \(base)")
    }
}
