// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import KVCore
import NIOCore
import RaftCore

@testable import RaftService

extension Decoder {
    // MARK: Between raft daemons

    static let peerFrame = Decoder(name: "peer-frame") { bytes in
        func encoded(_ frame: PeerFrame) -> ByteBuffer {
            var buffer = ByteBuffer()
            frame.write(to: &buffer)
            return buffer
        }
        guard let frame = try? PeerFrame(decoding: ByteBuffer(bytes: bytes)) else { return false }
        let first = encoded(frame)
        check((try? PeerFrame(decoding: first)).map(encoded) == first)
        return true
    } examples: {
        var hello = PeerHello(
            version: 1, cluster: ClusterID(5), node: NodeID(2), replica: ReplicaID(9),
            lane: .control)
        var frames: [PeerFrame] = [.hello(hello)]
        hello.cluster = nil
        hello.lane = .bulk
        hello.isProbe = true
        frames += [
            .hello(hello), .refused(.unavailable, "not a member"), .request(id: 3, [1, 2]),
            .response(id: 4, [5]),
        ]
        frames += messages.map { .message($0) }
        return frames.map { frame in
            var buffer = ByteBuffer()
            frame.write(to: &buffer)
            return Array(buffer: buffer)
        }
    }

    static let raftMessage = Decoder(name: "raft-message") { bytes in
        var reader = ByteReader(bytes)
        guard let message = try? Message.decode(&reader), (try? reader.end()) != nil else {
            return false
        }
        check(Self.encoded(message) == bytes)
        return true
    } examples: {
        messages.map(encoded)
    }

    static let membership = Decoder(name: "membership") { bytes in
        var reader = ByteReader(bytes)
        guard let value = try? Membership.decode(&reader), (try? reader.end()) != nil else {
            return false
        }
        check(value.payload == bytes)
        return true
    } examples: {
        [sampleMembership.payload]
    }

    private static func encoded(_ message: Message) -> [UInt8] {
        var writer = ByteWriter(capacity: message.byteCountEstimate)
        message.encode(into: &writer)
        return writer.bytes
    }

    private static let sampleMembership = Membership(
        cluster: ClusterID(11), voters: [NodeID(1), NodeID(2)], votersOutgoing: [NodeID(1)],
        learners: [NodeID(3)],
        members: (1...3).map { number in
            Membership.Member(
                node: NodeID(number), endpoint: endpoint, replica: ReplicaID(number),
                addresses: ["127.0.0.1:7001"])
        })

    private static let messages: [Message] = {
        let id = ProposalID(node: NodeID(1), incarnation: 2, number: 3)
        let index = LogIndex(4)
        let term = Term(2)
        let time = ClusterTime(milliseconds: 1000)
        let entries = [
            Entry(
                index: index, term: term, kind: .command, origin: id, time: time,
                payload: [1, 2, 3]),
            Entry(index: index.next, term: term, kind: .noop, origin: nil, time: time, payload: []),
        ]
        let chunk = SnapshotChunk(
            id: 1,
            meta: SnapshotMeta(index: index, term: term, membership: sampleMembership, time: time),
            offset: 0, bytes: bytes(50), isLast: true)
        let bodies: [Message.Body] = [
            .preVote(lastIndex: index, lastTerm: term),
            .vote(lastIndex: index, lastTerm: term, isTransfer: true),
            .voteReply(granted: true, isConditional: false),
            .append(previousIndex: index, previousTerm: term, commit: index, entries: entries),
            .appendAccepted(match: index),
            .appendRejected(rejected: index, hintIndex: index, hintTerm: term, lastIndex: index),
            .heartbeat(commit: index, round: 5, time: time, successor: NodeID(2)),
            .heartbeatReply(round: 5, lastIndex: index),
            .readIndexReply(number: 7, index: index),
            .forward(proposals: [Proposal(id: id, payload: [9])]),
            .forwardRejected(numbers: [id]), .timeoutNow, .snapshotChunk(chunk),
            .repairing(nonce: 1, from: index, isAgreed: false, below: index),
            .snapshotReply(id: 1, received: 2, installed: false, refused: false),
            .salvageRequest(afterIndex: index, afterTerm: term),
            .salvageReply(afterIndex: index, afterTerm: term, entries: entries, isLast: true),
        ]
        return bodies.map { Message(from: NodeID(1), to: NodeID(2), term: term, body: $0) }
    }()

    // MARK: In the log and the state

    static let command = Decoder(name: "command") { bytes in
        guard let command = try? CommandCodec.decode(bytes) else { return false }
        check(CommandCodec.encode(command) == bytes)
        return true
    } examples: {
        let transaction = Transaction(
            compares: [
                Compare(key: [1], target: .version(3)), Compare(key: [2], target: .value([])),
            ],
            success: [.put(key: [1], value: bytes(30)), .deleteRange(from: [1], to: nil)],
            failure: [.get(key: [1]), .delete(key: [2])])
        return [
            Command.openSession, .compact(Revision(9)), .expireSessions,
            .keepSessionAlive(SessionID(3)), .activateVersion(1), .transaction(transaction, nil),
            .transaction(
                transaction,
                SessionRequest(session: SessionID(1), number: 2, acknowledgedBelow: 1)),
            .grantLease(id: LeaseID(4), ttlMilliseconds: 1000, nil), .expireLeases,
            .revokeLease(
                LeaseID(4), SessionRequest(session: SessionID(1), number: 2, acknowledgedBelow: 1)),
            .keepLeaseAlive(LeaseID(4)),
            .transaction(
                Transaction(success: [.put(key: [1], value: [2], lease: LeaseID(4))]), nil),
        ].map { CommandCodec.encode($0) }
    }

    static let result = Decoder(name: "result") { bytes in
        guard let result = try? ResultCodec.decode(bytes) else { return false }
        check(ResultCodec.encode(result) == bytes)
        return true
    } examples: {
        [
            CommandResult.done, .sessionOpened(SessionID(9)),
            .failed(code: .unavailable, message: "no"),
        ].map { ResultCodec.encode($0) }
    }
}
