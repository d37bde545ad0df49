// SPDX-License-Identifier: GPL-2.0-or-later

/// A domain name (RFC 1035 section 3.1): labels of 1 to 63 bytes, 255 bytes with their lengths. Names that
/// differ in the case of ASCII letters are the same (RFC 4343).
package struct DNSName: Sendable {
    /// Lengths and labels, with the zero at the end, without compression.
    package let wire: [UInt8]
    /// `wire` in lower case: what counts when names are compared.
    let folded: [UInt8]

    package static let bytesMax = 255
    package static let labelBytesMax = 63
    package static let root = DNSName(wire: [0])

    /// - Parameter wire: has been checked.
    init(wire: [UInt8]) {
        self.wire = wire
        folded = wire.map(Self.fold)
    }

    /// Lengths are below 64, so that no length is taken for a letter.
    private static func fold(_ byte: UInt8) -> UInt8 {
        byte >= UInt8(ascii: "A") && byte <= UInt8(ascii: "Z") ? byte | 0x20 : byte
    }

    /// - Returns: nil for an empty or too long label, or too many of them.
    package init?(labels: [[UInt8]]) {
        var wire: [UInt8] = []
        for label in labels {
            guard (1...Self.labelBytesMax).contains(label.count) else { return nil }
            wire.append(UInt8(label.count))
            wire += label
        }
        wire.append(0)
        guard wire.count <= Self.bytesMax else { return nil }
        self.init(wire: wire)
    }

    /// "a.example", with or without a dot at the end; a dot is always the end of a label.
    package init?(_ text: String) {
        var labels = text.utf8.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false)
        if labels.last?.isEmpty == true { labels.removeLast() }
        self.init(labels: labels.map(Array.init))
    }

    /// One more label in front; nil when that is too long.
    package func child(_ label: [UInt8]) -> DNSName? { DNSName(labels: [label] + labels) }

    package var labels: [[UInt8]] {
        var found: [[UInt8]] = []
        var place = 0
        while wire[place] != 0 {
            let end = place + 1 + Int(wire[place])
            found.append(Array(wire[place + 1..<end]))
            place = end
        }
        return found
    }

    package var firstLabel: [UInt8] { Array(wire[1..<1 + Int(wire[0])]) }

    /// Without the first label; the root has none.
    package var parent: DNSName? {
        wire[0] == 0 ? nil : DNSName(wire: Array(wire[(1 + Int(wire[0]))...]))
    }
}

extension DNSName: Hashable, Comparable {
    package static func == (left: Self, right: Self) -> Bool { left.folded == right.folded }
    package func hash(into hasher: inout Hasher) { hasher.combine(folded) }
    package static func < (left: Self, right: Self) -> Bool {
        left.folded.lexicographicallyPrecedes(right.folded)
    }
}

extension DNSName: CustomStringConvertible {
    /// With a dot behind each label; what is no letter, digit, hyphen or underscore as `\DDD`.
    package var description: String {
        if wire[0] == 0 { return "." }
        var text = ""
        for label in labels {
            for byte in label {
                switch byte {
                case 48...57, 65...90, 97...122, UInt8(ascii: "-"), UInt8(ascii: "_"):
                    text.unicodeScalars.append(Unicode.Scalar(byte))
                default:
                    let digits = String(byte)
                    text += "\\" + String(repeating: "0", count: 3 - digits.count) + digits
                }
            }
            text += "."
        }
        return text
    }
}
