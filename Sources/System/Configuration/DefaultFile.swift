// SPDX-License-Identifier: GPL-2.0-or-later

/// The texts that are made of the catalogue: etc/aspen.toml and the reference table.
package enum DefaultFile {
    /// Every setting, commented out, with its default or an example.
    package static var toml: String {
        var text = """
            # Aspen's configuration; aspen.toml(5) describes it. All settings are commented out and
            # show their defaults, or an example where there is none.
            #
            # Better than to edit this file: write what differs into a file of your own in
            # aspen.toml.d/, which upgrades leave alone. `aspen-cli setup` does that, and
            # `aspen-cli config check` tells what is in force and why. Changes take effect when the
            # daemons are restarted: systemctl restart 'aspend-*'

            """
        for table in SettingsCatalogue.tables {
            text += "\n[\(table)]\n"
            for setting in SettingsCatalogue.all where setting.table == table {
                text += "\n" + comment(setting)
                text += "#\(setting.key) = \(setting.standard ?? setting.example ?? "")\n"
            }
        }
        return text
    }

    private static func comment(_ setting: Setting) -> String {
        var sentence = setting.summary
        if let note = setting.standardNote { sentence += " Default: \(note)." }
        var lines = ""
        var line = "#"
        for word in sentence.split(separator: " ") {
            if line.count + 1 + word.count > 96 {
                lines += line + "\n"
                line = "#"
            }
            line += " " + word
        }
        return lines + line + "\n"
    }

    /// The reference table, in Markdown.
    package static var markdown: String {
        var text = """
            | in aspen.toml | flag, variable | allowed | default | read by |
            | --- | --- | --- | --- | --- |

            """
        for setting in SettingsCatalogue.all {
            let standard = setting.standard.map { "`\($0)`" } ?? setting.standardNote ?? "none"
            text += "| `\(setting.path)` | `--\(setting.name)`, `\(setting.variable)` "
            text += "| \(setting.allowed) | \(standard) "
            text += "| \(setting.users.joined(separator: ", ")) |\n"
        }
        return text
    }
}
