// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import Synchronization

/// A trap is a finding like any other: it gets an exit code and the seed that led to it.
enum CrashReport {
    private static let seed = Atomic<UInt64>(0)

    static func begin(seed: UInt64) { Self.seed.store(seed, ordering: .relaxed) }

    static func install() {
        for number in [SIGILL, SIGTRAP, SIGABRT, SIGSEGV, SIGBUS, SIGFPE] {
            signal(number) { _ in CrashReport.report() }
        }
    }

    /// Only what a signal handler may do: no allocation, one write, the end.
    private static func report() -> Never {
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 64) { line in
            var count = 0
            func put(_ byte: UInt8) {
                line[count] = byte
                count += 1
            }
            for unit: UInt8 in [0x73, 0x65, 0x65, 0x64, 0x20] { put(unit) }
            var rest = seed.load(ordering: .relaxed)
            var power: UInt64 = 1
            while rest / power >= 10 { power *= 10 }
            while power > 0 {
                put(48 + UInt8(rest / power))
                rest %= power
                power /= 10
            }
            // " crashed\n"
            for unit: UInt8 in [0x20, 0x63, 0x72, 0x61, 0x73, 0x68, 0x65, 0x64, 0x0a] { put(unit) }
            _ = write(STDERR_FILENO, line.baseAddress, count)
        }
        _exit(Outcome.crash.rawValue)
    }
}
