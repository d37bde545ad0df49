// SPDX-License-Identifier: GPL-2.0-or-later

/// Appends little-endian integers and length-prefixed byte strings to an array.
package struct ByteWriter {
    package var bytes: [UInt8]

    package init(capacity: Int = 0) {
        bytes = []
        bytes.reserveCapacity(capacity)
    }

    // One for each width and kind of bytes: see `ByteReader.integer`.

    package mutating func integer(_ value: UInt16) { littleEndian(value) }
    package mutating func integer(_ value: UInt32) { littleEndian(value) }
    package mutating func integer(_ value: UInt64) { littleEndian(value) }
    package mutating func integer(_ value: UInt128) { littleEndian(value) }

    @inline(__always)
    private mutating func littleEndian<Value: FixedWidthInteger>(_ value: Value) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    package mutating func byte(_ value: UInt8) { bytes.append(value) }

    package mutating func flag(_ value: Bool) { bytes.append(value ? 1 : 0) }

    package mutating func raw(_ value: [UInt8]) { bytes.append(contentsOf: value) }
    package mutating func raw(_ value: ArraySlice<UInt8>) { bytes.append(contentsOf: value) }

    /// A 32-bit length, then the bytes.
    package mutating func blob(_ value: [UInt8]) {
        integer(UInt32(value.count))
        bytes.append(contentsOf: value)
    }

    /// A 32-bit length, then the bytes.
    package mutating func blob(_ value: ArraySlice<UInt8>) {
        integer(UInt32(value.count))
        bytes.append(contentsOf: value)
    }

    /// A 32-bit length in bytes, then UTF-8.
    package mutating func string(_ value: String) {
        var value = value
        value.withUTF8 { text in
            integer(UInt32(text.count))
            bytes.append(contentsOf: text)
        }
    }
}
