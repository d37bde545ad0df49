// SPDX-License-Identifier: GPL-2.0-or-later

import Glibc
import NetService
import ServiceKit

if let code = NetDaemon.printIdentity(Array(CommandLine.arguments.dropFirst())) { exit(code) }
Daemon.run(NetDaemon.manual, refusals: NetDaemon.refusals, start: NetDaemon.start)
