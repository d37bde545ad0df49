// SPDX-License-Identifier: GPL-2.0-or-later

/// Mends a small checked text of which one bit has flipped.
package enum OneBit {
    /// What `parse` makes of `bytes`, or of the first content that differs from them in one bit and
    /// that it accepts; nil if there is none. `parse` has to verify a checksum, which makes a
    /// wrong guess as unlikely as a checksum that fits by chance, once for each bit.
    ///
    /// - Complexity: eight calls of `parse` a byte.
    package static func mending<Value>(
        _ bytes: [UInt8], _ parse: ([UInt8]) -> Value?
    ) -> (value: Value, isMended: Bool)? {
        if let value = parse(bytes) { return (value, false) }
        var changed = bytes
        for place in bytes.indices {
            for bit in 0..<8 {
                changed[place] = bytes[place] ^ (1 << UInt8(bit))
                if let value = parse(changed) { return (value, true) }
            }
            changed[place] = bytes[place]
        }
        return nil
    }
}
