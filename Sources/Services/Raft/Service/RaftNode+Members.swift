// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Logging
import RaftCore
import ServiceKit

// Who comes and who goes, for the journal and for `why`.

extension RaftNode {
    func names(_ nodes: [NodeID]) -> String {
        nodes.isEmpty ? "none" : nodes.map { "node \($0)" }.joined(separator: ", ")
    }

    func logMembers(from before: Membership?, to after: Membership) {
        // Of a joint membership the outgoing voters are all old ones: who stays does not leave.
        let leaving = after.votersOutgoing.filter { !after.voters.contains($0) }
        events.record(
            "membership",
            "voters \(names(after.voters)); leaving \(names(leaving)); "
                + "learners \(names(after.learners))")
        let old = Set((before?.members ?? []).map(\.node))
        let new = Set(after.members.map(\.node))
        for node in new.subtracting(old).sorted() {
            logger.notice(
                "member added",
                metadata: [
                    "peer": "\(node)", "event": "\(JournalEvent.memberAdded)",
                    "voter": "\(after.voters.contains(node))",
                ])
        }
        for node in old.subtracting(new).sorted() {
            logger.notice(
                "member removed",
                metadata: ["peer": "\(node)", "event": "\(JournalEvent.memberRemoved)"])
        }
    }
}
