// SPDX-License-Identifier: GPL-2.0-or-later

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), eight bytes at a time by tables.
package struct CRC32C: Sendable {
    /// The checksum of all bytes so far.
    package var value: UInt32 { ~state }
    private var state: UInt32

    /// - Parameter seed: the value of an earlier checksum to go on from; zero starts anew.
    package init(seed: UInt32 = 0) { state = ~seed }

    package mutating func update(_ bytes: UnsafeRawBufferPointer) {
        var crc = state
        Self.tables.withUnsafeBufferPointer { table in
            var offset = 0
            while offset + 8 <= bytes.count {
                let word =
                    UInt64(
                        littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
                    ^ UInt64(crc)
                crc =
                    table[7 * 256 + Int(word & 0xff)]
                    ^ table[6 * 256 + Int((word >> 8) & 0xff)]
                    ^ table[5 * 256 + Int((word >> 16) & 0xff)]
                    ^ table[4 * 256 + Int((word >> 24) & 0xff)]
                    ^ table[3 * 256 + Int((word >> 32) & 0xff)]
                    ^ table[2 * 256 + Int((word >> 40) & 0xff)]
                    ^ table[1 * 256 + Int((word >> 48) & 0xff)]
                    ^ table[Int(word >> 56)]
                offset += 8
            }
            while offset < bytes.count {
                crc = table[Int((crc ^ UInt32(bytes[offset])) & 0xff)] ^ (crc >> 8)
                offset += 1
            }
        }
        state = crc
    }

    package mutating func update(_ bytes: some Sequence<UInt8>) {
        let done: Void? = bytes.withContiguousStorageIfAvailable {
            update(UnsafeRawBufferPointer($0))
        }
        if done == nil { update(Array(bytes)) }
    }

    package mutating func update<Value: FixedWidthInteger>(integer value: Value) {
        withUnsafeBytes(of: value.littleEndian) { update($0) }
    }

    package static func of(_ bytes: some Sequence<UInt8>) -> UInt32 {
        var crc = CRC32C()
        crc.update(bytes)
        return crc.value
    }

    private static let tables: [UInt32] = {
        var table = [UInt32](repeating: 0, count: 8 * 256)
        for byte in 0..<256 {
            var crc = UInt32(byte)
            for _ in 0..<8 { crc = crc & 1 == 1 ? (crc >> 1) ^ 0x82f6_3b78 : crc >> 1 }
            table[byte] = crc
        }
        for slice in 1..<8 {
            for byte in 0..<256 {
                let previous = table[(slice - 1) * 256 + byte]
                table[slice * 256 + byte] = (previous >> 8) ^ table[Int(previous & 0xff)]
            }
        }
        return table
    }()
}
