// SPDX-License-Identifier: GPL-2.0-or-later

import AspenCLI
import Glibc

exit(await TokenProgram.run())
