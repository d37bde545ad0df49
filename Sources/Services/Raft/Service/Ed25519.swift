// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CSodium

/// What libsodium does for this daemon.
enum Ed25519 {
    /// Whether `signature` is that key's (RFC 8032; strict: one signature has one text).
    static func verify(_ signature: [UInt8], _ text: [UInt8], _ key: EndpointID) -> Bool {
        guard signature.count == 64, sodium_init() >= 0 else { return false }
        return crypto_sign_verify_detached(
            signature, text, UInt64(text.count), key.bytes) == 0
    }
}

/// Bytes from the system's random source.
func secretBytes(_ count: Int) -> [UInt8] {
    precondition(sodium_init() >= 0, "libsodium does not start")
    var bytes = [UInt8](repeating: 0, count: count)
    randombytes_buf(&bytes, count)
    return bytes
}

/// Session numbers as one client with a token sees them. They are log indexes, easily guessed, and
/// whoever knows one could be answered in its owner's place; so each such client has a permutation
/// of its own (four Feistel rounds of SipHash-2-4; Luby and Rackoff, 1988). Its key follows from a
/// secret that is replicated with the token's root: all nodes translate alike.
struct SessionVeil {
    private let key: [UInt8]

    init(secret: [UInt8], client: EndpointID) {
        var key = [UInt8](repeating: 0, count: Int(crypto_shorthash_KEYBYTES))
        let text = Array("aspen session veil v1".utf8) + client.bytes
        // libsodium takes keys of up to 64 bytes; ours has 32.
        let bounded = Array(secret.prefix(64))
        let code = crypto_generichash(
            &key, key.count, text, UInt64(text.count), bounded, bounded.count)
        precondition(code == 0, "hashing cannot fail")
        self.key = key
    }

    private func round(_ number: UInt8, _ half: UInt32) -> UInt32 {
        var output = [UInt8](repeating: 0, count: 8)
        let input = withUnsafeBytes(of: half.littleEndian) { Array($0) } + [number]
        _ = crypto_shorthash(&output, input, UInt64(input.count), key)
        return output.prefix(4).reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }

    func veil(_ session: UInt64) -> UInt64 {
        var (left, right) = (UInt32(session >> 32), UInt32(truncatingIfNeeded: session))
        for number in UInt8(0)..<4 { (left, right) = (right, left ^ round(number, right)) }
        return UInt64(left) << 32 | UInt64(right)
    }

    func unveil(_ session: UInt64) -> UInt64 {
        var (left, right) = (UInt32(session >> 32), UInt32(truncatingIfNeeded: session))
        for number in (UInt8(0)..<4).reversed() {
            (left, right) = (right ^ round(number, left), left)
        }
        return UInt64(left) << 32 | UInt64(right)
    }
}
