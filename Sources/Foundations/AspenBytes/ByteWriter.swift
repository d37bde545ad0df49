// SPDX-License-Identifier: GPL-2.0-or-later

/// Appends little-endian integers and length-prefixed byte strings to an array.
package struct ByteWriter {
    package var bytes: [UInt8]

    package init(capacity: Int = 0) {
        bytes = []
        bytes.reserveCapacity(capacity)
    }

    @inlinable
    package mutating func integer<Value: FixedWidthInteger>(_ value: Value) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    @inlinable
    package mutating func byte(_ value: UInt8) { bytes.append(value) }

    @inlinable
    package mutating func flag(_ value: Bool) { bytes.append(value ? 1 : 0) }

    @inlinable
    package mutating func raw(_ value: some Collection<UInt8>) { bytes.append(contentsOf: value) }

    /// A 32-bit length, then the bytes.
    @inlinable
    package mutating func blob(_ value: some Collection<UInt8>) {
        integer(UInt32(value.count))
        bytes.append(contentsOf: value)
    }

    /// A 32-bit length in bytes, then UTF-8.
    package mutating func string(_ value: String) { blob(Array(value.utf8)) }
}
