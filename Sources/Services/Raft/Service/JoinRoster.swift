// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import Glibc
import KVCore
import RaftCore
import RaftStorage

/// Who has been removed from the cluster, and who was admitted by `auto-join`: replicated as keys, and
/// held in memory by each node.
struct JoinRoster: Sendable, Equatable {
    /// Not admitted by themselves again, under whatever number; an administrator may add them.
    var removed: [EndpointID: NodeID] = [:]
    /// Promoted by themselves, too.
    var admitted: [EndpointID: NodeID] = [:]

    static let prefix = Array("_sys/join/".utf8)
    private static let removedPrefix = Array("_sys/join/removed/".utf8)
    private static let admittedPrefix = Array("_sys/join/admitted/".utf8)

    /// Whatever it does not understand says nothing.
    mutating func add(_ entry: KeyValue) {
        var reader = ByteReader(entry.value)
        guard let number = try? reader.integer("node", as: UInt64.self) else { return }
        if let endpoint = Self.endpoint(in: entry.key, after: Self.removedPrefix) {
            removed[endpoint] = NodeID(number)
        } else if let endpoint = Self.endpoint(in: entry.key, after: Self.admittedPrefix) {
            admitted[endpoint] = NodeID(number)
        }
    }

    private static func endpoint(in key: [UInt8], after prefix: [UInt8]) -> EndpointID? {
        guard key.starts(with: prefix) else { return nil }
        return EndpointID(String(decoding: key.dropFirst(prefix.count), as: UTF8.self))
    }

    // MARK: - Changes

    /// To be agreed upon before the membership without them is proposed: if this is all that comes of
    /// it, a member is on a list that says nothing about members.
    static func removal(of members: some Sequence<Membership.Member>) -> Transaction {
        Transaction(
            success: members.flatMap { member in
                [
                    Operation.put(
                        key: removedPrefix + Array(member.endpoint.description.utf8),
                        value: value(member.node)),
                    .delete(key: admittedPrefix + Array(member.endpoint.description.utf8)),
                ]
            })
    }

    /// To be agreed upon before the membership with it is proposed: else a learner that an administrator
    /// added could be taken for one that added itself.
    static func admission(of node: NodeID, _ endpoint: EndpointID) -> Transaction {
        Transaction(success: [
            .put(
                key: admittedPrefix + Array(endpoint.description.utf8), value: value(node))
        ])
    }

    private static func value(_ node: NodeID) -> [UInt8] {
        var writer = ByteWriter()
        writer.integer(node.rawValue)
        return writer.bytes
    }
}

/// What the cluster keeps for itself under reserved keys, and each node in memory.
struct SystemTables: Sendable, Equatable {
    var trust = TokenTrust()
    var roster = JoinRoster()

    /// All of it, as the state has it now.
    init(reading store: any StateStore) throws(StorageError) {
        try Self.read(TokenTrust.prefix, of: store) { trust.add($0) }
        try Self.read(JoinRoster.prefix, of: store) { roster.add($0) }
    }

    private static func read(
        _ prefix: [UInt8], of store: any StateStore, _ body: (KeyValue) -> Void
    ) throws(StorageError) {
        var from = prefix
        while true {
            let outcome = try store.range(
                RangeRequest(
                    from: from, to: KeyRange(prefix: prefix).to, limit: Limits.batchCountMax))
            guard case .page(let page) = outcome else {
                throw .corrupt("the present state cannot be read")
            }
            for entry in page.entries { body(entry) }
            guard page.more, let last = page.entries.last else { return }
            from = last.key + [0]
        }
    }

    /// Whether an entry may have changed these keys. Few entries are decoded for that: those that hold
    /// the bytes of the prefix, be it in a value.
    static func mayBeChanged(by entry: Entry) -> Bool {
        guard entry.kind == .command else { return false }
        let isNamed = entry.payload.withUnsafeBytes { payload in
            ReservedNamespace.prefix.withUnsafeBytes { prefix in contains(payload, prefix) }
        }
        guard isNamed else { return false }
        guard case .transaction(let transaction, _)? = try? CommandCodec.decode(entry.payload)
        else {
            return true
        }
        return transaction.touchesReservedNamespace
    }

    private static func contains(
        _ text: UnsafeRawBufferPointer, _ word: UnsafeRawBufferPointer
    ) -> Bool {
        guard let start = text.baseAddress, let wanted = word.baseAddress else { return false }
        var place = 0
        while text.count - place >= word.count {
            let rest = start + place
            guard let found = memchr(rest, CInt(word[0]), text.count - place - word.count + 1)
            else { return false }
            if memcmp(found, wanted, word.count) == 0 { return true }
            place = UnsafeRawPointer(found) - start + 1
        }
        return false
    }
}
