// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import Glibc
import SQLiteKit
import Synchronization

/// Tells a `WriteRecorder` what SQLite does in a directory, in one order with what the log does, as
/// long as this object lives. Make it before the state is opened.
package final class StateRecording {
    private let observer: VFSObserver

    /// - Parameters:
    ///   - directory: the one given to `SQLiteState`, absolute.
    ///   - name: where that lies in the recorded data directory; "" if it is the data directory.
    package init(directory: String, recorder: WriteRecorder, as name: String = "") {
        let translator = Translator(directory: directory, name: name, recorder: recorder)
        for suffix in ["", "-wal"] {
            translator.meet("\(directory)/\(SQLiteState.fileName)\(suffix)")
        }
        observer = VFSObserver(
            prefix: directory, before: { translator.before($0) }, after: { translator.after($0) })
    }
}

private final class Translator: Sendable {
    private let directory: String
    private let name: String
    private let recorder: WriteRecorder
    /// The syncs that have begun and not ended, by path: one thread may sync the state while another
    /// makes a snapshot durable.
    private let pendingSyncs = Mutex<[String: UInt64]>([:])

    init(directory: String, name: String, recorder: WriteRecorder) {
        self.directory = directory
        self.name = name
        self.recorder = recorder
    }

    func before(_ event: VFSEvent) -> Int32 {
        let sync: UInt64?
        switch event.kind {
        case .sync: sync = recorder.syncBegan(file(event.path))
        case .syncDirectory: sync = recorder.directorySyncBegan(relative(event.path))
        case .write, .truncate, .delete, .rename:
            meet(event.path)
            return 0
        case .read, .create, .allocate: return 0
        }
        pendingSyncs.withLock { $0[event.path] = sync }
        return 0
    }

    func after(_ event: VFSEvent) {
        switch event.kind {
        case .read, .allocate: break
        case .create: recorder.record(create: relative(event.path))
        case .write:
            recorder.record(writeTo: file(event.path), at: event.offset, bytes: event.bytes)
        case .truncate: recorder.record(truncate: file(event.path), to: event.offset)
        case .delete: recorder.record(remove: relative(event.path))
        case .rename:
            recorder.record(rename: relative(event.path), to: relative(event.target))
        case .sync, .syncDirectory:
            // The system's VFS syncs the directory within the first sync of a WAL: that is told
            // afterwards only, and then it is a whole one.
            let sync = pendingSyncs.withLock { $0.removeValue(forKey: event.path) }
            recorder.syncEnded(sync ?? recorder.directorySyncBegan(relative(event.path)))
        }
    }

    private func relative(_ path: String) -> String {
        var rest = path.dropFirst(directory.utf8.count)
        while rest.first == "/" { rest = rest.dropFirst() }
        if name.isEmpty { return String(rest) }
        return rest.isEmpty ? name : "\(name)/\(rest)"
    }

    private func file(_ path: String) -> UInt32 {
        meet(path)
        guard let number = recorder.file(named: relative(path)) else {
            preconditionFailure("what is written to exists")
        }
        return number
    }

    /// A file from before the recording enters the trace before it is first changed.
    func meet(_ path: String) {
        let name = relative(path)
        guard recorder.file(named: name) == nil, let bytes = Self.content(of: path) else { return }
        recorder.record(baseline: name, bytes: bytes)
    }

    private static func content(of path: String) -> [UInt8]? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { Glibc.close(descriptor) }
        let count = max(0, Int(lseek(descriptor, 0, SEEK_END)))
        return [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
            initialized = max(0, pread(descriptor, buffer.baseAddress, count, 0))
        }
    }
}
