// SPDX-License-Identifier: GPL-2.0-or-later

import CSystemd
import Glibc

/// Tells the supervisor how the daemon is (sd_notify(3)). Without NOTIFY_SOCKET nothing is sent.
package enum Notifier {
    package static func ready() { send("READY=1") }
    package static func ready(status: String) { send("READY=1\nSTATUS=\(oneLine(status))") }
    /// One line, shown by `systemctl status`.
    package static func status(_ text: String) { send("STATUS=\(oneLine(text))") }
    package static func stopping() { send("STOPPING=1") }
    package static func alive() { send("WATCHDOG=1") }
    /// Asks for this much more time to start (log recovery).
    package static func extendTimeout(_ duration: Duration) {
        send("EXTEND_TIMEOUT_USEC=\(duration.components.seconds * 1_000_000)")
    }

    /// Asks the supervisor to keep a descriptor and to hand it, under `name`, to whoever runs after
    /// this process (FDSTORE of sd_notify(3); a systemd unit needs FileDescriptorStoreMax=). Also a
    /// pipe whose other end is closed (FDPOLL).
    package static func keep(_ descriptor: CInt, name: String) {
        var descriptor = descriptor
        _ = sd_pid_notify_with_fds(0, 0, "FDSTORE=1\nFDPOLL=0\nFDNAME=\(name)", &descriptor, 1)
    }

    /// Asks the supervisor to let go of what it keeps under `name`.
    package static func discard(name: String) { send("FDSTOREREMOVE=1\nFDNAME=\(name)") }

    /// How often the watchdog wants a sign of life: half of WATCHDOG_USEC; nil without a watchdog.
    package static var watchdogInterval: Duration? {
        var microseconds: UInt64 = 0
        guard sd_watchdog_enabled(0, &microseconds) > 0 else { return nil }
        return .microseconds(Int64(microseconds / 2))
    }

    /// A line end would begin another message.
    private static func oneLine(_ text: String) -> String {
        String(text.map { $0.isNewline ? " " : $0 })
    }

    private static func send(_ state: String) { _ = sd_notify(0, state) }
}
