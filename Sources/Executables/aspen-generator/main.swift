// SPDX-License-Identifier: GPL-2.0-or-later

import GeneratorTool
import Glibc

exit(
    Generator.run(
        Array(CommandLine.arguments.dropFirst()),
        environment: { getenv($0).map { String(cString: $0) } }, say: Generator.log))
