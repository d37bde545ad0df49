// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import AspenTypes
import Glibc
import RaftCore
import RaftStorage
import Testing

/// A directory of its own under the system's temporary one, removed with the value.
final class TemporaryDirectory {
    let path: String

    init() throws {
        var template = Array("/tmp/aspen-log-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw StorageError.disk("mkdtemp: \(errno)") }
        path = String(
            decoding: template.map { UInt8(bitPattern: $0) }.prefix { $0 != 0 }, as: UTF8.self)
    }

    deinit {
        guard let stream = opendir(path) else { return }
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != "." && name != ".." { unlink("\(path)/\(name)") }
        }
        closedir(stream)
        rmdir(path)
    }
}

/// The stores that must behave alike.
enum Backend: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case memory, segmentsInMemory, segmentsOnDisk
    var testDescription: String { rawValue }
}

/// One log, which can be closed and opened again.
final class LogBench {
    private let directory: TemporaryDirectory?
    private(set) var disk: (any Disk)?
    private(set) var log: any LogStore
    private let configuration: LogConfiguration

    init(_ backend: Backend, segmentBytes: Int = 16 << 10) throws {
        var configuration = LogConfiguration()
        configuration.segmentBytes = segmentBytes
        self.configuration = configuration
        switch backend {
        case .memory: (directory, disk) = (nil, nil)
        case .segmentsInMemory: (directory, disk) = (nil, MemoryDisk())
        case .segmentsOnDisk:
            let directory = try TemporaryDirectory()
            (self.directory, disk) = (directory, try PosixDisk(path: directory.path))
        }
        if let disk {
            log = try SegmentedLog(disk: disk, configuration: configuration, salt: 7)
        } else {
            log = MemoryLog()
        }
    }

    /// - Returns: false for a store that keeps nothing.
    @discardableResult
    func reopen() throws -> Bool {
        guard disk != nil else { return false }
        log.close()
        if let directory {
            // The lock of the directory goes with the last reference to the disk.
            (disk, log) = (nil, MemoryLog())
            disk = try PosixDisk(path: directory.path)
        }
        guard let disk else { return false }
        log = try SegmentedLog(disk: disk, configuration: configuration, salt: 8)
        return true
    }
}

func index(_ number: UInt64) -> LogIndex { LogIndex(number) }

func entry(_ number: UInt64, term: UInt64 = 1, _ payload: [UInt8] = [1, 2, 3]) -> Entry {
    Entry(
        index: LogIndex(number), term: Term(term), kind: .command,
        origin: ProposalID(node: NodeID(1), incarnation: 2, number: number),
        time: ClusterTime(milliseconds: 1000 + number), payload: payload)
}

func entries(_ range: ClosedRange<UInt64>, term: UInt64 = 1, byteCount: Int = 8) -> [Entry] {
    range.map { number in
        entry(
            number, term: term,
            [UInt8](repeating: UInt8(truncatingIfNeeded: number), count: byteCount))
    }
}

func write(
    cut: UInt64? = nil, _ entries: [Entry] = [], state: HardState? = nil
) -> LogWrite {
    LogWrite(
        ticket: DurabilityTicket(0), truncateAfter: cut.map { LogIndex($0) }, entries: entries,
        hardState: state)
}

extension LogStore {
    func all() throws(StorageError) -> [Entry] {
        try read(from: firstIndex, upTo: lastIndex, bytesMax: .max)
    }
}

extension RandomSource {
    mutating func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) }
    }
}
