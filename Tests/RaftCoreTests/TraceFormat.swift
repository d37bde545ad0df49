// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore

/// How effects and messages look in a trace: one line each, short enough to be read in a review.
enum TraceFormat {
    static func line(_ node: NodeID, _ effect: RaftEffect) -> String {
        "\(node): \(text(effect))"
    }

    private static func text(_ effect: RaftEffect) -> String {
        switch effect {
        case .write(let write): return text(write)
        case .send(let message, let ticket):
            return "-> \(message.to) \(text(message))"
                + (ticket.map { " once #\($0.number)" } ?? "")
        case .commit(let entries, let upTo): return "commit to \(upTo): \(list(entries))"
        case .commitFromLog(let from, let upTo): return "commit \(from)...\(upTo) from the log"
        case .readReady(let id, let index): return "read \(id.number) ready at \(index)"
        case .readFailed(let id): return "read \(id.number) failed"
        case .proposalFailed(let id, let failure): return "proposal \(id.number) failed: \(failure)"
        case .standing(let standing):
            let leader = standing.leader.map { ", led by \($0)" } ?? ", no leader"
            return "is \(standing.role.rawValue) in term \(standing.term)"
                + (standing.role == .leader ? "" : leader)
        case .membership(let membership): return "membership \(text(membership))"
        case .fetch(let peer, let from, let upTo, _): return "fetch \(from)...\(upTo) for \(peer)"
        case .sendSnapshot(let peer): return "send a snapshot to \(peer)"
        case .regressed(let peer, let acknowledged, let found):
            return "peer \(peer) acknowledged \(acknowledged) and has \(found)"
        case .contradicted(let leader, let index, let committed, let found):
            return "committed \(index)/\(committed), and \(leader) leads with term \(found) there"
        }
    }

    private static func text(_ write: LogWrite) -> String {
        var parts = ["write #\(write.ticket.number)"]
        if let cut = write.truncateAfter { parts.append("cut after \(cut)") }
        if !write.entries.isEmpty { parts.append(list(write.entries)) }
        if let state = write.hardState {
            parts.append("term \(state.term)" + (state.votedFor.map { " vote \($0)" } ?? ""))
        }
        if write.endsRepair { parts.append("the log is whole") }
        return parts.joined(separator: ", ")
    }

    static func text(_ message: Message) -> String {
        "(\(message.term)) \(text(message.body))"
    }

    private static func text(_ body: Message.Body) -> String {
        switch body {
        case .preVote(let index, let term): return "preVote last \(index)/\(term)"
        case .preVoteReply(let granted, let isConditional):
            return "preVoteReply \(answer(granted, isConditional))"
        case .vote(let index, let term, let isTransfer):
            return "vote last \(index)/\(term)" + (isTransfer ? " transfer" : "")
        case .voteReply(let granted, let isConditional):
            return "voteReply \(answer(granted, isConditional))"
        case .append(let index, let term, let commit, let entries):
            return "append after \(index)/\(term) commit \(commit): \(list(entries))"
        case .appendAccepted(let match): return "accepted \(match)"
        case .appendRejected(let rejected, let index, let term, let last):
            return "rejected \(rejected), try \(index)/\(term), last \(last)"
        case .heartbeat(let commit, let round, _, let successor):
            return "heartbeat round \(round) commit \(commit)"
                + (successor.map { " successor \($0)" } ?? "")
        case .heartbeatReply(let round, let last):
            return "heartbeatReply round \(round) last \(last)"
        // Numbers and nonces are random.
        case .readIndex: return "readIndex"
        case .readIndexReply(_, let index):
            return "readIndexReply " + (index.map { "\($0)" } ?? "none")
        case .forward(let proposals): return "forward \(proposals.map { quoted($0.payload) })"
        case .forwardRejected(let ids): return "forwardRejected \(ids.map(\.number))"
        case .timeoutNow: return "timeoutNow"
        case .repairing(_, let from, let isAgreed, let below):
            return "repairing from \(from) \(isAgreed ? "agreed" : "unsure") below \(below)"
        case .repaired: return "repaired"
        case .salvageRequest(let index, let term): return "salvageRequest after \(index)/\(term)"
        case .salvageReply(_, _, let entries, let isLast):
            return "salvage \(list(entries))\(isLast ? "" : " and more")"
        case .snapshotChunk, .snapshotReply: return "snapshot"
        }
    }

    private static func answer(_ granted: Bool, _ isConditional: Bool) -> String {
        granted ? (isConditional ? "granted if all do" : "granted") : "refused"
    }

    static func list(_ entries: [Entry]) -> String {
        "[" + entries.map(text).joined(separator: ", ") + "]"
    }

    static func text(_ entry: Entry) -> String {
        let place = "\(entry.index)/\(entry.term)"
        switch entry.kind {
        case .noop: return "\(place) noop"
        case .command: return "\(place) \(quoted(entry.payload))"
        case .membership:
            let membership = Membership(payload: entry.payload)
            return "\(place) \(membership.map(text) ?? "garbage")"
        }
    }

    private static func quoted(_ bytes: [UInt8]) -> String {
        String(decoding: bytes, as: UTF8.self)
    }

    static func text(_ membership: Membership) -> String {
        func set(_ nodes: [NodeID]) -> String {
            "{" + nodes.map(\.description).joined(separator: " ") + "}"
        }
        var text = set(membership.voters)
        if membership.isJoint { text += " from " + set(membership.votersOutgoing) }
        if !membership.learners.isEmpty { text += " learners " + set(membership.learners) }
        return text
    }
}
