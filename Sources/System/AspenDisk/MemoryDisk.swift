// SPDX-License-Identifier: GPL-2.0-or-later

import Synchronization

/// A disk without a disk: for tests, and to start storage code from a built image. Everything is
/// durable at once; syncing does nothing.
package final class MemoryDisk: Disk {
    private let state: Mutex<State>

    private struct State {
        var files: [String: MemoryFile] = [:]
    }

    package let space: MemorySpace

    /// - Parameter byteCountMax: beyond this many bytes in all files, writes fail with `.full`.
    package init(byteCountMax: Int = .max) {
        space = MemorySpace(byteCountMax: byteCountMax)
        state = Mutex(State())
    }

    package convenience init(image: DiskImage, byteCountMax: Int = .max) {
        self.init(byteCountMax: byteCountMax)
        state.withLock { state in
            for (name, bytes) in image.files {
                state.files[name] = MemoryFile(name: name, bytes: bytes, space: space)
            }
        }
    }

    /// What the disk holds now.
    package var image: DiskImage {
        state.withLock { state in DiskImage(files: state.files.mapValues(\.bytes)) }
    }

    package func open(_ name: String, create: Bool) throws(DiskError) -> any DiskFile {
        let found = state.withLock { state -> MemoryFile? in
            if let file = state.files[name] { return file }
            guard create else { return nil }
            let file = MemoryFile(name: name, bytes: [], space: space)
            state.files[name] = file
            return file
        }
        guard let found else { throw DiskError(.notFound, operation: "open \(name)", errno: 2) }
        return found
    }

    package func list() throws(DiskError) -> [String] {
        state.withLock { $0.files.keys.sorted() }
    }

    package func rename(_ from: String, to: String) throws(DiskError) {
        let isDone = state.withLock { state in
            guard let file = state.files.removeValue(forKey: from) else { return false }
            state.files.updateValue(file, forKey: to)?.giveBack()
            return true
        }
        guard isDone else { throw DiskError(.notFound, operation: "rename \(from)", errno: 2) }
    }

    package func remove(_ name: String) throws(DiskError) {
        let file = state.withLock { $0.files.removeValue(forKey: name) }
        guard let file else { throw DiskError(.notFound, operation: "remove \(name)", errno: 2) }
        file.giveBack()
    }

    package func syncDirectory() throws(DiskError) {}

    package func freeSpace() throws(DiskError) -> DiskSpace? {
        let (most, used) = (space.byteCountMax, space.used)
        return most == .max ? nil : DiskSpace(capacity: most, available: max(0, most - used))
    }
}

/// How much room a `MemoryDisk` has left.
package final class MemorySpace: Sendable {
    private let state: Mutex<(used: Int, max: Int)>

    init(byteCountMax: Int) { state = Mutex((0, byteCountMax)) }

    /// May be lowered below what is used: then nothing can grow until something is removed.
    package var byteCountMax: Int {
        get { state.withLock { $0.max } }
        set { state.withLock { $0.max = newValue } }
    }

    package var used: Int { state.withLock { $0.used } }

    /// - Returns: false if there is no room to grow by `count`; shrinking always succeeds.
    func take(_ count: Int) -> Bool {
        state.withLock { state in
            if count > 0, state.used + count > state.max { return false }
            state.used += count
            return true
        }
    }
}

final class MemoryFile: DiskFile {
    private let name: String
    private let space: MemorySpace
    private let content: Mutex<[UInt8]>

    init(name: String, bytes: [UInt8], space: MemorySpace) {
        self.name = name
        self.space = space
        content = Mutex(bytes)
        _ = space.take(bytes.count)
    }

    var bytes: [UInt8] { content.withLock { $0 } }
    func giveBack() { _ = space.take(-content.withLock { $0.count }) }

    var byteCount: UInt64 { content.withLock { UInt64($0.count) } }

    func read(at offset: UInt64, count: Int) throws(DiskError) -> [UInt8] {
        content.withLock { bytes in
            guard offset < bytes.count else { return [] }
            let start = Int(offset)
            return Array(bytes[start..<min(start + count, bytes.count)])
        }
    }

    func write(_ bytes: [UInt8], at offset: UInt64) throws(DiskError) {
        let isDone = bytes.withUnsafeBytes { put($0, at: offset) }
        guard isDone else { throw DiskError(.full, operation: "write \(name)", errno: 28) }
    }

    func write(raw bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(DiskError) {
        guard put(bytes, at: offset) else {
            throw DiskError(.full, operation: "write \(name)", errno: 28)
        }
    }

    private func put(_ new: UnsafeRawBufferPointer, at offset: UInt64) -> Bool {
        content.withLock { bytes in
            let end = Int(offset) + new.count
            if end > bytes.count {
                guard space.take(end - bytes.count) else { return false }
                bytes.append(contentsOf: repeatElement(0, count: end - bytes.count))
            }
            bytes.withUnsafeMutableBytes { target in
                UnsafeMutableRawBufferPointer(rebasing: target[Int(offset)..<end])
                    .copyMemory(from: new)
            }
            return true
        }
    }

    func truncate(to byteCount: UInt64) throws(DiskError) {
        let isDone = content.withLock { bytes in
            let change = Int(byteCount) - bytes.count
            guard space.take(change) else { return false }
            if change < 0 {
                bytes.removeLast(-change)
            } else {
                bytes.append(contentsOf: repeatElement(0, count: change))
            }
            return true
        }
        guard isDone else { throw DiskError(.full, operation: "truncate \(name)", errno: 28) }
    }

    func sync() throws(DiskError) {}
    func close() {}
}

/// The content of a directory: what a disk holds, or what a power cut left of it.
package struct DiskImage: Equatable, Sendable {
    package var files: [String: [UInt8]]

    package init(files: [String: [UInt8]] = [:]) { self.files = files }

    /// The files of the directory `name`, under their names in it.
    package func directory(_ name: String) -> DiskImage {
        var result = DiskImage()
        for (path, bytes) in files where path.hasPrefix(name + "/") {
            result.files[String(path.dropFirst(name.count + 1))] = bytes
        }
        return result
    }
}
