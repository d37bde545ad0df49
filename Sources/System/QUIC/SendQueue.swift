// SPDX-License-Identifier: GPL-2.0-or-later

import CNgtcp2
import DequeModule
import NIOCore

/// The bytes of a stream on their way out, from `write` to the acknowledgement.
///
/// ngtcp2 keeps pointers into them until they are acknowledged, so that a chunk never moves and is
/// let go of only then. Large buffers are held as they are; small ones are copied together, so
/// that a thousand small messages do not hold a thousand buffers.
struct SendQueue {
    /// Buffers up to this size are copied into a shared chunk.
    static let copyBytesMax = 2048
    /// Size of a shared chunk.
    static let sharedChunkBytes = 8192

    private struct Chunk {
        let owner: AnyObject
        let base: UnsafePointer<UInt8>
        var count: Int
    }

    /// Memory that grows at its end and never moves.
    private final class SharedMemory {
        let base = UnsafeMutablePointer<UInt8>.allocate(capacity: SendQueue.sharedChunkBytes)
        var count = 0
        var free: Int { SendQueue.sharedChunkBytes - count }
        deinit { base.deallocate() }
    }

    private var chunks = Deque<Chunk>()
    private var shared: SharedMemory?
    /// Stream offset of the first byte of the first chunk.
    private var startOffset: UInt64 = 0
    /// Where the first unsent byte is.
    private var unsentChunk = 0
    private var unsentSkip = 0

    /// Bytes that no packet has carried yet.
    private(set) var unsentBytes = 0
    /// Bytes held: unsent, or sent and not acknowledged.
    private(set) var heldBytes = 0
    /// Bytes of the stream, from its beginning, that have arrived without a gap.
    private(set) var acknowledgedBytes: UInt64 = 0

    /// Bytes of the stream, from its beginning, that were appended.
    var appendedBytes: UInt64 { startOffset + UInt64(heldBytes) }

    mutating func append(_ buffer: ByteBuffer) {
        let count = buffer.readableBytes
        guard count > 0 else { return }
        unsentBytes += count
        heldBytes += count
        if count <= Self.copyBytesMax {
            buffer.withUnsafeReadableBytes { appendCopy($0) }
        } else {
            shared = nil
            buffer.withVeryUnsafeBytesWithStorageManagement { bytes, storage in
                guard let base = bytes.baseAddress else { return }
                let start = base + buffer.readerIndex
                chunks.append(
                    Chunk(
                        owner: storage.takeUnretainedValue(),
                        base: start.assumingMemoryBound(to: UInt8.self), count: count))
            }
        }
    }

    private mutating func appendCopy(_ bytes: UnsafeRawBufferPointer) {
        guard let source = bytes.baseAddress?.assumingMemoryBound(to: UInt8.self) else { return }
        if let shared, shared.free >= bytes.count, !chunks.isEmpty {
            (shared.base + shared.count).update(from: source, count: bytes.count)
            shared.count += bytes.count
            chunks[chunks.count - 1].count += bytes.count
            return
        }
        let fresh = SharedMemory()
        fresh.base.update(from: source, count: bytes.count)
        fresh.count = bytes.count
        shared = fresh
        chunks.append(Chunk(owner: fresh, base: UnsafePointer(fresh.base), count: bytes.count))
    }

    /// Points `vectors` at the unsent bytes.
    /// - Returns: how many vectors are set, and how many bytes they cover.
    func gather(into vectors: UnsafeMutableBufferPointer<ngtcp2_vec>) -> (count: Int, bytes: Int) {
        var used = 0
        var bytes = 0
        var skip = unsentSkip
        var index = unsentChunk
        while index < chunks.count, used < vectors.count {
            let chunk = chunks[index]
            if chunk.count > skip {
                // ngtcp2 only reads through it, its type lacks the const.
                let base = UnsafeMutablePointer(mutating: chunk.base + skip)
                vectors[used] = ngtcp2_vec(base: base, len: chunk.count - skip)
                used += 1
                bytes += chunk.count - skip
            }
            skip = 0
            index += 1
        }
        return (used, bytes)
    }

    /// The first `count` unsent bytes are in a packet now.
    mutating func markSent(_ count: Int) {
        precondition(count <= unsentBytes, "more sent than was there")
        unsentBytes -= count
        var left = count
        while left > 0 {
            let available = chunks[unsentChunk].count - unsentSkip
            if left < available {
                unsentSkip += left
                return
            }
            left -= available
            // A shared chunk may still grow: stay at its end rather than pass it.
            if unsentChunk == chunks.count - 1 {
                unsentSkip = chunks[unsentChunk].count
                return
            }
            unsentChunk += 1
            unsentSkip = 0
        }
    }

    /// All bytes before the stream offset `offset` have arrived.
    mutating func acknowledge(upTo offset: UInt64) {
        acknowledgedBytes = max(acknowledgedBytes, offset)
        while let first = chunks.first {
            let end = startOffset + UInt64(first.count)
            guard end <= offset else { return }
            if unsentChunk == 0 {
                // Acknowledged in full means sent in full.
                precondition(unsentSkip == first.count, "acknowledged before it was sent")
                unsentSkip = 0
            } else {
                unsentChunk -= 1
            }
            startOffset = end
            heldBytes -= first.count
            chunks.removeFirst()
            if chunks.isEmpty { shared = nil }
        }
    }

    /// Forgets what was not sent; what was sent is held until the stream closes.
    mutating func dropUnsent() {
        guard unsentBytes > 0 else { return }
        heldBytes -= unsentBytes
        unsentBytes = 0
        shared = nil
        if unsentChunk < chunks.count {
            let keep = unsentSkip > 0 ? unsentChunk + 1 : unsentChunk
            if unsentSkip > 0 { chunks[unsentChunk].count = unsentSkip }
            chunks.removeLast(chunks.count - keep)
        }
    }

    /// Forgets everything: only when ngtcp2 has closed the stream.
    mutating func removeAll() {
        chunks.removeAll()
        shared = nil
        unsentChunk = 0
        unsentSkip = 0
        unsentBytes = 0
        heldBytes = 0
    }
}
