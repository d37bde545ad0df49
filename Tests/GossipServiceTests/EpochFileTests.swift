// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import GossipCore
import Logging
import Testing

@testable import GossipService

@Suite struct EpochFileTests {
    private let disk = MemoryDisk()
    private let logger = Logger(label: "test")

    private func started(wall: UInt64) -> UInt64 {
        EpochFile(disk: disk, logger: logger).begin(wall: wall)
    }

    @Test func anEpochIsGreaterThanAllBeforeWhateverTheClockSays() {
        #expect(started(wall: 5000) == 5000)
        #expect(started(wall: 7000) == 7000)
        // The clock went back.
        #expect(started(wall: 1000) == 7001)
        #expect(started(wall: 7001) == 7002)
        #expect(started(wall: 9000) == 9000)
    }

    @Test func oneThatWasRaisedCountsToo() {
        let file = EpochFile(disk: disk, logger: logger)
        #expect(file.begin(wall: 5000) == 5000)
        file.keep(8000)
        file.keep(6000)
        #expect(started(wall: 5000) == 8001)
    }

    @Test func aFlippedBitIsMendedAndRubbishIsNoEpoch() throws {
        #expect(started(wall: 5000) == 5000)
        let file = try disk.open(EpochFile.name, create: false)
        let byte = try file.read(at: 20, count: 1)[0]
        try file.write([byte ^ 4], at: 20)
        #expect(started(wall: 1000) == 5001)
        let again = try disk.open(EpochFile.name, create: false)
        try again.write(Array("nonsense".utf8), at: 0)
        #expect(started(wall: 1000) == 1000)
        #expect(started(wall: 1000) == 1001)
    }

    @Test func withoutADiskItIsTheClock() {
        let file = EpochFile(disk: nil, logger: logger)
        #expect(file.begin(wall: 0) == 1)
        #expect(file.begin(wall: 3) == 3)
        // Another overlay of the same process, with another cookie.
        #expect(file.begin(wall: 3) == 4)
        let full = EpochFile(disk: MemoryDisk(byteCountMax: 0), logger: logger)
        #expect(full.begin(wall: 7) == 7)
    }

    @Test func itNeverExceedsItsRange() {
        #expect(started(wall: .max) == AnnouncementVersion.epochMax)
        #expect(started(wall: .max) == AnnouncementVersion.epochMax)
    }
}
