// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import NIOCore

/// Who started this process.
package enum Supervision {
    /// systemd did, as a unit's own process: it gives each start an id, and names the process that
    /// the id is meant for (systemd.exec(5)). A shell inside a unit hands INVOCATION_ID on; and
    /// `aspen-node`, which speaks the rest of the protocol, sets neither.
    package static var isBySystemd: Bool {
        guard Environment.nonEmpty("INVOCATION_ID") != nil else { return false }
        guard let pid = Environment.nonEmpty("SYSTEMD_EXEC_PID") else { return true }
        return pid == String(getpid())
    }

    /// How long after a sibling's end systemd is reminded: RestartSec= is 100 ms from the moment
    /// that systemd, too, has noticed.
    private static let reminders = [102, 105, 108, 111, 114, 118, 125, 140].map(TimeAmount.milliseconds)

    /// A sibling daemon has gone, and `RestartSec=` after that systemd is to start it again. Its
    /// timers come up to 250 ms late (the accuracy of sd-event(3) that it uses for itself), unless
    /// something else wakes it when one is due. So it is told something, at about the right time,
    /// that means nothing to it.
    package static func remindOfSibling(on loop: any EventLoop) {
        guard isBySystemd else { return }
        for delay in reminders { loop.scheduleTask(in: delay) { Notifier.wake() } }
    }
}
