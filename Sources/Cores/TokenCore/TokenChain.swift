// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// Names one link of one token; random.
package struct TokenID: Hashable, Comparable, Sendable {
    package static let byteCount = 16
    package let rawValue: UInt128
    package init(_ rawValue: UInt128) { self.rawValue = rawValue }

    package init?(bytes: some Collection<UInt8>) {
        guard bytes.count == Self.byteCount else { return nil }
        rawValue = bytes.reversed().reduce(0) { $0 << 8 | UInt128($1) }
    }

    package var bytes: [UInt8] {
        (0..<Self.byteCount).map { UInt8(truncatingIfNeeded: rawValue >> UInt128(8 * $0)) }
    }

    package static func < (left: TokenID, right: TokenID) -> Bool {
        left.bytes.lexicographicallyPrecedes(right.bytes)
    }
}

extension TokenID: LosslessStringConvertible {
    /// 26 characters of base 32.
    package var description: String { Base32.encode(bytes) }
    package init?(_ description: String) {
        guard let bytes = Base32.decode(description) else { return nil }
        self.init(bytes: bytes)
    }
}

/// One link: what its issuer (the root, then the holder of the link before) gives to `audience`.
package struct TokenLink: Equatable, Sendable {
    package let id: TokenID
    /// The next holder's key.
    package let audience: EndpointID
    /// Seconds since 1970.
    package let notBefore: UInt64
    /// Seconds since 1970; after `notBefore`.
    package let expires: UInt64
    /// 1 to `TokenLimits.capabilitiesMax`, each once, in the order of their bytes.
    package let capabilities: [Capability]

    /// - Returns: nil for no or too many capabilities, or a time that ends before it begins.
    package init?(
        id: TokenID, audience: EndpointID, notBefore: UInt64, expires: UInt64,
        capabilities: [Capability]
    ) {
        let unique = Set(capabilities)
        guard (1...TokenLimits.capabilitiesMax).contains(unique.count), notBefore < expires else {
            return nil
        }
        self.id = id
        self.audience = audience
        self.notBefore = notBefore
        self.expires = expires
        self.capabilities =
            unique.map { ($0, $0.encoded) }.sorted { $0.1.lexicographicallyPrecedes($1.1) }
            .map(\.0)
    }

    var encoded: [UInt8] {
        var writer = ByteWriter(capacity: 128)
        writer.raw(id.bytes)
        writer.raw(audience.bytes)
        writer.integer(notBefore)
        writer.integer(expires)
        writer.integer(UInt32(capabilities.count))
        for capability in capabilities { writer.raw(capability.encoded) }
        return writer.bytes
    }

    init(decoding bytes: [UInt8]) throws(DecodeError) {
        var reader = ByteReader(bytes)
        guard let id = TokenID(bytes: try reader.raw(TokenID.byteCount, "id")),
            let audience = EndpointID(bytes: try reader.raw(EndpointID.byteCount, "audience"))
        else { throw .malformed(field: "id") }
        self.id = id
        self.audience = audience
        notBefore = try reader.integer("notBefore")
        expires = try reader.integer("expires")
        guard notBefore < expires else { throw .outOfRange(field: "expires") }
        let count = try reader.count("capabilities", max: TokenLimits.capabilitiesMax)
        guard count > 0 else { throw .outOfRange(field: "capabilities") }
        var capabilities: [Capability] = []
        var last: [UInt8] = []
        for _ in 0..<count {
            let capability = try Capability(from: &reader)
            let bytes = capability.encoded
            guard last.lexicographicallyPrecedes(bytes) else { throw .malformed(field: "order") }
            last = bytes
            capabilities.append(capability)
        }
        self.capabilities = capabilities
        try reader.end()
    }
}

/// A capability token: a root's key, and links, each signed by the holder of the one before.
///
/// The encoding is canonical: a chain has one byte string, and a byte string one chain.
package struct TokenChain: Equatable, Sendable {
    package static let signatureByteCount = 64
    private static let magic: [UInt8] = Array("AsTk".utf8)
    private static let version: UInt8 = 1
    /// In front of everything signed: no other signature of Aspen's, or TLS's, begins so.
    private static let domain: [UInt8] = Array("aspen capability token v1\0".utf8)

    /// Signs the first link.
    package let root: EndpointID
    /// 1 to `TokenLimits.linksMax`.
    package private(set) var links: [TokenLink]
    private var signatures: [[UInt8]]

    /// Who may use, and pass on, the token.
    package var audience: EndpointID { links.last?.audience ?? root }

    // MARK: - Making

    /// A first link, by a root.
    ///
    /// - Parameter sign: the root's Ed25519 signature of these bytes.
    /// - Throws: `resourceExhausted`.
    package init(
        root: EndpointID, _ link: TokenLink, sign: ([UInt8]) -> [UInt8]
    ) throws(AspenError) {
        self.root = root
        links = []
        signatures = []
        try append(link, sign)
    }

    /// This token with one more link, by the holder of its last one.
    ///
    /// - Parameter sign: the Ed25519 signature of `audience` over these bytes.
    /// - Throws: `permissionDenied` for a link that would give more than this token does,
    ///   `resourceExhausted` beyond the limits.
    package func delegating(
        _ link: TokenLink, sign: ([UInt8]) -> [UInt8]
    ) throws(AspenError) -> TokenChain {
        if let parent = links.last,
            let refusal = link.refusal(under: parent, number: links.count + 1)
        {
            var text = refusal.message
            if case .widened(_, let capability) = refusal { text += ": \(capability)" }
            throw AspenError(.permissionDenied, text)
        }
        var chain = self
        try chain.append(link, sign)
        return chain
    }

    private mutating func append(
        _ link: TokenLink, _ sign: ([UInt8]) -> [UInt8]
    ) throws(AspenError) {
        guard links.count < TokenLimits.linksMax else {
            throw AspenError(
                .resourceExhausted,
                "a token goes through at most \(TokenLimits.linksMax) hands")
        }
        let body = link.encoded
        let start = encoded()
        guard start.count + 4 + body.count + Self.signatureByteCount <= TokenLimits.bytesMax else {
            throw AspenError(
                .resourceExhausted, "a token has at most \(TokenLimits.bytesMax) bytes")
        }
        let signature = sign(Self.signedText(after: start, body))
        precondition(signature.count == Self.signatureByteCount, "an Ed25519 signature")
        links.append(link)
        signatures.append(signature)
    }

    // MARK: - Bytes

    package func encoded() -> [UInt8] {
        var writer = header
        for (link, signature) in zip(links, signatures) {
            writer.blob(link.encoded)
            writer.raw(signature)
        }
        return writer.bytes
    }

    private var header: ByteWriter {
        var writer = ByteWriter(capacity: 256)
        writer.raw(Self.magic)
        writer.byte(Self.version)
        writer.raw(root.bytes)
        return writer
    }

    /// The whole chain so far is signed with each link: no link can be moved into another chain.
    private static func signedText(after start: [UInt8], _ body: [UInt8]) -> [UInt8] {
        var writer = ByteWriter(capacity: domain.count + start.count + body.count + 4)
        writer.raw(domain)
        writer.raw(start)
        writer.blob(body)
        return writer.bytes
    }

    /// Form only: nothing of it is believed before `verify`.
    package init(decoding bytes: [UInt8]) throws(DecodeError) {
        guard bytes.count <= TokenLimits.bytesMax else { throw .outOfRange(field: "token") }
        var reader = ByteReader(bytes)
        guard Array(try reader.raw(Self.magic.count, "magic")) == Self.magic,
            try reader.byte("version") == Self.version
        else { throw .unknown(field: "version") }
        guard let root = EndpointID(bytes: try reader.raw(EndpointID.byteCount, "root")) else {
            throw .malformed(field: "root")
        }
        self.root = root
        links = []
        signatures = []
        repeat {
            guard links.count < TokenLimits.linksMax else { throw .outOfRange(field: "links") }
            links.append(
                try TokenLink(decoding: try reader.blob("link", max: TokenLimits.bytesMax)))
            signatures.append(Array(try reader.raw(Self.signatureByteCount, "signature")))
        } while reader.remaining > 0
    }

    // MARK: - Text

    package static let prefix = "aspentoken"

    /// `aspentoken` and base 32 of the bytes and their CRC-32C. It is as good as what it grants to
    /// whoever holds the audience's key, and to nobody else.
    package func text() -> String {
        var writer = ByteWriter()
        writer.raw(encoded())
        writer.integer(CRC32C.of(writer.bytes))
        return Self.prefix + Base32.encode(writer.bytes)
    }

    /// - Throws: `invalidArgument`; the text says what to do, and repeats nothing of the input.
    package init(parsing text: some StringProtocol) throws(AspenError) {
        guard text.hasPrefix(Self.prefix) else {
            throw AspenError(
                .invalidArgument,
                "this is no token: one begins with '\(Self.prefix)' and is a single word; "
                    + "`aspen-token delegate` makes it")
        }
        let word = text.dropFirst(Self.prefix.count)
        guard word.utf8.count <= TokenLimits.bytesMax * 8 / 5 + 8,
            let bytes = Base32.decode(word), bytes.count > 4
        else { throw Self.damaged }
        do {
            var trailer = ByteReader(bytes.suffix(4))
            let checksum: UInt32 = try trailer.integer("checksum")
            guard checksum == CRC32C.of(bytes.dropLast(4)) else { throw DecodeError.checksum }
            self = try TokenChain(decoding: Array(bytes.dropLast(4)))
        } catch DecodeError.unknown {
            throw AspenError(
                .unsupportedVersion,
                "the token is of a version, or has a capability, that this program does not know: "
                    + "upgrade it")
        } catch {
            throw Self.damaged
        }
    }

    private static let damaged = AspenError(
        .invalidArgument, "the token is damaged or cut off: copy it again")
}

// MARK: - Judging

extension TokenLink {
    /// Why this link may not follow `parent`; nil when it only narrows.
    func refusal(under parent: TokenLink, number: Int) -> TokenRefusal? {
        guard notBefore >= parent.notBefore, expires <= parent.expires else {
            return .outlivesParent(link: number)
        }
        let rights = CapabilitySet(parent.capabilities)
        return capabilities.first { !rights.includes($0) }.map { .widened(link: number, $0) }
    }
}

extension TokenChain {
    /// What can be said of a chain without knowing a cluster: audience, times, narrowing,
    /// signatures; in this order, so that what costs most comes last.
    ///
    /// - Parameters:
    ///   - client: the key that the bearer has proved to hold.
    ///   - now: seconds since 1970.
    ///   - checkSignature: whether the 64 bytes are that key's Ed25519 signature of the text.
    package func check(
        client: EndpointID, now: UInt64,
        checkSignature: (_ signature: [UInt8], _ text: [UInt8], _ key: EndpointID) -> Bool
    ) throws(TokenRefusal) -> Grant {
        guard let last = links.last, last.audience == client else {
            throw .wrongAudience(audience)
        }
        // The last link's time lies within all others', or the chain is refused below.
        guard now < last.expires else { throw .expired(last.expires) }
        let (latest, overflow) = now.addingReportingOverflow(TokenLimits.clockSkewMax)
        guard overflow || last.notBefore <= latest else {
            throw .notYetValid(notBefore: last.notBefore)
        }
        for (place, link) in links.enumerated().dropFirst() {
            if let refusal = link.refusal(under: links[place - 1], number: place + 1) {
                throw refusal
            }
        }
        var text = ByteWriter(capacity: 512)
        text.raw(Self.domain)
        text.raw(header.bytes)
        var issuer = root
        for (place, (link, signature)) in zip(links, signatures).enumerated() {
            text.blob(link.encoded)
            guard checkSignature(signature, text.bytes, issuer) else {
                throw .badSignature(link: place + 1)
            }
            text.raw(signature)
            issuer = link.audience
        }
        return Grant(
            root: root, client: client, rights: CapabilitySet(last.capabilities),
            expires: last.expires, ids: links.map(\.id))
    }

    /// The whole judgement, by a service that knows what its cluster trusts.
    package func verify(
        roots: Set<EndpointID>, client: EndpointID, now: UInt64, revoked: Set<TokenID>,
        checkSignature: (_ signature: [UInt8], _ text: [UInt8], _ key: EndpointID) -> Bool
    ) throws(TokenRefusal) -> Grant {
        guard roots.contains(root) else { throw .untrustedRoot(root) }
        if let link = links.first(where: { revoked.contains($0.id) }) { throw .revoked(link.id) }
        return try check(client: client, now: now, checkSignature: checkSignature)
    }
}
