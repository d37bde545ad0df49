// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import SimTool

SimCommand.main()
