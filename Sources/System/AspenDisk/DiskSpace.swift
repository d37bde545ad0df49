// SPDX-License-Identifier: GPL-2.0-or-later

/// Room on the file system that a disk lies on, in bytes.
package struct DiskSpace: Equatable, Sendable {
    package var capacity: Int
    /// What this process may still use; others may take it first.
    package var available: Int

    package init(capacity: Int, available: Int) {
        self.capacity = capacity
        self.available = available
    }

    /// What root may use, in blocks: all that is free, but for what a file system keeps for itself even
    /// from root: ext4 a fiftieth, 4096 blocks at most. That is left out of `available`, and so is what
    /// is kept for root, which cannot be told apart from it; on a file system that keeps nothing for
    /// itself, what root may use is not less than this.
    package static func blocksForRoot(all: Int, free: Int, available: Int) -> Int {
        free - min(max(0, free - available), min(all / 50, 4096))
    }
}

extension Disk {
    /// Most disks of tests never fill up.
    package func freeSpace() throws(DiskError) -> DiskSpace? { nil }
}

extension DiskFile {
    /// For disks without a shortcut: zeros.
    package func allocate(from offset: UInt64, count: Int) throws(DiskError) {
        let piece = 1 << 20
        var done = 0
        while done < count {
            let next = min(piece, count - done)
            try write([UInt8](repeating: 0, count: next), at: offset + UInt64(done))
            done += next
        }
    }
}
