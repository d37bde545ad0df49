// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import Testing

/// What every `StateStore` promises, asked of each of them.
@Suite struct StateConformanceTests {
    enum Kind: String, CaseIterable { case memory, sqlite }

    private func make(_ kind: Kind, _ directory: StateDirectory) throws -> any StateStore {
        switch kind {
        case .memory: MemoryState()
        case .sqlite: try SQLiteState(directory: directory.path)
        }
    }

    @Test(arguments: 0..<8 as Range<UInt64>) func replicasAgree(seed: UInt64) throws {
        let directory = StateDirectory()
        let other = StateDirectory()
        var source = EntrySource(seed: seed)
        let memory: any StateStore = MemoryState()
        var sqlite: any StateStore = try SQLiteState(directory: directory.path)
        var durable = LogIndex.zero
        _ = try memory.apply([source.membership()])
        source.next = LogIndex(1)
        _ = try sqlite.apply([source.membership()])
        for round in 0..<60 {
            let count = source.random.uniform(1..<40)
            let entries = source.batch(count, revision: memory.revision)
            let expected = try memory.apply(entries)
            #expect(expected.count == entries.count)
            // The same entries in one batch and in two.
            let cut = source.random.uniform(0..<entries.count + 1)
            let results =
                try sqlite.apply(Array(entries[..<cut])) + sqlite.apply(Array(entries[cut...]))
            #expect(results == expected)
            try expectEqual(sqlite, memory)
            if let index = try sqlite.checkpointIfDue() {
                #expect(index > durable && index <= sqlite.appliedIndex)
                durable = index
            }
            if round % 20 == 19 {
                #expect(try sqlite.recomputeContentHash() == sqlite.contentHash())
                #expect(try memory.recomputeContentHash() == memory.contentHash())
                // Out of SQLite into memory and into another SQLite, and on from there.
                let third: any StateStore = MemoryState()
                try transfer(from: sqlite, to: third)
                try expectEqual(third, memory)
                #expect(try third.recomputeContentHash() == memory.contentHash())
                sqlite.close()
                sqlite = try SQLiteState(directory: other.path)
                try transfer(from: memory, to: sqlite)
                try expectEqual(sqlite, memory)
                #expect(try sqlite.recomputeContentHash() == memory.contentHash())
                durable = sqlite.appliedIndex
            }
        }
        sqlite.close()
    }

    @Test(arguments: Kind.allCases) func readsAtRevisions(kind: Kind) throws {
        let directory = StateDirectory()
        let state = try make(kind, directory)
        var source = EntrySource(seed: 1)
        let key: [UInt8] = Array("k".utf8)
        var entries: [Entry] = []
        for number in 0..<100 as Range<UInt8> { entries.append(source.put(key, [number])) }
        entries.append(source.put(Array("l".utf8), [1]))
        _ = try state.apply(entries)
        for revision in 1...100 as ClosedRange<UInt64> {
            let found = try state.get(key, at: Revision(revision))
            #expect(found?.value == [UInt8(revision - 1)])
            #expect(found?.version == revision)
            #expect(found?.createRevision == Revision(1))
            #expect(found?.modRevision == Revision(revision))
            // A long history is stepped over, before and behind what is wanted.
            let page = try state.range(
                RangeRequest(from: [], to: nil, limit: 10, at: Revision(revision)))
            #expect(
                page
                    == .page(
                        RangePage(
                            entries: found.map { [$0] } ?? [], more: false,
                            revision: Revision(revision))))
        }
        _ = try state.apply([source.command(.compact(Revision(50)))])
        #expect(try state.lookUp(key, at: Revision(49)) == .compacted(oldest: Revision(50)))
        #expect(try state.lookUp(key, at: Revision(102)) == .future(current: Revision(101)))
        #expect(try state.get(key, at: Revision(49)) == nil)
        #expect(try state.get(key, at: Revision(50))?.value == [49])
        guard case .page(let page) = try state.lookUp(key, at: nil) else {
            Issue.record("no page")
            return
        }
        #expect(page.entries.map(\.value) == [[99]] && page.revision == Revision(101))
        state.close()
    }

    @Test(arguments: Kind.allCases) func bytesAreBytes(kind: Kind) throws {
        let directory = StateDirectory()
        let state = try make(kind, directory)
        var source = EntrySource(seed: 2)
        let values: [[UInt8]] = [
            [], [0], [0, 0, 0], [0xff, 0xfe], Array("text".utf8), source.bytes(1000),
            source.bytes(5000), source.bytes(Limits.valueBytesMax),
        ]
        let keys: [[UInt8]] = [
            [0], [0, 0], [0xff], [0xff, 0xff], Array("größe".utf8),
            source.bytes(Limits.keyBytesMax), [1], [2],
        ]
        _ = try state.apply(zip(keys, values).map { source.put($0, $1) })
        for (key, value) in zip(keys, values) {
            #expect(try state.get(key, at: nil)?.value == value)
        }
        guard
            case .page(let page) = try state.range(RangeRequest(from: [], to: nil, limit: 100))
        else { return }
        #expect(page.entries.map(\.key) == keys.sorted { $0.lexicographicallyPrecedes($1) })
        #expect(try state.recomputeContentHash() == state.contentHash())
        state.close()
    }

    @Test(arguments: Kind.allCases) func pagesCoverEverything(kind: Kind) throws {
        let directory = StateDirectory()
        let state = try make(kind, directory)
        var source = EntrySource(seed: 3)
        let total = 25_000
        for start in stride(from: 0, to: total, by: 1000) {
            let entries = (start..<start + 1000).map { number in
                source.put(Array("key/\(number)".utf8), Array("value \(number)".utf8))
            }
            _ = try state.apply(entries)
        }
        var from: [UInt8] = Array("key/".utf8)
        var seen = Set<[UInt8]>()
        var pages = 0
        while true {
            let request = RangeRequest(
                from: from, to: Array("key0".utf8), limit: 1000, at: Revision(UInt64(total)))
            guard case .page(let page) = try state.range(request) else { break }
            pages += 1
            for entry in page.entries { #expect(seen.insert(entry.key).inserted) }
            guard page.more, let last = page.entries.last else { break }
            from = last.key + [0]
        }
        #expect(seen.count == total)
        #expect(pages == 25)
        state.close()
    }

    @Test(arguments: Kind.allCases) func unknownEntriesStopTheNode(kind: Kind) throws {
        let directory = StateDirectory()
        let state = try make(kind, directory)
        var source = EntrySource(seed: 4)
        let good = source.put([1], [1])
        let unknown = source.entry(.command, [77])
        var failure: StorageError?
        do { _ = try state.apply([good, unknown]) } catch { failure = error }
        guard case .newerVersion(let text)? = failure else {
            Issue.record("\(String(describing: failure))")
            return
        }
        #expect(text.contains("log entry 2") && text.contains("version 77"))
        #expect(state.appliedIndex == .zero, "nothing of the batch was applied")
        state.close()
    }

    @Test(arguments: Kind.allCases) func badSnapshotsChangeNothing(kind: Kind) throws {
        let directory = StateDirectory()
        let state = try make(kind, directory)
        var source = EntrySource(seed: 5)
        let origin: any StateStore = MemoryState()
        _ = try origin.apply([source.membership()] + source.batch(200, revision: .zero))
        let reader = try origin.makeSnapshot()
        var stream: [UInt8] = []
        while let piece = try reader.next() { stream += piece }

        var mine = EntrySource(seed: 6)
        _ = try state.apply([mine.membership()] + mine.batch(20, revision: .zero))
        let before = try state.contentHash()
        var random = RandomSource(seed: 7)
        for round in 0..<20 {
            var bad = stream
            var meta = reader.meta
            switch round {
            case 0: bad.removeLast()
            case 1: bad.append(0)
            case 2: meta.index = meta.index.next
            case 3: meta.term = meta.term.next
            case 4: meta.membership = Membership(cluster: ClusterID(1))
            default: bad[random.uniform(0..<bad.count)] ^= 1 << UInt8(random.uniform(0..<8))
            }
            var failure: StorageError?
            do {
                let writer = try state.receiveSnapshot(meta)
                do {
                    try writer.append(bad)
                    try writer.finish()
                } catch {
                    writer.abandon()
                    throw error
                }
            } catch let error as StorageError { failure = error } catch {}
            guard case .corrupt? = failure else {
                Issue.record("round \(round): \(String(describing: failure))")
                continue
            }
        }
        #expect(try state.contentHash() == before)
        #expect(try state.recomputeContentHash() == before)
        _ = try state.apply(mine.batch(20, revision: state.revision))
        try transfer(from: origin, to: state)
        try expectEqual(state, origin)
        state.close()
    }

    /// The snapshot shows one moment, whatever is applied while it is read.
    @Test(arguments: Kind.allCases) func snapshotsStandStill(kind: Kind) throws {
        let directory = StateDirectory()
        let state = try make(kind, directory)
        var source = EntrySource(seed: 8)
        _ = try state.apply([source.membership()])
        for _ in 0..<40 {
            let entries = (0..<40).map { _ in
                let (key, value) = (source.bytes(8), source.bytes(3000))
                return source.put(key, value)
            }
            _ = try state.apply(entries)
        }
        let hash = try state.contentHash()
        let index = state.appliedIndex
        let reader = try state.makeSnapshot()
        let target: any StateStore = MemoryState()
        let writer = try target.receiveSnapshot(reader.meta)
        while let piece = try reader.next() {
            try writer.append(piece)
            for _ in 0..<20 {
                _ = try state.apply(source.batch(30, revision: state.revision))
                _ = try state.checkpointIfDue()
            }
        }
        try writer.finish()
        reader.close()
        #expect(target.appliedIndex == index)
        #expect(try target.contentHash() == hash)
        #expect(state.appliedIndex > index)
        #expect(try state.recomputeContentHash() == state.contentHash())
        state.close()
    }
}
