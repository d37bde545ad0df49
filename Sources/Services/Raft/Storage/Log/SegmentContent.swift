// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import Glibc

/// A whole segment in memory, for recovery.
///
/// Most of a segment is often zeros that nobody has written to yet. Memory for those is never
/// touched: a daemon that was killed is missed, and on some machines the page faults of 8 MiB cost
/// it thirty milliseconds.
final class SegmentContent {
    /// Less than the allocator gives back to the system with each block (1 MiB).
    private static let pieceByteCount = 65_536

    private let bytes: UnsafeRawBufferPointer
    /// Behind this there are zeros alone.
    let writtenEnd: Int

    /// - Parameter byteCount: as the file says; fewer bytes are no error if the file ends there.
    init(of file: any DiskFile, byteCount: Int) throws(DiskError) {
        // From calloc, which leaves fresh pages alone.
        guard let region = calloc(max(byteCount, 1), 1) else {
            throw DiskError(.io, operation: "memory for a segment", errno: ENOMEM)
        }
        var (end, writtenEnd) = (0, 0)
        do throws(DiskError) {
            while end < byteCount {
                let piece = try file.read(
                    at: UInt64(end), count: min(Self.pieceByteCount, byteCount - end))
                if piece.isEmpty { break }
                piece.withUnsafeBytes { source in
                    guard let start = source.baseAddress, !Self.isZero(source) else { return }
                    memcpy(region + end, start, source.count)
                    writtenEnd = end + source.count
                }
                end += piece.count
            }
        } catch {
            free(region)
            throw error
        }
        bytes = UnsafeRawBufferPointer(start: region, count: end)
        self.writtenEnd = writtenEnd
    }

    deinit { free(UnsafeMutableRawPointer(mutating: bytes.baseAddress)) }

    /// All of the segment.
    func withBytes<Result>(_ body: (UnsafeRawBufferPointer) -> Result) -> Result {
        withExtendedLifetime(self) { body(bytes) }
    }

    private static func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard let start = bytes.baseAddress, bytes[0] == 0 else { return bytes.isEmpty }
        return memcmp(start, start + 1, bytes.count - 1) == 0
    }
}
