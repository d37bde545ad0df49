// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import SimFaults
import SimKit
import Testing

@Suite struct EventHeapTests {
    @Test(arguments: 0..<8) func ordersByTimeThenByArrival(seed: UInt64) {
        var random = RandomSource(seed: seed)
        var heap = EventHeap<Int>()
        var expected: [(UInt64, Int)] = []
        for number in 0..<500 {
            let time = random.uniform(0..<UInt64(50))
            heap.schedule(number, at: MonotonicInstant(nanoseconds: time))
            expected.append((time, number))
        }
        expected.sort { ($0.0, $0.1) < ($1.0, $1.1) }
        var found: [(UInt64, Int)] = []
        while let (at, event) = heap.pop() { found.append((at.nanoseconds, event)) }
        #expect(found.map(\.1) == expected.map(\.1))
        #expect(found.map(\.0) == expected.map(\.0))
    }
}

@Suite struct SimClockTests {
    @Test(arguments: [-40_000, -17, 0, 3, 250, 40_000] as [Int64]) func inverts(drift: Int64) {
        var random = RandomSource(seed: 4)
        let clock = SimClock(offset: 12_345, driftPPM: drift)
        for _ in 0..<1000 {
            let now = MonotonicInstant(nanoseconds: random.uniform(0..<1_000_000_000_000))
            let shown = clock.reading(at: now) + random.uniform(.zero, .seconds(5))
            let time = clock.time(showing: shown, from: now)
            #expect(time >= now && clock.reading(at: time) >= shown)
            let before = MonotonicInstant(nanoseconds: time.nanoseconds - 1)
            #expect(time == now || clock.reading(at: before) < shown, "not the first such time")
        }
    }
}

@Suite struct SimDiskTests {
    @Test func unsyncedWritesAreLostWithThePowerOnly() throws {
        let disk = SimDisk(seed: 1)
        let file = try disk.open("a", create: true)
        try disk.syncDirectory()
        try file.write(Array("durable".utf8), at: 0)
        try file.sync()
        try file.write(Array("DURABLE".utf8), at: 0)
        disk.endProcess()
        #expect(try disk.open("a", create: false).read(at: 0, count: 99) == Array("DURABLE".utf8))
        disk.losePower(.everything)
        #expect(try disk.open("a", create: false).read(at: 0, count: 99) == Array("durable".utf8))
    }

    @Test func sectorsAreTornNeverBytes() throws {
        var partial = 0
        for seed in 0..<50 as Range<UInt64> {
            let disk = SimDisk(seed: seed)
            let file = try disk.open("a", create: true)
            try file.write([UInt8](repeating: 1, count: 2000), at: 0)
            try file.sync()
            try disk.syncDirectory()
            try file.write([UInt8](repeating: 2, count: 1500), at: 100)
            disk.losePower(seed % 2 == 0 ? .subset : .prefix)
            let bytes = try disk.open("a", create: false).read(at: 0, count: 4096)
            #expect(bytes.count == 2000)
            var kept: [Bool] = []
            for sector in 0..<4 {
                let range = max(100, sector * 512)..<min(1600, sector * 512 + 512)
                let values = Set(bytes[range])
                #expect(values.count == 1, "a sector is all old or all new")
                kept.append(values == [2])
            }
            #expect(bytes[..<100].allSatisfy { $0 == 1 } && bytes[1600...].allSatisfy { $0 == 1 })
            if seed % 2 == 1, let lost = kept.firstIndex(of: false) {
                #expect(!kept[lost...].contains(true), "a prefix has no holes")
            }
            if Set(kept).count == 2 { partial += 1 }
        }
        #expect(partial > 10)
    }

    @Test func namesNeedTheDirectorySynced() throws {
        let disk = SimDisk(seed: 1)
        let file = try disk.open("new", create: true)
        try file.write([1, 2, 3], at: 0)
        try file.sync()
        disk.losePower(.everything)
        #expect(try disk.list() == [])

        let again = try disk.open("a", create: true)
        try again.write([7], at: 0)
        try again.sync()
        try disk.syncDirectory()
        try disk.rename("a", to: "b")
        disk.losePower(.everything)
        #expect(try disk.list() == ["a"])
        try disk.rename("a", to: "b")
        try disk.syncDirectory()
        disk.losePower(.everything)
        #expect(try disk.list() == ["b"])
        #expect(try disk.open("b", create: false).read(at: 0, count: 9) == [7])
    }

    @Test func fullAndFailingDisks() throws {
        let disk = SimDisk(seed: 3)
        let file = try disk.open("a", create: true)
        try file.write([UInt8](repeating: 1, count: 1024), at: 0)
        disk.failure = .full
        #expect(throws: DiskError.self) { try file.write([9], at: 1024) }
        #expect(throws: DiskError.self) { try disk.open("b", create: true) }
        try file.write([9], at: 0)
        disk.failure = .nextSync
        #expect(throws: DiskError.self) { try file.sync() }
        try file.sync()
    }

    @Test func pagesAreTornAndGoAstray() throws {
        let count = SimDisk.pageBytes
        let disk = SimDisk(seed: 4, remembersPages: true)
        let file = try disk.open("a", create: true)
        for page in 0..<2 {
            try file.write([UInt8](repeating: 1, count: count), at: UInt64(page * count))
        }
        try file.sync()
        #expect(!disk.misdirect("a", from: 0, to: 1), "nobody would see it")
        #expect(!disk.tear("a", page: 0) { true }, "nothing was there before")
        try file.write([UInt8](repeating: 2, count: count), at: 0)
        try file.sync()
        #expect(disk.misdirect("a", from: 0, to: 1))
        #expect(try file.read(at: UInt64(count), count: count).allSatisfy { $0 == 2 })
        for (losesAll, older) in [(true, 7), (false, 1)] {
            try file.write([UInt8](repeating: 1, count: count), at: 0)
            try file.sync()
            try file.write([UInt8](repeating: 2, count: count), at: 0)
            try file.sync()
            #expect(disk.tear("a", page: 0) { losesAll })
            let bytes = try file.read(at: 0, count: count)
            #expect(bytes.count { $0 == 1 } == older * SimDisk.sectorBytes, "never all, never none")
        }
    }
}

@Suite struct SimNetworkTests {
    /// Runs until nothing is on its way; returns what arrived, by order of arrival.
    private func drain(_ network: inout SimNetwork, _ heap: inout EventHeap<SimNetwork.Segment>)
        -> [[UInt8]]
    {
        var frames: [[UInt8]] = []
        while true {
            for departure in network.departures {
                heap.schedule(departure.segment, at: departure.at)
            }
            network.departures.removeAll()
            guard let (at, segment) = heap.pop() else { return frames }
            frames += network.arrive(segment, now: at)
        }
    }

    private func network(seed: UInt64, _ change: (inout SimNetwork.Conditions) -> Void = { _ in })
        -> SimNetwork
    {
        var conditions = SimNetwork.Conditions()
        conditions.splitPerMille = 300
        conditions.spikePerMille = 100
        change(&conditions)
        var network = SimNetwork(
            nodes: 2, lanes: 2, conditions: conditions, random: RandomSource(seed: seed))
        network.open(from: 0, to: 1, lane: 0, epoch: 1)
        return network
    }

    @Test(arguments: 0..<20) func streamsKeepOrderThroughDelaysAndCuts(seed: UInt64) {
        var network = network(seed: seed)
        var heap = EventHeap<SimNetwork.Segment>()
        var sent: [[UInt8]] = []
        var received: [[UInt8]] = []
        for number in 0..<100 as Range<UInt64> {
            let frame = [UInt8](repeating: UInt8(number), count: Int(number % 17))
            sent.append(frame)
            let now = MonotonicInstant(nanoseconds: number * 10_000)
            network.send(from: 0, to: 1, lane: 0, payload: frame, now: now)
            if number == 20 { network.block(from: 0, to: 1) }
            if number == 30 { received += drain(&network, &heap) }
            if number == 60 {
                let count = received.count
                received += drain(&network, &heap)
                #expect(received.count == count, "nothing passes a partition")
                network.unblock(from: 0, to: 1, now: now)
            }
        }
        received += drain(&network, &heap)
        #expect(received == sent)
    }

    @Test func aResetLosesWhatIsOnItsWay() {
        var network = network(seed: 5)
        var heap = EventHeap<SimNetwork.Segment>()
        network.send(from: 0, to: 1, lane: 0, payload: [1], now: .zero)
        network.open(from: 0, to: 1, lane: 0, epoch: 2)
        network.send(from: 0, to: 1, lane: 0, payload: [2], now: .zero)
        #expect(drain(&network, &heap) == [[2]])
        network.close(from: 0, to: 1, lane: 0)
        network.send(from: 0, to: 1, lane: 0, payload: [3], now: .zero)
        #expect(drain(&network, &heap) == [])
    }

    @Test func datagramsAreLostDoubledAndReordered() {
        var network = network(seed: 6) {
            $0.datagramLanes = 1
            $0.lossPerMille = 200
            $0.duplicatePerMille = 200
        }
        var heap = EventHeap<SimNetwork.Segment>()
        for number in 0..<200 as Range<UInt64> {
            network.send(
                from: 0, to: 1, lane: 0, payload: [UInt8(number)],
                now: MonotonicInstant(nanoseconds: number * 20_000))
        }
        let received = drain(&network, &heap).map { $0[0] }
        let distinct = Set(received)
        #expect(distinct.count < 190 && distinct.count > 120)
        #expect(received.count > distinct.count)
        #expect(received != received.sorted())
    }

    @Test func framesAreFoundInAnyPieces() {
        var random = RandomSource(seed: 9)
        let frames: [[UInt8]] = (0..<50).map { number in
            [UInt8](repeating: UInt8(number), count: random.uniform(0..<300))
        }
        let stream = frames.flatMap(FrameAssembler.frame)
        var assembler = FrameAssembler()
        var found: [[UInt8]] = []
        var position = 0
        while position < stream.count {
            let end = min(stream.count, position + random.uniform(1..<100))
            found += assembler.take(Array(stream[position..<end]))
            position = end
        }
        #expect(found == frames)
        #expect(assembler.waiting == 0)
    }
}

@Suite struct TraceHashTests {
    @Test func tellsOrderAndLengthApart() {
        func hash(_ parts: [[UInt8]]) -> String {
            var hash = TraceHash()
            for part in parts { hash.fold(part) }
            return hash.hex
        }
        #expect(hash([[1], [2]]) != hash([[2], [1]]))
        #expect(hash([[1, 2]]) != hash([[1], [2]]))
        #expect(hash([[0]]) != hash([[0, 0]]))
        #expect(hash([[1]]).count == 16)
    }
}
