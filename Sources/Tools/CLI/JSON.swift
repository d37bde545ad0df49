// SPDX-License-Identifier: GPL-2.0-or-later

/// A JSON value (RFC 8259), written compactly with its members in the order given. Small enough to
/// own, so that the program starts without Foundation.
package enum JSON: Equatable {
    case null
    case bool(Bool)
    case number(UInt64)
    /// Written with three digits after the point; not finite is null.
    case decimal(Double)
    case string(String)
    case array([JSON])
    case object([(String, JSON)])

    /// A text if the bytes are UTF-8, else `{"base64": …}` (RFC 4648 section 4, padded).
    package static func bytes(_ bytes: [UInt8]) -> JSON {
        if let text = String(validating: bytes, as: UTF8.self) { return .string(text) }
        return .object([("base64", .string(Base64.encode(bytes)))])
    }

    package var text: String {
        var utf8: [UInt8] = []
        append(to: &utf8)
        return String(decoding: utf8, as: UTF8.self)
    }

    func append(to utf8: inout [UInt8]) {
        switch self {
        case .null: utf8 += "null".utf8
        case .bool(let value): utf8 += (value ? "true" : "false").utf8
        case .number(let value): utf8 += String(value).utf8
        case .decimal(let value): utf8 += Self.decimal(value).utf8
        case .string(let value): Self.append(value, to: &utf8)
        case .array(let elements):
            utf8.append(UInt8(ascii: "["))
            for (position, element) in elements.enumerated() {
                if position > 0 { utf8.append(UInt8(ascii: ",")) }
                element.append(to: &utf8)
            }
            utf8.append(UInt8(ascii: "]"))
        case .object(let members):
            utf8.append(UInt8(ascii: "{"))
            for (position, (name, value)) in members.enumerated() {
                if position > 0 { utf8.append(UInt8(ascii: ",")) }
                Self.append(name, to: &utf8)
                utf8.append(UInt8(ascii: ":"))
                value.append(to: &utf8)
            }
            utf8.append(UInt8(ascii: "}"))
        }
    }

    /// Exact up to 2^53 thousandths; larger ones are written as whole numbers.
    package static func decimal(_ value: Double) -> String {
        guard value.isFinite else { return "null" }
        guard value.magnitude < 9e12 else {
            return value.magnitude < 1e18 ? "\(Int64(value))" : "null"
        }
        let thousandths = Int64((value * 1000).rounded())
        let (whole, rest) = thousandths.magnitude.quotientAndRemainder(dividingBy: 1000)
        let digits = String(rest + 1000).dropFirst()
        return "\(thousandths < 0 ? "-" : "")\(whole).\(digits)"
    }

    private static func append(_ text: String, to utf8: inout [UInt8]) {
        utf8.append(UInt8(ascii: "\""))
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\""): utf8 += #"\""#.utf8
            case UInt8(ascii: "\\"): utf8 += #"\\"#.utf8
            case 0x08: utf8 += #"\b"#.utf8
            case 0x09: utf8 += #"\t"#.utf8
            case 0x0a: utf8 += #"\n"#.utf8
            case 0x0c: utf8 += #"\f"#.utf8
            case 0x0d: utf8 += #"\r"#.utf8
            // DEL is legal in JSON, but nothing a terminal should see.
            case 0..<0x20, 0x7f: utf8 += ("\\u00" + Hex.encode([byte])).utf8
            default: utf8.append(byte)
            }
        }
        utf8.append(UInt8(ascii: "\""))
    }

    package static func == (left: JSON, right: JSON) -> Bool { left.text == right.text }
}

/// Base 64 of RFC 4648 section 4.
enum Base64 {
    private static let alphabet = Array(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    private static let pad = UInt8(ascii: "=")

    static func encode(_ bytes: [UInt8]) -> String {
        var text: [UInt8] = []
        text.reserveCapacity((bytes.count + 2) / 3 * 4)
        for start in stride(from: 0, to: bytes.count, by: 3) {
            let group = bytes[start..<min(start + 3, bytes.count)]
            var word: UInt32 = 0
            for byte in group { word = word << 8 | UInt32(byte) }
            word <<= UInt32(8 * (3 - group.count))
            for position in 0..<4 {
                text.append(
                    position <= group.count
                        ? alphabet[Int(word >> UInt32(18 - 6 * position)) & 63] : pad)
            }
        }
        return String(decoding: text, as: UTF8.self)
    }

    /// - Returns: nil for a foreign character, a wrong length or non-zero bits at the end. Padding
    ///   may be left out.
    static func decode(_ text: String) -> [UInt8]? {
        var digits = Array(text.utf8)
        while digits.last == pad, digits.count % 4 == 0 || text.utf8.count % 4 == 0 {
            digits.removeLast()
        }
        guard text.utf8.count - digits.count <= 2, digits.count % 4 != 1 else { return nil }
        var bytes: [UInt8] = []
        var word: UInt32 = 0
        var bits = 0
        for digit in digits {
            guard let value = alphabet.firstIndex(of: digit) else { return nil }
            word = word << 6 | UInt32(value)
            bits += 6
            if bits >= 8 {
                bits -= 8
                bytes.append(UInt8(truncatingIfNeeded: word >> UInt32(bits)))
                word &= (1 << UInt32(bits)) - 1
            }
        }
        return word == 0 ? bytes : nil
    }
}

/// Two lower-case digits a byte; decoding takes either case.
enum Hex {
    private static let digits = Array("0123456789abcdef".utf8)

    static func encode(_ bytes: some Collection<UInt8>) -> String {
        String(
            decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] },
            as: UTF8.self)
    }

    static func decode(_ text: String) -> [UInt8]? {
        let nibbles = text.utf8.map { byte -> UInt8? in
            switch byte {
            case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
            case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
            case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
            default: nil
            }
        }
        guard nibbles.count % 2 == 0 else { return nil }
        var bytes: [UInt8] = []
        for start in stride(from: 0, to: nibbles.count, by: 2) {
            guard let high = nibbles[start], let low = nibbles[start + 1] else { return nil }
            bytes.append(high << 4 | low)
        }
        return bytes
    }
}
