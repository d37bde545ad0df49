// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import Testing

/// A machine and the model beside it, fed with the same commands.
private struct Pair {
    var source: CommandSource
    var machine = MemoryMachine.withLeases()
    var model = KVModel()
    var time: UInt64 = 1000
    /// Every change there was, followed page by page.
    var events: [ChangeEvent] = []

    init(seed: UInt64) { source = CommandSource(random: RandomSource(seed: seed)) }

    mutating func step() {
        time += source.random.uniform(0..<400 as Range<UInt64>)
        switch source.random.uniform(0..<20) {
        case 0, 1:
            let ttl = source.random.uniform(1000..<6000 as Range<UInt64>)
            let lease = machine.grant(ttl, time: time)
            model.leases[lease] = KVModel.Lease(ttl: ttl, deadline: time + ttl)
            source.leases.append(lease)
        case 2 where !source.leases.isEmpty:
            let lease = source.leases[source.random.uniform(0..<source.leases.count)]
            let result = machine.run(.keepLeaseAlive(lease), time: time)
            if let known = model.leases[lease] {
                #expect(result == .leaseKept(ttlMilliseconds: known.ttl))
                model.leases[lease]?.deadline = time + known.ttl
            } else {
                #expect(result == failure(lease))
            }
        case 3 where !source.leases.isEmpty:
            let lease = source.leases[source.random.uniform(0..<source.leases.count)]
            let result = machine.run(.revokeLease(lease, nil), time: time)
            guard model.leases[lease] != nil else { return #expect(result == failure(lease)) }
            let count = UInt64(model.keys(of: lease).count)
            model.end(lease)
            #expect(result == .leaseRevoked(revision: model.revision, deleted: count))
        case 4:
            model.expireLeases(time)
            #expect(machine.run(.expireLeases, time: time) == .done)
        case 5:
            let back = source.random.uniform(0..<40 as Range<UInt64>)
            let revision = model.revision.rawValue - min(model.revision.rawValue, back)
            follow()
            _ = machine.run(.compact(Revision(revision)), time: time)
            model.compacted = max(model.compacted, Int(revision))
        default:
            let transaction = source.transaction()
            #expect(
                machine.run(.transaction(transaction, nil), time: time)
                    == model.apply(transaction))
        }
        #expect(machine.meta.revision == model.revision)
    }

    private func failure(_ lease: LeaseID) -> CommandResult {
        .failed(
            code: .notFound, message: "lease \(lease) has ended or never was; grant a new one")
    }

    /// Reads on from the last change seen, in pages of any size.
    mutating func follow() {
        while true {
            let request = ChangesRequest(
                after: events.last.map { .last(of: $0.number.revision) } ?? .zero,
                count: source.random.uniform(1..<9), bytesMax: source.random.uniform(1..<200),
                withPrevious: true)
            guard case .value(let page) = machine.changes(request) else {
                Issue.record("changes that were to be followed are compacted")
                return
            }
            events += page.events
            #expect(page.more || page.revision == model.revision)
            if !page.more { break }
            #expect(page.events.last?.number.revision == page.revision)
        }
    }

    /// The changes, replayed, are the history of the store.
    func checkEvents() {
        var store: KVModel.Store = [:]
        for (place, event) in events.enumerated() {
            #expect(event.previous == store[event.entry.key])
            store[event.entry.key] = event.isRemoval ? nil : event.entry
            let revision = event.number.revision
            #expect(event.entry.modRevision == revision)
            let isLast = place + 1 == events.count || events[place + 1].number.revision != revision
            if isLast { #expect(store == model.history[Int(revision.rawValue)]) }
        }
    }

    /// What may be seen of the history of a key, newest first.
    func history(of key: [UInt8]) -> [ChangeEvent] {
        var found: [ChangeEvent] = []
        for event in events.reversed() where event.entry.key == key {
            if event.number.revision <= machine.meta.compacted {
                if event.isRemoval { break }
                var oldest = event
                oldest.previous = nil
                found.append(oldest)
                break
            }
            found.append(event)
        }
        if let last = found.indices.last, found[last].number.revision > machine.meta.compacted,
            let previous = found[last].previous
        {
            // Its predecessor is the oldest that can be read, or it has none.
            #expect(previous.modRevision > machine.meta.compacted, "history is cut too early")
        }
        return found
    }
}

@Suite struct ReadTests {
    @Test(arguments: 0..<24 as Range<UInt64>) func leasesBehaveLikeTheModel(seed: UInt64) {
        var pair = Pair(seed: seed)
        for _ in 0..<300 { pair.step() }
        pair.follow()
        pair.checkEvents()
        let machine = pair.machine
        #expect(machine.meta.leaseCount == UInt64(pair.model.leases.count))
        for (id, lease) in pair.model.leases {
            let row = machine.lease(id)
            #expect(row?.deadline == ClusterTime(milliseconds: lease.deadline))
            #expect(row?.ttlMilliseconds == lease.ttl)
            #expect(machine.keys(of: id, limit: 1000) == pair.model.keys(of: id))
            #expect(row?.keyCount == UInt64(pair.model.keys(of: id).count))
        }
        var listed: [LeaseID] = []
        while true {
            let page = machine.leases(after: listed.last ?? .none, limit: 3)
            listed += page.leases.map(\.id)
            if !page.more { break }
        }
        #expect(listed == pair.model.leases.keys.sorted())
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
        checkFigures(machine)
    }

    private func checkFigures(_ machine: MemoryMachine) {
        var figures = (changes: UInt64(0), bytes: UInt64(0), live: UInt64(0), liveBytes: UInt64(0))
        var rows = machine.tables.rows()
        while let row = rows.next() {
            guard case .change(let change) = row else { continue }
            let bytes = UInt64(2 * change.header.key.count + change.value.count) + 64
            figures.changes += 1
            figures.bytes += bytes
            guard case .value(let entry?) = machine.get(change.header.key, at: nil),
                entry.modRevision == change.header.number.revision,
                machine.tables.version(of: change.header.key, upTo: .max)?.change
                    == change.header.number
            else { continue }
            figures.live += 1
            figures.liveBytes += bytes
        }
        #expect(figures.changes == machine.meta.figures.changeCount)
        #expect(figures.bytes == machine.meta.figures.changeBytes)
        #expect(figures.live == machine.meta.figures.liveCount)
        #expect(figures.liveBytes == machine.meta.figures.liveBytes)
    }

    @Test(arguments: 0..<12 as Range<UInt64>) func historyIsWhatHappened(seed: UInt64) {
        var pair = Pair(seed: seed + 100)
        for _ in 0..<200 { pair.step() }
        pair.follow()
        for _ in 0..<40 {
            let key = pair.source.key()
            let expected = pair.history(of: key)
            var found: [ChangeEvent] = []
            var before: Revision?
            while true {
                let page = pair.machine.history(
                    of: key, before: before, limit: pair.source.random.uniform(1..<6))
                found += page.events
                #expect(page.compacted == pair.machine.meta.compacted)
                guard page.more, let last = page.events.last else { break }
                before = last.number.revision
            }
            #expect(found == expected)
            // And from any revision on, a compacted one too, swept or not.
            let start = Revision(
                pair.source.random.uniform(0..<pair.machine.meta.revision.rawValue + 2))
            let page = pair.machine.history(of: key, before: start, limit: 1000)
            #expect(page.events == expected.filter { $0.number.revision < start })
        }
    }

    @Test(arguments: 0..<12 as Range<UInt64>) func rangesAgreeWithEachOther(seed: UInt64) {
        var pair = Pair(seed: seed + 200)
        for _ in 0..<200 { pair.step() }
        let machine = pair.machine
        for _ in 0..<60 {
            let (from, to) = pair.source.bounds()
            let excluding = pair.source.random.chance(1, in: 2) ? pair.source.key() : []
            let at: Revision? =
                pair.source.random.chance(1, in: 2)
                ? nil : Revision(pair.source.random.uniform(0..<machine.meta.revision.rawValue + 1))
            let all = RangeRequest(from: from, to: to, limit: 1000, at: at)
            guard case .value(let whole) = machine.range(all) else { continue }
            let wanted = whole.entries.filter {
                excluding.isEmpty || !$0.key.starts(with: excluding)
            }
            for descending in [false, true] {
                var found: [KeyValue] = []
                var request = all
                request.excluding = excluding
                request.descending = descending
                request.limit = pair.source.random.uniform(1..<8)
                while case .value(let page) = machine.range(request) {
                    found += page.entries
                    guard page.more, let last = page.entries.last else { break }
                    if descending { request.to = last.key } else { request.from = last.key + [0] }
                }
                #expect(found == (descending ? wanted.reversed() : wanted))
            }
            let count = CountRequest(from: from, to: to, at: at, excluding: excluding)
            guard case .value(let counted) = machine.count(count) else { continue }
            #expect(counted.count == UInt64(wanted.count) && counted.next == nil)
            let keys = (0..<5).map { _ in pair.source.key() }
            guard case .value(let page) = machine.get(keys, at: at) else { continue }
            for (key, entry) in zip(keys, page.entries) {
                #expect(machine.get(key, at: at) == .value(entry))
            }
        }
    }

    @Test func changesBelowTheCompactedRevisionAreRefused() {
        var machine = MemoryMachine()
        for round in 0..<20 { machine.put("k", "\(round)") }
        func changes(_ after: ChangeNumber) -> ReadOutcome<ChangesPage> {
            machine.changes(ChangesRequest(after: after, count: 100, bytesMax: 1_000_000))
        }
        _ = machine.run(.compact(Revision(10)))
        #expect(changes(.zero) == .compacted(oldest: Revision(11)))
        #expect(changes(.last(of: Revision(9))) == .compacted(oldest: Revision(11)))
        guard case .value(let page) = changes(.last(of: Revision(10))) else {
            Issue.record("the compacted revision is where a reader goes on from")
            return
        }
        #expect(page.events.map(\.number.revision.rawValue) == Array(11...20))
        #expect(changes(.last(of: Revision(21))) == .future(current: Revision(20)))
        #expect(
            changes(.last(of: Revision(20)))
                == .value(ChangesPage(events: [], revision: Revision(20), more: false)))
    }

    @Test func reservedKeysAreKnown() {
        #expect(ReservedNamespace.contains(Array("_sys/x".utf8)))
        #expect(!ReservedNamespace.contains(Array("_sys".utf8)))
        #expect(ReservedNamespace.overlaps(from: [], to: nil))
        #expect(!ReservedNamespace.overlaps(from: Array("a".utf8), to: nil))
        #expect(!ReservedNamespace.overlaps(from: Array("_sys0".utf8), to: Array("b".utf8)))
        #expect(ReservedNamespace.overlaps(from: Array("_sys/b".utf8), to: Array("b".utf8)))
        let transaction = Transaction(success: [], failure: [.delete(key: Array("_sys/a".utf8))])
        #expect(transaction.touchesReservedNamespace)
        #expect(!Transaction(success: [.get(key: [1])]).touchesReservedNamespace)
    }
}

@Suite struct CompactionTests {
    @Test func aNumberOfRevisionsIsKept() {
        var policy = CompactionPolicy()
        policy.revisionsKept = 100
        policy.revisionsKeptMin = 10
        var machine = MemoryMachine()
        for round in 0..<1000 {
            machine.put("k", "\(round)")
            while let revision = policy.decision(machine.meta) {
                _ = machine.run(.compact(revision))
            }
            let span = machine.meta.revision.rawValue - machine.meta.compacted.rawValue
            #expect(span <= 111 && (round < 111 || span >= 100))
        }
        #expect(machine.meta.figures.changeCount <= 112)
    }

    @Test func bytesOfHistoryAreBounded() {
        var policy = CompactionPolicy()
        policy.historyBytesMax = 100_000
        policy.revisionsKeptMin = 10
        var machine = MemoryMachine()
        let value = String(repeating: "x", count: 1000)
        var compactions = 0
        for round in 0..<2000 {
            machine.put("k\(round % 7)", value)
            while let revision = policy.decision(machine.meta) {
                compactions += 1
                _ = machine.run(.compact(revision))
            }
            #expect(machine.meta.figures.historyBytes <= 100_000)
        }
        #expect(compactions < 200, "not with every write")
        #expect(machine.meta.figures.liveCount == 7)
    }

    /// However much is written between two entries that compact.
    @Test(arguments: [0, 100, 2000]) func whatIsFarBehindIsCaughtUpWithLittleByLittle(
        written: Int
    ) {
        var policy = CompactionPolicy()
        policy.revisionsKept = 1000
        var machine = MemoryMachine()
        for number in 0..<20_000 { machine.put("k\(number % 97)", "") }
        var steps = 0
        while let target = policy.decision(machine.meta), steps < 200 {
            let before = machine.meta.compacted
            let step = CompactionPolicy.step(
                from: before, towards: target, written: UInt64(written), changesPerRevision: 1)
            #expect(step.rawValue - before.rawValue <= max(500, 2 * written))
            _ = machine.run(.compact(step))
            steps += 1
            for number in 0..<written { machine.put("k\(number % 97)", "") }
            if written > 0, machine.meta.revision.rawValue - step.rawValue < 4000 { break }
        }
        #expect(steps > 5 && steps < 100, "\(steps)")
    }

    @Test func theLatestIsKeptHoweverLarge() {
        var policy = CompactionPolicy()
        policy.historyBytesMax = 1
        policy.revisionsKeptMin = 50
        var machine = MemoryMachine()
        for round in 0..<200 {
            machine.put("k", "\(round)")
            while let revision = policy.decision(machine.meta) {
                _ = machine.run(.compact(revision))
            }
        }
        #expect(machine.meta.compacted == Revision(150))
        #expect(policy.decision(machine.meta) == nil, "an idle store is left alone")
    }
}
