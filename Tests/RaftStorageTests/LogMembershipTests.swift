// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenDisk
import AspenTypes
import RaftCore
import RaftStorage
import Testing

private func open(_ disk: any Disk) throws -> SegmentedLog {
    var configuration = LogConfiguration()
    configuration.segmentBytes = 16 << 10
    return try SegmentedLog(disk: disk, configuration: configuration, salt: 42)
}

private func membership(_ nodes: ClosedRange<UInt64>) throws -> Membership {
    let endpoint = try #require(EndpointID(bytes: [UInt8](repeating: 1, count: 32)))
    return Membership(
        cluster: ClusterID(1), voters: nodes.map { NodeID($0) },
        members: nodes.map {
            .init(
                node: NodeID($0), endpoint: endpoint, replica: ReplicaID($0),
                addresses: ["127.0.0.1:1"])
        })
}

private func entry(_ number: UInt64, _ membership: Membership, term: UInt64 = 1) -> Entry {
    Entry(
        index: index(number), term: Term(term), kind: .membership, origin: nil, time: .zero,
        payload: membership.payload)
}

/// Damage takes entries along, but not the knowledge that there was a newer membership.
@Suite struct LogMembershipTests {
    private static let first = "log-0000000000000001"

    /// A founder that was joined by two others at entry 20.
    private func grown(upTo last: UInt64) throws -> MemoryDisk {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write([entry(1, try membership(1...1))]))
        for number in 2...last {
            let next =
                number == 20
                ? [entry(20, try membership(1...3))] : entries(number...number, byteCount: 100)
            try log.write(write(next))
            try log.sync()
        }
        return disk
    }

    private func expectKnown(_ disk: MemoryDisk, _ place: Int) throws {
        let recovery = try open(disk).recovery
        if recovery.memberships.last?.index == index(20) { return }
        let newest = try #require(recovery.newestMembership, "\(place)")
        #expect(!recovery.isTailTrusted && newest.index == index(20), "\(place)")
        #expect(newest.term == Term(1), "\(place)")
        #expect(try newest.membership == membership(1...3), "\(place)")
    }

    /// The last entry follows the membership at once, or long after it, in another segment.
    @Test(arguments: [21, 40, 150] as [UInt64]) func noFlippedBitHidesIt(last: UInt64) throws {
        let image = try grown(upTo: last).image
        let bytes = try #require(image.files[Self.first])
        for place in stride(from: 4096, to: bytes.count, by: 104) {
            var files = image.files
            files[Self.first]?[place] ^= 0x10
            let disk = MemoryDisk(image: DiskImage(files: files))
            try expectKnown(disk, place)
            // It stays known as long as nobody has repaired the log.
            try expectKnown(disk, place)
            try expectKnown(disk, place)
        }
    }

    @Test(arguments: [40, 150] as [UInt64]) func noBadBlockHidesIt(last: UInt64) throws {
        let image = try grown(upTo: last).image
        let bytes = try #require(image.files[Self.first])
        for start in stride(from: 4096, to: bytes.count, by: 520) {
            var files = image.files
            let end = min(start + 4096, bytes.count)
            files[Self.first]?.replaceSubrange(
                start..<end, with: [UInt8](repeating: 0x5a, count: end - start))
            try expectKnown(MemoryDisk(image: DiskImage(files: files)), start)
        }
    }

    /// The state that held the membership is lost after the log was cut: both begin empty.
    @Test func itOutlivesTheEntry() throws {
        let disk = try grown(upTo: 400)
        let log = try open(disk)
        try log.discard(upTo: index(399), term: Term(1))
        #expect(log.firstIndex > index(20))
        #expect(try !log.align(applied: index(5), term: Term(1)))
        #expect(log.recovery.memberships.isEmpty && !log.recovery.isTailTrusted)
        #expect(log.recovery.newestMembership?.index == index(20))
        #expect(try open(disk).recovery.newestMembership?.index == index(20))
        // A leader fills it.
        try log.write(write(entries(1...2)))
        try log.write(LogWrite(ticket: DurabilityTicket(1), endsRepair: true))
        try log.sync()
        #expect(try open(disk).recovery.newestMembership == nil)
    }

    /// Of two, the one of the later term counts: the other was cut off by its leader.
    @Test func theNewestCounts() throws {
        let disk = try grown(upTo: 30)
        let log = try open(disk)
        try log.write(write(cut: 19, [entry(20, try membership(1...2), term: 3)]))
        try log.sync()
        try log.write(write(entries(21...25, term: 3)))
        try log.sync()
        var files = disk.image.files
        files[Self.first]?[4096 + 100] ^= 1
        let newest = try open(MemoryDisk(image: DiskImage(files: files))).recovery.newestMembership
        #expect(newest?.term == Term(3))
        #expect(try newest?.membership == membership(1...2))
    }

    /// Power fails everywhere while a membership is written: nobody was told of it, nobody waits.
    @Test func whatWasNeverSyncedIsNotWaitedFor() throws {
        let disk = try grown(upTo: 10)
        let log = try open(disk)
        let before = try #require(disk.image.files[Self.first])
        try log.write(write([entry(11, try membership(1...2))]))
        _ = try log.all()
        let after = try #require(disk.image.files[Self.first])
        let start = try #require(before.indices.first { before[$0] != after[$0] })
        var torn = after
        torn.replaceSubrange(start..<start + 8, with: before[start..<start + 8])
        let opened = try open(MemoryDisk(image: DiskImage(files: [Self.first: torn])))
        #expect(opened.lastIndex == index(10) && opened.recovery.isTailTrusted)
        #expect(opened.recovery.newestMembership == nil)
    }

    /// A log without copies, as older programs wrote it: it is read, and goes on in a new segment,
    /// which those refuse.
    @Test func anOlderFormatIsGoneOnFrom() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...5)))
        try log.sync()
        var files = disk.image.files
        let header = try #require(files[Self.first]?.prefix(112))
        var old = ByteWriter(capacity: 116)
        old.raw(Array(header))
        var bytes = old.bytes
        bytes[8] = 1
        old = ByteWriter(capacity: 116)
        old.raw(bytes)
        old.integer(CRC32C.of(bytes))
        for copy in 0..<4 {
            files[Self.first]?.replaceSubrange(copy * 1024..<copy * 1024 + 116, with: old.bytes)
        }
        let older = MemoryDisk(image: DiskImage(files: files))
        let opened = try open(older)
        #expect(opened.lastIndex == index(5) && opened.recovery.isTailTrusted)
        try opened.write(write([entry(6, try membership(1...3))]))
        try opened.sync()
        #expect(try older.list().filter { $0.hasPrefix("log-") }.count == 2)
        let again = try open(older)
        #expect(again.lastIndex == index(6) && again.recovery.memberships.last?.index == index(6))
        #expect(try older.list().filter { $0.hasPrefix("log-") }.count == 2)
    }
}
