// SPDX-License-Identifier: GPL-2.0-or-later

import GossipService
import ServiceKit

Daemon.run(GossipDaemon.manual, refusals: GossipDaemon.refusals, start: GossipDaemon.start)
