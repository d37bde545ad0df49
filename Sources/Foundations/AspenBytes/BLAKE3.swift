// SPDX-License-Identifier: GPL-2.0-or-later

/// BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020) of bytes that are all at hand, with its
/// default length of 32 bytes.
///
/// Portable code for names and keys of some hundred bytes; the four words of a row are one vector.
/// 0.3 us a block of 64 bytes.
package enum BLAKE3 {
    /// Bytes of a hash, and of a key.
    package static let byteCount = 32

    /// The hash of `bytes`.
    package static func hash(_ bytes: some Collection<UInt8>) -> [UInt8] {
        Tree(key: iv, flags: 0).root(Array(bytes)).bytes
    }

    /// A key made out of key material, for one purpose.
    ///
    /// - Parameters:
    ///   - context: names the purpose: a constant of the program, used for nothing else.
    ///   - material: secret bytes of any length.
    package static func deriveKey(
        context: StaticString, material: some Collection<UInt8>
    ) -> [UInt8] {
        let name = context.withUTF8Buffer { Array($0) }
        let key = Tree(key: iv, flags: Flags.deriveKeyContext).root(name)
        return Tree(key: key, flags: Flags.deriveKeyMaterial).root(Array(material)).bytes
    }

    typealias Row = SIMD4<UInt32>

    /// Eight words: a chaining value, a key, a hash.
    struct Words {
        var low: Row
        var high: Row

        var bytes: [UInt8] {
            var writer = ByteWriter(capacity: byteCount)
            for row in [low, high] {
                for place in 0..<4 { writer.integer(row[place]) }
            }
            return writer.bytes
        }
    }

    private static let iv = Words(
        low: Row(0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a),
        high: Row(0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19))

    enum Flags {
        static let chunkStart: UInt32 = 1
        static let chunkEnd: UInt32 = 2
        static let parent: UInt32 = 4
        static let root: UInt32 = 8
        static let deriveKeyContext: UInt32 = 32
        static let deriveKeyMaterial: UInt32 = 64
    }

    // MARK: - The tree

    /// Chunks of 1,024 bytes, and above them a binary tree whose left sides are full.
    private struct Tree {
        static let chunkByteCount = 1024
        static let blockByteCount = 64
        let key: Words
        let flags: UInt32

        func root(_ bytes: [UInt8]) -> Words {
            node(bytes[...], counter: 0, Flags.root)
        }

        /// The value over `bytes`, whose first chunk has the number `counter`.
        private func node(
            _ bytes: ArraySlice<UInt8>, counter: UInt64, _ rootFlag: UInt32
        ) -> Words {
            guard bytes.count > Self.chunkByteCount else {
                return chunk(bytes, counter: counter, rootFlag)
            }
            let chunks = (bytes.count - 1) / Self.chunkByteCount
            let leftChunks = 1 << (Int.bitWidth - 1 - chunks.leadingZeroBitCount)
            let middle = bytes.startIndex + leftChunks * Self.chunkByteCount
            let left = node(bytes[..<middle], counter: counter, 0)
            let right = node(bytes[middle...], counter: counter + UInt64(leftChunks), 0)
            let message: [Row] = [left.low, left.high, right.low, right.high]
            return compress(
                key, words(of: message), counter: 0, length: UInt32(Self.blockByteCount),
                flags: flags | Flags.parent | rootFlag)
        }

        private func chunk(
            _ bytes: ArraySlice<UInt8>, counter: UInt64, _ rootFlag: UInt32
        ) -> Words {
            var value = key
            var place = bytes.startIndex
            var isFirst = true
            repeat {
                let end = min(place + Self.blockByteCount, bytes.endIndex)
                let isLast = end == bytes.endIndex
                var blockFlags = flags
                if isFirst { blockFlags |= Flags.chunkStart }
                if isLast { blockFlags |= Flags.chunkEnd | rootFlag }
                value = compress(
                    value, words(of: bytes[place..<end]), counter: counter,
                    length: UInt32(end - place), flags: blockFlags)
                isFirst = false
                place = end
            } while place < bytes.endIndex
            return value
        }

        private func words(of rows: [Row]) -> SIMD16<UInt32> {
            var words = SIMD16<UInt32>()
            for place in 0..<16 { words[place] = rows[place / 4][place % 4] }
            return words
        }

        /// A block, filled up with zeros.
        private func words(of block: ArraySlice<UInt8>) -> SIMD16<UInt32> {
            var words = SIMD16<UInt32>()
            withUnsafeMutableBytes(of: &words) { target in
                block.withUnsafeBytes { target.copyMemory(from: $0) }
            }
            for place in 0..<16 { words[place] = UInt32(littleEndian: words[place]) }
            return words
        }
    }

    // MARK: - The compression function

    /// Which word of a round's message becomes which of the next round's.
    private static let permutation = SIMD16<UInt8>(
        2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)

    private static func compress(
        _ value: Words, _ block: SIMD16<UInt32>, counter: UInt64, length: UInt32, flags: UInt32
    ) -> Words {
        var a = value.low
        var b = value.high
        var c = iv.low
        var d = Row(
            UInt32(truncatingIfNeeded: counter), UInt32(truncatingIfNeeded: counter >> 32), length,
            flags)
        var m = block
        for round in 0..<7 {
            mix(&a, &b, &c, &d, Row(m[0], m[2], m[4], m[6]), Row(m[1], m[3], m[5], m[7]))
            b = Row(b[1], b[2], b[3], b[0])
            c = Row(c[2], c[3], c[0], c[1])
            d = Row(d[3], d[0], d[1], d[2])
            mix(&a, &b, &c, &d, Row(m[8], m[10], m[12], m[14]), Row(m[9], m[11], m[13], m[15]))
            b = Row(b[3], b[0], b[1], b[2])
            c = Row(c[2], c[3], c[0], c[1])
            d = Row(d[1], d[2], d[3], d[0])
            guard round < 6 else { break }
            var next = SIMD16<UInt32>()
            for place in 0..<16 { next[place] = m[Int(permutation[place])] }
            m = next
        }
        return Words(low: a ^ c, high: b ^ d)
    }

    @inline(__always)
    private static func mix(
        _ a: inout Row, _ b: inout Row, _ c: inout Row, _ d: inout Row, _ x: Row, _ y: Row
    ) {
        a = a &+ b &+ x
        d = rotated(d ^ a, 16)
        c = c &+ d
        b = rotated(b ^ c, 12)
        a = a &+ b &+ y
        d = rotated(d ^ a, 8)
        c = c &+ d
        b = rotated(b ^ c, 7)
    }

    @inline(__always)
    private static func rotated(_ row: Row, _ count: UInt32) -> Row {
        (row &>> count) | (row &<< (32 - count))
    }
}
