// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Base 32 of RFC 4648 section 6, lower case, without padding; decoding takes either case.
public enum Base32 {
    private static let alphabet = Base32Alphabet("abcdefghijklmnopqrstuvwxyz234567")

    public static func encode(_ bytes: some Collection<UInt8>) -> String { alphabet.encode(bytes) }

    /// - Returns: nil for a foreign character, an impossible length, or non-zero bits at the end,
    ///   so that each byte string has one text.
    public static func decode(_ text: some StringProtocol) -> [UInt8]? { alphabet.decode(text) }
}

/// z-base-32 (O'Whielacronx, "human-oriented base-32 encoding"), without padding: what iroh and pkarr
/// write public keys in. Decoding takes either case.
package enum ZBase32 {
    private static let alphabet = Base32Alphabet("ybndrfg8ejkmcpqxot1uwisza345h769")

    package static func encode(_ bytes: some Collection<UInt8>) -> String { alphabet.encode(bytes) }

    /// - Returns: nil as of `Base32.decode`.
    package static func decode(_ text: some StringProtocol) -> [UInt8]? { alphabet.decode(text) }
}

/// Five bits a character, the most significant first, and which characters these are.
private struct Base32Alphabet {
    private static let none = UInt8.max
    private let characters: [UInt8]
    /// By character, in either case.
    private let values: [UInt8]

    init(_ text: String) {
        characters = Array(text.utf8)
        precondition(characters.count == 32, "an alphabet has 32 characters")
        var values = [UInt8](repeating: Self.none, count: 256)
        for (value, character) in characters.enumerated() {
            values[Int(character)] = UInt8(value)
            let isLetter = (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(character)
            if isLetter { values[Int(character & ~0x20)] = UInt8(value) }
        }
        self.values = values
    }

    func encode(_ bytes: some Collection<UInt8>) -> String {
        var text: [UInt8] = []
        text.reserveCapacity((bytes.count * 8 + 4) / 5)
        var buffer: UInt32 = 0
        var bits: UInt32 = 0
        for byte in bytes {
            buffer = (buffer << 8) | UInt32(byte)
            bits += 8
            while bits >= 5 {
                bits -= 5
                text.append(characters[Int((buffer >> bits) & 31)])
            }
            buffer &= (1 << bits) - 1
        }
        if bits > 0 { text.append(characters[Int((buffer << (5 - bits)) & 31)]) }
        return String(decoding: text, as: UTF8.self)
    }

    func decode(_ text: some StringProtocol) -> [UInt8]? {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(text.utf8.count * 5 / 8)
        var buffer: UInt32 = 0
        var bits: UInt32 = 0
        for character in text.utf8 {
            let value = values[Int(character)]
            guard value != Self.none else { return nil }
            buffer = (buffer << 5) | UInt32(value)
            bits += 5
            if bits >= 8 {
                bits -= 8
                bytes.append(UInt8(truncatingIfNeeded: buffer >> bits))
                buffer &= (1 << bits) - 1
            }
        }
        guard bits < 5, buffer == 0 else { return nil }
        return bytes
    }
}

extension EndpointID: CustomStringConvertible, LosslessStringConvertible {
    /// 52 characters of lower-case base 32.
    public var description: String { Base32.encode(bytes) }

    public init?(_ description: String) {
        guard let bytes = Base32.decode(description) else { return nil }
        self.init(bytes: bytes)
    }
}
