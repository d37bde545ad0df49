// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import Glibc

/// A whole segment in memory, for recovery.
///
/// Most of a segment is often zeros that nobody has written to yet. Memory for those is never
/// touched: a daemon that was killed is missed, and on some machines the page faults of 4 MiB cost
/// it thirty milliseconds.
final class SegmentContent {
    /// Less than the allocator gives back to the system with each block (1 MiB).
    private static let pieceByteCount = 65_536

    private let memory: SegmentMemory
    private let bytes: UnsafeRawBufferPointer
    /// Behind this there are zeros alone.
    let writtenEnd: Int

    /// - Parameters:
    ///   - byteCount: as the file says; fewer bytes are no error if the file ends there.
    ///   - memory: of a content that is not used any more.
    init(
        of file: any DiskFile, byteCount: Int, in memory: SegmentMemory? = nil
    ) throws(DiskError) {
        let memory =
            if let memory, memory.byteCount >= byteCount { memory } else {
                try SegmentMemory(byteCount: byteCount)
            }
        var (end, writtenEnd) = (0, 0)
        while end < byteCount {
            let piece = try file.read(
                at: UInt64(end), count: min(Self.pieceByteCount, byteCount - end))
            if piece.isEmpty { break }
            piece.withUnsafeBytes { source in
                guard let start = source.baseAddress, !Self.isZero(source) else {
                    return memory.clear(end, source.count)
                }
                memory.put(start, source.count, at: end)
                writtenEnd = end + source.count
            }
            end += piece.count
        }
        self.memory = memory
        bytes = memory.bytes(end)
        self.writtenEnd = writtenEnd
    }

    /// To be used again, once this content is not used any more.
    var reusable: SegmentMemory { memory }

    /// All of the segment.
    func withBytes<Result>(_ body: (UnsafeRawBufferPointer) -> Result) -> Result {
        withExtendedLifetime(self) { body(bytes) }
    }

    private static func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard let start = bytes.baseAddress, bytes[0] == 0 else { return bytes.isEmpty }
        return memcmp(start, start + 1, bytes.count - 1) == 0
    }
}

/// Where the content of a segment lies, of one after the other: pages that have been touched need not be
/// made by the kernel again.
final class SegmentMemory {
    let byteCount: Int
    private let region: UnsafeMutableRawPointer
    /// Behind this nothing has ever been put.
    private var usedEnd = 0

    init(byteCount: Int) throws(DiskError) {
        self.byteCount = max(byteCount, 1)
        // From calloc, which leaves fresh pages alone.
        guard let region = calloc(self.byteCount, 1) else {
            throw DiskError(.io, operation: "memory for a segment", errno: ENOMEM)
        }
        self.region = region
    }

    deinit { free(region) }

    func put(_ source: UnsafeRawPointer, _ count: Int, at offset: Int) {
        memcpy(region + offset, source, count)
        usedEnd = max(usedEnd, offset + count)
    }

    /// Makes that part zeros.
    func clear(_ offset: Int, _ count: Int) {
        guard offset < usedEnd else { return }
        memset(region + offset, 0, min(count, usedEnd - offset))
    }

    func bytes(_ count: Int) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: region, count: count)
    }
}
