// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBench
import Glibc

exit(await BenchProgram.run(Array(CommandLine.arguments.dropFirst())))
