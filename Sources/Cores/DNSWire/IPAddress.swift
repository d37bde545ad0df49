// SPDX-License-Identifier: GPL-2.0-or-later

/// An address of IPv4 or IPv6, without a port and without a scope.
package enum IPAddress: Hashable, Comparable, Sendable {
    case v4(UInt32)
    case v6(UInt128)

    /// - Parameter bytes: 4 or 16 of them, in network order; nil for any other number.
    package init?(bytes: some Collection<UInt8>) {
        switch bytes.count {
        case 4: self = .v4(bytes.reduce(0) { $0 << 8 | UInt32($1) })
        case 16: self = .v6(bytes.reduce(0) { $0 << 8 | UInt128($1) })
        default: return nil
        }
    }

    /// 4 or 16, in network order.
    package var bytes: [UInt8] {
        switch self {
        case .v4(let value): Self.bytes(of: value)
        case .v6(let value): Self.bytes(of: value)
        }
    }

    private static func bytes<Value: FixedWidthInteger>(of value: Value) -> [UInt8] {
        withUnsafeBytes(of: value.bigEndian) { Array($0) }
    }

    package var isV4: Bool {
        if case .v4 = self { true } else { false }
    }

    package var isLoopback: Bool {
        switch self {
        case .v4(let value): value >> 24 == 127
        case .v6(let value): value == 1
        }
    }

    /// 169.254.0.0/16 (RFC 3927), fe80::/10 (RFC 4291): means something on one link only.
    package var isLinkLocal: Bool {
        switch self {
        case .v4(let value): value >> 16 == 0xa9fe
        case .v6(let value): value >> 118 == 0x3fa
        }
    }

    /// Can be the address of one host: neither the unspecified one, nor multicast, nor broadcast.
    package var isUnicast: Bool {
        switch self {
        case .v4(let value): value >> 24 != 0 && value >> 28 < 0xe
        case .v6(let value): value != 0 && value >> 120 != 0xff
        }
    }

    package static func < (left: Self, right: Self) -> Bool {
        switch (left, right) {
        case (.v4(let a), .v4(let b)): a < b
        case (.v6(let a), .v6(let b)): a < b
        case (.v4, .v6): true
        case (.v6, .v4): false
        }
    }
}

/// An address of an interface, with the length of the prefix that its link has.
package struct IPPrefix: Hashable, Sendable {
    package let address: IPAddress
    package let bitCount: Int

    /// - Parameter bitCount: is cut to what the family has.
    package init(_ address: IPAddress, _ bitCount: Int) {
        self.address = address
        self.bitCount = min(max(bitCount, 0), address.isV4 ? 32 : 128)
    }

    package func contains(_ other: IPAddress) -> Bool {
        switch (address, other) {
        case (.v4(let own), .v4(let value)):
            bitCount == 0 || (own ^ value) >> UInt32(32 - bitCount) == 0
        case (.v6(let own), .v6(let value)):
            bitCount == 0 || (own ^ value) >> UInt128(128 - bitCount) == 0
        default: false
        }
    }
}

extension IPAddress: CustomStringConvertible {
    /// "192.0.2.1", "2001:db8::1" (RFC 5952).
    package var description: String {
        switch self {
        case .v4: return bytes.map { String($0) }.joined(separator: ".")
        case .v6(let value):
            let groups = (0..<8).map { UInt16(truncatingIfNeeded: value >> (112 - 16 * $0)) }
            guard let gap = Self.longestGap(groups) else {
                return Self.text(groups[...])
            }
            return Self.text(groups[..<gap.lowerBound]) + "::"
                + Self.text(groups[gap.upperBound...])
        }
    }

    private static func text(_ groups: ArraySlice<UInt16>) -> String {
        groups.map { String($0, radix: 16) }.joined(separator: ":")
    }

    /// The first of the longest runs of two zeros or more.
    private static func longestGap(_ groups: [UInt16]) -> Range<Int>? {
        var best: Range<Int>?
        var start = 0
        while start < groups.count {
            var end = start
            while end < groups.count, groups[end] == 0 { end += 1 }
            if end - start >= 2, end - start > best?.count ?? 0 { best = start..<end }
            start = max(end, start + 1)
        }
        return best
    }

    /// As `description` writes it; IPv6 in any form of RFC 4291 but those with dots and scopes.
    package init?(_ text: some StringProtocol) {
        guard text.utf8.count <= 39 else { return nil }
        if text.contains(":") {
            guard let value = Self.v6(String(text)) else { return nil }
            self = .v6(value)
            return
        }
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 4 else { return nil }
        var value: UInt32 = 0
        for part in parts {
            guard Self.isDigits(part), part.count <= 3, let byte = UInt8(part),
                part.count == 1 || part.first != "0"
            else { return nil }
            value = value << 8 | UInt32(byte)
        }
        self = .v4(value)
    }

    private static func isDigits(_ text: some StringProtocol) -> Bool {
        !text.isEmpty && text.utf8.allSatisfy { $0 >= 48 && $0 <= 57 }
    }

    private static func v6(_ text: String) -> UInt128? {
        guard let gap = firstGap(text) else {
            guard let all = groups(text), all.count == 8 else { return nil }
            return all.reduce(0) { $0 << 16 | UInt128($1) }
        }
        let head = gap.head.isEmpty ? [] : groups(gap.head)
        let tail = gap.tail.isEmpty ? [] : groups(gap.tail)
        guard let head, let tail, head.count + tail.count <= 7 else { return nil }
        let middle = [UInt16](repeating: 0, count: 8 - head.count - tail.count)
        return (head + middle + tail).reduce(0) { $0 << 16 | UInt128($1) }
    }

    private static func firstGap(_ text: String) -> (head: String, tail: String)? {
        let bytes = Array(text.utf8)
        guard bytes.count >= 2,
            let place = (0..<bytes.count - 1).first(where: {
                bytes[$0] == UInt8(ascii: ":") && bytes[$0 + 1] == UInt8(ascii: ":")
            })
        else { return nil }
        return (
            String(decoding: bytes[..<place], as: UTF8.self),
            String(decoding: bytes[(place + 2)...], as: UTF8.self)
        )
    }

    private static func groups(_ text: String) -> [UInt16]? {
        var found: [UInt16] = []
        for part in text.split(separator: ":", omittingEmptySubsequences: false) {
            guard (1...4).contains(part.count), part.first != "+", part.first != "-",
                let group = UInt16(part, radix: 16)
            else { return nil }
            found.append(group)
        }
        return found
    }

    /// With a port, as settings and memberships write it: "192.0.2.1:7700", "[2001:db8::1]:7700".
    package func text(port: UInt16) -> String {
        isV4 ? "\(self):\(port)" : "[\(self)]:\(port)"
    }

    /// Takes apart what `text(port:)` makes.
    package static func parse(_ text: some StringProtocol) -> (address: IPAddress, port: UInt16)? {
        guard let colon = text.lastIndex(of: ":") else { return nil }
        let digits = text[text.index(after: colon)...]
        guard isDigits(digits), let port = UInt16(digits), port > 0 else { return nil }
        let host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") {
            guard let address = IPAddress(host.dropFirst().dropLast()), !address.isV4 else {
                return nil
            }
            return (address, port)
        }
        guard let address = IPAddress(host), address.isV4 else { return nil }
        return (address, port)
    }
}
