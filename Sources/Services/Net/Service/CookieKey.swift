// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import CAspenSystem
import CSodium
import Configuration
import Glibc
import ServiceKit

/// What is made of the cluster cookie once at start, and how two nets prove to each other that they
/// have it: Argon2id (RFC 9106) stretches the cookie, and a keyed BLAKE2b over a value that only the
/// two ends of this TLS connection know (its exporter, RFC 8446 section 7.5) is shown each way.
///
/// The cookie never leaves the process. A proof is worth nothing on another connection or in the
/// other direction, and the accepting side, which does not know who calls, shows its own only to
/// somebody who has proved his.
package struct CookieKey: Sendable, CustomStringConvertible, CustomReflectable {
    enum Side: String { case dialler, acceptor }

    package static let proofByteCount = 32
    package static let exporterLabel = "EXPORTER-aspen-cookie"
    /// That of the name by which both ends know a connection.
    package static let nameLabel = "EXPORTER-aspen-name"
    private static let memoryBytes = 64 << 20
    private static let passes: UInt64 = 2

    private let key: [UInt8]

    package var description: String { "<secret>" }
    package var customMirror: Mirror { Mirror(self, children: []) }

    /// Takes about a tenth of a second and 64 MiB, which are given back: not on an event loop.
    /// - Throws: `resourceExhausted` when there is not that much memory.
    package init(stretching cookie: Secret) throws(AspenError) {
        guard sodium_init() >= 0 else { throw AspenError(.internal, "libsodium does not start") }
        let domain = Array("aspen cluster cookie v1".utf8)
        var salt = [UInt8](repeating: 0, count: Int(crypto_pwhash_SALTBYTES))
        crypto_generichash(&salt, salt.count, domain, UInt64(domain.count), nil, 0)
        var stretched = [UInt8](repeating: 0, count: 32)
        let password = cookie.bytes.map(CChar.init(bitPattern:))
        let result = crypto_pwhash(
            &stretched, UInt64(stretched.count), password, UInt64(password.count), salt,
            Self.passes, Self.memoryBytes, crypto_pwhash_ALG_ARGON2ID13)
        guard result == 0 else {
            throw AspenError(
                .resourceExhausted, "stretching the cookie needs 64 MB of memory for a moment")
        }
        key = stretched
    }

    // MARK: - Kept for the next start

    /// The name under which a supervisor keeps the memory file.
    package static let keptName = "cookie-key"
    /// That of the other cookie, which is accepted.
    package static let keptAcceptedName = "cookie-key-accepted"
    private static let keptHeading = Array("aspen cookie key v1\n".utf8)

    /// What an earlier process has left in a sealed memory file, if it was made from this cookie.
    ///
    /// Stretching takes a tenth of a second on an idle machine and seconds on a busy one, which is
    /// too long for a daemon that was killed and is missed.
    package init?(keptIn descriptor: CInt, for cookie: Secret) {
        guard aspen_is_sealed(descriptor) == 1, sodium_init() >= 0 else { return nil }
        let heading = Self.keptHeading
        var bytes = [UInt8](repeating: 0, count: heading.count + 64 + 1)
        guard pread(descriptor, &bytes, bytes.count, 0) == bytes.count - 1,
            bytes.starts(with: heading)
        else { return nil }
        key = Array(bytes[heading.count..<heading.count + 32])
        let tag = Array(bytes[heading.count + 32..<heading.count + 64])
        guard sodium_memcmp(tag, Self.tag(of: cookie, under: key), tag.count) == 0 else {
            return nil
        }
    }

    /// A memory file for `init(keptIn:for:)`, which the caller closes: it touches no disk, nobody
    /// can change it, and only who is handed the descriptor gets at it. It holds the key and not the
    /// cookie; whoever reads it can do all that the cookie is good for.
    /// - Returns: nil when the system gives none.
    package func kept(for cookie: Secret, name: String = keptName) -> CInt? {
        let bytes = Self.keptHeading + key + Self.tag(of: cookie, under: key)
        let descriptor = aspen_memory_file(name, bytes, bytes.count)
        return descriptor < 0 ? nil : descriptor
    }

    /// Ties a key to the cookie that it was made from.
    private static func tag(of cookie: Secret, under key: [UInt8]) -> [UInt8] {
        var tag = [UInt8](repeating: 0, count: 32)
        let text = Array("aspen cookie key v1, made from\n".utf8) + cookie.bytes
        let result = crypto_generichash(
            &tag, tag.count, text, UInt64(text.count), key, key.count)
        precondition(result == 0, "hashing cannot fail")
        return tag
    }

    // MARK: - What is derived from it

    /// Of this cluster's gossip, 32 bytes: who knows it knows the cookie or was told by a daemon here;
    /// the cookie cannot be had from it sooner than by guessing.
    var gossipTopic: [UInt8] {
        BLAKE3.deriveKey(context: "aspen gossip topic v1", material: key)
    }

    // MARK: - Proofs

    /// - Parameter exported: the connection's exporter under `exporterLabel`.
    func proof(of side: Side, exported: [UInt8]) -> [UInt8] {
        var proof = [UInt8](repeating: 0, count: Self.proofByteCount)
        let text = Array("aspen cookie proof v1, \(side.rawValue)\n".utf8) + exported
        let result = crypto_generichash(
            &proof, proof.count, text, UInt64(text.count), key, key.count)
        precondition(result == 0, "hashing cannot fail")
        return proof
    }

    /// In constant time.
    func verifies(_ shown: [UInt8], of side: Side, exported: [UInt8]) -> Bool {
        let expected = proof(of: side, exported: exported)
        guard shown.count == expected.count else { return false }
        return sodium_memcmp(shown, expected, expected.count) == 0
    }
}

/// The key that a node shows, and another one that it takes from others besides: while the nodes of a
/// cluster go over from one cookie to the next, one after the other.
package struct CookieKeys: Sendable {
    package var own: CookieKey
    package var accepted: CookieKey?

    package init(own: CookieKey, accepted: CookieKey? = nil) {
        self.own = own
        self.accepted = accepted
    }

    var all: [CookieKey] { [own] + (accepted.map { [$0] } ?? []) }
}

/// Whether a cookie may be used at all.
package enum CookieRule {
    /// - Returns: a warning, or nil.
    /// - Throws: `invalidArgument` for a missing, empty or well-known cookie.
    package static func check(_ cookie: Secret?) throws(AspenError) -> String? {
        switch CookieRules.judge(cookie?.bytes ?? []) {
        case .good: return nil
        case .short:
            return "the cluster cookie is shorter than \(CookieRules.recommendedBytesMin) bytes; "
                + "it can be guessed by somebody who tries for long: `aspen-cli setup` makes a good "
                + "one"
        case .missing:
            throw AspenError(
                .invalidArgument,
                "there is no cluster cookie, the secret that all nodes share. "
                    + "`aspen-cli setup` makes one; with aspen-node, say --cookie or ASPEN_COOKIE")
        case .published:
            throw AspenError(
                .invalidArgument,
                "the cluster cookie is a well-known default that anybody can guess. "
                    + "Choose another: `aspen-cli setup` makes one of 32 random bytes")
        case .large:
            throw AspenError(
                .invalidArgument, "the cluster cookie is over \(CookieRules.bytesMax) bytes")
        }
    }
}
