// SPDX-License-Identifier: GPL-2.0-or-later

import Synchronization

/// Passes everything on to another disk and tells a `WriteRecorder` about it.
package final class RecordingDisk: Disk {
    private let base: any Disk
    private let recorder: WriteRecorder
    private let directory: String
    private let plan = SyncPlan()

    /// - Parameter directory: where `base` lies in the recorded data directory; "" if it is the
    ///   data directory.
    package init(_ base: any Disk, recorder: WriteRecorder, directory: String = "") {
        self.base = base
        self.recorder = recorder
        self.directory = directory
    }

    #if ASPEN_TEST_BUILD
        /// A planted fault: file syncs are promised and not done, as if the call had been forgotten.
        package var omitsSync: Bool {
            get { plan.isOmitted.load(ordering: .relaxed) }
            set { plan.isOmitted.store(newValue, ordering: .relaxed) }
        }
    #endif

    package func open(_ name: String, create: Bool) throws(DiskError) -> any DiskFile {
        if let file = try existing(name) { return file }
        guard create else { throw DiskError(.notFound, operation: "open \(name)", errno: 2) }
        let file = try base.open(name, create: true)
        let number = recorder.record(create: path(name))
        return RecordingFile(file, number: number, recorder: recorder, plan: plan)
    }

    private func existing(_ name: String) throws(DiskError) -> RecordingFile? {
        let file: any DiskFile
        do throws(DiskError) {
            file = try base.open(name, create: false)
        } catch {
            if error.kind == .notFound { return nil }
            throw error
        }
        if let known = recorder.file(named: path(name)) {
            return RecordingFile(file, number: known, recorder: recorder, plan: plan)
        }
        let bytes = try file.read(at: 0, count: Int(file.byteCount))
        let number = recorder.record(baseline: path(name), bytes: bytes)
        return RecordingFile(file, number: number, recorder: recorder, plan: plan)
    }

    package func list() throws(DiskError) -> [String] { try base.list() }

    package func rename(_ from: String, to: String) throws(DiskError) {
        try meet(from)
        try base.rename(from, to: to)
        recorder.record(rename: path(from), to: path(to))
    }

    package func remove(_ name: String) throws(DiskError) {
        try meet(name)
        try base.remove(name)
        recorder.record(remove: path(name))
    }

    package func syncDirectory() throws(DiskError) {
        let sync = recorder.directorySyncBegan(directory)
        try base.syncDirectory()
        recorder.syncEnded(sync)
    }

    package func freeSpace() throws(DiskError) -> DiskSpace? { try base.freeSpace() }

    private func path(_ name: String) -> String {
        directory.isEmpty ? name : "\(directory)/\(name)"
    }

    /// A file from before the recording enters the trace when it is first touched.
    private func meet(_ name: String) throws(DiskError) {
        if recorder.file(named: path(name)) == nil { try existing(name)?.close() }
    }
}

/// Shared by a disk and its files.
private final class SyncPlan: Sendable {
    let isOmitted = Atomic<Bool>(false)
}

private final class RecordingFile: DiskFile {
    private let base: any DiskFile
    private let number: UInt32
    private let recorder: WriteRecorder
    private let plan: SyncPlan

    init(_ base: any DiskFile, number: UInt32, recorder: WriteRecorder, plan: SyncPlan) {
        self.base = base
        self.number = number
        self.recorder = recorder
        self.plan = plan
    }

    var byteCount: UInt64 { get throws(DiskError) { try base.byteCount } }

    func read(at offset: UInt64, count: Int) throws(DiskError) -> [UInt8] {
        try base.read(at: offset, count: count)
    }

    func write(_ bytes: [UInt8], at offset: UInt64) throws(DiskError) {
        try base.write(bytes, at: offset)
        bytes.withUnsafeBytes { recorder.record(writeTo: number, at: offset, bytes: $0) }
    }

    func write(raw bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(DiskError) {
        try base.write(raw: bytes, at: offset)
        recorder.record(writeTo: number, at: offset, bytes: bytes)
    }

    func truncate(to byteCount: UInt64) throws(DiskError) {
        try base.truncate(to: byteCount)
        recorder.record(truncate: number, to: byteCount)
    }

    func sync() throws(DiskError) {
        #if ASPEN_TEST_BUILD
            if plan.isOmitted.load(ordering: .relaxed) { return }
        #endif
        let sync = recorder.syncBegan(number)
        try base.sync()
        recorder.syncEnded(sync)
    }

    func close() { base.close() }
}
