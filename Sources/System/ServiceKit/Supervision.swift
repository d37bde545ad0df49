// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc

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
}
