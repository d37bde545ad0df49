// SPDX-License-Identifier: GPL-2.0-or-later

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), sixteen bytes at a time by tables.
package struct CRC32C: Sendable {
    /// The checksum of all bytes so far.
    package var value: UInt32 { ~state }
    private var state: UInt32

    /// - Parameter seed: the value of an earlier checksum to go on from; zero starts anew.
    package init(seed: UInt32 = 0) { state = ~seed }

    package mutating func update(_ bytes: UnsafeRawBufferPointer) {
        var crc = state
        Self.tables.withUnsafeBufferPointer { table in
            /// The eight bytes of `word`, the last of which is `after` bytes before the end.
            @inline(__always) func slices(_ word: UInt64, after: Int) -> UInt32 {
                table[(after + 7) * 256 + Int(word & 0xff)]
                    ^ table[(after + 6) * 256 + Int((word >> 8) & 0xff)]
                    ^ table[(after + 5) * 256 + Int((word >> 16) & 0xff)]
                    ^ table[(after + 4) * 256 + Int((word >> 24) & 0xff)]
                    ^ table[(after + 3) * 256 + Int((word >> 32) & 0xff)]
                    ^ table[(after + 2) * 256 + Int((word >> 40) & 0xff)]
                    ^ table[(after + 1) * 256 + Int((word >> 48) & 0xff)]
                    ^ table[after * 256 + Int(word >> 56)]
            }
            @inline(__always) func word(at offset: Int) -> UInt64 {
                UInt64(
                    littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
            }
            var offset = 0
            // Only the first word waits for the sixteen bytes before.
            while offset + 16 <= bytes.count {
                crc =
                    slices(word(at: offset) ^ UInt64(crc), after: 8)
                    ^ slices(word(at: offset + 8), after: 0)
                offset += 16
            }
            if offset + 8 <= bytes.count {
                crc = slices(word(at: offset) ^ UInt64(crc), after: 0)
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
        var table = [UInt32](repeating: 0, count: 16 * 256)
        for byte in 0..<256 {
            var crc = UInt32(byte)
            for _ in 0..<8 { crc = crc & 1 == 1 ? (crc >> 1) ^ 0x82f6_3b78 : crc >> 1 }
            table[byte] = crc
        }
        for slice in 1..<16 {
            for byte in 0..<256 {
                let previous = table[(slice - 1) * 256 + byte]
                table[slice * 256 + byte] = (previous >> 8) ^ table[Int(previous & 0xff)]
            }
        }
        return table
    }()
}
