// SPDX-License-Identifier: GPL-2.0-or-later

import CAspenSystem

package enum ProcessMemory {
    /// Gives the system back what was freed (malloc_trim(3)): some milliseconds of work, for when a busy
    /// time is over.
    package static func giveBack() { aspen_return_free_memory() }
}
