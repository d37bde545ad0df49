// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Base 32 of RFC 4648 section 6, lower case, without padding; decoding takes either case.
public enum Base32 {
    private static let alphabet = Array("abcdefghijklmnopqrstuvwxyz234567".utf8)

    public static func encode(_ bytes: some Collection<UInt8>) -> String {
        var text: [UInt8] = []
        text.reserveCapacity((bytes.count * 8 + 4) / 5)
        var buffer: UInt32 = 0
        var bits: UInt32 = 0
        for byte in bytes {
            buffer = (buffer << 8) | UInt32(byte)
            bits += 8
            while bits >= 5 {
                bits -= 5
                text.append(alphabet[Int((buffer >> bits) & 31)])
            }
            buffer &= (1 << bits) - 1
        }
        if bits > 0 { text.append(alphabet[Int((buffer << (5 - bits)) & 31)]) }
        return String(decoding: text, as: UTF8.self)
    }

    /// - Returns: nil for a foreign character, an impossible length, or non-zero bits at the end,
    ///   so that each byte string has one text.
    public static func decode(_ text: some StringProtocol) -> [UInt8]? {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(text.utf8.count * 5 / 8)
        var buffer: UInt32 = 0
        var bits: UInt32 = 0
        for character in text.utf8 {
            let value: UInt32
            switch character {
            case UInt8(ascii: "a")...UInt8(ascii: "z"):
                value = UInt32(character - UInt8(ascii: "a"))
            case UInt8(ascii: "A")...UInt8(ascii: "Z"):
                value = UInt32(character - UInt8(ascii: "A"))
            case UInt8(ascii: "2")...UInt8(ascii: "7"):
                value = UInt32(character - UInt8(ascii: "2")) + 26
            default: return nil
            }
            buffer = (buffer << 5) | value
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
