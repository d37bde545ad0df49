// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import RaftCore
import Testing

/// Values of every shape, within the limits.
struct ValueSource {
    var random: RandomSource

    mutating func number() -> UInt64 {
        switch random.uniform(0..<4) {
        case 0: 0
        case 1: random.uniform(0..<300)
        case 2: 1 << 62
        default: random.uniform(0..<(1 << 62))
        }
    }

    mutating func flag() -> Bool { random.chance(1, in: 2) }
    mutating func index() -> LogIndex { LogIndex(number()) }
    mutating func term() -> Term { Term(number()) }
    mutating func node() -> NodeID { NodeID(max(1, random.next())) }
    mutating func time() -> ClusterTime { ClusterTime(milliseconds: number()) }

    mutating func bytes(max: Int = 200) -> [UInt8] {
        (0..<random.uniform(0..<max + 1)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    mutating func id() -> ProposalID {
        ProposalID(node: node(), incarnation: random.next(), number: random.next())
    }

    mutating func many<Value>(_ make: (inout ValueSource) -> Value) -> [Value] {
        (0..<random.uniform(0..<5)).map { _ in make(&self) }
    }

    mutating func membership() -> Membership {
        var nodes = Set(many { $0.node() } + [node()]).sorted()
        let voters = nodes
        let learners = Set(many { $0.node() }).subtracting(voters).sorted()
        let outgoing = flag() ? voters : []
        nodes = Set(voters + learners).sorted()
        return Membership(
            cluster: ClusterID(UInt128(random.next()) << 64 | UInt128(random.next())),
            voters: voters, votersOutgoing: outgoing, learners: learners,
            members: nodes.map { node in
                Membership.Member(
                    node: node, endpoint: endpoint(), replica: ReplicaID(random.next()),
                    addresses: many { "192.0.2.\($0.random.uniform(0..<256)):7001" })
            })
    }

    private mutating func endpoint() -> EndpointID {
        let key = (0..<32).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        guard let endpoint = EndpointID(bytes: key) else { preconditionFailure("32 bytes") }
        return endpoint
    }

    mutating func entry() -> Entry {
        let kinds: [Entry.Kind] = [.noop, .command, .membership]
        let kind = kinds[random.uniform(0..<3)]
        return Entry(
            index: index().next.previous == .zero ? LogIndex(1) : LogIndex(1 + number() / 2),
            term: term(), kind: kind, origin: flag() ? id() : nil, time: time(),
            payload: kind == .membership ? membership().payload : bytes())
    }

    mutating func body() -> Message.Body {
        switch random.uniform(0..<20) {
        case 0: return .preVote(lastIndex: index(), lastTerm: term())
        case 1: return .preVoteReply(granted: flag(), isConditional: flag())
        case 2: return .vote(lastIndex: index(), lastTerm: term(), isTransfer: flag())
        case 3: return .voteReply(granted: flag(), isConditional: flag())
        case 4:
            return .append(
                previousIndex: index(), previousTerm: term(), commit: index(),
                entries: many { $0.entry() })
        case 5: return .appendAccepted(match: index())
        case 6:
            return .appendRejected(
                rejected: index(), hintIndex: index(), hintTerm: term(), lastIndex: index())
        case 7:
            return .heartbeat(
                commit: index(), round: number(), time: time(), successor: flag() ? node() : nil)
        case 8: return .heartbeatReply(round: number(), lastIndex: index())
        case 9: return .readIndex(number: random.next())
        case 10: return .readIndexReply(number: random.next(), index: flag() ? index() : nil)
        case 11: return .forward(proposals: many { Proposal(id: $0.id(), payload: $0.bytes()) })
        case 12: return .forwardRejected(numbers: many { $0.id() })
        case 13: return .timeoutNow
        case 14:
            return .repairing(
                nonce: random.next(), from: index(), isAgreed: flag(), below: index())
        case 15: return .repaired(nonce: random.next())
        case 16: return .snapshotChunk(chunk())
        case 17: return .salvageRequest(afterIndex: index(), afterTerm: term())
        case 18:
            return .salvageReply(
                afterIndex: index(), afterTerm: term(), entries: many { $0.entry() },
                isLast: flag())
        default:
            return .snapshotReply(
                id: random.next(), received: random.next(), installed: flag(), refused: flag())
        }
    }

    private mutating func chunk() -> SnapshotChunk {
        SnapshotChunk(
            id: random.next(),
            meta: SnapshotMeta(
                index: index(), term: term(), membership: membership(), time: time()),
            offset: random.next(), bytes: bytes(max: 500), isLast: flag())
    }

    mutating func message() -> Message {
        Message(from: node(), to: node(), term: term(), body: body())
    }
}

@Suite struct MessageCodecTests {
    private func encode(_ message: Message) -> [UInt8] {
        var writer = ByteWriter(capacity: message.byteCountEstimate)
        message.encode(into: &writer)
        return writer.bytes
    }

    private func decode(_ bytes: [UInt8]) throws(DecodeError) -> Message {
        var reader = ByteReader(bytes)
        let message = try Message.decode(&reader)
        try reader.end()
        return message
    }

    @Test func everyMessageRoundTrips() throws {
        var source = ValueSource(random: RandomSource(seed: 1))
        var tags: Set<UInt8> = []
        for _ in 0..<20_000 {
            let message = source.message()
            let bytes = encode(message)
            #expect(try decode(bytes) == message)
            #expect(bytes.count <= message.byteCountEstimate)
            tags.insert(bytes[24])
        }
        #expect(tags.count == 20, "some kind of message was never tried")
    }

    @Test func everyTruncationIsAnError() {
        var source = ValueSource(random: RandomSource(seed: 2))
        for _ in 0..<2000 {
            let bytes = encode(source.message())
            let cut = source.random.uniform(0..<bytes.count)
            #expect(throws: DecodeError.self) { try decode(Array(bytes[..<cut])) }
        }
    }

    @Test func garbageNeverTraps() {
        var source = ValueSource(random: RandomSource(seed: 3))
        for _ in 0..<50_000 { _ = try? decode(source.bytes(max: 120)) }
    }

    /// What can still be read of a damaged message means the same when written again: each value
    /// has one encoding.
    @Test func mutationsDecodeToWhatTheySayOrNotAtAll() {
        var source = ValueSource(random: RandomSource(seed: 4))
        var survivors = 0
        for _ in 0..<50_000 {
            var bytes = encode(source.message())
            for _ in 0..<source.random.uniform(1..<4) {
                let position = source.random.uniform(0..<bytes.count)
                bytes[position] = UInt8(truncatingIfNeeded: source.random.next())
            }
            guard let message = try? decode(bytes) else { continue }
            survivors += 1
            #expect(encode(message) == bytes)
        }
        #expect(survivors > 1000)
    }

    @Test func limitsAreKept() {
        let big = Proposal.payloadBytesMax + 1
        var entry = Entry(
            index: LogIndex(1), term: Term(1), kind: .command, origin: nil, time: .zero,
            payload: [UInt8](repeating: 0, count: big))
        func isAccepted(_ entry: Entry) -> Bool {
            var writer = ByteWriter()
            entry.encode(into: &writer)
            var reader = ByteReader(writer.bytes)
            return (try? Entry.decode(&reader)) != nil
        }
        #expect(!isAccepted(entry))
        entry.payload.removeLast()
        #expect(isAccepted(entry))
        #expect(entry.payload.count + 1000 < Limits.rpcMessageBytesMax)
        entry.index = .zero
        #expect(!isAccepted(entry), "there is no entry 0")
        entry = Entry(
            index: LogIndex(1), term: Term(1), kind: .membership, origin: nil, time: .zero,
            payload: [1, 2, 3])
        #expect(!isAccepted(entry), "a membership must be one")
    }

    @Test func membershipsMustBeWellFormed() {
        let one = NodeID(1), two = NodeID(2)
        func isAccepted(_ change: (inout Membership) -> Void) -> Bool {
            var membership = Membership(
                cluster: ClusterID(1), voters: [one, two], learners: [],
                members: [World.member(one), World.member(two)])
            change(&membership)
            return Membership(payload: membership.payload) == membership
        }
        #expect(isAccepted { _ in })
        #expect(isAccepted { $0.votersOutgoing = [one] })
        #expect(!isAccepted { $0.voters = [two, one] })
        #expect(!isAccepted { $0.voters = [one, one] })
        #expect(!isAccepted { $0.learners = [one] })
        #expect(!isAccepted { $0.members.removeLast() })
        #expect(!isAccepted { $0.members.append(World.member(NodeID(3))) })
        #expect(!isAccepted { $0.members[0].addresses = [String](repeating: "a", count: 17) })
        #expect(Membership(payload: []) == nil)
    }
}
