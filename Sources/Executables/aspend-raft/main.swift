// SPDX-License-Identifier: GPL-2.0-or-later

import RaftService
import ServiceKit

Daemon.run(RaftDaemon.manual, refusals: RaftDaemon.refusals, start: RaftDaemon.start)
