// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

// Bytes of the messages between Raft nodes; one message a frame. Which versions understand which
// tags is for the frame's version number to say.

extension Message {
    private enum Tag: UInt8 {
        case preVote = 1
        case preVoteReply, vote, voteReply, append, appendAccepted, appendRejected, heartbeat
        case heartbeatReply, readIndex, readIndexReply, forward, forwardRejected, timeoutNow
        case repairing, repaired, snapshotChunk, snapshotReply, salvageRequest, salvageReply
    }

    /// An upper bound for the bytes `encode` writes, good enough to reserve them at once.
    package var byteCountEstimate: Int {
        switch body {
        case .append(_, _, _, let entries), .salvageReply(_, _, let entries, _):
            64
                + entries.reduce(0) {
                    $0 + $1.payload.count + Entry.byteCountMin + ProposalID.byteCount
                }
        case .forward(let proposals):
            64 + proposals.reduce(0) { $0 + $1.payload.count + 4 + ProposalID.byteCount }
        case .forwardRejected(let ids): 64 + ids.count * ProposalID.byteCount
        case .snapshotChunk(let chunk):
            256 + chunk.bytes.count + chunk.meta.membership.members.count * 192
        default: 96
        }
    }

    package func encode(into writer: inout ByteWriter) {
        writer.node(from)
        writer.node(to)
        writer.term(term)
        switch body {
        case .preVote, .preVoteReply, .vote, .voteReply: encodeElection(into: &writer)
        case .append, .appendAccepted, .appendRejected, .heartbeat, .heartbeatReply:
            encodeReplication(into: &writer)
        default: encodeOther(into: &writer)
        }
    }

    /// Reads one message; whether anything follows is for the caller to check (`ByteReader.end`).
    package static func decode(_ reader: inout ByteReader) throws(DecodeError) -> Message {
        let from = try reader.node("message.from")
        let to = try reader.node("message.to")
        let term = try reader.term("message.term")
        guard let tag = Tag(rawValue: try reader.byte("message.tag")) else {
            throw .unknown(field: "message.tag")
        }
        let body =
            switch tag {
            case .preVote, .preVoteReply, .vote, .voteReply: try decodeElection(tag, &reader)
            case .append, .appendAccepted, .appendRejected, .heartbeat, .heartbeatReply:
                try decodeReplication(tag, &reader)
            default: try decodeOther(tag, &reader)
            }
        return Message(from: from, to: to, term: term, body: body)
    }

    // MARK: Elections

    private func encodeElection(into writer: inout ByteWriter) {
        func begin(_ tag: Tag) { writer.byte(tag.rawValue) }
        switch body {
        case .preVote(let lastIndex, let lastTerm):
            begin(.preVote)
            writer.index(lastIndex)
            writer.term(lastTerm)
        case .preVoteReply(let granted, let isConditional):
            begin(.preVoteReply)
            writer.flag(granted)
            writer.flag(isConditional)
        case .vote(let lastIndex, let lastTerm, let isTransfer):
            begin(.vote)
            writer.index(lastIndex)
            writer.term(lastTerm)
            writer.flag(isTransfer)
        case .voteReply(let granted, let isConditional):
            begin(.voteReply)
            writer.flag(granted)
            writer.flag(isConditional)
        default: preconditionFailure("not of an election")
        }
    }

    private static func decodeElection(
        _ tag: Tag, _ reader: inout ByteReader
    ) throws(DecodeError) -> Body {
        switch tag {
        case .preVote:
            .preVote(
                lastIndex: try reader.index("preVote.lastIndex"),
                lastTerm: try reader.term("preVote.lastTerm"))
        case .preVoteReply:
            .preVoteReply(
                granted: try reader.flag("preVoteReply.granted"),
                isConditional: try reader.flag("preVoteReply.isConditional"))
        case .vote:
            .vote(
                lastIndex: try reader.index("vote.lastIndex"),
                lastTerm: try reader.term("vote.lastTerm"),
                isTransfer: try reader.flag("vote.isTransfer"))
        case .voteReply:
            .voteReply(
                granted: try reader.flag("voteReply.granted"),
                isConditional: try reader.flag("voteReply.isConditional"))
        default: throw .unknown(field: "message.tag")
        }
    }

    // MARK: Replication

    private func encodeReplication(into writer: inout ByteWriter) {
        func begin(_ tag: Tag) { writer.byte(tag.rawValue) }
        switch body {
        case .append(let previousIndex, let previousTerm, let commit, let entries):
            begin(.append)
            writer.index(previousIndex)
            writer.term(previousTerm)
            writer.index(commit)
            writer.list(entries) { $0.encode(into: &$1) }
        case .appendAccepted(let match):
            begin(.appendAccepted)
            writer.index(match)
        case .appendRejected(let rejected, let hintIndex, let hintTerm, let lastIndex):
            begin(.appendRejected)
            writer.index(rejected)
            writer.index(hintIndex)
            writer.term(hintTerm)
            writer.index(lastIndex)
        case .heartbeat(let commit, let round, let time, let successor):
            begin(.heartbeat)
            writer.index(commit)
            writer.integer(round)
            writer.time(time)
            writer.flag(successor != nil)
            if let successor { writer.node(successor) }
        case .heartbeatReply(let round, let lastIndex):
            begin(.heartbeatReply)
            writer.integer(round)
            writer.index(lastIndex)
        default: preconditionFailure("not of replication")
        }
    }

    private static func decodeReplication(
        _ tag: Tag, _ reader: inout ByteReader
    ) throws(DecodeError) -> Body {
        switch tag {
        case .append:
            .append(
                previousIndex: try reader.index("append.previousIndex"),
                previousTerm: try reader.term("append.previousTerm"),
                commit: try reader.index("append.commit"),
                entries: try reader.list(
                    "append.entries", max: Limits.rpcMessageBytesMax / Entry.byteCountMin,
                    elementBytesMin: Entry.byteCountMin, Entry.decode))
        case .appendAccepted: .appendAccepted(match: try reader.index("appendAccepted.match"))
        case .appendRejected:
            .appendRejected(
                rejected: try reader.index("appendRejected.rejected"),
                hintIndex: try reader.index("appendRejected.hintIndex"),
                hintTerm: try reader.term("appendRejected.hintTerm"),
                lastIndex: try reader.index("appendRejected.lastIndex"))
        case .heartbeat:
            .heartbeat(
                commit: try reader.index("heartbeat.commit"),
                round: try reader.ordinal("heartbeat.round"),
                time: try reader.time("heartbeat.time"),
                successor: try reader.optional("heartbeat.successor") {
                    reader throws(DecodeError) in try reader.node("heartbeat.successor")
                })
        case .heartbeatReply:
            .heartbeatReply(
                round: try reader.ordinal("heartbeatReply.round"),
                lastIndex: try reader.index("heartbeatReply.lastIndex"))
        default: throw .unknown(field: "message.tag")
        }
    }

    // MARK: Everything else

    private func encodeOther(into writer: inout ByteWriter) {
        func begin(_ tag: Tag) { writer.byte(tag.rawValue) }
        switch body {
        case .readIndex(let number):
            begin(.readIndex)
            writer.integer(number)
        case .readIndexReply(let number, let index):
            begin(.readIndexReply)
            writer.integer(number)
            writer.flag(index != nil)
            if let index { writer.index(index) }
        case .forward(let proposals):
            begin(.forward)
            writer.list(proposals) { proposal, writer in
                proposal.id.encode(into: &writer)
                writer.blob(proposal.payload)
            }
        case .forwardRejected(let numbers):
            begin(.forwardRejected)
            writer.list(numbers) { $0.encode(into: &$1) }
        case .timeoutNow: begin(.timeoutNow)
        case .repairing(let nonce, let from, let isAgreed, let below):
            begin(.repairing)
            writer.integer(nonce)
            writer.index(from)
            writer.flag(isAgreed)
            writer.index(below)
        case .repaired(let nonce):
            begin(.repaired)
            writer.integer(nonce)
        case .snapshotChunk(let chunk):
            begin(.snapshotChunk)
            chunk.encode(into: &writer)
        case .snapshotReply(let id, let received, let installed, let refused):
            begin(.snapshotReply)
            writer.integer(id)
            writer.integer(received)
            writer.flag(installed)
            writer.flag(refused)
        case .salvageRequest(let afterIndex, let afterTerm):
            begin(.salvageRequest)
            writer.index(afterIndex)
            writer.term(afterTerm)
        case .salvageReply(let afterIndex, let afterTerm, let entries, let isLast):
            begin(.salvageReply)
            writer.index(afterIndex)
            writer.term(afterTerm)
            writer.list(entries) { $0.encode(into: &$1) }
            writer.flag(isLast)
        default: preconditionFailure("encoded elsewhere")
        }
    }

    private static func decodeOther(
        _ tag: Tag, _ reader: inout ByteReader
    ) throws(DecodeError) -> Body {
        switch tag {
        case .readIndex: .readIndex(number: try reader.integer("readIndex.number"))
        case .readIndexReply:
            .readIndexReply(
                number: try reader.integer("readIndexReply.number"),
                index: try reader.optional("readIndexReply.index") {
                    reader throws(DecodeError) in try reader.index("readIndexReply.index")
                })
        case .forward:
            .forward(
                proposals: try reader.list(
                    "forward.proposals", max: Limits.proposalsInFlightMax,
                    elementBytesMin: ProposalID.byteCount + 4, Proposal.decode))
        case .forwardRejected:
            .forwardRejected(
                numbers: try reader.list(
                    "forwardRejected.numbers", max: Limits.proposalsInFlightMax,
                    elementBytesMin: ProposalID.byteCount, ProposalID.decode))
        case .timeoutNow: .timeoutNow
        case .repairing:
            .repairing(
                nonce: try reader.integer("repairing.nonce"),
                from: try reader.index("repairing.from"),
                isAgreed: try reader.flag("repairing.isAgreed"),
                below: try reader.index("repairing.below"))
        case .repaired: .repaired(nonce: try reader.integer("repaired.nonce"))
        case .snapshotChunk: .snapshotChunk(try SnapshotChunk.decode(&reader))
        case .snapshotReply:
            .snapshotReply(
                id: try reader.integer("snapshotReply.id"),
                received: try reader.integer("snapshotReply.received"),
                installed: try reader.flag("snapshotReply.installed"),
                refused: try reader.flag("snapshotReply.refused"))
        case .salvageRequest:
            .salvageRequest(
                afterIndex: try reader.index("salvageRequest.afterIndex"),
                afterTerm: try reader.term("salvageRequest.afterTerm"))
        case .salvageReply:
            .salvageReply(
                afterIndex: try reader.index("salvageReply.afterIndex"),
                afterTerm: try reader.term("salvageReply.afterTerm"),
                entries: try reader.list(
                    "salvageReply.entries", max: Limits.rpcMessageBytesMax / Entry.byteCountMin,
                    elementBytesMin: Entry.byteCountMin, Entry.decode),
                isLast: try reader.flag("salvageReply.isLast"))
        default: throw .unknown(field: "message.tag")
        }
    }
}

extension Proposal {
    static func decode(_ reader: inout ByteReader) throws(DecodeError) -> Proposal {
        Proposal(
            id: try ProposalID.decode(&reader),
            payload: try reader.blob("proposal.payload", max: payloadBytesMax))
    }
}

extension SnapshotMeta {
    package func encode(into writer: inout ByteWriter) {
        writer.index(index)
        writer.term(term)
        membership.encode(into: &writer)
        writer.time(time)
    }

    package static func decode(_ reader: inout ByteReader) throws(DecodeError) -> SnapshotMeta {
        SnapshotMeta(
            index: try reader.index("snapshot.index"), term: try reader.term("snapshot.term"),
            membership: try Membership.decode(&reader), time: try reader.time("snapshot.time"))
    }
}

extension SnapshotChunk {
    package func encode(into writer: inout ByteWriter) {
        writer.integer(id)
        meta.encode(into: &writer)
        writer.integer(offset)
        writer.blob(bytes)
        writer.flag(isLast)
    }

    package static func decode(_ reader: inout ByteReader) throws(DecodeError) -> SnapshotChunk {
        SnapshotChunk(
            id: try reader.integer("chunk.id"), meta: try SnapshotMeta.decode(&reader),
            offset: try reader.integer("chunk.offset"),
            bytes: try reader.blob("chunk.bytes", max: Limits.snapshotChunkBytesMax),
            isLast: try reader.flag("chunk.isLast"))
    }
}
