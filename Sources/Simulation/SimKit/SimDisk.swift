// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine

/// What a power cut leaves of writes that were never synced. A sector is never torn; everything
/// larger is.
package enum PowerLoss: UInt8, Sendable, CaseIterable {
    /// All of it is gone.
    case everything = 0
    /// The device had been quick: all of it is there.
    case nothing
    /// Sectors reached the medium in the order of the writes, up to some point.
    case prefix
    /// Any sectors may be there and any missing.
    case subset
}

/// A disk in memory that forgets as real ones do: writes are durable after `sync`, names after
/// `syncDirectory`, and a power cut decides about the rest by `PowerLoss`. The end of one process
/// loses nothing.
///
/// Latency is the simulator's affair: a call takes no virtual time.
///
/// SAFETY: a world and everything in it belongs to the one thread that runs the seed.
package final class SimDisk: Disk, @unchecked Sendable {
    // SAFETY: a world and all that belongs to it is used by one thread at a time.

    package static let sectorBytes = 512
    package static let pageBytes = 4096

    /// Errors to answer with, until taken back.
    package enum Failure: Sendable {
        /// A file may not grow (ENOSPC); what exists can be overwritten and removed.
        case full
        /// The next sync fails with EIO. As on Linux the pages count as clean afterwards: they read
        /// back as written, and some of them are not on the medium (Rebello and others, 2020).
        case nextSync
    }

    enum NameChange {
        case create(String, Inode)
        case rename(String, String)
        case remove(String)
    }

    package var failure: Failure?
    package private(set) var syncs = 0
    package private(set) var bytesWritten: UInt64 = 0
    /// Grows with each end of the process that had files open; handles from before are dead.
    private(set) var generation = 0

    private var names: [String: Inode] = [:]
    private var stableNames: [String: Inode] = [:]
    private var changes: [NameChange] = []
    private var random: RandomSource
    private let remembersPages: Bool

    /// - Parameter remembersPages: as `tear` needs it.
    package init(seed: UInt64, remembersPages: Bool = false) {
        random = RandomSource(seed: seed)
        self.remembersPages = remembersPages
    }

    package func open(_ name: String, create: Bool) throws(DiskError) -> any DiskFile {
        if let inode = names[name] { return SimFile(name: name, inode: inode, disk: self) }
        guard create else { throw DiskError(.notFound, operation: "open \(name)", errno: 2) }
        if case .full = failure { throw DiskError(.full, operation: "open \(name)", errno: 28) }
        let inode = Inode(remembersPages: remembersPages)
        names[name] = inode
        changes.append(.create(name, inode))
        return SimFile(name: name, inode: inode, disk: self)
    }

    package func list() throws(DiskError) -> [String] { names.keys.sorted() }

    package func rename(_ from: String, to: String) throws(DiskError) {
        guard let inode = names.removeValue(forKey: from) else {
            throw DiskError(.notFound, operation: "rename \(from)", errno: 2)
        }
        names[to] = inode
        changes.append(.rename(from, to))
    }

    package func remove(_ name: String) throws(DiskError) {
        guard names.removeValue(forKey: name) != nil else {
            throw DiskError(.notFound, operation: "remove \(name)", errno: 2)
        }
        changes.append(.remove(name))
    }

    package func syncDirectory() throws(DiskError) {
        for change in changes { Self.carryOut(change, on: &stableNames) }
        changes.removeAll()
    }

    private static func carryOut(_ change: NameChange, on names: inout [String: Inode]) {
        switch change {
        case .create(let name, let inode): names[name] = inode
        case .rename(let from, let to):
            if let inode = names.removeValue(forKey: from) { names[to] = inode }
        case .remove(let name): names[name] = nil
        }
    }

    // MARK: - Faults

    /// The process ended (kill -9): the page cache stays, open files are closed.
    package func endProcess() { generation += 1 }

    /// Everything is gone, and the process that had it open.
    package func wipe() {
        generation += 1
        names = [:]
        stableNames = [:]
        changes.removeAll()
        failure = nil
    }

    /// The machine lost power. Names changed since the last `syncDirectory` survive up to some
    /// point in their order (the file system's journal); bytes as `loss` says.
    package func losePower(_ loss: PowerLoss) {
        generation += 1
        let kept: Int
        switch loss {
        case .everything: kept = 0
        case .nothing: kept = changes.count
        case .prefix, .subset: kept = random.uniform(0..<changes.count + 1)
        }
        for change in changes[..<kept] { Self.carryOut(change, on: &stableNames) }
        changes.removeAll()
        names = stableNames
        // In the order of names, so that equal seeds lose equal sectors.
        for name in names.keys.sorted() { names[name]?.losePower(loss, random: &random) }
    }

    /// Where the last byte that is not zero stands, and one more.
    package func usedBytes(of name: String) -> Int {
        (names[name]?.stable.lastIndex { $0 != 0 } ?? -1) + 1
    }

    /// Time has passed, and the kernel has written what was written to this file: it survives a loss of
    /// power without a sync.
    package func writeBack(_ name: String) { names[name]?.settle(.nothing, random: &random) }

    /// Flips one bit of what is on the medium (and in the cache).
    /// - Returns: false if that file has no such byte.
    package func flipBit(_ name: String, at offset: Int, bit: UInt8) -> Bool {
        guard let inode = names[name], offset < inode.stable.count, offset < inode.cache.count
        else { return false }
        inode.cache[offset] ^= 1 << (bit & 7)
        inode.stable[offset] ^= 1 << (bit & 7)
        return true
    }

    /// Whole pages of a file that are on the medium (and in the cache).
    package func pages(of name: String) -> Int {
        names[name].map { min($0.stable.count, $0.cache.count) / Self.pageBytes } ?? 0
    }

    /// What was written to page `source` went to page `target` as well.
    /// - Returns: false if those are not two different pages of the file.
    package func misdirect(_ name: String, from source: Int, to target: Int) -> Bool {
        guard let inode = names[name], max(source, target) < pages(of: name) else { return false }
        let (from, to) = (source * Self.pageBytes, target * Self.pageBytes)
        let bytes = inode.stable[from..<from + Self.pageBytes]
        guard bytes != inode.stable[to..<to + Self.pageBytes] else { return false }
        inode.damage(Array(bytes), at: to)
        return true
    }

    /// Of the last write of a page only some sectors reached the medium.
    /// - Returns: false where the page was written once only, or differs in one sector only: then there
    ///   is nothing between before and after.
    package func tear(_ name: String, page: Int, losing isLost: () -> Bool) -> Bool {
        let start = page * Self.pageBytes
        guard let inode = names[name], let former = inode.former?[start], page < pages(of: name)
        else { return false }
        let sectors = stride(from: 0, to: Self.pageBytes, by: Self.sectorBytes)
        let changed = sectors.filter { offset in
            former[offset..<offset + Self.sectorBytes]
                != inode.stable[start + offset..<start + offset + Self.sectorBytes]
        }
        guard changed.count > 1 else { return false }
        var lost = changed.filter { _ in isLost() }
        if lost.isEmpty { lost = [changed[0]] }
        if lost.count == changed.count { lost.removeLast() }
        for offset in lost {
            inode.damage(Array(former[offset..<offset + Self.sectorBytes]), at: start + offset)
        }
        return true
    }

    // MARK: - For the files

    package func failsGrowth() -> Bool {
        if case .full = failure { return true }
        return false
    }

    func wrote(_ count: Int) { bytesWritten += UInt64(count) }

    func sync(_ inode: Inode, name: String) throws(DiskError) {
        syncs += 1
        if case .nextSync = failure {
            failure = nil
            inode.settle(.subset, random: &random)
            throw DiskError(.io, operation: "sync \(name)", errno: 5)
        }
        inode.settle(.nothing, random: &random)
    }
}
