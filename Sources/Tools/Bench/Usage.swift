// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

/// What this process has taken so far: a load generator that is busy measures itself.
struct Usage: Sendable {
    /// User and system time of all threads, in seconds.
    var processorSeconds: Double
    /// The most memory it ever had resident, in bytes.
    var residentBytesMax: UInt64

    static func now() -> Usage {
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
        return Usage(
            processorSeconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            residentBytesMax: UInt64(max(0, usage.ru_maxrss)) * 1024)
    }
}
