// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import CAspenVFS
import Glibc
import KVCore
import RaftCore
import SQLiteKit

/// A snapshot of the database on its way out. A thread of its own reads the rows, through a second
/// connection and in one read transaction, as fast as the disk allows, into a file without a name;
/// whoever sends the snapshot takes its pieces from there and may be as slow as its peer. So the
/// read transaction, which keeps the WAL from being started over, is bounded by the disk and not by
/// the network. While entries are applied beside it, it rests after each piece: putting is to be
/// disturbed for longer rather than more, unless the WAL gets too long.
///
/// Where the disk has no room for all of it, it is filled only as it is read, and the WAL may become no
/// longer than the spool: the two of them are what a snapshot takes of a disk. What would take more is
/// given up, and its reader hears that there was no room.
///
/// `next` waits for the spooling thread when it has to, at most for one piece; whoever cannot wait
/// asks `isReady` first.
final class SnapshotSpool: SnapshotReader, @unchecked Sendable {
    // SAFETY: `progress` is only touched with `mutex` held, and `sent` too where another thread than
    // the one that uses the reader may look; `writtenBehind` belongs to the spooling thread; everything
    // else never changes after `init`.

    private struct Progress {
        var byteCount: UInt64 = 0
        var isReading = true
        var isCancelled = false
        /// When entries were applied last, in nanoseconds of the monotonic clock.
        var lastApplied = Int.min
        var isHurried = false
        /// Room that only its reader could make is not waited for any more.
        var isGivenUp = false
        var failure: StorageError?
    }

    static let niceness: CInt = 10
    /// How long it rests after a piece: so many times as long as the piece took, and no longer than that.
    private static let restShare = 2
    private static let restMax = 50_000_000
    /// Nanoseconds without an entry after which nobody is disturbed.
    private static let quiet = 1_000_000_000
    /// Bytes of the spool that wait for the disk at most: more would stall the syncs of the log.
    private static let writeBehindBytes: UInt64 = 2_097_152

    /// Rows of about so many bytes are read before anybody else is let in; one large row is more.
    fileprivate static let pieceBytes = 262_144

    let meta: SnapshotMeta
    /// Bytes of it that may lie on the disk at a time; so many may be in the WAL.
    let bytesMax: Int
    private let directory: String
    private let descriptor: Int32
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let changed: UnsafeMutablePointer<pthread_cond_t>
    private var progress = Progress()
    /// Bytes of the spool that the disk was told to write; touched by the spooling thread alone.
    private var writtenBehind: UInt64 = 0
    private var sent: UInt64 = 0

    /// - Parameters:
    ///   - state: what the database holds now; nobody may commit before this returns.
    ///   - directory: where the spool file lies.
    ///   - bytesMax: see there; `SpaceLimits.spoolBytesMin` if it is less.
    init(
        meta: SnapshotMeta, state: StateMeta, database path: String, directory: String,
        bytesMax: Int
    ) throws(StorageError) {
        self.meta = meta
        self.bytesMax = max(bytesMax, SpaceLimits.spoolBytesMin)
        self.directory = directory
        descriptor = aspen_vfs_unnamed_file(directory)
        mutex = .allocate(capacity: 1)
        changed = .allocate(capacity: 1)
        pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(changed, &attributes)
        pthread_condattr_destroy(&attributes)
        guard descriptor >= 0 else {
            throw .disk("spool file in \(directory): \(String(cString: strerror(-descriptor)))")
        }
        let rows: SQLiteRows
        let database: Database
        do throws(SQLiteError) {
            var options = Database.Options()
            options.isReadOnly = true
            options.cacheKiB = 512
            database = try Database(path: path, options: options)
            // The first read fixes what the transaction sees.
            try database.execute("BEGIN")
            let stored = try SQLiteTables.storedMeta(database)
            guard stored == state else {
                throw SQLiteTables.damaged("the database does not hold what was committed")
            }
            rows = try SQLiteRows(database, includingVersions: false)
        } catch {
            let explained = SQLiteState.explain(error)
            noteDamage(explained)
            throw explained
        }
        start(SpoolWork(spool: self, database: database, state: state, rows: rows))
    }

    deinit {
        if descriptor >= 0 { Glibc.close(descriptor) }
        pthread_cond_destroy(changed)
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
        changed.deallocate()
    }

    // MARK: Reader

    var isReady: Bool {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return isNextThere
    }

    /// Call with `mutex` held.
    private var isNextThere: Bool {
        !progress.isReading || progress.byteCount >= sent + UInt64(Limits.snapshotChunkBytesMax)
    }

    func next() throws(StorageError) -> [UInt8]? {
        let wanted = UInt64(Limits.snapshotChunkBytesMax)
        pthread_mutex_lock(mutex)
        while !isNextThere { pthread_cond_wait(changed, mutex) }
        let (available, failure) = (progress.byteCount, progress.failure)
        pthread_mutex_unlock(mutex)
        if let failure { throw failure }
        let count = Int(min(wanted, available - sent))
        guard count > 0 else { return nil }
        var done = 0
        let offset = sent
        let piece = [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            while done < count {
                let place = UnsafeMutableRawBufferPointer(buffer)[done...]
                let got = pread(
                    descriptor, UnsafeMutableRawBufferPointer(rebasing: place).baseAddress,
                    place.count, Int(offset) + done)
                if got < 0 && errno == EINTR { continue }
                guard got > 0 else { break }
                done += got
            }
            initialized = done
        }
        guard done == count else { throw .disk("the spool file cannot be read") }
        aspen_vfs_discard(descriptor, offset, UInt64(count))
        pthread_mutex_lock(mutex)
        sent += UInt64(count)
        pthread_cond_broadcast(changed)
        pthread_mutex_unlock(mutex)
        return piece
    }

    /// Bytes of the disk that the spool takes up.
    var heldBytes: UInt64 {
        var status = stat()
        return fstat(descriptor, &status) == 0 ? UInt64(status.st_blocks) * 512 : 0
    }

    /// Ends the spooling; does not wait for it.
    func close() {
        pthread_mutex_lock(mutex)
        progress.isCancelled = true
        pthread_cond_broadcast(changed)
        pthread_mutex_unlock(mutex)
    }

    // MARK: For the state

    var isReadingDatabase: Bool {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return progress.isReading
    }

    /// Entries have been applied.
    /// - Parameter isHurried: it is not to rest for them any more.
    func applied(isHurried: Bool) {
        pthread_mutex_lock(mutex)
        progress.lastApplied = Self.now()
        if isHurried, !progress.isHurried { hurry() }
        pthread_mutex_unlock(mutex)
    }

    /// Call with `mutex` held.
    private func hurry() {
        progress.isHurried = true
        pthread_cond_broadcast(changed)
    }

    /// Until it is through, or has no room to go on: whoever calls this may be the one who reads it.
    func waitUntilRead() {
        pthread_mutex_lock(mutex)
        progress.isGivenUp = true
        hurry()
        while progress.isReading { pthread_cond_wait(changed, mutex) }
        pthread_mutex_unlock(mutex)
    }

    // MARK: Spooling thread

    private func start(_ work: SpoolWork) {
        var thread = pthread_t()
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        let context = Unmanaged.passRetained(work)
        let code = pthread_create(
            &thread, &attributes,
            { context in
                guard let context else { return nil }
                Unmanaged<SpoolWork>.fromOpaque(context).takeRetainedValue().run()
                return nil
            }, context.toOpaque())
        pthread_attr_destroy(&attributes)
        guard code == 0 else {
            context.release()
            ended(.disk("no thread for the snapshot: \(String(cString: strerror(code)))"))
            return
        }
    }

    /// Waits until the reader has taken enough for so many bytes more.
    private func awaitRoom(for count: Int) throws(StorageError) {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        // One large row may be more than all the room: it goes in when nothing else is there.
        while progress.byteCount > sent,
            progress.byteCount - sent + UInt64(count) > UInt64(bytesMax), !progress.isCancelled
        {
            // As long as a piece can be taken: less than that is waited for by the reader.
            guard isNextThere else { return }
            guard !progress.isGivenUp else {
                throw .disk("no space left on the device for a snapshot of the state")
            }
            pthread_cond_wait(changed, mutex)
        }
    }

    /// - Returns: whether to go on.
    fileprivate func append(_ bytes: [UInt8], at offset: UInt64) throws(StorageError) -> Bool {
        try awaitRoom(for: bytes.count)
        var done = 0
        while done < bytes.count {
            let wrote = bytes.withUnsafeBytes {
                pwrite(
                    descriptor, UnsafeRawBufferPointer(rebasing: $0[done...]).baseAddress,
                    bytes.count - done, Int(offset) + done)
            }
            if wrote < 0 && errno == EINTR { continue }
            guard wrote > 0 else {
                throw .disk("spool file: \(String(cString: strerror(errno)))")
            }
            done += wrote
        }
        writeBehind(upTo: offset + UInt64(bytes.count))
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        progress.byteCount += UInt64(bytes.count)
        pthread_cond_broadcast(changed)
        return !progress.isCancelled
    }

    /// - Parameter began: when the last piece was begun, in nanoseconds of the monotonic clock.
    fileprivate func rest(after began: Int) {
        let now = Self.now()
        let end = now + min(Self.restMax, Self.restShare * (now - began))
        var deadline = timespec(tv_sec: end / 1_000_000_000, tv_nsec: end % 1_000_000_000)
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        guard progress.lastApplied > now - Self.quiet else { return }
        while !progress.isHurried, !progress.isCancelled {
            if pthread_cond_timedwait(changed, mutex, &deadline) == ETIMEDOUT { return }
        }
    }

    fileprivate static func now() -> Int {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return time.tv_sec * 1_000_000_000 + time.tv_nsec
    }

    private func writeBehind(upTo end: UInt64) {
        guard end - writtenBehind >= Self.writeBehindBytes else { return }
        aspen_vfs_write_behind(
            descriptor, writtenBehind, end - writtenBehind, Self.writeBehindBytes)
        writtenBehind = end
    }

    /// Who applies entries may never touch the page that was found damaged here: without the mark each
    /// start would take the state for sound, and each snapshot would end like this one.
    private func noteDamage(_ failure: StorageError) {
        guard case .corrupt(let reason) = failure else { return }
        SQLiteState.noteDamage(reason, in: directory)
    }

    /// The read transaction is over.
    fileprivate func ended(_ failure: StorageError?) {
        if let failure { noteDamage(failure) }
        pthread_mutex_lock(mutex)
        progress.isReading = false
        progress.failure = failure
        pthread_cond_broadcast(changed)
        pthread_mutex_unlock(mutex)
    }
}

/// What the spooling thread owns.
private final class SpoolWork {
    private let spool: SnapshotSpool
    private var database: Database?
    private var stream: StateStreamWriter<SQLiteRows>?

    init(spool: SnapshotSpool, database: Database, state: StateMeta, rows: SQLiteRows) {
        self.spool = spool
        self.database = database
        stream = StateStreamWriter(meta: state, rows: rows)
    }

    func run() {
        // Where processors are short, writes go first. Refused by some sandboxes.
        _ = setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, SnapshotSpool.niceness)
        let failure = copy()
        // The connection is closed, and with it the read transaction, before anybody hears of it.
        stream = nil
        database = nil
        spool.ended(failure)
    }

    private func copy() -> StorageError? {
        var offset: UInt64 = 0
        var began = SnapshotSpool.now()
        do {
            while let piece = try stream?.next(bytesMax: SnapshotSpool.pieceBytes) {
                guard try spool.append(piece, at: offset) else {
                    return .disk("the snapshot was closed")
                }
                offset += UInt64(piece.count)
                spool.rest(after: began)
                began = SnapshotSpool.now()
            }
            return nil
        } catch let error as SQLiteError {
            return SQLiteState.explain(error)
        } catch let error as StorageError {
            return error
        } catch {
            preconditionFailure("nothing else is thrown")
        }
    }
}
