// SPDX-License-Identifier: GPL-2.0-or-later

import AspenCLI
import Glibc

if let status = CommandLineProgram.runAlone() { exit(status) }
exit(await CommandLineProgram.run())
