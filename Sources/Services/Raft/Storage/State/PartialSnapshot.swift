// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenVFS
import Glibc

/// The bytes of a snapshot as far as they have come, in a file that outlives this process: should it
/// end in the middle, the same transfer goes on behind them instead of beginning anew.
///
/// Nothing here is synced. After a power cut bytes may be missing or wrong: the checksum of the
/// stream finds that out, and the snapshot is then sent from its beginning.
package final class PartialSnapshot {
    static let fileName = "snapshot.partial"
    private static let magic: UInt64 = 0x3150_5341_4e45_5053
    private static let headerBytes = 16
    /// Bytes after which the kernel is asked to begin writing, and at most so many that it has begun with:
    /// what piles up until it begins by itself, or in its queue, would stall every sync of that disk.
    private static let flushBytes: UInt64 = 1_048_576

    private let path: String
    private let descriptor: Int32
    /// Bytes of the stream.
    package private(set) var byteCount: UInt64 = 0
    private var flushed: UInt64 = 0

    private init(path: String, descriptor: Int32) {
        self.path = path
        self.descriptor = descriptor
    }

    deinit { close(descriptor) }

    /// Begins anew; whatever another transfer left is gone.
    /// - Returns: nil if there is no room for it: the transfer goes on without.
    package static func begin(directory: String, transfer id: UInt64) -> PartialSnapshot? {
        let path = directory + "/" + fileName
        let descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { return nil }
        let partial = PartialSnapshot(path: path, descriptor: descriptor)
        let header = [magic.littleEndian, id.littleEndian]
        guard
            header.withUnsafeBytes({ pwrite(descriptor, $0.baseAddress, headerBytes, 0) })
                == headerBytes
        else {
            partial.remove()
            return nil
        }
        return partial
    }

    /// What an earlier process has of that transfer; nil if it has nothing.
    package static func find(directory: String, transfer id: UInt64) -> PartialSnapshot? {
        let path = directory + "/" + fileName
        let descriptor = open(path, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        let partial = PartialSnapshot(path: path, descriptor: descriptor)
        var header: [UInt64] = [0, 0]
        let got = header.withUnsafeMutableBytes {
            pread(descriptor, $0.baseAddress, headerBytes, 0)
        }
        var status = stat()
        guard got == headerBytes, header == [magic.littleEndian, id.littleEndian],
            fstat(descriptor, &status) == 0, status.st_size > Int64(headerBytes)
        else { return nil }
        partial.byteCount = UInt64(status.st_size) - UInt64(headerBytes)
        partial.flushed = partial.byteCount
        return partial
    }

    package static func removeAny(directory: String) { unlink(directory + "/" + fileName) }

    /// - Returns: false if the bytes are not there: then the file is of no use any more.
    package func append(_ bytes: [UInt8]) -> Bool {
        var done = 0
        while done < bytes.count {
            let wrote = bytes.withUnsafeBytes {
                pwrite(
                    descriptor, UnsafeRawBufferPointer(rebasing: $0[done...]).baseAddress,
                    bytes.count - done, Self.headerBytes + Int(byteCount) + done)
            }
            if wrote < 0 && errno == EINTR { continue }
            guard wrote > 0 else { return false }
            done += wrote
        }
        byteCount += UInt64(bytes.count)
        flush()
        return true
    }

    private func flush() {
        guard byteCount - flushed >= Self.flushBytes else { return }
        aspen_vfs_write_behind(descriptor, flushed, byteCount - flushed, Self.flushBytes)
        flushed = byteCount
    }

    /// At most `count` bytes from `offset` on; nil if they cannot be read.
    package func read(at offset: UInt64, count: Int) -> [UInt8]? {
        let wanted = Int(min(UInt64(count), byteCount - min(offset, byteCount)))
        var done = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: wanted) { buffer, initialized in
            while done < wanted {
                let place = UnsafeMutableRawBufferPointer(buffer)[done...]
                let got = pread(
                    descriptor, UnsafeMutableRawBufferPointer(rebasing: place).baseAddress,
                    place.count, Self.headerBytes + Int(offset) + done)
                if got < 0 && errno == EINTR { continue }
                guard got > 0 else { break }
                done += got
            }
            initialized = done
        }
        return done == wanted ? bytes : nil
    }

    /// The snapshot is in force, or is given up.
    package func remove() { unlink(path) }
}
