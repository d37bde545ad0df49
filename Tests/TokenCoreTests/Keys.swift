// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import QUIC
import TokenCore

/// Keys that are the same in every run.
func key(_ number: UInt8) -> NodeKey {
    guard let key = NodeKey(seed: [UInt8](repeating: number, count: 32)) else {
        preconditionFailure("32 bytes make a key")
    }
    return key
}

func capabilities(_ texts: String...) -> [Capability] { texts.map(capability) }

func capability(_ text: String) -> Capability {
    guard let capability = try? Capability(parsing: text) else {
        preconditionFailure("not a capability: \(text)")
    }
    return capability
}

func link(
    _ id: UInt128, to audience: EndpointID, from notBefore: UInt64 = 1000, until: UInt64 = 5000,
    _ capabilities: [Capability]
) -> TokenLink {
    guard
        let link = TokenLink(
            id: TokenID(id), audience: audience, notBefore: notBefore, expires: until,
            capabilities: capabilities)
    else { preconditionFailure("not a link") }
    return link
}

/// Root 1, by way of holder 2, for client 3.
func sampleChain() throws -> TokenChain {
    try TokenChain(
        root: key(1).endpoint,
        link(0x1111, to: key(2).endpoint, capabilities("kv:read:app/*", "kv:write:app/*")),
        sign: key(1).sign
    ).delegating(
        link(
            0x2222, to: key(3).endpoint, from: 1500, until: 4000,
            capabilities("kv:read:app/*", "kv:write:app/jobs/*", "kv:write:app/x")),
        sign: key(2).sign)
}

func judge(
    _ chain: TokenChain, client: EndpointID = key(3).endpoint, now: UInt64 = 2000,
    roots: Set<EndpointID> = [key(1).endpoint], revoked: Set<TokenID> = []
) throws(TokenRefusal) -> Grant {
    try chain.verify(
        roots: roots, client: client, now: now, revoked: revoked,
        checkSignature: { NodeKey.verify($0, of: $1, by: $2) })
}
