// SPDX-License-Identifier: GPL-2.0-or-later

import RaftService
import ServiceKit

Daemon.run("aspend-raft", refusals: RaftDaemon.refusals, start: RaftDaemon.start)
