// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CSodium

/// The Ed25519 key pair of a node or a client (RFC 8032): who it is, and the proof of it.
///
/// The secret is never printed: not by `print`, not by `dump`, not inside an enclosing value.
package struct NodeKey: Sendable {
    /// Bytes of a seed and of a public key.
    package static let seedByteCount = 32
    /// Bytes of a signature.
    package static let signatureByteCount = 64

    /// The 32 bytes from which everything else follows: what an identity file stores.
    package let seed: [UInt8]
    /// The public half.
    package let endpoint: EndpointID
    private let expanded: [UInt8]

    /// - Parameter seed: exactly 32 secret bytes; nil otherwise.
    package init?(seed: [UInt8]) {
        guard seed.count == Self.seedByteCount, sodium_init() >= 0 else { return nil }
        var publicKey = [UInt8](repeating: 0, count: EndpointID.byteCount)
        var secretKey = [UInt8](repeating: 0, count: 64)
        guard crypto_sign_seed_keypair(&publicKey, &secretKey, seed) == 0,
            let endpoint = EndpointID(bytes: publicKey)
        else { return nil }
        self.seed = seed
        self.endpoint = endpoint
        expanded = secretKey
    }

    /// A new key from the system's random source.
    package static func generate() -> NodeKey {
        precondition(sodium_init() >= 0, "libsodium does not start")
        var seed = [UInt8](repeating: 0, count: seedByteCount)
        randombytes_buf(&seed, seed.count)
        guard let key = NodeKey(seed: seed) else {
            preconditionFailure("a seed of 32 bytes always makes a key")
        }
        return key
    }

    /// The detached signature of `bytes`: 64 bytes.
    package func sign(_ bytes: [UInt8]) -> [UInt8] {
        var signature = [UInt8](repeating: 0, count: Self.signatureByteCount)
        let result = crypto_sign_detached(
            &signature, nil, bytes, UInt64(bytes.count), expanded)
        precondition(result == 0, "signing cannot fail")
        return signature
    }

    /// Whether `signature` is `endpoint`'s signature of `bytes`.
    package static func verify(
        _ signature: [UInt8], of bytes: [UInt8], by endpoint: EndpointID
    ) -> Bool {
        guard signature.count == signatureByteCount else { return false }
        return crypto_sign_verify_detached(
            signature, bytes, UInt64(bytes.count), endpoint.bytes) == 0
    }

    /// 32 bytes that follow from the key and a fixed purpose, and that say nothing about the key:
    /// they are the same after a restart (BLAKE2b, keyed with the seed).
    func derive(_ purpose: StaticString) -> [UInt8] {
        var result = [UInt8](repeating: 0, count: 32)
        let text = Array("\(purpose)".utf8)
        let code = crypto_generichash(
            &result, result.count, text, UInt64(text.count), seed, seed.count)
        precondition(code == 0, "hashing cannot fail")
        return result
    }
}

extension NodeKey: CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
    package var description: String { "NodeKey(\(endpoint), secret not shown)" }
    package var debugDescription: String { description }
    package var customMirror: Mirror { Mirror(self, children: ["endpoint": endpoint]) }
}
