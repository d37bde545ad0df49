// SPDX-License-Identifier: GPL-2.0-or-later

import GeneratorTool
import Glibc

let arguments = Array(CommandLine.arguments.dropFirst())
if let answer = Generator.answer(to: arguments) {
    print(answer, terminator: "")
    exit(0)
}
exit(
    Generator.run(
        arguments, environment: { getenv($0).map { String(cString: $0) } }, say: Generator.log))
