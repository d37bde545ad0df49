// SPDX-License-Identifier: GPL-2.0-or-later

/// Why bytes could not be understood. Decoders are total: they return a value or throw one of these.
package enum DecodeError: Error, Equatable, Sendable {
    /// The input ended before the field `field` was complete.
    case truncated(field: StaticStringName)
    /// A length, count or number is beyond its limit.
    case outOfRange(field: StaticStringName)
    /// A tag or enumeration value is unknown.
    case unknown(field: StaticStringName)
    /// Bytes were left over.
    case trailing(count: Int)
    /// A checksum does not match.
    case checksum
    /// A text is not valid (UTF-8, base32).
    case malformed(field: StaticStringName)
}

/// A field name in an error: a literal, so that no input ever ends up in an error by accident.
package struct StaticStringName: Equatable, Sendable, ExpressibleByStringLiteral,
    CustomStringConvertible
{
    private let literal: StaticString
    package init(stringLiteral value: StaticString) { literal = value }
    package var description: String { "\(literal)" }

    package static func == (left: Self, right: Self) -> Bool {
        left.description == right.description
    }
}

/// Reads what `ByteWriter` wrote, never past the end, never trusting a length.
package struct ByteReader {
    package let bytes: ArraySlice<UInt8>
    package private(set) var position: Int

    package init(_ bytes: [UInt8]) { self.init(bytes[...]) }

    package init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        position = bytes.startIndex
    }

    package var remaining: Int { bytes.endIndex - position }

    // One for each width, and not a generic one: that would be called unspecialised from other modules,
    // which made half of the work of decoding.

    package mutating func integer(
        _ field: StaticStringName, as type: UInt16.Type = UInt16.self
    ) throws(DecodeError) -> UInt16 {
        try littleEndian(field)
    }

    package mutating func integer(
        _ field: StaticStringName, as type: UInt32.Type = UInt32.self
    ) throws(DecodeError) -> UInt32 {
        try littleEndian(field)
    }

    package mutating func integer(
        _ field: StaticStringName, as type: UInt64.Type = UInt64.self
    ) throws(DecodeError) -> UInt64 {
        try littleEndian(field)
    }

    package mutating func integer(
        _ field: StaticStringName, as type: UInt128.Type = UInt128.self
    ) throws(DecodeError) -> UInt128 {
        try littleEndian(field)
    }

    @inline(__always)
    private mutating func littleEndian<Value: FixedWidthInteger>(
        _ field: StaticStringName
    ) throws(DecodeError) -> Value {
        let width = Value.bitWidth / 8
        guard remaining >= width else { throw .truncated(field: field) }
        defer { position += width }
        let offset = position - bytes.startIndex
        return bytes.withUnsafeBytes {
            Value(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: Value.self))
        }
    }

    package mutating func byte(_ field: StaticStringName) throws(DecodeError) -> UInt8 {
        guard remaining >= 1 else { throw .truncated(field: field) }
        defer { position += 1 }
        return bytes[position]
    }

    /// Zero or one; any other byte is an error, so that each value has one encoding.
    package mutating func flag(_ field: StaticStringName) throws(DecodeError) -> Bool {
        switch try byte(field) {
        case 0: return false
        case 1: return true
        default: throw .unknown(field: field)
        }
    }

    package mutating func raw(
        _ count: Int, _ field: StaticStringName
    ) throws(DecodeError) -> ArraySlice<UInt8> {
        guard count >= 0, remaining >= count else { throw .truncated(field: field) }
        defer { position += count }
        return bytes[position..<position + count]
    }

    /// A byte string with a 32-bit length of at most `max`.
    package mutating func blob(
        _ field: StaticStringName, max: Int
    ) throws(DecodeError) -> [UInt8] {
        let count: UInt32 = try integer(field)
        guard count <= max else { throw .outOfRange(field: field) }
        return Array(try raw(Int(count), field))
    }

    package mutating func string(
        _ field: StaticStringName, max: Int
    ) throws(DecodeError) -> String {
        let bytes = try blob(field, max: max)
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw .malformed(field: field)
        }
        return text
    }

    /// A 32-bit element count of at most `max`; also refused when fewer than `elementBytesMin`
    /// bytes an element are left, so that a hostile count never reserves memory.
    package mutating func count(
        _ field: StaticStringName, max: Int, elementBytesMin: Int = 1
    ) throws(DecodeError) -> Int {
        let count: UInt32 = try integer(field)
        guard count <= max else { throw .outOfRange(field: field) }
        guard Int(count) * elementBytesMin <= remaining else { throw .truncated(field: field) }
        return Int(count)
    }

    /// Call last: anything left over is an error.
    package func end() throws(DecodeError) {
        guard remaining == 0 else { throw .trailing(count: remaining) }
    }
}
