// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenVFS
import Glibc
import RaftCore

// Applying where space is short. A transaction that finds the disk full when it is committed is undone
// as a whole, and what it held has been answered by then: so it gets its blocks before it begins.

extension SQLiteState {
    /// Entries of one transaction, and bytes of their payload, while space is tight.
    static let tightEntriesMax = 16
    static let tightBytesMax = 262_144
    /// A checkpoint is due after that part of the pages that make it due elsewhere.
    static let tightCheckpointParts = 4
    /// What an entry writes besides its payload: one page of each tree for each of a few keys. An entry
    /// that sweeps or ends leases may take more; for that there is the reserve.
    static let entryBytes = 65_536

    package func fitting(_ entries: [Entry]) -> Int {
        // What waits to be written comes before what is to be.
        if isSpaceTight { try? setDeferring(false) }
        // Who cannot go on says so when it is asked to apply.
        guard isSpaceTight, failure == nil, let first = entries.first else { return entries.count }
        if isDeferring { return 0 }
        var (count, bytes) = (0, 0)
        for entry in entries.prefix(Self.tightEntriesMax) {
            guard count == 0 || bytes + entry.payload.count <= Self.tightBytesMax else { break }
            count += 1
            bytes += entry.payload.count
        }
        if hasRoom(entries: count, payload: bytes) { return count }
        return count > 1 && hasRoom(entries: 1, payload: first.payload.count) ? 1 : 0
    }

    /// The WAL owns the blocks for that from here on. A quarter more than the payload: pages are not
    /// filled up.
    private func hasRoom(entries: Int, payload: Int) -> Bool {
        hasRoom(bytes: entries * Self.entryBytes + payload + payload / 4)
    }

    func hasRoom(bytes: Int) -> Bool {
        aspen_vfs_allocate(directory + "/" + Self.fileName + "-wal", UInt64(bytes)) != ENOSPC
    }
}
