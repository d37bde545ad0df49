// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import Testing

@Suite struct SpaceTests {
    static let megabyte = 1 << 20

    @Test func everythingScalesDownWithTheFileSystem() {
        let small = SpaceLimits(capacity: 64 * Self.megabyte)
        #expect(small.reserveBytes == 8 * Self.megabyte)
        #expect(small.segmentBytes == 2 * Self.megabyte)
        #expect(small.walBytes == Self.megabyte)
        #expect(SpaceLimits(capacity: 256 * Self.megabyte).reserveBytes == 32 * Self.megabyte)
        let large = SpaceLimits(capacity: 1 << 42)
        #expect(large == SpaceLimits())
        #expect(large.segmentBytes == LogConfiguration().segmentBytes)
        // One that is written to, one that is prepared or about to go, and a spare. A data directory is
        // smaller than four times its live data and 128 MB; the history gets what is left.
        #expect(large.reserveBytes + 3 * large.segmentBytes + large.walBytes < 64_000_000)
    }

    @Test func aLevelIsLeftLaterThanItIsReached() {
        var gauge = SpaceGauge(SpaceLimits(capacity: 64 * Self.megabyte))
        func level(at megabytes: Int, isLogStuck: Bool = false) -> SpaceLevel {
            gauge.update(room: megabytes * Self.megabyte, isLogStuck: isLogStuck)
            return gauge.level
        }
        #expect(level(at: 25) == .ample)
        #expect(level(at: 23) == .tight)
        #expect(level(at: 25) == .tight)
        #expect(level(at: 15) == .short)
        #expect(level(at: 19) == .short)
        #expect(level(at: 21) == .tight)
        #expect(level(at: 3) == .exhausted)
        #expect(level(at: 7) == .exhausted)
        #expect(level(at: 9) == .short)
        #expect(level(at: 40, isLogStuck: true) == .exhausted)
        #expect(level(at: 40) == .ample)
    }

    /// What ext4 keeps for itself is free to nobody, what it keeps for root is free to root.
    @Test func rootMayUseWhatIsKeptForItAndNoMore() {
        func blocks(_ all: Int, _ free: Int, _ available: Int) -> Int {
            DiskSpace.blocksForRoot(all: all, free: free, available: available)
        }
        // 64 MB without blocks for root, full: the fiftieth is all that is free.
        #expect(blocks(65_536, 1310, 0) == 0)
        #expect(blocks(65_536, 11_310, 10_000) == 10_000)
        // A twentieth for root.
        #expect(blocks(1_000_000, 154_096, 100_000) == 150_000)
        // Elsewhere nothing is kept.
        #expect(blocks(1_000_000, 200_000, 200_000) == 200_000)
        #expect(blocks(1_000_000, 0, 0) == 0)
    }

    @Test func theReserveIsGivenUpBitByBitAndTakenBack() throws {
        let disk = MemoryDisk(byteCountMax: 64 * Self.megabyte)
        let space = StorageSpace(disk: disk)
        for _ in 0..<4 { _ = space.balance() }
        #expect(space.reserve == 8 * Self.megabyte)
        #expect(space.balance() == 64 * Self.megabyte)
        let filler = try disk.open("filler", create: true)
        try filler.allocate(from: 0, count: 56 * Self.megabyte)
        #expect(space.balance() == 8 * Self.megabyte)
        #expect(space.relieve())
        #expect(space.reserve == 15 * Self.megabyte / 2)
        #expect(space.available == Self.megabyte / 2)
        var pieces = 1
        while space.relieve() { pieces += 1 }
        #expect(pieces == 16)
        #expect(space.reserve == 0)
        // Too little for it: taking it back would only make the disk full again.
        _ = space.balance()
        #expect(space.reserve == 0)
        try filler.truncate(to: 0)
        for _ in 0..<4 { _ = space.balance() }
        #expect(space.reserve == 8 * Self.megabyte)
        // Another process finds it again.
        space.close()
        #expect(StorageSpace(disk: disk).reserve == 8 * Self.megabyte)
    }

    @Test func aPreparationThatDoesNotFitLeavesTheLogAlone() throws {
        let disk = MemoryDisk(byteCountMax: 64 << 10)
        var configuration = LogConfiguration()
        configuration.segmentBytes = 32 << 10
        let log = try SegmentedLog(disk: disk, configuration: configuration, salt: 7)
        disk.space.byteCountMax = disk.space.used
        var index = LogIndex.zero
        func append(_ bytes: Int) throws {
            index = index.next
            let entry = Entry(
                index: index, term: Term(1), kind: .command, origin: nil,
                time: .zero, payload: [UInt8](repeating: 1, count: bytes))
            try log.write(LogWrite(ticket: DurabilityTicket(index.rawValue), entries: [entry]))
            try log.sync()
        }
        for _ in 0..<3 { try append(4000) }
        #expect(throws: StorageError.self) { try log.prepareNextIfNeeded() }
        #expect(!log.isNextSegmentReady)
        try append(4000)
        disk.space.byteCountMax = .max
        try log.prepareNextIfNeeded()
        #expect(log.isNextSegmentReady)
        for _ in 0..<5 { try append(4000) }
        #expect(try log.read(from: LogIndex(1), upTo: index, bytesMax: .max).count == 9)
    }
}
