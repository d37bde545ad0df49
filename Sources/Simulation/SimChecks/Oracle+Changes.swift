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
            places[Place(index: entry.index, term: entry.term)] == nil,
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
}
