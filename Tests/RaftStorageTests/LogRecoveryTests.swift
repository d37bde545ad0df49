// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenDisk
import AspenMachine
import AspenTypes
import RaftCore
import RaftStorage
import Testing

private func configuration(_ bugs: Set<PlantedBug> = []) -> LogConfiguration {
    var configuration = LogConfiguration()
    configuration.segmentBytes = 16 << 10
    configuration.plantedBugs = bugs
    return configuration
}

private func open(_ disk: any Disk, _ bugs: Set<PlantedBug> = []) throws -> SegmentedLog {
    try SegmentedLog(disk: disk, configuration: configuration(bugs), salt: 42)
}

/// Torn tails and damage, place by place.
@Suite struct LogRecoveryTests {
    private static let first = "log-0000000000000001"

    /// The batch after the synced ones breaks off at every byte: in zeros, in noise, or with its
    /// later part there and the earlier part missing.
    @Test(arguments: ["zeros", "noise", "hole"])
    func everyTornTailIsCutOff(_ kind: String) throws {
        var random = RandomSource(seed: 5)
        let disk = MemoryDisk()
        let log = try open(disk)
        let old = HardState(term: Term(2), votedFor: NodeID(1))
        try log.write(write(entries(1...5, term: 2, byteCount: 40), state: old))
        try log.sync()
        let before = try #require(disk.image.files[Self.first])
        try log.write(
            write(
                cut: 4, entries(5...8, term: 3, byteCount: 40),
                state: HardState(term: Term(3), votedFor: NodeID(2))))
        _ = try log.all()
        let after = try #require(disk.image.files[Self.first])
        // The last record ends in zeros, which are the same before and after.
        let changed = before.indices.filter { before[$0] != after[$0] }
        let range = try #require(changed.first)...(try #require(changed.last))
        let whole = try open(MemoryDisk(image: DiskImage(files: [Self.first: after])))
        #expect(whole.recovery.hardState.votedFor == NodeID(2))
        for place in range {
            var bytes = before
            switch kind {
            case "zeros":
                bytes.replaceSubrange(
                    range.lowerBound..<place, with: after[range.lowerBound..<place])
            case "noise":
                bytes.replaceSubrange(range, with: random.bytes(range.count))
                bytes.replaceSubrange(
                    range.lowerBound..<place, with: after[range.lowerBound..<place])
            default:
                bytes.replaceSubrange(
                    place...range.upperBound, with: after[place...range.upperBound])
            }
            let torn = try open(MemoryDisk(image: DiskImage(files: [Self.first: bytes])))
            #expect(torn.recovery.isTailTrusted, "\(place)")
            let found = try torn.all()
            let mixed =
                entries(1...4, term: 2, byteCount: 40) + entries(5...8, term: 3, byteCount: 40)
            let isOld = found == entries(1...5, term: 2, byteCount: 40)
            #expect(
                isOld || found == Array(mixed.prefix(found.count)) && found.count >= 4, "\(place)")
            // A vote that stands behind the end is kept, although nobody was told.
            let voted = torn.recovery.hardState.votedFor
            #expect(
                voted == (torn.recovery.hardState.term == Term(2) ? NodeID(1) : voted), "\(place)")
        }
    }

    /// After a sync, no flipped bit anywhere in the file makes the log return something wrong, or
    /// lose something without saying so.
    @Test func everyFlippedByteIsNoticed() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        let state = HardState(term: Term(2), votedFor: NodeID(1))
        let written = entries(1...9, term: 2, byteCount: 30)
        try log.write(write(written))
        try log.write(write(state: state))
        try log.sync()
        let image = try #require(disk.image.files[Self.first])
        var lossCount = 0
        for place in 0..<image.count {
            var bytes = image
            bytes[place] ^= UInt8(1) << UInt8(place % 8)
            let flipped = try open(MemoryDisk(image: DiskImage(files: [Self.first: bytes])))
            let found = try flipped.all()
            #expect(found == Array(written.prefix(found.count)), "\(place)")
            let recovery = flipped.recovery
            if found.count < written.count || recovery.hardState != state {
                lossCount += 1
                #expect(!recovery.isTailTrusted && recovery.untrustedBelow >= index(9), "\(place)")
            }
        }
        #expect(lossCount > 800, "\(lossCount)")
    }

    /// The same in a log of several segments, with random damage of up to a sector.
    @Test func damageAnywhereIsNoticed() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        let written = entries(1...200, term: 1, byteCount: 250)
        for entry in written {
            try log.write(write([entry]))
            try log.sync()
        }
        let image = disk.image
        let names = image.files.keys.sorted().filter { $0.hasPrefix("log-") }
        #expect(names.count >= 4)
        var random = RandomSource(seed: 11)
        for round in 0..<1500 {
            var damaged = image
            let name = names[random.uniform(0..<names.count)]
            let start = random.uniform(0..<16 << 10)
            let count = min(random.uniform(1..<513), (16 << 10) - start)
            damaged.files[name]?.replaceSubrange(start..<start + count, with: random.bytes(count))
            let opened = try open(MemoryDisk(image: damaged))
            let found = try opened.all()
            let firstIndex = Int(opened.firstIndex.rawValue)
            #expect(
                found == Array(written[(firstIndex - 1)...].prefix(found.count)), "round \(round)")
            if opened.lastIndex < index(200) {
                #expect(
                    !opened.recovery.isTailTrusted && opened.recovery.untrustedBelow >= index(200),
                    "round \(round)")
            }
        }
    }

    /// The last batch lies wherever in a segment: at its very end, too, a flipped bit or a bad block is
    /// noticed.
    @Test(arguments: [1, 4096])
    func damageToTheLastBatchIsNoticedWhereverItLies(_ byteCount: Int) throws {
        for size in stride(from: 10_000, to: 16_200, by: 8) {
            let disk = MemoryDisk()
            let log = try open(disk)
            try log.write(write(entries(1...1, byteCount: size)))
            try log.sync()
            let before = disk.image
            try log.write(write(entries(2...2, byteCount: 30)))
            _ = try log.all()
            let written = disk.image
            try log.sync()
            for (name, after) in written.files {
                let old = before.files[name] ?? []
                let changed = after.indices.filter {
                    !old.indices.contains($0) || old[$0] != after[$0]
                }
                guard let first = changed.first(where: { after[$0] != 0 }) else { continue }
                var damaged = disk.image
                let start = byteCount == 1 ? first + 20 : first & ~(byteCount - 1)
                for place in start..<min(start + byteCount, after.count) {
                    damaged.files[name]?[place] ^= 4
                }
                let opened = try open(MemoryDisk(image: damaged))
                #expect(
                    opened.lastIndex == index(2) || !opened.recovery.isTailTrusted,
                    "\(size), \(name)")
            }
        }
    }

    /// What a killed process had written and not synced counts from the next start on, and damage to it
    /// is noticed from then on: even if power fails before the mark behind the sync is on the disk.
    @Test func damageToWhatARestartMadeDurableIsNoticed() throws {
        let disk = MemoryDisk()
        let killed = try open(disk)
        try killed.write(write(entries(1...5, byteCount: 60)))
        try killed.sync()
        try killed.write(write(entries(6...6, byteCount: 60)))
        _ = try killed.all()
        let recorder = WriteRecorder()
        let restarted = try open(
            RecordingDisk(MemoryDisk(image: disk.image), recorder: recorder))
        #expect(restarted.lastIndex == index(6) && restarted.recovery.isTailTrusted)
        let place = try #require(restarted.place(of: index(6)))
        var replay = PowerCutReplay(events: recorder.events)
        replay.advance(to: recorder.events.count)
        var random = RandomSource(seed: 9)
        for round in 0..<32 {
            var image = replay.image(using: &random)
            image.files[place.file]?[place.offset + 20] ^= 4
            let opened = try open(MemoryDisk(image: image))
            #expect(!opened.recovery.isTailTrusted, "round \(round)")
        }
    }

    @Test func distrustOutlivesRestartsUntilALeaderFillsTheGap() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        for number in UInt64(1)...100 {
            try log.write(write(entries(number...number, byteCount: 250)))
            try log.sync()
        }
        try flip(disk, Self.first, at: 9000)
        let damaged = try open(disk)
        let last = damaged.lastIndex
        #expect(last > index(5) && last < index(40))
        #expect(!damaged.recovery.isTailTrusted && damaged.recovery.untrustedBelow == index(100))
        #expect(try disk.list().contains { $0.hasPrefix("damaged-") })
        for _ in 0..<3 {
            let again = try open(disk)
            #expect(again.lastIndex == last && again.recovery.untrustedBelow == index(100))
        }
        let filled = try open(disk)
        try filled.write(write(entries(last.next.rawValue...99, byteCount: 250)))
        try filled.write(write(entries(100...101, byteCount: 250)))
        try filled.sync()
        // Only the node knows, from a leader, when nothing is missing any more.
        let almost = try open(disk)
        #expect(!almost.recovery.isTailTrusted && almost.recovery.untrustedBelow == index(101))
        var end = write()
        end.endsRepair = true
        try almost.write(end)
        try almost.sync()
        try almost.discard(upTo: .zero, term: .zero)
        #expect(try !disk.list().contains { $0.hasPrefix("damaged-") })
        let healed = try open(disk)
        #expect(healed.recovery.isTailTrusted && healed.lastIndex == index(101))
        #expect(try healed.all() == entries(1...101, byteCount: 250))
    }

    @Test func distrustSurvivesASnapshotThatIsTooOld() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        for number in UInt64(1)...50 {
            try log.write(write(entries(number...number, byteCount: 100)))
            try log.sync()
        }
        try flip(disk, Self.first, at: 5000)
        let damaged = try open(disk)
        try damaged.reset(to: index(30), term: Term(1))
        #expect(try open(disk).recovery.untrustedBelow == index(50))
        try open(disk).reset(to: index(60), term: Term(1))
        #expect(try open(disk).recovery.isTailTrusted)
    }

    /// The vote is written twice, a block apart; the mark stands another block away.
    @Test func noBadBlockHidesAVote() throws {
        let vote = HardState(term: Term(2), votedFor: NodeID(3))
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...2, term: 1)))
        try log.sync()
        try log.write(write(state: vote))
        try log.sync()
        let bytes = try #require(disk.image.files[Self.first])
        for start in stride(from: 4096, to: bytes.count, by: 8) {
            var damaged = bytes
            let end = min(start + 4096, bytes.count)
            damaged.replaceSubrange(start..<end, with: [UInt8](repeating: 0x5a, count: end - start))
            let opened = try open(MemoryDisk(image: DiskImage(files: [Self.first: damaged])))
            #expect(opened.recovery.hardState == vote || start < 4096 + 64, "\(start)")
            #expect(!opened.recovery.isTailTrusted || opened.lastIndex == index(2), "\(start)")
            // It stays found.
            let again = try open(MemoryDisk(image: DiskImage(files: [Self.first: damaged])))
            #expect(again.recovery.hardState == opened.recovery.hardState)
        }
    }

    /// A vote behind a torn place is kept, and outlives the next start as well.
    @Test func aVoteBehindATornTailIsKept() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...2, term: 1)))
        try log.sync()
        try log.write(
            write(entries(3...3), state: HardState(term: Term(2), votedFor: NodeID(3))))
        _ = try log.all()
        try flip(disk, Self.first, at: 4096 + 2 * 88 + 50)
        for _ in 0..<3 {
            let opened = try open(disk)
            #expect(opened.lastIndex == index(2) && opened.recovery.isTailTrusted)
            #expect(opened.recovery.hardState == HardState(term: Term(2), votedFor: NodeID(3)))
        }
    }

    /// A term that the log knows from an entry alone, for the disk was full before its record, is in
    /// force from the next start on, and stays so when that entry is lost to damage.
    @Test(arguments: [false, true])
    func aTermImpliedByAnEntryOutlivesItsLoss(_ isStartedBetween: Bool) throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...2, term: 1), state: HardState(term: Term(1))))
        try log.sync()
        try log.write(write(entries(3...3, term: 2)))
        try log.sync()
        let whole = HardState(term: Term(2))
        if isStartedBetween { #expect(try open(disk).recovery.hardState == whole) }
        // In the second entry, which the third follows.
        try flip(disk, Self.first, at: 4096 + 88 + 50)
        for _ in 0..<3 {
            let opened = try open(disk)
            #expect(opened.lastIndex == index(1) && !opened.recovery.isTailTrusted)
            #expect(opened.recovery.hardState == whole)
        }
    }

    @Test func membershipsAreFound() throws {
        let endpoint = try #require(EndpointID(bytes: [UInt8](repeating: 1, count: 32)))
        func membership(_ nodes: [UInt64]) -> Membership {
            Membership(
                cluster: ClusterID(1), voters: nodes.map { NodeID($0) },
                members: nodes.map {
                    .init(
                        node: NodeID($0), endpoint: endpoint, replica: ReplicaID($0),
                        addresses: ["127.0.0.1:1"])
                })
        }
        func entry(_ number: UInt64, _ membership: Membership) -> Entry {
            var writer = ByteWriter()
            membership.encode(into: &writer)
            return Entry(
                index: index(number), term: Term(1), kind: .membership, origin: nil, time: .zero,
                payload: writer.bytes)
        }
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write([entry(1, membership([1]))] + entries(2...3)))
        try log.write(write([entry(4, membership([1, 2])), entry(5, membership([1, 2, 3]))]))
        try log.write(write(cut: 4))
        try log.sync()
        let found = try open(disk).recovery.memberships
        #expect(found.map(\.index) == [index(1), index(4)])
        #expect(found.map(\.membership) == [membership([1]), membership([1, 2])])
    }

    @Test func logAndStateAreBroughtTogether() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...100, term: 2, byteCount: 300)))
        try log.sync()
        #expect(try log.align(applied: index(50), term: Term(2)))
        #expect(throws: StorageError.self) { try log.align(applied: index(50), term: Term(1)) }
        #expect(try log.align(applied: index(120), term: Term(3)))
        #expect(log.recovery.snapshotIndex == index(120) && log.recovery.isTailTrusted)
        #expect(log.recovery.lastIndex == index(120) && log.firstIndex == index(121))
        let later = try open(disk)
        #expect(later.recovery.snapshotTerm == Term(3))
        #expect(try !later.align(applied: index(119), term: Term(2)))
        #expect(later.recovery.lastIndex == .zero && !later.recovery.isTailTrusted)
        #expect(later.recovery.untrustedBelow == index(120))
        #expect(try open(disk).recovery.untrustedBelow == index(120))
    }

    /// The record that cut entries off again is damaged: they are back, in the place of others that the
    /// state has applied.
    @Test func theStateKnowsBetterThanADamagedLog() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...30)))
        try log.sync()
        try log.write(write(cut: 20, entries(21...40, term: 2)))
        try log.sync()
        let place = try #require(log.place(of: index(21)))
        log.close()
        // The last byte of the record before it.
        try flip(disk, place.file, at: place.offset - 17)
        let damaged = try open(disk)
        #expect(damaged.lastIndex == index(30) && !damaged.recovery.isTailTrusted)
        #expect(!damaged.isOvertaken(by: index(20), Term(1)))
        #expect(damaged.isOvertaken(by: index(25), Term(2)))
        #expect(try damaged.align(applied: index(25), term: Term(2)))
        #expect(damaged.firstIndex == index(26) && damaged.lastIndex == index(25))
        #expect(!damaged.recovery.isTailTrusted && damaged.recovery.untrustedBelow == index(40))
        let above = try damaged.salvage(above: index(25), bytesMax: .max)
        #expect(above.contains { $0.index == index(40) && $0.term == Term(2) })
    }

    @Test func readingADamagedEntryIsAnError() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...20, byteCount: 100)))
        try log.sync()
        try flip(disk, Self.first, at: 4096 + 176 * 10)
        #expect(throws: StorageError.self) { try log.all() }
        #expect(try log.read(from: index(1), upTo: index(5), bytesMax: .max).count == 5)
    }

    @Test func aLogWithoutAnyHeaderIsNotTakenForEmpty() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...3)))
        try log.sync()
        try disk.open(Self.first, create: false).write([UInt8](repeating: 0, count: 4096), at: 0)
        #expect(throws: StorageError.self) { try open(disk) }
    }

    @Test func aNewerFormatIsRefused() throws {
        let disk = MemoryDisk()
        _ = try open(disk)
        let file = try disk.open(Self.first, create: false)
        for copy in 0..<4 { try file.write([3], at: UInt64(copy * 1024 + 8)) }
        do {
            _ = try open(disk)
            Issue.record("a newer format was read")
        } catch {
            guard case .newerVersion = error as? StorageError else { throw error }
        }
    }

    private func flip(_ disk: MemoryDisk, _ name: String, at place: Int) throws {
        let file = try disk.open(name, create: false)
        let byte = try file.read(at: UInt64(place), count: 1)
        try file.write(byte.map { $0 ^ 0x10 }, at: UInt64(place))
    }
}

/// Segments that are used again.
@Suite struct LogRecyclingTests {
    /// A log whose current segment held other entries before, all of one size.
    private func recycled() throws -> (MemoryDisk, last: LogIndex) {
        let disk = MemoryDisk()
        let log = try open(disk)
        for number in UInt64(1)...200 {
            try log.write(write(entries(number...number, term: 1, byteCount: 176)))
            try log.sync()
            try log.prepareNextIfNeeded()
            if number % 50 == 0 { try log.discard(upTo: index(number - 1), term: Term(1)) }
        }
        return (disk, log.lastIndex)
    }

    @Test func recycledSegmentsShowNothingOld() throws {
        let (disk, last) = try recycled()
        let opened = try open(disk)
        #expect(opened.lastIndex == last)
        #expect(try opened.all().last == entries(200...200, byteCount: 176)[0])
    }

    /// The check above can fail: a reader that ignores generation and chain goes on into old records.
    @Test func aReaderWithoutGenerationsWouldBeFooled() throws {
        let (disk, last) = try recycled()
        let opened = try open(disk, [.acceptRecycledRecord])
        #expect(opened.lastIndex > last)
        #expect(try opened.all().last?.index == opened.lastIndex)
    }

    @Test func spaceStaysBounded() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        for number in UInt64(1)...2000 {
            try log.write(write(entries(number...number, byteCount: 200)))
            try log.sync()
            try log.prepareNextIfNeeded()
            try log.discard(upTo: index(number), term: Term(1))
            #expect(disk.space.used <= 5 * 16 << 10)
        }
    }

    @Test func aBigRecordGetsItsOwnSegment() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...1, byteCount: 10) + entries(2...2, byteCount: 1 << 20)))
        try log.write(write(entries(3...3, byteCount: 10)))
        try log.sync()
        let opened = try open(disk)
        #expect(try opened.all().map(\.payload.count) == [10, 1 << 20, 10])
        try opened.discard(upTo: index(3), term: Term(1))
        #expect(disk.space.used < 1 << 20)
    }

    @Test func segmentsArePreparedElsewhere() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...60, byteCount: 100)))
        let preparation = try #require(log.preparation())
        #expect(log.preparation() == nil)
        // The log does not wait for it.
        try log.write(write(entries(61...130, byteCount: 100)))
        try log.sync()
        log.adopt(try preparation.run())
        #expect(!log.isNextSegmentReady)
        let next = try #require(log.preparation())
        log.adopt(try next.run())
        #expect(log.isNextSegmentReady)
        try log.write(write(entries(131...230, byteCount: 100)))
        try log.sync()
        #expect(try open(disk).all() == entries(1...230, byteCount: 100))
    }
}
