// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import CAspenVFS
import Glibc
import Synchronization

/// Tells a `WriteRecorder` what SQLite does below a directory, in one order with what the log does:
/// the other half of a recording of a real node.
package final class DatabaseRecording: Sendable {
    private let recorder: WriteRecorder
    /// The data directory, without a slash at its end.
    private let root: String
    private let observer: Mutex<Int32>
    /// The sync that is under way. The VFS never calls from two threads at once.
    private let sync = Mutex<UInt64?>(nil)

    /// - Parameter directory: the data directory, as the paths given to SQLite spell it. Files that
    ///   are there already enter the trace as durable when they are first touched.
    /// - Returns: nil if the VFS has no place for another observer.
    package init?(directory: String, recorder: WriteRecorder) {
        self.recorder = recorder
        root = directory.hasSuffix("/") ? String(directory.dropLast()) : directory
        observer = Mutex(-1)
        let calls = aspen_vfs_observer(
            before: { context, event in
                DatabaseRecording.with(context, event) { $0.before($1) }
                return 0
            },
            after: { context, event in DatabaseRecording.with(context, event) { $0.after($1) } })
        // The VFS calls back only until `stop`, which `deinit` calls at the latest.
        let number = aspen_vfs_observe(root, calls, Unmanaged.passUnretained(self).toOpaque())
        guard number >= 0 else { return nil }
        observer.withLock { $0 = number }
    }

    deinit { stop() }

    /// Stops recording the database.
    package func stop() {
        observer.withLock { number in
            if number >= 0 { aspen_vfs_unobserve(number) }
            number = -1
        }
    }

    private static func with(
        _ context: UnsafeMutableRawPointer?, _ event: UnsafePointer<aspen_vfs_event>?,
        _ body: (DatabaseRecording, aspen_vfs_event) -> Void
    ) {
        guard let context, let event else { return }
        body(Unmanaged.fromOpaque(context).takeUnretainedValue(), event.pointee)
    }

    /// The name in the trace: "" is the data directory. Nil for what only begins with the same letters.
    private func name(_ path: UnsafePointer<CChar>?) -> String? {
        guard let path else { return nil }
        let text = String(cString: path)
        if text == root || text == root + "/" { return "" }
        return text.hasPrefix(root + "/") ? String(text.dropFirst(root.count + 1)) : nil
    }

    private func before(_ event: aspen_vfs_event) {
        guard let name = name(event.path) else { return }
        switch event.kind {
        case ASPEN_VFS_WRITE, ASPEN_VFS_TRUNCATE, ASPEN_VFS_DELETE, ASPEN_VFS_RENAME:
            _ = file(name, path: event.path)
        case ASPEN_VFS_SYNC:
            guard let file = file(name, path: event.path) else { return }
            sync.withLock { $0 = recorder.syncBegan(file) }
        case ASPEN_VFS_SYNC_DIRECTORY:
            sync.withLock { $0 = recorder.directorySyncBegan(name) }
        default: break
        }
    }

    private func after(_ event: aspen_vfs_event) {
        guard let name = name(event.path) else { return }
        switch event.kind {
        case ASPEN_VFS_CREATE: recorder.record(create: name)
        case ASPEN_VFS_WRITE:
            guard let file = file(name, path: event.path) else { return }
            recorder.record(
                writeTo: file, at: UInt64(event.offset),
                bytes: UnsafeRawBufferPointer(start: event.bytes, count: Int(event.count)))
        case ASPEN_VFS_TRUNCATE:
            guard let file = file(name, path: event.path) else { return }
            recorder.record(truncate: file, to: UInt64(event.offset))
        case ASPEN_VFS_DELETE: recorder.record(remove: name)
        case ASPEN_VFS_RENAME:
            if let to = self.name(event.to) { recorder.record(rename: name, to: to) }
        case ASPEN_VFS_SYNC, ASPEN_VFS_SYNC_DIRECTORY:
            if let token = sync.withLock({ $0.take() }) { recorder.syncEnded(token) }
        default: break
        }
    }

    /// The file's number in the trace; its content so far goes with it when it is new there.
    private func file(_ name: String, path: UnsafePointer<CChar>?) -> UInt32? {
        if let known = recorder.file(named: name) { return known }
        guard let path else { return nil }
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { _ = close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { return nil }
        let bytes = [UInt8](unsafeUninitializedCapacity: Int(status.st_size)) { buffer, count in
            while count < buffer.count {
                let got = pread(
                    descriptor, buffer.baseAddress?.advanced(by: count), buffer.count - count,
                    count)
                guard got > 0 else { break }
                count += got
            }
        }
        return recorder.record(baseline: name, bytes: bytes)
    }
}
