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
