// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenDisk
import AspenMachine
import AspenTypes
import Glibc
import RaftCore
import RaftStorage
import Testing

/// What the log asks of its disk, and what it does when the disk says no.
@Suite struct LogDiskTests {
    private func configuration() -> LogConfiguration {
        var configuration = LogConfiguration()
        configuration.segmentBytes = 16 << 10
        return configuration
    }

    private func open(_ disk: any Disk) throws -> SegmentedLog {
        try SegmentedLog(disk: disk, configuration: configuration(), salt: 42)
    }

    /// The promise of DESIGN §6: one fdatasync a batch, no file grows, no name changes.
    @Test func aBatchIsOneWriteAndOneSync() throws {
        let recorder = WriteRecorder()
        let log = try open(RecordingDisk(MemoryDisk(), recorder: recorder))
        for batch in UInt64(0)..<10 {
            let before = recorder.count
            for number in batch * 4 + 1...batch * 4 + 4 {
                try log.write(write(entries(number...number)))
            }
            try log.sync()
            let events = recorder.events[before...]
            let kinds = events.map { event in
                switch event {
                case .write(_, let offset, let bytes):
                    #expect(offset + UInt64(bytes.count) <= 16 << 10)
                    return "write"
                case .syncBegan: return "sync"
                case .syncEnded: return "synced"
                default: return "other"
                }
            }
            // The last write is the mark: it waits for nothing.
            #expect(kinds == ["write", "sync", "synced", "write"])
            try log.sync()
            #expect(recorder.count == before + 4)
        }
    }

    @Test func goingOverIntoThePreparedSegmentCostsOneMoreSync() throws {
        let recorder = WriteRecorder()
        let log = try open(RecordingDisk(MemoryDisk(), recorder: recorder))
        try log.write(write(entries(1...70, byteCount: 64)))
        try log.sync()
        try log.prepareNextIfNeeded()
        let before = recorder.count
        try log.write(write(entries(71...130, byteCount: 64)))
        try log.sync()
        let events = recorder.events[before...]
        #expect(events.count { if case .syncBegan = $0 { true } else { false } } == 2)
        #expect(
            !events.contains {
                switch $0 {
                case .create, .rename, .remove, .truncate, .directorySyncBegan: true
                default: false
                }
            })
    }

    /// Who waits for a killed node waits for this, too: nothing that was synced is written again, and
    /// only what had not been synced costs a second sync.
    @Test func reopeningWritesTheEndAlone() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...60, byteCount: 100)))
        try log.sync()
        func reopen() throws -> (syncs: Int, written: Int) {
            let recorder = WriteRecorder()
            _ = try open(RecordingDisk(disk, recorder: recorder))
            let writes = recorder.events.map { event in
                if case .write(_, _, let bytes) = event { bytes.count } else { 0 }
            }
            let syncs = recorder.events.count {
                switch $0 {
                case .syncBegan, .directorySyncBegan: true
                default: false
                }
            }
            return (syncs, writes.reduce(0, +))
        }
        let whole = try reopen()
        #expect(whole.syncs == 1)
        #expect(whole.written < 200, "the opening record and the mark")
        let killed = try open(disk)
        try killed.write(write(entries(61...62, byteCount: 100)))
        _ = try killed.all()
        let torn = try reopen()
        #expect(torn.syncs == 2)
        #expect(torn.written > whole.written + 200 && torn.written < whole.written + 500)
        #expect(try open(disk).all() == entries(1...62, byteCount: 100))
    }

    /// What a failed sync was about reads back as written, counts as clean, and never reaches the
    /// disk. Who opens the log next answers for it all the same.
    @Test(arguments: UInt64(1)...60) func whatAFailedSyncLostIsWrittenAgain(seed: UInt64) throws {
        var random = RandomSource(seed: seed)
        let recorder = WriteRecorder()
        let disk = RecordingDisk(MemoryDisk(), recorder: recorder)
        let log = try open(disk)
        var last: UInt64 = 0
        func append() throws {
            let count = random.uniform(1..<12 as Range<UInt64>)
            let byteCount = random.uniform(8..<600)
            try log.write(write(entries(last + 1...last + count, byteCount: byteCount)))
            last += count
        }
        for _ in 0..<random.uniform(0..<6) {
            try append()
            try log.sync()
        }
        try append()
        let all = try log.all()
        let failed = recorder.count
        let synced =
            recorder.events.lastIndex { if case .syncEnded = $0 { true } else { false } } ?? 0
        #expect(try open(disk).lastIndex == index(last))
        let onDisk = recorder.events.enumerated().filter { place, event in
            guard place > synced, place < failed, case .write = event else { return true }
            return false
        }
        #expect(onDisk.count < recorder.count)
        var replay = PowerCutReplay(events: onDisk.map(\.element))
        replay.advance(to: onDisk.count)
        for _ in 0..<8 {
            let found = try open(MemoryDisk(image: replay.image(using: &random)))
            #expect(found.recovery.isTailTrusted)
            #expect(try found.all() == all)
        }
    }

    @Test func aFullDiskStopsTheLogAndLosesNothing() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        disk.space.byteCountMax = disk.space.used
        var last: UInt64 = 0
        var refusal: StorageError?
        while refusal == nil {
            do {
                try log.write(write(entries(last + 1...last + 1, byteCount: 100)))
                try log.sync()
                last += 1
                if last % 10 == 0, last > 20 {
                    #expect(throws: StorageError.self) { try log.prepareNextIfNeeded() }
                    #expect(try disk.list().count == 1)
                }
            } catch {
                refusal = error as? StorageError
            }
        }
        let reason = try #require(refusal)
        guard case .disk = reason else { throw reason }
        // A quarter of so small a segment is for the mark.
        #expect(last > 40)
        #expect(throws: reason) { try log.sync() }
        #expect(throws: reason) { try log.write(write(entries(1...1))) }
        disk.space.byteCountMax = .max
        let reopened = try open(disk)
        #expect(try reopened.all() == entries(1...last, byteCount: 100))
        try reopened.write(write(entries(last + 1...last + 50, byteCount: 100)))
        try reopened.sync()
        #expect(try open(disk).all() == entries(1...last + 50, byteCount: 100))
    }

    /// A segment that was prepared in time lets a node on a full disk start, and discard.
    @Test func aPreparedSegmentNeedsNoRoom() throws {
        let disk = MemoryDisk()
        let log = try open(disk)
        try log.write(write(entries(1...60, byteCount: 100)))
        try log.sync()
        try log.prepareNextIfNeeded()
        disk.space.byteCountMax = disk.space.used
        let reopened = try open(disk)
        try reopened.prepareNextIfNeeded()
        try reopened.write(write(entries(61...130, byteCount: 100)))
        try reopened.sync()
        try reopened.discard(upTo: index(100), term: Term(1))
        try reopened.prepareNextIfNeeded()
        #expect(reopened.isNextSegmentReady)
    }

    @Test func aFailedSyncIsFinal() throws {
        let disk = BrokenDisk()
        let log = try open(disk)
        try log.write(write(entries(1...3)))
        disk.plan.failsSync = true
        #expect(throws: StorageError.self) { try log.sync() }
        disk.plan.failsSync = false
        // The kernel reports a lost page once; trying again would promise what is not there.
        #expect(throws: StorageError.self) { try log.sync() }
        #expect(throws: StorageError.self) {
            try log.read(from: index(1), upTo: index(1), bytesMax: 1)
        }
    }

    @Test func theDirectoryHasOneOwner() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/raft"
        var disk: PosixDisk? = try PosixDisk(path: path)
        #expect(disk != nil)
        do {
            _ = try PosixDisk(path: path)
            Issue.record("two owners")
        } catch {
            #expect(error.kind == .locked)
            #expect(error.operation.contains(path) && error.operation.contains("pid \(getpid())"))
        }
        var status = stat()
        #expect(stat(path, &status) == 0 && status.st_mode & 0o777 == 0o700)
        _ = try disk?.open("file", create: true)
        #expect(stat(path + "/file", &status) == 0 && status.st_mode & 0o777 == 0o600)
        #expect(try disk?.list() == ["file"])
        disk = nil
        let again = try PosixDisk(path: path)
        try again.remove("file")
        unlink(path + "/LOCK")
        rmdir(path)
    }

    /// As for the state: a child between fork and exec has a copy of the lock's descriptor.
    @Test func aChildThatHasItsDescriptorsKeepsNoDirectory() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/raft"
        var disk: PosixDisk? = try PosixDisk(path: path)
        #expect(disk != nil)
        let copies = Descriptors.copies(of: path + "/LOCK")
        defer { for copy in copies { Glibc.close(copy) } }
        #expect(!copies.isEmpty)
        disk = nil
        _ = try PosixDisk(path: path)
        StateDirectory.remove(path)
    }

    @Test func posixFilesDoWhatTheyAreTold() throws {
        let directory = try TemporaryDirectory()
        let disk = try PosixDisk(path: directory.path)
        #expect(throws: DiskError.self) { try disk.open("missing", create: false) }
        let file = try disk.open("a", create: true)
        try file.write(Array(0..<200), at: 100)
        #expect(try file.byteCount == 300)
        #expect(try file.read(at: 98, count: 4) == [0, 0, 0, 1])
        #expect(try file.read(at: 298, count: 10) == [198, 199])
        #expect(try file.read(at: 400, count: 10).isEmpty)
        try file.truncate(to: 101)
        try file.sync()
        try disk.rename("a", to: "b")
        try disk.syncDirectory()
        #expect(try disk.list() == ["b"])
        #expect(try disk.open("b", create: false).byteCount == 101)
        try disk.remove("b")
        do {
            try disk.remove("b")
        } catch {
            #expect(error.kind == .notFound)
        }
    }

    @Test func tracesSurviveAFile() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/trace"
        let memory = WriteRecorder()
        let onDisk = try WriteRecorder(tracePath: path)
        for recorder in [memory, onDisk] {
            let disk = RecordingDisk(MemoryDisk(), recorder: recorder, directory: "log")
            let log = try open(disk)
            try log.write(write(entries(1...100, byteCount: 300)))
            try log.sync()
            recorder.note("acknowledged 100")
            try disk.remove(disk.list()[0])
        }
        let bytes = try DirectoryBytes.read(path)
        #expect(try WriteEvent.decodeTrace(bytes) == memory.events)
        for count in stride(from: 0, to: bytes.count, by: 997) {
            let prefix = try WriteEvent.decodeTrace(Array(bytes.prefix(count)))
            #expect(prefix == Array(memory.events.prefix(prefix.count)))
        }
        var replay = PowerCutReplay(events: memory.events)
        replay.advance(to: memory.events.count)
        #expect(replay.currentImage.directory("log").files.count > 1)
    }
}

/// The whole of a file, by its path.
enum DirectoryBytes {
    static func read(_ path: String) throws -> [UInt8] {
        let descriptor = open(path, O_RDONLY)
        guard descriptor >= 0 else { throw StorageError.disk("open \(path)") }
        defer { close(descriptor) }
        var status = stat()
        fstat(descriptor, &status)
        return [UInt8](unsafeUninitializedCapacity: Int(status.st_size)) { buffer, count in
            count = max(0, Glibc.read(descriptor, buffer.baseAddress, buffer.count))
        }
    }
}

/// A disk whose syncs can be made to fail.
final class BrokenDisk: Disk {
    // SAFETY: used by one test on one thread.
    final class Plan: @unchecked Sendable { var failsSync = false }

    private let base = MemoryDisk()
    let plan = Plan()

    func open(_ name: String, create: Bool) throws(DiskError) -> any DiskFile {
        BrokenFile(base: try base.open(name, create: create), plan: plan)
    }
    func list() throws(DiskError) -> [String] { try base.list() }
    func rename(_ from: String, to: String) throws(DiskError) { try base.rename(from, to: to) }
    func remove(_ name: String) throws(DiskError) { try base.remove(name) }
    func syncDirectory() throws(DiskError) {}

    private final class BrokenFile: DiskFile {
        let base: any DiskFile
        let plan: Plan

        init(base: any DiskFile, plan: Plan) {
            self.base = base
            self.plan = plan
        }

        var byteCount: UInt64 { get throws(DiskError) { try base.byteCount } }
        func read(at offset: UInt64, count: Int) throws(DiskError) -> [UInt8] {
            try base.read(at: offset, count: count)
        }
        func write(_ bytes: [UInt8], at offset: UInt64) throws(DiskError) {
            try base.write(bytes, at: offset)
        }
        func truncate(to byteCount: UInt64) throws(DiskError) { try base.truncate(to: byteCount) }
        func sync() throws(DiskError) {
            if plan.failsSync { throw DiskError(.io, operation: "sync", errno: 5) }
            try base.sync()
        }
        func close() { base.close() }
    }
}
