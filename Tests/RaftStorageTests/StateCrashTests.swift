// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import AspenTypes
import Glibc
import KVCore
import RaftCore
import RaftStorage
import SQLiteKit
import Synchronization
import Testing

/// A run over a state in memory that remembers the hash at every index.
struct Reference {
    var source: EntrySource
    let memory = MemoryState()
    var entries: [Entry] = []
    var hashes: [UInt64] = []

    init(seed: UInt64) {
        source = EntrySource(seed: seed)
        hashes = [memory.contentHash()]
    }

    /// Entries that continue the run.
    mutating func batch(_ count: Int) throws -> [Entry] {
        var batch: [Entry] = []
        for _ in 0..<count {
            let entry =
                source.next == LogIndex(1)
                ? source.membership() : source.any(revision: memory.revision)
            batch.append(entry)
            _ = try memory.apply([entry])
            hashes.append(memory.contentHash())
        }
        entries += batch
        return batch
    }

    /// What opening the files in `directory` shows is the run up to some index, at least `durable`,
    /// and the rest of the run can be applied to it.
    func check(_ directory: StateDirectory, durable: LogIndex, _ label: String) throws {
        let state: SQLiteState
        do throws(StorageError) { state = try SQLiteState(directory: directory.path) } catch {
            // Before anything was promised, a half-made file may be thrown away.
            guard durable == .zero, case .corrupt = error else {
                Issue.record("\(label): \(error)")
                return
            }
            let fresh = try SQLiteState.rebuildEmpty(directory: directory.path)
            #expect(fresh.appliedIndex == .zero)
            fresh.close()
            return
        }
        defer { state.close() }
        let index = state.appliedIndex
        guard index >= durable, index.rawValue < hashes.count else {
            Issue.record("\(label): \(durable) was durable, \(index) is there")
            return
        }
        #expect(try state.contentHash() == hashes[Int(index.rawValue)], "\(label)")
        #expect(try state.recomputeContentHash() == hashes[Int(index.rawValue)], "\(label)")
        _ = try state.apply(Array(entries[Int(index.rawValue)...]))
        #expect(try state.contentHash() == hashes[hashes.count - 1], "\(label)")
    }
}

func smallOptions(_ deferral: Database.Deferral = .nothing) -> SQLiteState.Options {
    var options = SQLiteState.Options()
    options.deferral = deferral
    options.commitEntries = 24
    options.checkpointPages = 60
    // So small that pages are written before they are committed.
    options.cacheKiB = 64
    // So few that generations of garbage come and go.
    options.garbageCountMin = 8
    return options
}

@Suite struct StateCrashTests {
    /// What SIGKILL leaves: all writes, in any state between two calls. What was put off is not among
    /// them.
    @Test(arguments: Database.Deferral.allCases)
    func killsAtRandomMoments(_ deferral: Database.Deferral) throws {
        let directory = StateDirectory()
        var reference = Reference(seed: 1)
        var options = smallOptions(deferral)
        // Where pages are written before they are committed, SQLite reads them again to sum them up,
        // and nothing is put off for long.
        if deferral == .byHand { options.cacheKiB = 1024 }
        var state = try SQLiteState(directory: directory.path, options: options)
        var lagging = 0
        var durable = LogIndex.zero
        for round in 0..<120 {
            let batch = try reference.batch(reference.source.random.uniform(1..<30))
            _ = try state.apply(batch)
            let dice = reference.source.random.uniform(0..<10)
            if dice < 4 { durable = try state.checkpointIfDue() ?? durable }
            if dice == 4 { durable = try state.checkpoint() }
            if deferral == .byHand {
                try state.carryOut(reference.source.random.uniform(0..<25))
                let files = directory.copy()
                let state = try SQLiteState(directory: files.path)
                #expect(state.appliedIndex >= durable, "round \(round)")
                if state.appliedIndex.rawValue + 40 < reference.entries.count { lagging += 1 }
                state.close()
            }
            // A thread that writes meanwhile would leave files of several moments in a copy.
            if round % 3 == 0, deferral != .toThread {
                let copy = directory.copy()
                try reference.check(copy, durable: durable, "round \(round)")
            }
            if round % 3 == 0 {
                guard dice > 7 else { continue }
                // Go on from what was left, as a restarted process does.
                state.close()
                try reference.check(directory.copy(), durable: durable, "restart \(round)")
                state = try SQLiteState(directory: directory.path, options: options)
                let index = Int(state.appliedIndex.rawValue)
                _ = try state.apply(Array(reference.entries[index...]))
            }
        }
        state.close()
        try reference.check(directory, durable: durable, "the end")
        if deferral == .byHand { #expect(lagging > 5, "something was put off") }
    }

    /// What a power cut leaves: any subset of what was not synced, in torn sectors, under any names.
    @Test(arguments: 0..<6 as Range<UInt64>, Database.Deferral.allCases)
    func powerCuts(seed: UInt64, _ deferral: Database.Deferral) throws {
        let directory = StateDirectory()
        let recorder = WriteRecorder()
        let recording = StateRecording(directory: directory.path, recorder: recorder)
        var reference = Reference(seed: seed + 100)
        let options = smallOptions(deferral)
        var state = try SQLiteState(directory: directory.path, options: options)
        for round in 0..<40 {
            let batch = try reference.batch(reference.source.random.uniform(1..<40))
            _ = try state.apply(batch)
            if deferral == .byHand { try state.carryOut(reference.source.random.uniform(0..<150)) }
            if let index = try state.checkpointIfDue() { recorder.note("durable \(index)") }
            if round == 20 {
                // A snapshot of what memory has takes the state's place.
                let more = try reference.batch(50)
                #expect(!more.isEmpty)
                try transfer(from: reference.memory, to: state)
                recorder.note("durable \(state.appliedIndex)")
            }
            if round == 30 {
                state.close()
                state = try SQLiteState(directory: directory.path, options: options)
                let index = Int(state.appliedIndex.rawValue)
                _ = try state.apply(Array(reference.entries[index...]))
            }
        }
        state.close()
        withExtendedLifetime(recording) {}
        var random = RandomSource(seed: seed)
        var replay = PowerCutReplay(events: recorder.events)
        let cuts = (0..<30).map { _ in random.uniform(0..<recorder.events.count + 1) }.sorted()
        for cut in cuts {
            replay.advance(to: cut)
            var durable = LogIndex.zero
            for event in recorder.events[..<cut] {
                if case .note(let text) = event, let number = UInt64(text.dropFirst(8)) {
                    durable = LogIndex(number)
                }
            }
            let image = StateDirectory()
            try replay.image(using: &random).write(toDirectory: image.path)
            try reference.check(image, durable: durable, "seed \(seed), cut at \(cut)")
        }
    }

    /// A bit of the WAL flips while no process runs. What recovery makes of the rest is a moment of
    /// the run, and none before the last checkpoint: old frames never replay over a newer database.
    @Test func flippedBitsInAWALAtRest() throws {
        let directory = StateDirectory()
        var reference = Reference(seed: 5)
        let state = try SQLiteState(directory: directory.path, options: smallOptions())
        var durable = LogIndex.zero
        var flipped = 0
        for round in 0..<150 {
            _ = try state.apply(try reference.batch(reference.source.random.uniform(1..<30)))
            let dice = reference.source.random.uniform(0..<10)
            if dice < 4 { durable = try state.checkpointIfDue() ?? durable }
            if dice == 4 { durable = try state.checkpoint() }
            let copy = directory.copy()
            let path = copy.path + "/state.db-wal"
            var bytes = StateDirectory.read(path)
            if !bytes.isEmpty {
                bytes[reference.source.random.uniform(0..<bytes.count)] ^= 0x04
                StateDirectory.write(bytes, to: path)
                flipped += 1
            }
            try reference.check(copy, durable: durable, "round \(round)")
        }
        #expect(flipped > 50)
        state.close()
    }

    /// Killed in the middle of a checkpoint, when the database has some newer pages already, and then
    /// a bit of the WAL flips: what is left of the WAL must not put older pages over those.
    @Test func flippedBitsInTheWALOfAnUnfinishedCheckpoint() throws {
        let directory = StateDirectory()
        var reference = Reference(seed: 6)
        let state = try SQLiteState(directory: directory.path, options: smallOptions())
        let copies = Mutex<(countdown: Int, taken: StateDirectory?)>((-1, nil))
        let observer = VFSObserver(
            prefix: directory.path + "/state.db",
            after: { event in
                guard event.kind == .write, event.path.hasSuffix(".db") else { return }
                copies.withLock {
                    $0.countdown -= 1
                    if $0.countdown == 0 { $0.taken = directory.copy() }
                }
            })
        var durable = LogIndex.zero
        var outcomes = (whole: 0, refused: 0, older: 0, mixed: 0)
        for round in 0..<60 {
            for _ in 0..<4 {
                _ = try state.apply(try reference.batch(reference.source.random.uniform(1..<30)))
            }
            let countdown = reference.source.random.uniform(1..<12)
            copies.withLock { $0 = (countdown, nil) }
            let before = durable
            durable = try state.checkpoint()
            guard let killed = copies.withLock({ $0.taken }) else { continue }
            let wal = StateDirectory.read(killed.path + "/state.db-wal")
            try isWhole(killed.copy(), durable)
            for _ in 0..<12 {
                let copy = killed.copy()
                var bytes = wal
                // Its header now and then.
                let end = reference.source.random.chance(1, in: 4) ? 56 : bytes.count
                let place = reference.source.random.uniform(0..<end)
                bytes[place] ^= 1 << UInt8(reference.source.random.uniform(0..<8))
                StateDirectory.write(bytes, to: copy.path + "/state.db-wal")
                if try isMixed(copy, reference) { outcomes.mixed += 1 }
                do throws(StorageError) {
                    let opened = try SQLiteState(directory: copy.path)
                    outcomes.whole += opened.appliedIndex == durable ? 1 : 0
                    outcomes.older += opened.appliedIndex == durable ? 0 : 1
                    opened.close()
                } catch {
                    guard case .corrupt = error else {
                        Issue.record("round \(round), byte \(place): \(error)")
                        continue
                    }
                    // A damage that is noticed is made good from the log, or by others.
                    outcomes.refused += 1
                    continue
                }
                try reference.check(copy, durable: before, "round \(round), byte \(place)")
            }
        }
        withExtendedLifetime(observer) {}
        state.close()
        #expect(outcomes.refused > 100, "\(outcomes)")
        #expect(outcomes.older == 0, "\(outcomes)")
        #expect(outcomes.mixed > 10, "nothing would go wrong without the note: \(outcomes)")
    }

    /// With nothing flipped there is nothing to complain of, by whichever name the files go.
    private func isWhole(_ directory: StateDirectory, _ index: LogIndex) throws {
        let link = directory.path + "-link"
        #expect(symlink(directory.path, link) == 0)
        defer { unlink(link) }
        let state = try SQLiteState(directory: link)
        #expect(state.appliedIndex == index)
        state.close()
    }

    /// Whether the files, without the note of how far the checkpoint had got, are taken for a state
    /// that never was.
    private func isMixed(_ directory: StateDirectory, _ reference: Reference) throws -> Bool {
        let copy = directory.copy()
        #expect(unlink(copy.path + "/state.db-checkpoint") == 0)
        guard let state = try? SQLiteState(directory: copy.path) else { return false }
        defer { state.close() }
        let hash = reference.hashes[Int(state.appliedIndex.rawValue)]
        return (try? state.recomputeContentHash()) != hash
    }

    /// Every kind of operation fails once, wherever it may: an error comes out, no further call goes
    /// through, and what is on disk is a moment of the run. Only a checkpoint that finds no room is no
    /// error: the next one does it.
    @Test(arguments: [EIO, ENOSPC]) func failingDisks(code: Int32) throws {
        var waited = 0
        for target in 0..<60 {
            let directory = StateDirectory()
            let countdown = Mutex(target * 7)
            let failed = Mutex<String?>(nil)
            let isCheckpoint = Mutex(false)
            var observer: VFSObserver? = VFSObserver(
                prefix: directory.path,
                before: { event in
                    guard event.kind != .read || code == EIO else { return 0 }
                    let isNow = countdown.withLock {
                        $0 -= 1
                        return $0 == -1
                    }
                    // SQLite may leave a WAL longer than we like: that is no failure.
                    if isNow, event.kind == .truncate, event.path.hasSuffix("-wal") { return 0 }
                    guard isNow else { return 0 }
                    failed.withLock { $0 = "\(event.kind) \(event.path)" }
                    let isWrite =
                        event.kind == .write || event.kind == .create || event.kind == .truncate
                    let isByCheckpoint =
                        event.path.hasSuffix("/state.db") || event.path.hasSuffix("-checkpoint")
                    isCheckpoint.withLock { $0 = isWrite && isByCheckpoint }
                    return code
                })
            var reference = Reference(seed: UInt64(target))
            var durable = LogIndex.zero
            var state: SQLiteState?
            var failure: StorageError?
            do throws(StorageError) {
                state = try SQLiteState(directory: directory.path, options: smallOptions())
            } catch { failure = error }
            for _ in 0..<25 {
                guard let state, failure == nil else { break }
                let batch = try reference.batch(30)
                do throws(StorageError) {
                    _ = try state.apply(batch)
                    durable = try state.checkpointIfDue() ?? durable
                } catch {
                    failure = error
                    for _ in 0..<2 {
                        #expect(throws: error) { try state.apply(batch) }
                        #expect(throws: error) { try state.checkpoint() }
                        #expect(throws: error) { try state.get([1], at: nil) }
                        #expect(throws: error) { try state.contentHash() }
                    }
                }
            }
            state?.close()
            withExtendedLifetime(observer) {}
            observer = nil
            let what = failed.withLock { $0 }
            // What is written to the database before there is a state is no checkpoint.
            let waits = code == ENOSPC && state != nil && isCheckpoint.withLock { $0 }
            #expect((failure != nil) == (what != nil && !waits), "target \(target): \(what ?? "")")
            if waits { waited += 1 }
            if case .corrupt? = failure { Issue.record("target \(target): \(code) is no damage") }
            try reference.check(directory, durable: durable, "target \(target)")
        }
        #expect((waited > 0) == (code == ENOSPC), "\(waited)")
    }

    /// Something that was put off fails, wherever it may: nothing behind it is done, whoever comes next
    /// hears of it, and what is on disk is a moment of the run, and none before what was said to be
    /// durable.
    @Test(arguments: [Database.Deferral.byHand, .toThread])
    func failingDisksBehindTheBack(_ deferral: Database.Deferral) throws {
        var failures = 0
        for target in 0..<60 {
            let directory = StateDirectory()
            let operations = Mutex((left: Int.max, afterwards: 0))
            let observer = VFSObserver(
                prefix: directory.path + "/state.db",
                before: { event in
                    guard event.kind != .read else { return 0 }
                    return operations.withLock {
                        $0.left -= 1
                        if $0.left < -1 { $0.afterwards += 1 }
                        return $0.left == -1 ? EIO : 0
                    }
                })
            var reference = Reference(seed: UInt64(target))
            let state = try SQLiteState(directory: directory.path, options: smallOptions(deferral))
            operations.withLock { $0.left = target * 11 }
            var durable = LogIndex.zero
            var failure: StorageError?
            for _ in 0..<60 where failure == nil {
                let batch = try reference.batch(30)
                do throws(StorageError) {
                    _ = try state.apply(batch)
                    if deferral == .byHand {
                        try state.carryOut(reference.source.random.uniform(0..<25))
                    }
                    durable = try state.checkpointIfDue() ?? durable
                } catch { failure = error }
            }
            if failure == nil {
                do throws(StorageError) { durable = try state.checkpoint() } catch {
                    failure = error
                }
            }
            let hasFailed = operations.withLock { $0.left < 0 }
            #expect((failure != nil) == hasFailed, "target \(target)")
            if let failure {
                failures += 1
                guard case .disk = failure else {
                    Issue.record("target \(target): \(failure)")
                    continue
                }
                #expect(throws: failure) { try state.checkpoint() }
                #expect(throws: failure) { try state.get([1], at: nil) }
            }
            state.close()
            withExtendedLifetime(observer) {}
            #expect(operations.withLock { $0.afterwards } == 0, "target \(target)")
            try reference.check(directory, durable: durable, "target \(target)")
        }
        #expect(failures > 20)
    }

    @Test func failingSnapshotsLeaveTheOldState() throws {
        var origin = Reference(seed: 77)
        _ = try origin.batch(300)
        var isFinished = false
        var target = 0
        while !isFinished {
            let directory = StateDirectory()
            var reference = Reference(seed: 78)
            let state = try SQLiteState(directory: directory.path, options: smallOptions())
            _ = try state.apply(try reference.batch(100))
            let durable = try state.checkpoint()
            let countdown = Mutex(target)
            var observer: VFSObserver? = VFSObserver(
                prefix: directory.path,
                before: { _ in
                    countdown.withLock {
                        $0 -= 1
                        return $0 == -1 ? EIO : 0
                    }
                })
            do {
                try transfer(from: origin.memory, to: state)
            } catch {
                #expect(error is StorageError)
            }
            isFinished = countdown.withLock { $0 } >= 0
            state.close()
            withExtendedLifetime(observer) {}
            observer = nil
            // Either the one or the other, whole.
            let reopened = try SQLiteState(directory: directory.path)
            if reopened.appliedIndex == origin.memory.appliedIndex {
                #expect(try reopened.contentHash() == origin.memory.contentHash())
                #expect(
                    try reopened.recomputeContentHash() == origin.memory.contentHash())
                reopened.close()
            } else {
                reopened.close()
                try reference.check(directory, durable: durable, "target \(target)")
            }
            target += 9
        }
        #expect(target > 100, "the snapshot is long enough to fail in many places")
    }
}
