// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import AspenTypes
import RaftCore
import RaftStorage
import Testing

private func open(_ disk: any Disk) throws -> SegmentedLog {
    var configuration = LogConfiguration()
    configuration.segmentBytes = 16 << 10
    return try SegmentedLog(disk: disk, configuration: configuration, salt: 42)
}

/// What stands behind the damage of a log is found as long as it may be needed.
@Suite struct LogSalvageTests {
    private static let last: UInt64 = 150
    private static let written = entries(1...last, term: 1, byteCount: 250)

    /// Several segments, each entry in a batch of its own.
    private func fill(_ disk: any Disk) throws -> SegmentedLog {
        let log = try open(disk)
        for entry in Self.written {
            try log.write(write([entry]))
            try log.sync()
        }
        // A log may be told of its very last batch only by the next one.
        try log.write(write(state: HardState(term: Term(1), votedFor: nil)))
        try log.sync()
        return log
    }

    private func flip(_ disk: any Disk, _ place: (file: String, offset: Int)) throws {
        let file = try disk.open(place.file, create: false)
        let byte = try file.read(at: UInt64(place.offset), count: 1)
        try file.write([byte[0] ^ 0x20], at: UInt64(place.offset))
        try file.sync()
    }

    /// Everything above `applied` but what was damaged, each once.
    private func expect(
        _ log: SegmentedLog, lacks lost: [UInt64], above applied: UInt64 = 0, _ comment: String
    ) throws {
        var found: [UInt64: Entry] = [:]
        for entry in try log.salvage(above: index(applied), bytesMax: .max) {
            found[entry.index.rawValue] = entry
        }
        let wanted = Self.written.filter {
            $0.index > index(applied) && !lost.contains($0.index.rawValue)
        }
        #expect(found.values.sorted { $0.index < $1.index } == wanted, "\(comment)")
    }

    @Test func aFlippedBitAnywhereCostsOneEntry() throws {
        let disk = MemoryDisk()
        let log = try fill(disk)
        #expect(try log.salvage(above: .zero, bytesMax: .max).isEmpty, "nothing is amiss")
        let places = try (1...Self.last).map { try #require(log.place(of: index($0))) }
        #expect(Set(places.map(\.file)).count >= 3)
        let image = disk.image
        for number in stride(from: UInt64(1), through: Self.last, by: 7) {
            let damaged = MemoryDisk(image: image)
            var place = places[Int(number) - 1]
            place.offset += Int(number) % 56
            try flip(damaged, place)
            // Whoever opens it again finds the same.
            for _ in 0..<3 {
                let log = try open(damaged)
                #expect(log.lastIndex == index(number - 1) && !log.recovery.isTailTrusted)
                try expect(log, lacks: [number], "\(number)")
                try expect(log, lacks: [number], above: 100, "\(number)")
                log.close()
            }
        }
    }

    /// Damaged twice, filled by a leader in between, and started anew behind a state.
    @Test func itStaysUntilTheRepairIsOver() throws {
        let disk = MemoryDisk()
        let full = try fill(disk)
        let (first, second) = (full.place(of: index(60)), full.place(of: index(40)))
        try flip(disk, try #require(first))
        let log = try open(disk)
        // What a leader brings meanwhile is as good.
        try log.write(write(Array(Self.written[59..<70])))
        try log.sync()
        try expect(log, lacks: [], "filled")
        try log.discard(upTo: index(65), term: Term(1))
        try expect(log, lacks: [], "discarded")
        try flip(disk, try #require(second))
        let again = try open(disk)
        #expect(again.lastIndex == index(39))
        try expect(again, lacks: [40], "twice")
        // The state is ahead of the log.
        #expect(try again.align(applied: index(50), term: Term(1)))
        try expect(again, lacks: [], above: 50, "anew")
        try expect(try open(disk), lacks: [], above: 50, "anew, and opened again")
        let last = try open(disk)
        try last.write(write(Array(Self.written[50...])))
        var end = write()
        end.endsRepair = true
        try last.write(end)
        try last.sync()
        #expect(try last.salvage(above: .zero, bytesMax: .max).isEmpty)
        let healed = try open(disk)
        #expect(healed.recovery.isTailTrusted && healed.lastIndex == index(Self.last))
        #expect(try healed.salvage(above: .zero, bytesMax: .max).isEmpty)
        #expect(try !disk.list().contains { $0.hasPrefix("damaged-") })
    }

    @Test func whatIsTakenIsBounded() throws {
        let disk = MemoryDisk()
        let place = try #require(try fill(disk).place(of: index(20)))
        try flip(disk, place)
        let log = try open(disk)
        let some = try log.salvage(above: .zero, bytesMax: 250 * 30)
        #expect(some.map(\.index) == (21...50).map { index($0) }, "behind the damage first")
        #expect(try log.salvage(above: .zero, bytesMax: Limits.salvageBytesMax).count == 149)
    }

    /// Power fails at every moment of the opening of a damaged log, of what is written then, and of a
    /// start behind a state: nothing that had been whole is ever gone.
    @Test func powerCutsTakeNothingOfIt() throws {
        let recorder = WriteRecorder()
        let disk = RecordingDisk(MemoryDisk(), recorder: recorder)
        let place = try #require(try fill(disk).place(of: index(60)))
        try flip(disk, place)
        let start = recorder.events.count
        let log = try open(disk)
        for entry in Self.written[59..<62] {
            try log.write(write([entry]))
            try log.sync()
        }
        let filled = recorder.events.count
        #expect(try log.align(applied: index(80), term: Term(1)))
        log.close()
        try open(disk).close()
        var replay = PowerCutReplay(events: recorder.events)
        var random = RandomSource(seed: 3)
        for cut in start...recorder.events.count {
            replay.advance(to: cut)
            for _ in 0..<4 {
                let log = try open(MemoryDisk(image: replay.image(using: &random)))
                let above = cut > filled ? max(log.firstIndex.rawValue - 1, 62) : 0
                #expect(!log.recovery.isTailTrusted, "cut at \(cut)")
                let has60 = log.lastIndex >= index(60)
                try expect(log, lacks: has60 ? [] : [60], above: above, "cut at \(cut)")
            }
        }
    }
}
