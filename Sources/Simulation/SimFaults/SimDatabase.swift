// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import AspenTypes
import Glibc
import KVCore
import RaftCore
import RaftStorage
import SQLiteKit
import SimKit

/// The state of one node as production keeps it: the real SQLite code over real files, which live in
/// memory. It goes beside the state in memory that oracles look into, applies what that applies, and
/// must say what that says; what it still holds after a crash is what the node starts from.
///
/// What SQLite writes and syncs is told to a `SimDisk`, so that a power cut leaves of it what the
/// fault model permits: that is put in the place of the files.
final class SimDatabase {
    private enum Damage: CaseIterable { case flippedBit, misdirection, tear }

    /// Absolute; the files in it are what programs see.
    let directory: String
    /// The same files as the medium has them.
    let medium: SimMedium
    private let options: SQLiteState.Options
    private let sessionTimeout: Duration
    /// How fast the disk is with what was put off.
    private var pace: RandomSource
    private let believesCheckpoints: Bool
    /// What `rot` always does; nil: it draws.
    private let damage: Damage?
    private(set) var state: SQLiteState?
    /// What `checkpoint` said last: the log may be discarded up to there.
    private(set) var durable = LogIndex.zero
    /// A bit of it was flipped, and nobody has found it yet.
    private(set) var isDamaged = false
    /// An empty state is on its way into the place of one that is of no use.
    private var isBeingRebuilt = false

    var disk: SimDisk { medium.disk }

    init(directory: String, disk: SimDisk, options: SQLiteState.Options, _ scenario: Scenario) {
        self.directory = directory
        self.options = options
        pace = RandomSource(seed: scenario.seed)
        sessionTimeout = scenario.sessionTimeout
        believesCheckpoints = scenario.planted.contains(.checkpointBelieved)
        damage =
            scenario.planted.contains(.misdirectedPageServed)
            ? .misdirection : scenario.planted.contains(.tornPageServed) ? .tear : nil
        medium = SimMedium(
            directory: directory, disk: disk,
            swallowsSyncs: scenario.planted.contains(.databaseNotSynced))
        guard mkdir(directory, 0o700) == 0 else {
            preconditionFailure("mkdir \(directory): \(String(cString: strerror(errno)))")
        }
    }

    // MARK: - The life of a process

    /// - Returns: whether what was there is damaged, and an empty state has taken its place.
    func open() throws(StorageError) -> Bool {
        precondition(state == nil, "one process at a time")
        medium.begin()
        durable = .zero
        do throws(StorageError) {
            state = try SQLiteState(directory: directory, options: options)
        } catch .corrupt(let reason) {
            guard isDamaged else { throw .corrupt(reason) }
            try rebuild()
            return true
        }
        state?.sessionTimeout = sessionTimeout
        // Cut off when all that was left of the old one was gone.
        guard isBeingRebuilt else { return false }
        (isDamaged, isBeingRebuilt) = (false, false)
        return true
    }

    /// An empty state takes the place of one that is of no use.
    func rebuild() throws(StorageError) {
        state?.close()
        state = nil
        (isDamaged, isBeingRebuilt) = (true, true)
        state = try SQLiteState.rebuildEmpty(directory: directory, options: options)
        state?.sessionTimeout = sessionTimeout
        (isDamaged, isBeingRebuilt) = (false, false)
    }

    /// The process ended: nothing more comes from it.
    func end() {
        medium.end()
        state?.close()
        state = nil
    }

    func losePower(_ loss: PowerLoss) {
        end()
        disk.losePower(loss)
        medium.show()
    }

    func wipe() {
        end()
        disk.wipe()
        (isDamaged, isBeingRebuilt) = (false, false)
        medium.show(keepingMark: false)
    }

    /// Damages what is on the disk, while no process runs: a page lies where another belongs, or is
    /// torn, or, also where neither is possible, a bit flips.
    /// - Returns: what has happened; nil if nothing has.
    func rot(using random: (Int) -> Int) -> String? {
        precondition(state == nil, "damage is done between two processes")
        let name = SQLiteState.fileName
        let pages = disk.pages(of: name)
        let kinds = Damage.allCases
        let kind = pages > 1 ? damage ?? kinds[random(kinds.count)] : .flippedBit
        let done: String?
        switch kind {
        case .flippedBit: done = flipBit(random)
        case .misdirection:
            let (source, target) = (random(pages), random(pages))
            done =
                disk.misdirect(name, from: source, to: target)
                ? "page \(source + 1) of \(name) hits page \(target + 1)" : nil
        case .tear:
            let page = random(pages)
            done =
                disk.tear(name, page: page) { random(2) == 0 }
                ? "page \(page + 1) of \(name) is torn" : nil
        }
        guard let done = done ?? flipBit(random) else { return nil }
        isDamaged = true
        medium.show()
        return done
    }

    private func flipBit(_ random: (Int) -> Int) -> String? {
        guard let names = try? disk.list().filter({ disk.usedBytes(of: $0) > 0 }), !names.isEmpty
        else { return nil }
        let name = names[random(names.count)]
        return disk.flipBit(name, at: random(disk.usedBytes(of: name)), bit: UInt8(random(8)))
            ? "a bit of \(name) flips" : nil
    }

    // MARK: - The state

    /// What it holds, for those who look into a state.
    func copy(into memory: MemoryState) throws(StorageError) {
        guard let state, state.appliedIndex > .zero, let (meta, bytes) = try snapshot() else {
            return
        }
        do throws(StorageError) {
            let writer = memory.receiveSnapshot(meta)
            try writer.append(bytes)
            try writer.finish()
        } catch {
            // It said that all is well: this is no damage that was found.
            isDamaged = false
            throw error
        }
    }

    func apply(_ entries: [Entry]) throws(StorageError) -> [CommandResult]? {
        let results = try state?.apply(entries)
        if options.deferral == .byHand { try state?.carryOut(pace.uniform(0..<60)) }
        return results
    }

    func checkpoint() throws(StorageError) {
        guard let state else { return }
        durable = believesCheckpoints ? state.appliedIndex : try state.checkpoint()
    }

    /// A whole snapshot of it.
    func snapshot() throws(StorageError) -> (meta: SnapshotMeta, bytes: [UInt8])? {
        guard let state else { return nil }
        let reader = try state.makeSnapshot()
        defer { reader.close() }
        var bytes: [UInt8] = []
        while let piece = try reader.next() { bytes += piece }
        // The thread that has read it may still be about to say so: what comes next must not depend
        // on that.
        state.waitForSnapshots()
        return (reader.meta, bytes)
    }

    func checkpointIfDue() throws(StorageError) {
        guard let state, let index = try state.checkpointIfDue() else { return }
        durable = index
    }

    func install(_ meta: SnapshotMeta, _ bytes: [UInt8]) throws(StorageError) {
        guard let state else { return }
        let writer = try state.receiveSnapshot(meta)
        try writer.append(bytes)
        try writer.finish()
        durable = try state.checkpoint()
    }
}

/// Between SQLite and a disk that forgets.
///
/// SAFETY: a world and everything in it belongs to the one thread that runs the seed; the thread that
/// spools a snapshot only reads, and reads are not told.
final class SimMedium: @unchecked Sendable {
    // SAFETY: as for SimDisk: one thread at a time.

    private let directory: String
    let disk: SimDisk
    /// The process dies when so many more operations have been carried out; nil: it does not.
    var fuse: Int?
    /// It takes the power with it.
    var fuseCutsPower = false
    private var hasBlown = false
    private var isDead = false
    private let swallowsSyncs: Bool
    private var files: [String: any DiskFile] = [:]

    init(directory: String, disk: SimDisk, swallowsSyncs: Bool) {
        self.directory = directory
        self.disk = disk
        self.swallowsSyncs = swallowsSyncs
    }

    /// The process that runs has ended by the fuse, and the power with it.
    var hasCutPower: Bool { hasBlown && fuseCutsPower }

    func begin() {
        files.removeAll()
        isDead = false
    }

    func end() {
        isDead = true
        hasBlown = false
        files.removeAll()
        disk.endProcess()
    }

    // MARK: - What SQLite does

    /// - Returns: an errno value if the operation is to fail.
    func before(_ event: VFSEvent) -> Int32 {
        if event.kind == .read { return 0 }
        if isDead { return EIO }
        if let left = fuse {
            fuse = left > 0 ? left - 1 : nil
            if left == 0 {
                isDead = true
                hasBlown = true
                return EIO
            }
        }
        do throws(DiskError) {
            switch event.kind {
            case .write:
                let end = event.offset + UInt64(event.bytes.count)
                if disk.failsGrowth(), try end > file(event.path).byteCount { return ENOSPC }
            case .create, .allocate: if disk.failsGrowth() { return ENOSPC }
            case .sync: if !swallowsSyncs { try file(event.path).sync() }
            case .read, .truncate, .delete, .rename, .syncDirectory: break
            }
        } catch {
            return EIO
        }
        return 0
    }

    func after(_ event: VFSEvent) {
        do throws(DiskError) {
            switch event.kind {
            case .read, .sync, .allocate: break
            case .create: files[name(event.path)] = try disk.open(name(event.path), create: true)
            case .write: try file(event.path).write(Array(event.bytes), at: event.offset)
            case .truncate: try file(event.path).truncate(to: event.offset)
            case .delete:
                files[name(event.path)] = nil
                try disk.remove(name(event.path))
            case .rename:
                files[name(event.path)] = nil
                files[name(event.target)] = nil
                try disk.rename(name(event.path), to: name(event.target))
            case .syncDirectory: try disk.syncDirectory()
            }
        } catch {
            // The mark of a damaged state is made and found outside of the VFS.
            precondition(error.kind == .notFound, "a disk without room was asked before: \(error)")
        }
    }

    private func name(_ path: String) -> String {
        String(path.dropFirst(directory.utf8.count + 1))
    }

    private func file(_ path: String) throws(DiskError) -> any DiskFile {
        let name = name(path)
        if let file = files[name] { return file }
        let file = try disk.open(name, create: false)
        files[name] = file
        return file
    }

    // MARK: - What a process finds

    /// Makes the files be what the disk has. The mark of a damaged state is made durable at once, and
    /// past the VFS: it stays.
    func show(keepingMark: Bool = true) {
        for name in Self.names(in: directory)
        where !keepingMark || name != SQLiteState.damageName {
            unlink("\(directory)/\(name)")
        }
        for name in (try? disk.list()) ?? [] {
            guard let file = try? disk.open(name, create: false),
                let bytes = try? file.read(at: 0, count: Int(file.byteCount))
            else { preconditionFailure("what is listed is there") }
            Self.write(bytes, to: "\(directory)/\(name)")
        }
    }

    private static func write(_ bytes: [UInt8], to path: String) {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        precondition(descriptor >= 0, "open \(path): \(String(cString: strerror(errno)))")
        defer { close(descriptor) }
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress, $0.count)
            }
            precondition(count > 0, "write \(path): \(String(cString: strerror(errno)))")
            done += count
        }
    }

    static func names(in directory: String) -> [String] {
        guard let stream = opendir(directory) else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }
}

/// Where the databases of one world lie: a directory of its own in memory, gone with it.
final class SimDatabases {
    private let root: String
    private let observer: VFSObserver
    let all: [SimDatabase]

    init(disks: [SimDisk], options: SQLiteState.Options, _ scenario: Scenario) {
        let root = Self.makeRoot()
        let all = disks.enumerated().map { index, disk in
            SimDatabase(
                directory: "\(root)/\(index)", disk: disk, options: options, scenario)
        }
        let media = all.map(\.medium)
        // One for all of them: a process has room for few. Nodes are fewer than ten.
        let place = root.utf8.count + 1
        let medium: @Sendable (VFSEvent) -> SimMedium? = { event in
            event.path.utf8.dropFirst(place).first.map { media[Int($0 - UInt8(ascii: "0"))] }
        }
        self.root = root
        self.all = all
        observer = VFSObserver(
            prefix: root + "/", before: { medium($0)?.before($0) ?? EIO },
            after: { medium($0)?.after($0) })
        #if ASPEN_TEST_BUILD
            if scenario.planted.contains(.tornPageServed) { observer.plant(.tornPagePasses) }
            if scenario.planted.contains(.misdirectedPageServed) {
                observer.plant(.misdirectedPagePasses)
            }
        #endif
    }

    private static func makeRoot() -> String {
        for parent in ["/dev/shm", "/tmp"] {
            var template = Array("\(parent)/aspen-sim-XXXXXX".utf8CString)
            if let path = mkdtemp(&template) { return String(cString: path) }
        }
        preconditionFailure("no place for databases: \(String(cString: strerror(errno)))")
    }

    deinit {
        for database in all {
            database.end()
            for name in SimMedium.names(in: database.directory) {
                unlink("\(database.directory)/\(name)")
            }
            rmdir(database.directory)
        }
        rmdir(root)
    }
}
