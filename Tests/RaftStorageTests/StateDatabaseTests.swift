// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import CAspenVFS
import Glibc
import KVCore
import RaftCore
import SQLiteKit
import Synchronization
import Testing

@testable import RaftStorage

/// The file itself: its checksums, its locks, its versions, its WAL.
@Suite struct StateDatabaseTests {
    private func filled(_ directory: StateDirectory, seed: UInt64 = 1) throws -> SQLiteState {
        let state = try SQLiteState(directory: directory.path)
        var source = EntrySource(seed: seed)
        source.keyCount = 200
        _ = try state.apply([source.membership()])
        for _ in 0..<10 { _ = try state.apply(source.batch(100, revision: state.revision)) }
        return state
    }

    /// Reads all there is; nil, or the error that came.
    private func readAll(_ state: SQLiteState) -> StorageError? {
        do throws(StorageError) {
            var from: [UInt8] = []
            while case .page(let page) = try state.range(
                RangeRequest(from: from, to: nil, limit: 1000))
            {
                guard page.more, let last = page.entries.last else { break }
                from = last.key + [0]
            }
            _ = try state.recomputeContentHash()
            return nil
        } catch { return error }
    }

    /// Whichever of them ends a transaction: with values of some hundred bytes it is the bytes.
    @Test func allThatEndsATransactionIsOutOfStepWithOtherNodes() {
        let usual = SQLiteState.Options()
        for _ in 0..<20 {
            let other = usual.outOfStep()
            let share = other.commitInterval / usual.commitInterval
            #expect((0.84...1).contains(share))
            for bound in [
                \SQLiteState.Options.commitEntries, \.commitBytes, \.cacheKiB, \.cacheKiBMax,
            ] {
                let own = Double(other[keyPath: bound])
                #expect(abs(own - share * Double(usual[keyPath: bound])) <= 1)
            }
        }
    }

    /// Whoever applies entries may never read that page: a snapshot that does so says it for all.
    @Test func whatASnapshotFindsDamagedIsKnownToTheNextStart() throws {
        let directory = StateDirectory()
        let state = try filled(directory)
        _ = try state.checkpoint()
        state.close()
        let file = directory.path + "/state.db"
        let good = StateDirectory.read(file)
        var found = 0
        for page in stride(from: good.count / 4096 - 1, to: 1, by: -1) where found < 5 {
            var bad = good
            bad[page * 4096 + 100] ^= 4
            StateDirectory.write(bad, to: file)
            let opened = try SQLiteState(directory: directory.path)
            do throws(StorageError) {
                let reader = try opened.makeSnapshot()
                defer { reader.close() }
                while try reader.next() != nil {}
                opened.close()
                continue
            } catch {
                guard case .corrupt = error else { throw error }
            }
            opened.close()
            found += 1
            #expect(throws: StorageError.self) { try SQLiteState(directory: directory.path) }
            unlink(directory.path + "/state.damaged")
        }
        #expect(found == 5)
    }

    /// Given back as a whole, a large file holds up whoever closes it.
    @Test func whatWasReadOfASpoolIsGivenBackAtOnce() throws {
        let directory = StateDirectory()
        let state = try SQLiteState(directory: directory.path)
        var source = EntrySource(seed: 4)
        _ = try state.apply([source.membership()])
        for number in 0..<40 as Range<UInt8> {
            _ = try state.apply([source.put([number], source.bytes(100_000))])
        }
        let spool = try #require(try state.makeSnapshot() as? SnapshotSpool)
        spool.waitUntilRead()
        let whole = spool.heldBytes
        // Pages in part, and what the file system keeps of any file.
        let rest: UInt64 = 65_536
        #expect(whole >= 4_000_000)
        var count: UInt64 = 0
        while let piece = try spool.next() {
            count += UInt64(piece.count)
            #expect(spool.heldBytes <= whole - min(whole, count) + rest)
        }
        #expect(spool.heldBytes <= rest)
        spool.close()
        state.close()
    }

    /// Of a state that is larger than what is free, no more lies in the spool than there is room for: it
    /// is filled as it is read.
    @Test func aSpoolHoldsNoMoreThanItMay() throws {
        let (directory, state, _) = try Self.large()
        let spool = try #require(try state.makeSnapshot(spoolBytesMax: 2_000_000) as? SnapshotSpool)
        let copy = MemoryState()
        let writer = copy.receiveSnapshot(spool.meta)
        var held: UInt64 = 0
        while let piece = try spool.next() {
            held = max(held, spool.heldBytes)
            try writer.append(piece)
        }
        try writer.finish()
        #expect(held < 2_600_000, "\(held) of 8 MB")
        try expectEqual(copy, state)
        spool.close()
        state.close()
        withExtendedLifetime(directory) {}
    }

    /// Whoever has to wait for a spool that waits for its reader, waits in vain: it is given up.
    @Test func aSpoolThatNobodyReadsHoldsNobodyUp() throws {
        let (directory, state, _) = try Self.large()
        let spool = try #require(try state.makeSnapshot(spoolBytesMax: 2_000_000) as? SnapshotSpool)
        state.waitForSnapshots()
        #expect(!spool.isReadingDatabase)
        do throws(StorageError) {
            while try spool.next() != nil {}
            Issue.record("half of a snapshot was taken for a whole one")
        } catch {
            #expect("\(error)".contains("no space left"), "\(error)")
        }
        spool.close()
        #expect(try state.checkpoint() == state.appliedIndex)
        state.close()
        withExtendedLifetime(directory) {}
    }

    /// The read transaction keeps the WAL from being started over: that takes room as well.
    @Test func aSpoolIsGivenUpWhereTheWALTakesItsRoom() throws {
        let (directory, state, filled) = try Self.large()
        let spool = try #require(try state.makeSnapshot(spoolBytesMax: 2_000_000) as? SnapshotSpool)
        var (source, written) = (filled, 0)
        while spool.isReadingDatabase {
            written += 100_000
            _ = try state.apply([source.put([1], source.bytes(100_000))])
            _ = try state.checkpointIfDue()
            try #require(written < 20_000_000, "it goes on and on")
        }
        #expect(written < 8_000_000, "\(written)")
        spool.close()
        _ = try state.checkpoint()
        let wal = StateDirectory.read(directory.path + "/state.db-wal")
        #expect(wal.isEmpty, "\(wal.count)")
        state.close()
        withExtendedLifetime(directory) {}
    }

    private static func large() throws -> (StateDirectory, SQLiteState, EntrySource) {
        let directory = StateDirectory()
        let state = try SQLiteState(directory: directory.path)
        var source = EntrySource(seed: 4)
        _ = try state.apply([source.membership(), source.command(.activateVersion(2))])
        for number in 0..<80 as Range<UInt8> {
            _ = try state.apply([source.put([number], source.bytes(100_000))])
        }
        return (directory, state, source)
    }

    /// Any byte of any page in use: an error, or nothing was lost; never a wrong answer.
    @Test func flippedBitsAreNeverServed() throws {
        let directory = StateDirectory()
        let state = try filled(directory)
        _ = try state.checkpoint()
        let hash = try state.contentHash()
        state.close()
        unlink(directory.path + "/state.db-wal")
        let file = directory.path + "/state.db"
        let good = StateDirectory.read(file)
        #expect(good.count > 100 * 4096)
        var random = RandomSource(seed: 1)
        var found = 0
        for round in 0..<250 {
            var bad = good
            // The header of the file and the beginnings of pages get their share.
            let place =
                round % 4 == 0
                ? random.uniform(0..<100)
                : round % 4 == 1
                    ? random.uniform(0..<good.count / 4096) * 4096 + random.uniform(0..<12)
                    : random.uniform(0..<good.count)
            bad[place] ^= 1 << UInt8(random.uniform(0..<8))
            StateDirectory.write(bad, to: file)
            var failure: StorageError?
            do throws(StorageError) {
                let damaged = try SQLiteState(directory: directory.path)
                failure = readAll(damaged)
                if failure == nil { #expect(try damaged.contentHash() == hash) }
                damaged.close()
            } catch { failure = error }
            if case .corrupt? = failure { found += 1 }
            if let failure, case .corrupt = failure { continue }
            // Only a page that nobody reads may go unnoticed.
            #expect(failure == nil, "round \(round), byte \(place)")
        }
        #expect(found > 200, "\(found)")
    }

    /// The same for what is still in the WAL while the process runs.
    @Test func flippedBitsInTheWALAreNeverServed() throws {
        var options = SQLiteState.Options()
        options.commitEntries = 1
        options.checkpointPages = 1_000_000
        options.cacheKiB = 40
        var found = 0
        for round in 0..<20 as Range<UInt64> {
            let directory = StateDirectory()
            let state = try SQLiteState(directory: directory.path, options: options)
            var source = EntrySource(seed: round)
            for _ in 0..<300 {
                let (key, value) = (source.bytes(12), source.bytes(500))
                _ = try state.apply([source.put(key, value)])
            }
            let file = directory.path + "/state.db-wal"
            var bytes = StateDirectory.read(file)
            // One bit in every frame.
            for start in stride(from: 32, to: bytes.count - 4120, by: 4120) {
                bytes[start + 24 + source.random.uniform(0..<4096)] ^= 0x10
            }
            let descriptor = open(file, O_WRONLY)
            #expect(pwrite(descriptor, bytes, bytes.count, 0) == bytes.count)
            Glibc.close(descriptor)
            if case .corrupt? = readAll(state) { found += 1 }
            state.close()
        }
        #expect(found == 20)
    }

    @Test func pagesInTheWrongPlaceAreFound() throws {
        let directory = StateDirectory()
        let state = try filled(directory)
        _ = try state.checkpoint()
        state.close()
        unlink(directory.path + "/state.db-wal")
        let file = directory.path + "/state.db"
        var bytes = StateDirectory.read(file)
        // A misdirected write: two sound pages change places.
        let (a, b) = (5 * 4096, 20 * 4096)
        for offset in 0..<4096 { bytes.swapAt(a + offset, b + offset) }
        StateDirectory.write(bytes, to: file)
        let damaged = try SQLiteState(directory: directory.path)
        guard case .corrupt? = readAll(damaged) else {
            Issue.record("pages were taken for each other")
            return
        }
        damaged.close()
    }

    @Test func theFileIsMadeAsPrescribed() throws {
        let directory = StateDirectory()
        let state = try filled(directory)
        _ = try state.checkpoint()
        state.close()
        let bytes = StateDirectory.read(directory.path + "/state.db")
        #expect(bytes[16] == 0x10 && bytes[17] == 0, "pages of 4,096 bytes")
        #expect(bytes[18] == 2 && bytes[19] == 2, "WAL")
        #expect(bytes[20] == 8, "room for checksums")
        #expect(bytes[52..<56].contains { $0 != 0 }, "auto_vacuum")
        #expect(bytes[64..<68].elementsEqual([0, 0, 0, 1]), "incremental")
        #expect(bytes[68..<72].elementsEqual(Array("aspn".utf8)), "application id")
        #expect(bytes[60..<64].elementsEqual([0, 0, 0, 4]), "schema version")
        for number in 0..<bytes.count / 4096 {
            let page = Array(bytes[number * 4096..<(number + 1) * 4096])
            let sum = page[4088...].reversed().reduce(0) { $0 << 8 | UInt64($1) }
            #expect(sum == aspen_vfs_page_checksum(UInt32(number + 1), page))
        }
        // No -shm: nobody else can take our locks.
        #expect(
            StateDirectory.names(in: directory.path) == [
                "state.db", "state.db-checkpoint", "state.db-wal",
            ])
    }

    @Test func otherProcessesAreKeptOut() throws {
        let directory = StateDirectory()
        let state = try filled(directory)
        let descriptor = open(directory.path + "/state.db", O_RDWR)
        defer { Glibc.close(descriptor) }
        // What any other SQLite does first: a read lock on the shared range.
        var lock = flock(
            l_type: Int16(F_RDLCK), l_whence: Int16(SEEK_SET), l_start: 0x4000_0002, l_len: 510,
            l_pid: 0)
        // Locks of open files (F_OFD_SETLK): those of a process would not exclude itself.
        #expect(fcntl(descriptor, 37, &lock) == -1 && errno == EAGAIN)
        state.close()
        #expect(fcntl(descriptor, 37, &lock) == 0)
        var failure: StorageError?
        do throws(StorageError) { _ = try SQLiteState(directory: directory.path) } catch {
            failure = error
        }
        guard case .locked? = failure else {
            Issue.record("\(String(describing: failure))")
            return
        }
        lock.l_type = Int16(F_UNLCK)
        #expect(fcntl(descriptor, 37, &lock) == 0)
        try SQLiteState(directory: directory.path).close()
    }

    /// A process that starts another one has, between fork and exec, a child with all its descriptors:
    /// what is closed meanwhile is still open there, and a lock of the open file would stay.
    @Test func aChildThatHasItsDescriptorsKeepsNoLock() throws {
        let directory = StateDirectory()
        let state = try filled(directory)
        let copies = Descriptors.copies(of: directory.path + "/state.db")
        defer { for copy in copies { Glibc.close(copy) } }
        #expect(!copies.isEmpty)
        state.close()
        try SQLiteState(directory: directory.path).close()
    }

    /// A disk that has forgotten what it synced may show pages of several moments, each of them sound.
    @Test(arguments: [
        "UPDATE meta SET bytes = (SELECT bytes FROM old)",
        "UPDATE newest SET number = 1 << 50 WHERE key = x'05'",
        "UPDATE newest SET version = 7 WHERE key = x'05'",
    ])
    func pagesOfSeveralMomentsAreDamage(sql: String) throws {
        let directory = StateDirectory()
        var source = EntrySource(seed: 9)
        var state = try SQLiteState(directory: directory.path)
        _ = try state.apply([source.membership()])
        _ = try state.checkpoint()
        state.close()
        let path = directory.path + "/state.db"
        try Database(path: path).execute("CREATE TABLE old AS SELECT bytes FROM meta")
        state = try SQLiteState(directory: directory.path)
        _ = try state.apply([source.put([5], [1]), source.put([5], [2])])
        let delete = Transaction(success: [.delete(key: [5])])
        _ = try state.apply([source.command(.transaction(delete, nil))])
        _ = try state.checkpoint()
        state.close()
        try Database(path: path).execute(sql)
        do {
            state = try SQLiteState(directory: directory.path)
            for _ in 0..<3 { _ = try state.apply([source.put([5], [3])]) }
            Issue.record("it was not noticed")
        } catch {
            guard case .corrupt = error else { throw error }
        }
    }

    @Test func newerAndForeignFilesAreRefused() throws {
        let directory = StateDirectory()
        try filled(directory).close()
        let path = directory.path + "/state.db"
        func open() -> StorageError? {
            do throws(StorageError) {
                try SQLiteState(directory: directory.path).close()
                return nil
            } catch { return error }
        }
        #expect(open() == nil)
        func change(_ sql: String) throws { try Database(path: path).execute(sql) }
        try change("PRAGMA user_version = 5")
        guard case .newerVersion(let text)? = open() else {
            Issue.record("a newer schema was opened")
            return
        }
        #expect(text.contains("version 5"))
        try change("PRAGMA user_version = 4; PRAGMA application_id = 7")
        guard case .corrupt? = open() else {
            Issue.record("a foreign database was opened")
            return
        }
        StateDirectory.write(Array("this is no database at all".utf8), to: path)
        guard case .corrupt? = open() else {
            Issue.record("a text was opened")
            return
        }
        let fresh = try SQLiteState.rebuildEmpty(directory: directory.path)
        #expect(fresh.appliedIndex == .zero && fresh.membership == nil)
        fresh.close()
        #expect(open() == nil)
    }

    /// A checkpoint that could not copy everything says nothing about what is durable.
    @Test func readersHoldBackWhatIsDurable() throws {
        let directory = StateDirectory()
        let state = try filled(directory)
        let before = try state.checkpoint()
        #expect(before == state.appliedIndex)
        var source = EntrySource(seed: 2)
        source.next = state.appliedIndex.next
        source.term = Term(1000)
        _ = try state.apply([source.put([1], [1])])
        #expect(try state.checkpoint() == state.appliedIndex)

        var options = Database.Options()
        options.isReadOnly = true
        let reader = try Database(path: directory.path + "/state.db", options: options)
        try reader.execute("BEGIN; SELECT * FROM meta")
        let held = state.appliedIndex
        _ = try state.apply([source.put([1], [2])])
        #expect(try state.checkpoint() == held, "the reader still looks at the pages of then")
        _ = try state.apply([source.put([1], [3])])
        #expect(try state.checkpoint() == held)
        try reader.execute("COMMIT")
        #expect(try state.checkpoint() == state.appliedIndex)
        state.close()
    }

    /// However much is written, the WAL is started over.
    @Test func theWALStaysBounded() throws {
        let directory = StateDirectory()
        let state = try SQLiteState(directory: directory.path)
        var source = EntrySource(seed: 3)
        var largest = 0
        for round in 0..<60 {
            let entries = (0..<500).map { number in
                source.put(Array("\(round % 7) \(number)".utf8), source.bytes(600))
            }
            _ = try state.apply(entries)
            var status = stat()
            stat(directory.path + "/state.db-wal", &status)
            largest = max(largest, Int(status.st_size))
            _ = try state.checkpointIfDue()
        }
        #expect(largest > 0 && largest < 24 << 20, "\(largest) bytes")
        state.close()
    }

    /// Before pages that do not fit into memory are written again and again in one transaction.
    @Test func aTransactionEndsWhenItsPagesFillTheCache() throws {
        let directory = StateDirectory()
        var options = SQLiteState.Options()
        options.cacheKiB = 200
        options.commitEntries = .max
        options.commitBytes = .max
        options.checkpointPages = 1
        let state = try SQLiteState(directory: directory.path, options: options)
        var source = EntrySource(seed: 5)
        var ends: [LogIndex] = []
        for _ in 0..<4000 {
            _ = try state.apply([source.put(source.bytes(12), source.bytes(500))])
            if let durable = try state.checkpointIfDue() { ends.append(durable) }
        }
        #expect(ends.count > 5, "\(ends.count)")
        // A checkpoint had nothing to commit: the transaction had ended before.
        #expect(ends.last.map { $0 < state.appliedIndex } == true)
        state.close()
    }

    /// - Returns: the entries of each transaction that ended by itself, of puts of 20 bytes.
    private func transactions(
        _ keys: Int, _ options: SQLiteState.Options
    ) throws -> [UInt64] {
        let directory = StateDirectory()
        let state = try SQLiteState(directory: directory.path, options: options)
        var source = EntrySource(seed: 6)
        var ends: [UInt64] = [0]
        for _ in 0..<12_000 {
            let key = Array("key \(source.random.uniform(0..<keys))".utf8)
            _ = try state.apply([source.put(key, source.bytes(20))])
            if let durable = try state.checkpointIfDue() { ends.append(durable.rawValue) }
        }
        state.close()
        return zip(ends.dropFirst(), ends).map { $0 - $1 }
    }

    /// A longer transaction saves writing where the same pages are changed again and again, and only
    /// there.
    @Test func aTransactionIsLongWhereTheTreeOfKeysFitsIntoMemory() throws {
        var options = SQLiteState.Options()
        (options.cacheKiB, options.cacheKiBMax) = (200, 2000)
        (options.commitEntries, options.commitBytes) = (.max, .max)
        options.checkpointPages = 1
        let long = try transactions(12_000, options)
        options.cacheKiBMax = 200
        let short = try transactions(12_000, options)
        #expect(long[long.count / 2] > 5 * short[short.count / 2], "\(long) \(short)")
        options.cacheKiBMax = 600
        let useless = try transactions(1_000_000, options)
        #expect(useless.suffix(5).allSatisfy { $0 < 2 * short[short.count / 2] }, "\(useless)")
    }

    /// A process that is killed has little to apply again.
    @Test func aTransactionEndsAfterSomeTime() throws {
        let directory = StateDirectory()
        let state = try SQLiteState(directory: directory.path)
        var source = EntrySource(seed: 7)
        func applied() throws -> LogIndex {
            // As a process finds it that comes after one that was killed.
            let copy = StateDirectory()
            for name in ["state.db", "state.db-wal"] {
                StateDirectory.write(
                    StateDirectory.read("\(directory.path)/\(name)"), to: "\(copy.path)/\(name)")
            }
            let found = try SQLiteState(directory: copy.path)
            defer { found.close() }
            return found.appliedIndex
        }
        // Whatever the time was before.
        source.time += 3_600_000
        _ = try state.apply([source.put([1], [1])])
        #expect(try applied() == .zero)
        source.time += 1999
        _ = try state.apply([source.put([1], [2])])
        #expect(try applied() == .zero)
        source.time += 1
        _ = try state.apply([source.put([1], [3])])
        #expect(try applied() == LogIndex(3))
        _ = try state.apply([source.put([1], [4])])
        #expect(try applied() == LogIndex(3))
        try state.rest()
        #expect(try applied() == LogIndex(4))
        state.close()
    }

    /// What is deleted and compacted gives its space back.
    @Test func theFileTrimsItself() throws {
        let directory = StateDirectory()
        let state = try SQLiteState(directory: directory.path)
        var source = EntrySource(seed: 4)
        for round in 0..<40 as Range<UInt8> {
            let entries = (0..<50 as Range<UInt8>).map {
                source.put([round, $0], [UInt8](repeating: $0, count: 8000))
            }
            _ = try state.apply(entries)
        }
        _ = try state.checkpoint()
        let full = state.byteCount
        for round in 0..<40 as Range<UInt8> {
            _ = try state.apply([
                source.command(
                    .transaction(
                        Transaction(success: [.deleteRange(from: [round], to: [round + 1])]), nil))
            ])
        }
        for _ in 0..<10 {
            _ = try state.apply([source.command(.compact(state.revision))])
            for number in 0..<2000 as Range<Int> {
                _ = try state.apply([source.put([200], Array("\(number)".utf8))])
            }
        }
        for _ in 0..<100 {
            _ = try state.apply([source.put([200], source.bytes(1_000_000))])
            _ = try state.apply([source.command(.compact(state.revision))])
            _ = try state.checkpointIfDue()
        }
        #expect(full > 16_000_000)
        var status = stat()
        stat(directory.path + "/state.db", &status)
        // Up to 4 MiB of free pages are kept for use again.
        #expect(UInt64(status.st_size) < full * 2 / 3, "\(status.st_size) of \(full)")
        #expect(try state.recomputeContentHash() == state.contentHash())
        state.close()
    }

    /// No sync on the way of applying: durability is the log's.
    @Test func applyingNeverSyncs() throws {
        let directory = StateDirectory()
        let state = try filled(directory)
        _ = try state.checkpoint()
        let syncs = Mutex(0)
        let observer = VFSObserver(
            prefix: directory.path,
            after: { event in
                if event.kind == .sync { syncs.withLock { $0 += 1 } }
            })
        var source = EntrySource(seed: 9)
        source.next = state.appliedIndex.next
        source.term = Term(1000)
        for _ in 0..<50 {
            let entries = (0..<200).map { _ in
                let (key, value) = (source.bytes(20), source.bytes(200))
                return source.put(key, value)
            }
            _ = try state.apply(entries)
        }
        // One for the header of a WAL that is started over after the checkpoint above.
        #expect(syncs.withLock { $0 } <= 1)
        _ = try state.checkpoint()
        #expect(syncs.withLock { $0 } >= 2)
        withExtendedLifetime(observer) {}
        state.close()
    }
}
