// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import KVCore
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

    /// Whatever it does not understand grants nothing.
    mutating func add(_ entry: KeyValue) {
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
