// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import Glibc
import Synchronization

/// Collects, in one order, what every part of a process writes: the log through `RecordingDisk`, the
/// database through its VFS, and notes of what the outside was told. From such a trace
/// `PowerCutReplay` builds what a power cut would leave.
///
/// Callable from any thread. Record a write after the call returned, and a sync around the call:
/// then an event never claims more than the kernel had been told.
package final class WriteRecorder: Sendable {
    private struct State {
        var files: [String: UInt32] = [:]
        var fileCount: UInt32 = 0
        var syncCount: UInt64 = 0
        var events: [WriteEvent] = []
    }

    /// Where the trace goes: into memory, or into a file that survives a kill of the process.
    private let descriptor: Int32?
    private let state = Mutex(State())

    /// Keeps the trace in memory.
    package init() { descriptor = nil }

    /// Appends the trace to a new file, which must not lie in the recorded directory.
    package init(tracePath: String) throws(DiskError) {
        let opened = open(tracePath, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0o600)
        guard opened >= 0 else { throw .posix("open \(tracePath)") }
        descriptor = opened
    }

    deinit { if let descriptor { _ = close(descriptor) } }

    /// What has been recorded in memory; empty when it goes to a file.
    package var events: [WriteEvent] { state.withLock { $0.events } }

    /// How many events are held in memory.
    package var count: Int { state.withLock { $0.events.count } }

    /// The number of the file now called `name`, nil if the trace has not met it.
    package func file(named name: String) -> UInt32? { state.withLock { $0.files[name] } }

    // MARK: - Files

    /// The file was there before the recording began, with this content.
    @discardableResult
    package func record(baseline name: String, bytes: [UInt8]) -> UInt32 {
        state.withLock { state in
            let file = number(name, &state)
            append(.baseline(name: name, file: file, bytes: bytes), &state)
            return file
        }
    }

    @discardableResult
    package func record(create name: String) -> UInt32 {
        state.withLock { state in
            let file = number(name, &state)
            append(.create(name: name, file: file), &state)
            return file
        }
    }

    package func record(writeTo file: UInt32, at offset: UInt64, bytes: UnsafeRawBufferPointer) {
        state.withLock {
            append(.write(file: file, offset: offset, bytes: Array(bytes)), &$0)
        }
    }

    package func record(truncate file: UInt32, to byteCount: UInt64) {
        state.withLock { append(.truncate(file: file, byteCount: byteCount), &$0) }
    }

    package func record(rename from: String, to: String) {
        state.withLock { state in
            state.files[to] = state.files.removeValue(forKey: from)
            append(.rename(from: from, to: to), &state)
        }
    }

    package func record(remove name: String) {
        state.withLock { state in
            state.files[name] = nil
            append(.remove(name: name), &state)
        }
    }

    // MARK: - Syncs and notes

    /// Call before the sync; hand the result to `syncEnded` if, and only if, it succeeded.
    package func syncBegan(_ file: UInt32) -> UInt64 {
        state.withLock { state in
            state.syncCount += 1
            append(.syncBegan(file: file, sync: state.syncCount), &state)
            return state.syncCount
        }
    }

    /// The same for a directory; "" is the data directory.
    package func directorySyncBegan(_ directory: String) -> UInt64 {
        state.withLock { state in
            state.syncCount += 1
            append(.directorySyncBegan(directory: directory, sync: state.syncCount), &state)
            return state.syncCount
        }
    }

    package func syncEnded(_ sync: UInt64) {
        state.withLock { append(.syncEnded(sync: sync), &$0) }
    }

    /// At most 4,096 bytes.
    package func note(_ text: String) { state.withLock { append(.note(text), &$0) } }

    // MARK: -

    private func number(_ name: String, _ state: inout State) -> UInt32 {
        state.fileCount += 1
        state.files[name] = state.fileCount
        return state.fileCount
    }

    private func append(_ event: WriteEvent, _ state: inout State) {
        guard let descriptor else {
            state.events.append(event)
            return
        }
        var writer = ByteWriter(capacity: 64)
        event.encode(into: &writer)
        let bytes = writer.bytes
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress?.advanced(by: done), bytes.count - done)
            }
            if count < 0 && errno == EINTR { continue }
            // A trace with a hole in it would prove nothing.
            precondition(count >= 0, "the trace of writes cannot be written (errno \(errno))")
            done += count
        }
    }
}
