// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

// Bytes of log entries and what is in them: little-endian, every value in one form only. Decoders
// are total: they return a value or throw, and reserve no memory for what is not there.

extension ByteReader {
    /// Terms and indexes stay far from where adding one would overflow.
    private static let ordinalMax: UInt64 = 1 << 62

    mutating func ordinal(_ field: StaticStringName) throws(DecodeError) -> UInt64 {
        let value: UInt64 = try integer(field)
        guard value <= Self.ordinalMax else { throw .outOfRange(field: field) }
        return value
    }

    mutating func term(_ field: StaticStringName) throws(DecodeError) -> Term {
        Term(try ordinal(field))
    }

    mutating func index(_ field: StaticStringName) throws(DecodeError) -> LogIndex {
        LogIndex(try ordinal(field))
    }

    mutating func node(_ field: StaticStringName) throws(DecodeError) -> NodeID {
        let value: UInt64 = try integer(field)
        guard value != 0 else { throw .outOfRange(field: field) }
        return NodeID(value)
    }

    /// Cluster time stays as far from its end: thousands of years can still be added.
    mutating func time(_ field: StaticStringName) throws(DecodeError) -> ClusterTime {
        ClusterTime(milliseconds: try ordinal(field))
    }

    mutating func optional<Value>(
        _ field: StaticStringName, _ read: (inout ByteReader) throws(DecodeError) -> Value
    ) throws(DecodeError) -> Value? {
        try flag(field) ? try read(&self) : nil
    }

    mutating func list<Value>(
        _ field: StaticStringName, max: Int, elementBytesMin: Int,
        _ read: (inout ByteReader) throws(DecodeError) -> Value
    ) throws(DecodeError) -> [Value] {
        let count = try count(field, max: max, elementBytesMin: elementBytesMin)
        var values: [Value] = []
        values.reserveCapacity(count)
        for _ in 0..<count { values.append(try read(&self)) }
        return values
    }
}

extension ByteWriter {
    mutating func term(_ value: Term) { integer(value.rawValue) }
    mutating func index(_ value: LogIndex) { integer(value.rawValue) }
    mutating func node(_ value: NodeID) { integer(value.rawValue) }
    mutating func time(_ value: ClusterTime) { integer(value.milliseconds) }

    mutating func list<Value>(_ values: [Value], _ write: (Value, inout ByteWriter) -> Void) {
        integer(UInt32(values.count))
        for value in values { write(value, &self) }
    }
}

extension ProposalID {
    static let byteCount = 24

    package func encode(into writer: inout ByteWriter) {
        writer.node(node)
        writer.integer(incarnation)
        writer.integer(number)
    }

    package static func decode(_ reader: inout ByteReader) throws(DecodeError) -> ProposalID {
        ProposalID(
            node: try reader.node("origin.node"),
            incarnation: try reader.integer("origin.incarnation"),
            number: try reader.integer("origin.number"))
    }
}

extension Entry {
    /// Bytes of an entry without origin and payload.
    static let byteCountMin = 30

    /// Without a checksum: the log store adds its own.
    package func encode(into writer: inout ByteWriter) {
        writer.index(index)
        writer.term(term)
        writer.byte(kind.rawValue)
        writer.flag(origin != nil)
        origin?.encode(into: &writer)
        writer.time(time)
        writer.blob(payload)
    }

    /// A membership is decoded too, so that an entry that was let in can be put in force.
    package static func decode(_ reader: inout ByteReader) throws(DecodeError) -> Entry {
        let index = try reader.index("entry.index")
        guard index > .zero else { throw .outOfRange(field: "entry.index") }
        let term = try reader.term("entry.term")
        guard let kind = Kind(rawValue: try reader.byte("entry.kind")) else {
            throw .unknown(field: "entry.kind")
        }
        let origin = try reader.optional("entry.origin", ProposalID.decode)
        let time = try reader.time("entry.time")
        let payload = try reader.blob("entry.payload", max: Proposal.payloadBytesMax)
        if kind == .membership {
            var inner = ByteReader(payload)
            _ = try Membership.decode(&inner)
            try inner.end()
        }
        return Entry(
            index: index, term: term, kind: kind, origin: origin, time: time, payload: payload)
    }
}

extension Membership.Member {
    /// The longest "[address%interface]:port" there is.
    static let addressBytesMax = 96
    static let byteCountMin = 8 + EndpointID.byteCount + 8 + 4

    var isWithinLimits: Bool {
        addresses.count <= Limits.addressesMax
            && addresses.allSatisfy { $0.utf8.count <= Self.addressBytesMax }
    }

    package func encode(into writer: inout ByteWriter) {
        writer.node(node)
        writer.raw(endpoint.bytes)
        writer.integer(replica.rawValue)
        writer.list(addresses) { $1.string($0) }
    }

    package static func decode(
        _ reader: inout ByteReader
    ) throws(DecodeError) -> Membership.Member {
        let node = try reader.node("member.node")
        let key = try reader.raw(EndpointID.byteCount, "member.endpoint")
        guard let endpoint = EndpointID(bytes: key) else {
            throw .malformed(field: "member.endpoint")
        }
        let replica: UInt64 = try reader.integer("member.replica")
        let addresses = try reader.list(
            "member.addresses", max: Limits.addressesMax, elementBytesMin: 4
        ) { reader throws(DecodeError) in
            try reader.string("member.address", max: addressBytesMax)
        }
        return Membership.Member(
            node: node, endpoint: endpoint, replica: ReplicaID(replica), addresses: addresses)
    }
}

extension Membership {
    /// The payload of a membership entry.
    package var payload: [UInt8] {
        var writer = ByteWriter(capacity: 64 + members.count * 96)
        encode(into: &writer)
        return writer.bytes
    }

    /// Nil if the bytes are not exactly one well-formed membership.
    package init?(payload: [UInt8]) {
        var reader = ByteReader(payload)
        guard let membership = try? Membership.decode(&reader), reader.remaining == 0 else {
            return nil
        }
        self = membership
    }

    package func encode(into writer: inout ByteWriter) {
        writer.integer(cluster.rawValue)
        for nodes in [voters, votersOutgoing, learners] { writer.list(nodes) { $1.node($0) } }
        writer.list(members) { $0.encode(into: &$1) }
    }

    package static func decode(_ reader: inout ByteReader) throws(DecodeError) -> Membership {
        func nodes(
            _ reader: inout ByteReader, max: Int
        ) throws(DecodeError) -> [NodeID] {
            try reader.list("membership.nodes", max: max, elementBytesMin: 8) {
                reader throws(DecodeError) in try reader.node("membership.node")
            }
        }
        let membership = Membership(
            cluster: ClusterID(try reader.integer("membership.cluster")),
            voters: try nodes(&reader, max: Limits.votersMax),
            votersOutgoing: try nodes(&reader, max: Limits.votersMax),
            learners: try nodes(&reader, max: Limits.learnersMax),
            members: try reader.list(
                "membership.members", max: 2 * Limits.votersMax + Limits.learnersMax,
                elementBytesMin: Member.byteCountMin, Member.decode))
        guard membership.isWellFormed else { throw .malformed(field: "membership") }
        return membership
    }

    /// What the fields' own comments promise.
    package var isWellFormed: Bool {
        func ascends(_ nodes: [NodeID]) -> Bool {
            nodes.indices.dropFirst().allSatisfy { nodes[$0 - 1] < nodes[$0] }
        }
        guard ascends(voters), ascends(votersOutgoing), ascends(learners),
            voters.count <= Limits.votersMax, votersOutgoing.count <= Limits.votersMax,
            learners.count <= Limits.learnersMax,
            !learners.contains(where: voters.contains),
            !voters.isEmpty || (votersOutgoing.isEmpty && learners.isEmpty)
        else { return false }
        // Simulated runs ask after every step: no arrays are made.
        let alsoOutgoing =
            voters.count(where: votersOutgoing.contains)
            + learners.count(where: votersOutgoing.contains)
        let named = voters.count + votersOutgoing.count + learners.count - alsoOutgoing
        return members.count == named
            && members.indices.dropFirst().allSatisfy { members[$0 - 1].node < members[$0].node }
            && members.allSatisfy {
                (isVoter($0.node) || learners.contains($0.node)) && $0.isWithinLimits
            }
    }
}
