// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore

/// Short forms for the trace.
extension World {
    static func brief(_ membership: Membership) -> String {
        let outgoing = membership.isJoint ? " leaving \(membership.votersOutgoing)" : ""
        let learners = membership.learners.isEmpty ? "" : " learners \(membership.learners)"
        return "voters \(membership.voters)\(outgoing)\(learners)"
    }

    static func brief(_ body: Message.Body) -> String {
        switch body {
        case .append(let previousIndex, let previousTerm, let commit, let entries):
            let range = entries.first.map { first in
                " \(first.index)...\(entries.last?.index ?? first.index) of t"
                    + Set(entries.map(\.term.rawValue)).sorted().map(String.init)
                    .joined(separator: ",")
            }
            return "append after \(previousIndex)t\(previousTerm)\(range ?? " nothing") commit "
                + "\(commit)"
        case .salvageReply(_, _, let entries, let isLast):
            return "salvageReply \(entries.map { "\($0.index)t\($0.term)" })"
                + (isLast ? " last" : "")
        case .forward(let proposals): return "forward \(proposals.map(\.id.number))"
        case .snapshotChunk(let chunk):
            return "snapshotChunk at \(chunk.meta.index) \(chunk.offset)+\(chunk.bytes.count)"
        default: return "\(body)"
        }
    }
}
