// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import CAspenVFS
import Synchronization

/// The file system that a data directory lies on, and the part of it that is kept back: the file
/// `reserve`, whose blocks nobody else can take. When a write of the log or of the state finds the
/// disk full, a piece of the reserve is given up and the write goes on; it is taken back when there
/// is room again. Its content means nothing.
///
/// Writers on any thread may ask for relief; all else is for one thread at a time.
package final class StorageSpace: Sendable {
    package static let fileName = "reserve"
    /// Bytes taken back at once: bounds how long whoever asks is held up.
    package static let growthBytesMax = 4 << 20
    /// Parts in which the reserve is given up. Not all at once: somebody else may be filling the
    /// disk at this moment.
    private static let parts = 16

    private struct Reserve {
        /// Nil once closed: it holds the directory's lock.
        var disk: (any Disk)?
        var file: (any DiskFile)?
        var byteCount = 0
        var registration: Int32 = -1
    }

    package let limits: SpaceLimits
    private let probe: (@Sendable () -> DiskSpace?)?
    private let state: Mutex<Reserve>

    /// - Parameter probe: asked instead of `disk` how full it is.
    package init(disk: any Disk, probe: (@Sendable () -> DiskSpace?)? = nil) {
        self.probe = probe
        let space = Self.ask(probe, disk)
        limits = space.map { SpaceLimits(capacity: $0.capacity) } ?? SpaceLimits()
        var reserve = Reserve(disk: disk)
        if let existing = try? disk.open(Self.fileName, create: false) {
            reserve.file = existing
            reserve.byteCount = (try? existing.byteCount).map { Int($0) } ?? 0
        }
        state = Mutex(reserve)
    }

    deinit { close() }

    /// Bytes kept back now.
    package var reserve: Int { state.withLock { $0.byteCount } }

    /// There is room to take back more of it than there is.
    package var isGrowing: Bool {
        reserve < limits.reserveBytes && (available ?? 0) > 2 * limits.reserveBytes
    }

    /// The level that a node begins with is above `ample`.
    package var isTight: Bool {
        guard let available else { return false }
        var gauge = SpaceGauge(limits)
        gauge.update(room: available + reserve, isLogStuck: false)
        return gauge.level > .ample
    }

    /// Free bytes, without the reserve; nil if there is no end to them or nobody knows.
    package var available: Int? {
        Self.ask(probe, state.withLock { $0.disk })?.available
    }

    private static func ask(
        _ probe: (@Sendable () -> DiskSpace?)?, _ disk: (any Disk)?
    ) -> DiskSpace? {
        if let probe { return probe() }
        return (try? disk?.freeSpace()) ?? nil
    }

    /// Takes the reserve back, bit by bit, where that leaves the file system ample.
    /// - Returns: free bytes and the reserve; nil if there is no end to them.
    package func balance() -> Int? {
        guard let free = available else { return nil }
        let isGrowing = state.withLock { reserve -> Bool in
            // Only when nobody is short: taking it must not be what makes the disk full.
            let spare = free - 2 * limits.reserveBytes
            let growth = min(spare, limits.reserveBytes - reserve.byteCount, Self.growthBytesMax)
            if growth > 0 { resize(&reserve, to: reserve.byteCount + growth) }
            return growth > 0
        }
        return ((isGrowing ? available : free) ?? 0) + reserve
    }

    /// A write has found the disk full.
    /// - Returns: true if a piece of the reserve was given up: try again.
    package func relieve() -> Bool {
        state.withLock { reserve in
            guard reserve.byteCount > 0 else { return false }
            let piece = max(limits.reserveBytes / Self.parts, 256 << 10)
            let before = reserve.byteCount
            resize(&reserve, to: max(0, before - piece))
            return reserve.byteCount < before
        }
    }

    /// From here on SQLite's writes to files whose paths begin with `prefix` are relieved.
    package func relieve(statesIn prefix: String) {
        let number = aspen_vfs_relieve(
            prefix,
            { context in
                guard let context else { return 0 }
                let space = Unmanaged<StorageSpace>.fromOpaque(context).takeUnretainedValue()
                return space.relieve() ? 1 : 0
            }, Unmanaged.passUnretained(self).toOpaque())
        state.withLock { $0.registration = number }
    }

    private func resize(_ reserve: inout Reserve, to byteCount: Int) {
        do throws(DiskError) {
            let open: any DiskFile
            if let file = reserve.file {
                open = file
            } else {
                guard let disk = reserve.disk else { return }
                open = try disk.open(Self.fileName, create: true)
            }
            reserve.file = open
            if byteCount < reserve.byteCount {
                try open.truncate(to: UInt64(byteCount))
            } else {
                try open.allocate(
                    from: UInt64(reserve.byteCount), count: byteCount - reserve.byteCount)
            }
            reserve.byteCount = byteCount
        } catch {
            // Somebody was quicker. What there was counts, and it is looked at again soon.
            try? reserve.file?.truncate(to: UInt64(reserve.byteCount))
        }
    }

    package func close() {
        let (number, file) = state.withLock { reserve in
            defer {
                reserve.registration = -1
                reserve.file = nil
                reserve.disk = nil
                reserve.byteCount = 0
            }
            return (reserve.registration, reserve.file)
        }
        // Waits for a relief that is under way.
        aspen_vfs_unrelieve(number)
        file?.close()
    }
}
