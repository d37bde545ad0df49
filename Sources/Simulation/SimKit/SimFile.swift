// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine

/// The bytes of one simulated file: as programs see them, and as they are on the medium.
final class Inode {
    enum Change {
        case bytes(at: Int, [UInt8])
        case truncate(to: Int)
    }

    var cache: [UInt8] = []
    var stable: [UInt8] = []
    var pending: [Change] = []
    /// What each page of the medium held before it was last written whole; nil: not remembered.
    var former: [Int: [UInt8]]?

    init(remembersPages: Bool = false) { former = remembersPages ? [:] : nil }

    /// Brings what `loss` lets through to the medium; nothing is pending afterwards.
    func settle(_ loss: PowerLoss, random: inout RandomSource) {
        if pending.isEmpty { return }
        switch loss {
        case .everything: break
        case .nothing:
            for change in pending { reachMedium(change) }
        case .prefix:
            let sectors = pending.reduce(0) { $0 + Self.sectors(of: $1).count }
            var left = random.uniform(0..<sectors + 1)
            for change in pending {
                for piece in Self.sectors(of: change) where left > 0 {
                    reachMedium(piece)
                    left -= 1
                }
            }
        case .subset:
            for change in pending {
                for piece in Self.sectors(of: change) where random.chance(1, in: 2) {
                    reachMedium(piece)
                }
            }
        }
        pending.removeAll(keepingCapacity: true)
    }

    func losePower(_ loss: PowerLoss, random: inout RandomSource) {
        settle(loss, random: &random)
        cache = stable
    }

    private func reachMedium(_ change: Change) {
        switch change {
        case .bytes(let offset, let bytes):
            let end = offset + bytes.count
            if former != nil, bytes.count == SimDisk.pageBytes,
                offset % SimDisk.pageBytes == 0, end <= stable.count
            {
                former?[offset] = Array(stable[offset..<end])
            }
            Self.put(bytes, at: offset, into: &stable)
        case .truncate(let count): Self.resize(&stable, to: count)
        }
    }

    /// Puts bytes on the medium (and in the cache) that nobody has written there.
    func damage(_ bytes: [UInt8], at offset: Int) {
        Self.put(bytes, at: offset, into: &stable)
        Self.put(bytes, at: offset, into: &cache)
    }

    /// The change, cut where sectors end.
    private static func sectors(of change: Change) -> [Change] {
        guard case .bytes(let offset, let bytes) = change else { return [change] }
        var pieces: [Change] = []
        var start = 0
        while start < bytes.count {
            let position = offset + start
            let room = SimDisk.sectorBytes - position % SimDisk.sectorBytes
            let end = min(start + room, bytes.count)
            pieces.append(.bytes(at: position, Array(bytes[start..<end])))
            start = end
        }
        return pieces
    }

    static func put(_ bytes: [UInt8], at offset: Int, into content: inout [UInt8]) {
        let end = offset + bytes.count
        if offset == content.count { return content.append(contentsOf: bytes) }
        if content.count < end { resize(&content, to: end) }
        content.withUnsafeMutableBytes { target in
            bytes.withUnsafeBytes { source in
                guard let from = source.baseAddress, let to = target.baseAddress else { return }
                (to + offset).copyMemory(from: from, byteCount: source.count)
            }
        }
    }

    static func resize(_ content: inout [UInt8], to count: Int) {
        if count < content.count {
            content.removeLast(content.count - count)
        } else {
            content += [UInt8](repeating: 0, count: count - content.count)
        }
    }
}

/// An open file of a `SimDisk`.
///
/// SAFETY: as for `SimDisk`: one thread runs the seed.
final class SimFile: DiskFile, @unchecked Sendable {
    // SAFETY: as for SimDisk: one thread at a time.

    private let name: String
    private let inode: Inode
    private let disk: SimDisk
    private let generation: Int

    init(name: String, inode: Inode, disk: SimDisk) {
        self.name = name
        self.inode = inode
        self.disk = disk
        generation = disk.generation
    }

    var byteCount: UInt64 {
        get throws(DiskError) {
            checkAlive()
            return UInt64(inode.cache.count)
        }
    }

    func read(at offset: UInt64, count: Int) throws(DiskError) -> [UInt8] {
        checkAlive()
        let start = min(Int(clamping: offset), inode.cache.count)
        return Array(inode.cache[start..<min(start + count, inode.cache.count)])
    }

    func write(_ bytes: [UInt8], at offset: UInt64) throws(DiskError) {
        checkAlive()
        let start = Int(offset)
        if start + bytes.count > inode.cache.count, disk.failsGrowth() {
            throw DiskError(.full, operation: "write \(name)", errno: 28)
        }
        Inode.put(bytes, at: start, into: &inode.cache)
        inode.pending.append(.bytes(at: start, bytes))
        disk.wrote(bytes.count)
    }

    func truncate(to byteCount: UInt64) throws(DiskError) {
        checkAlive()
        if byteCount > inode.cache.count, disk.failsGrowth() {
            throw DiskError(.full, operation: "truncate \(name)", errno: 28)
        }
        Inode.resize(&inode.cache, to: Int(byteCount))
        inode.pending.append(.truncate(to: Int(byteCount)))
    }

    func sync() throws(DiskError) {
        checkAlive()
        try disk.sync(inode, name: name)
    }

    func close() {}

    private func checkAlive() {
        precondition(generation == disk.generation, "a file of a process that has ended")
    }
}
