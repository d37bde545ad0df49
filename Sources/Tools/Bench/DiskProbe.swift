// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenCLI
import AspenTypes
import Glibc
import Histogram

/// `aspen-bench disk`: what the disk below a directory does without Aspen, as a measure of what Aspen
/// makes of it.
struct DiskProbe: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "disk",
        abstract: "Measure fdatasync and sequential writing below a directory.",
        discussion: """
            Writes 4 KiB and calls fdatasync, over and over: first over blocks that are there, as Aspen's \
            log does, then at the end of a file that grows. Then writes one large file, 1 MiB at a time, \
            with one fdatasync at the end. The files are removed.
            """)

    static let blockBytes = 4096

    @Option(help: "A directory on the disk to measure.")
    var directory = "."
    @Option(help: "How often to sync, each way.")
    var count = 2000
    @Option(help: "Megabytes (10^6 bytes) of the large file.")
    var megabytes = 256
    @Option(name: .shortAndLong, help: "Output format.")
    var output = OutputFormat.table
    @Flag(help: "The same as -o json.")
    var json = false

    var isJSON: Bool { json || output == .json }

    /// - Throws: `CommandFailure` for options that cannot be, `AspenError` (storage) when the disk refuses.
    func measure() throws -> DiskReport {
        guard (1...1_000_000).contains(count), (1...100_000).contains(megabytes) else {
            throw CommandFailure.usage("--count is 1 to 1000000, --megabytes 1 to 100000")
        }
        let overwriting = try ProbeFile(in: directory)
        for _ in 0..<count { try overwriting.write(Self.blockBytes) }
        try overwriting.sync()
        try overwriting.rewind()
        let appending = try ProbeFile(in: directory)
        let large = try ProbeFile(in: directory)
        let latencies = (
            try latencies(overwriting), try latencies(appending)
        )
        let chunk = 1 << 20
        let bytes = megabytes * 1_000_000
        let started = ContinuousClock.now
        for offset in stride(from: 0, to: bytes, by: chunk) {
            try large.write(min(chunk, bytes - offset))
        }
        try large.sync()
        let seconds = (ContinuousClock.now - started) / .seconds(1)
        return DiskReport(
            directory: directory, overwriting: latencies.0, appending: latencies.1, bytes: bytes,
            seconds: seconds)
    }

    /// Nanoseconds of the fdatasync alone, which is what a commit waits for.
    private func latencies(_ file: borrowing ProbeFile) throws -> Histogram<UInt64> {
        var histogram = Histogram<UInt64>(numberOfSignificantValueDigits: .three)
        for _ in 0..<count {
            try file.write(Self.blockBytes)
            let started = ContinuousClock.now
            try file.sync()
            let elapsed = ContinuousClock.now - started
            histogram.record(UInt64(max(1, elapsed / .nanoseconds(1))))
        }
        return histogram
    }
}

struct DiskReport {
    var directory: String
    var overwriting: Histogram<UInt64>
    var appending: Histogram<UInt64>
    var bytes: Int
    var seconds: Double

    private var megabytesPerSecond: Double {
        seconds > 0 ? Double(bytes) / 1e6 / seconds : 0
    }

    var text: String {
        func line(_ name: String, _ values: Histogram<UInt64>) -> String {
            func at(_ percentile: Double) -> String {
                JSON.decimal(Double(values.valueAtPercentile(percentile)) / 1e6)
            }
            return "\(name)  p50 \(at(50)) ms  p90 \(at(90)) ms  p99 \(at(99)) ms  "
                + "max \(JSON.decimal(Double(values.max) / 1e6)) ms\n"
        }
        return "disk: fdatasync of 4096 B, \(overwriting.totalCount) each way, below \(directory)\n"
            + line("overwriting", overwriting) + line("appending  ", appending)
            + "writing      \(JSON.decimal(megabytesPerSecond)) MB/s  (\(bytes) B in "
            + "\(JSON.decimal(seconds)) s)\n"
    }

    var json: JSON {
        func percentiles(_ values: Histogram<UInt64>) -> JSON {
            func at(_ percentile: Double) -> JSON {
                .decimal(Double(values.valueAtPercentile(percentile)) / 1e6)
            }
            return .object([
                ("p50", at(50)), ("p90", at(90)), ("p99", at(99)),
                ("max", .decimal(Double(values.max) / 1e6)),
            ])
        }
        return .object([
            ("operation", .string("disk")), ("directory", .string(directory)),
            ("block_bytes", .number(UInt64(DiskProbe.blockBytes))),
            ("count", .number(overwriting.totalCount)),
            ("overwrite_ms", percentiles(overwriting)), ("append_ms", percentiles(appending)),
            ("write_bytes", .number(UInt64(bytes))),
            ("write_megabytes_per_second", .decimal(megabytesPerSecond)),
        ])
    }
}

/// A file without a name, gone when it is closed.
private struct ProbeFile: ~Copyable {
    private let descriptor: CInt
    private let directory: String
    private let noise: [UInt8]

    init(in directory: String) throws(AspenError) {
        self.directory = directory
        // Nothing that a disk could make smaller.
        var source = SystemRandomNumberGenerator()
        noise = (0..<(1 << 17)).flatMap { _ in
            withUnsafeBytes(of: source.next() as UInt64) { Array($0) }
        }
        let path = "\(directory)/aspen-bench-\(getpid())-\(source.next() as UInt64)"
        descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw Self.failure(directory) }
        unlink(path)
    }

    deinit { close(descriptor) }

    func write(_ count: Int) throws(AspenError) {
        var rest = noise[..<count]
        while !rest.isEmpty {
            let written = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if written > 0 {
                rest = rest.dropFirst(written)
            } else if errno != EINTR {
                throw Self.failure(directory)
            }
        }
    }

    func sync() throws(AspenError) {
        guard fdatasync(descriptor) == 0 else { throw Self.failure(directory) }
    }

    func rewind() throws(AspenError) {
        guard lseek(descriptor, 0, SEEK_SET) == 0 else { throw Self.failure(directory) }
    }

    private static func failure(_ directory: String) -> AspenError {
        AspenError(.storage, "\(directory): \(String(cString: strerror(errno)))")
    }
}
