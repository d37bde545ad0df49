// SPDX-License-Identifier: GPL-2.0-or-later

import RaftService
import ServiceKit

Daemon.run("aspend-raft", start: RaftDaemon.start)
