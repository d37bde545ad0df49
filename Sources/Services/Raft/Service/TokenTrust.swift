// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import Glibc
import KVCore
import RaftCore
import RaftStorage
import TokenCore

/// Which roots the cluster believes, and which links it does not: replicated as keys, and held in
/// memory by each node.
struct TokenTrust: Sendable, Equatable {
    /// The secret of each: see `SessionVeil`.
    var roots: [EndpointID: [UInt8]] = [:]
    /// When the link would have expired, in seconds since 1970; 0: not known.
    var revoked: [TokenID: UInt64] = [:]

    static let prefix = Array("_sys/tokens/".utf8)
    static let rootSecretBytes = 32
    private static let rootPrefix = Array("_sys/tokens/roots/".utf8)
    private static let revokedPrefix = Array("_sys/tokens/revoked/".utf8)

    static func key(ofRoot root: EndpointID) -> [UInt8] {
        rootPrefix + Array(root.description.utf8)
    }

    static func key(ofRevoked id: TokenID) -> [UInt8] {
        revokedPrefix + Array(id.description.utf8)
    }

    static func value(expires: UInt64) -> [UInt8] {
        var writer = ByteWriter()
        writer.integer(expires)
        return writer.bytes
    }

    /// All of it, as the state has it now.
    init(reading store: any StateStore) throws(StorageError) {
        var from = Self.prefix
        while true {
            let outcome = try store.range(
                RangeRequest(
                    from: from, to: KeyRange(prefix: Self.prefix).to, limit: Limits.batchCountMax))
            guard case .page(let page) = outcome else {
                throw .corrupt("the present state cannot be read")
            }
            for entry in page.entries { add(entry) }
            guard page.more, let last = page.entries.last else { return }
            from = last.key + [0]
        }
    }

    init() {}

    /// Whatever it does not understand grants nothing.
    private mutating func add(_ entry: KeyValue) {
        func name(after prefix: [UInt8]) -> String? {
            guard entry.key.starts(with: prefix) else { return nil }
            return String(decoding: entry.key.dropFirst(prefix.count), as: UTF8.self)
        }
        if let root = name(after: Self.rootPrefix).flatMap({ EndpointID($0) }) {
            roots[root] = entry.value
        } else if let id = name(after: Self.revokedPrefix).flatMap({ TokenID($0) }) {
            var reader = ByteReader(entry.value)
            revoked[id] = (try? reader.integer("expires", as: UInt64.self)) ?? 0
        }
    }

    /// Whether an entry may have changed these keys: a look for the bytes of their prefix, without
    /// decoding the entry. A value that happens to hold them only costs a look at the state.
    static func mayBeChanged(by entry: Entry) -> Bool {
        guard entry.kind == .command else { return false }
        return entry.payload.withUnsafeBytes { payload in
            prefix.withUnsafeBytes { prefix in contains(payload, prefix) }
        }
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

    /// Judges a chain by what this node knows now.
    func judge(
        _ chain: TokenChain, client: EndpointID, now: UInt64
    ) throws(TokenRefusal) -> Grant {
        // Sets of few keys: their making is nothing beside one signature.
        let ids = Set(chain.links.map(\.id)).filter { revoked[$0] != nil }
        let root: Set<EndpointID> = roots[chain.root] == nil ? [] : [chain.root]
        return try chain.verify(
            roots: root, client: client, now: now, revoked: ids,
            checkSignature: Ed25519.verify)
    }
}

/// The client behind a connection from elsewhere, and the token that it showed.
final class TokenBearer {
    let client: EndpointID
    let chain: TokenChain
    /// Requests that wait until this node knows whom the cluster trusts.
    var requestsInDoubt = 0
    /// What the chain gave when the trust was of `generation`.
    private var judged: (generation: UInt64, grant: Grant, veil: SessionVeil)?

    init(client: EndpointID, chain: TokenChain) {
        self.client = client
        self.chain = chain
    }

    /// What the bearer may do at this moment.
    ///
    /// - Parameters:
    ///   - generation: tells one state of the trust from another.
    ///   - now: seconds since 1970.
    func rights(
        under trust: TokenTrust, generation: UInt64, now: UInt64
    ) throws(TokenRefusal) -> CapabilitySet {
        if let judged, judged.generation == generation {
            guard now < judged.grant.expires else { throw .expired(judged.grant.expires) }
            return judged.grant.rights
        }
        judged = nil
        let grant = try trust.judge(chain, client: client, now: now)
        let veil = SessionVeil(secret: trust.roots[chain.root] ?? [], client: client)
        judged = (generation, grant, veil)
        return grant.rights
    }

    /// Nil until it was judged.
    var veil: SessionVeil? { judged?.veil }
}
