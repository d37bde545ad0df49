// SPDX-License-Identifier: GPL-2.0-or-later

/// The version of all programs of the suite, as `--version` and `cluster status` show it.
package enum ProgramVersion {
    package static let text = "1.0.0"
}
