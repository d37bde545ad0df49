// SPDX-License-Identifier: GPL-2.0-or-later

/// An ordered map: a sorted array cut into chunks. Look-up is two binary searches, insertion moves
/// at most one chunk, and a copy shares all chunks until one of them changes, which is what a
/// snapshot needs.
package struct SortedMap<Key, Value> {
    fileprivate struct Chunk {
        var keys: [Key]
        var values: [Value]
    }

    /// Where an element is; invalid after any change.
    package struct Position {
        fileprivate var chunk: Int
        fileprivate var offset: Int
    }

    private let chunkCountMax = KVBounds.current.chunkCountMax

    /// No chunk is empty.
    private var chunks: [Chunk] = []
    package private(set) var count = 0
    private let precedes: @Sendable (Key, Key) -> Bool

    package init(by precedes: @escaping @Sendable (Key, Key) -> Bool) { self.precedes = precedes }

    package subscript(key: Key) -> Value? {
        guard let position = lowerBound(key), isEqual(position, key) else { return nil }
        return value(at: position)
    }

    /// The first element that does not precede `key`; nil if all do.
    package func lowerBound(_ key: Key) -> Position? {
        guard let chunk = firstChunk(notBefore: key) else { return nil }
        return Position(chunk: chunk, offset: offset(of: key, in: chunk))
    }

    package var first: Position? { count == 0 ? nil : Position(chunk: 0, offset: 0) }

    package func after(_ position: Position) -> Position? {
        if position.offset + 1 < chunks[position.chunk].keys.count {
            return Position(chunk: position.chunk, offset: position.offset + 1)
        }
        return position.chunk + 1 < chunks.count
            ? Position(chunk: position.chunk + 1, offset: 0) : nil
    }

    package var last: Position? {
        chunks.last.map { Position(chunk: chunks.count - 1, offset: $0.keys.count - 1) }
    }

    package func before(_ position: Position) -> Position? {
        if position.offset > 0 {
            return Position(chunk: position.chunk, offset: position.offset - 1)
        }
        guard position.chunk > 0 else { return nil }
        return Position(
            chunk: position.chunk - 1, offset: chunks[position.chunk - 1].keys.count - 1)
    }

    /// The last element that precedes `key`; nil if none does.
    package func last(before key: Key) -> Position? {
        guard let position = lowerBound(key) else { return last }
        return before(position)
    }

    package func key(at position: Position) -> Key { chunks[position.chunk].keys[position.offset] }

    package func value(at position: Position) -> Value {
        chunks[position.chunk].values[position.offset]
    }

    /// Adds or replaces; returns what was there.
    @discardableResult
    package mutating func set(_ key: Key, _ value: Value) -> Value? {
        guard !chunks.isEmpty else {
            chunks.append(Chunk(keys: [key], values: [value]))
            count = 1
            return nil
        }
        // A key above all others goes to the end of the last chunk.
        let chunk = firstChunk(notBefore: key) ?? chunks.count - 1
        let offset = offset(of: key, in: chunk)
        if offset < chunks[chunk].keys.count, !precedes(key, chunks[chunk].keys[offset]) {
            let old = chunks[chunk].values[offset]
            chunks[chunk].values[offset] = value
            return old
        }
        chunks[chunk].keys.insert(key, at: offset)
        chunks[chunk].values.insert(value, at: offset)
        count += 1
        if chunks[chunk].keys.count > chunkCountMax { split(chunk, at: offset) }
        return nil
    }

    @discardableResult
    package mutating func remove(_ key: Key) -> Value? {
        guard let position = lowerBound(key), isEqual(position, key) else { return nil }
        chunks[position.chunk].keys.remove(at: position.offset)
        let value = chunks[position.chunk].values.remove(at: position.offset)
        if chunks[position.chunk].keys.isEmpty { chunks.remove(at: position.chunk) }
        count -= 1
        return value
    }

    // MARK: Search

    private func isEqual(_ position: Position, _ key: Key) -> Bool {
        !precedes(key, chunks[position.chunk].keys[position.offset])
    }

    /// The first chunk whose last key does not precede `key`.
    private func firstChunk(notBefore key: Key) -> Int? {
        var low = 0
        var high = chunks.count
        while low < high {
            let middle = (low + high) / 2
            let keys = chunks[middle].keys
            if precedes(keys[keys.count - 1], key) { low = middle + 1 } else { high = middle }
        }
        return low < chunks.count ? low : nil
    }

    private func offset(of key: Key, in chunk: Int) -> Int {
        var low = 0
        var high = chunks[chunk].keys.count
        while low < high {
            let middle = (low + high) / 2
            if precedes(chunks[chunk].keys[middle], key) { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// Halves a chunk; one that grows at its end keeps nearly all, so that keys that come in order
    /// fill their chunks.
    private mutating func split(_ chunk: Int, at offset: Int) {
        let count = chunks[chunk].keys.count
        let cut = offset == count - 1 ? count - 1 : count / 2
        let upper = Chunk(
            keys: Array(chunks[chunk].keys[cut...]), values: Array(chunks[chunk].values[cut...]))
        chunks[chunk].keys.removeSubrange(cut...)
        chunks[chunk].values.removeSubrange(cut...)
        chunks.insert(upper, at: chunk + 1)
    }
}

extension SortedMap: Sendable where Key: Sendable, Value: Sendable {}
extension SortedMap.Chunk: Sendable where Key: Sendable, Value: Sendable {}

/// The order of keys: bytewise, a prefix before what it is a prefix of.
package func bytesPrecede(_ left: [UInt8], _ right: [UInt8]) -> Bool {
    left.withUnsafeBytes { a in
        right.withUnsafeBytes { b in
            let count = min(a.count, b.count)
            var position = 0
            while position + 8 <= count {
                let x = a.loadUnaligned(fromByteOffset: position, as: UInt64.self)
                let y = b.loadUnaligned(fromByteOffset: position, as: UInt64.self)
                if x != y { return x.bigEndian < y.bigEndian }
                position += 8
            }
            while position < count {
                if a[position] != b[position] { return a[position] < b[position] }
                position += 1
            }
            return a.count < b.count
        }
    }
}
