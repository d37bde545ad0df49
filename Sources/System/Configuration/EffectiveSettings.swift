// SPDX-License-Identifier: GPL-2.0-or-later

/// What is in force and why: flags before environment before files before defaults.
package struct EffectiveSettings: Sendable {
    package struct Entry: Sendable, Equatable {
        package var setting: Setting
        /// Nil: not set, and there is no default.
        package var value: SettingValue?
        package var origin: Origin
        /// What else was set, but did not win; the strongest first.
        package var overridden: [ConfigurationFiles.Found]
    }

    /// One for each setting, in the catalogue's order.
    package private(set) var entries: [Entry] = []
    /// All that is wrong; what is wrong counts as not set.
    package private(set) var problems: [ConfigurationError]

    /// - Parameters:
    ///   - flags: all values of each flag, by the setting's name.
    ///   - environment: an empty variable counts as absent.
    package init(
        flags: [String: [String]] = [:], environment: (String) -> String?, files: ConfigurationFiles
    ) {
        problems = files.problems
        for setting in SettingsCatalogue.all {
            // The strongest first.
            var found: [ConfigurationFiles.Found] = []
            func take(_ texts: [String], _ origin: Origin) {
                do throws(ConfigurationError) {
                    found.append(.init(value: try setting.parse(texts, origin), origin: origin))
                } catch {
                    problems.append(error)
                }
            }
            if let texts = flags[setting.name] { take(texts, .flag(setting.name)) }
            if let text = environment(setting.variable), !text.isEmpty {
                take(setting.split(text), .environment(setting.variable))
            }
            found += (files.values[setting.name] ?? []).reversed()
            entries.append(
                Entry(
                    setting: setting, value: found.first?.value ?? setting.standardValue,
                    origin: found.first?.origin ?? .standard, overridden: Array(found.dropFirst())))
        }
        checkTogether()
    }

    package subscript(name: String) -> Entry? { entries.first { $0.setting.name == name } }

    /// What each value for itself cannot tell.
    private mutating func checkTogether() {
        if self["enable-dns-discovery"]?.value == .boolean(true),
            self["dns-discovery-origin"]?.value == nil
        {
            problems.append(
                ConfigurationError(
                    .missing, self["enable-dns-discovery"]?.origin,
                    path: "discovery.dns_discovery_origin",
                    "discovery.enable_dns_discovery = true needs discovery.dns_discovery_origin: the "
                        + "domain below which the nodes' records are"))
        }
        func milliseconds(_ name: String) -> Int? {
            guard case .integer(let value)? = self[name]?.value else { return nil }
            return value
        }
        guard let heartbeat = milliseconds("heartbeat-interval-ms"),
            let low = milliseconds("election-timeout-min-ms"),
            let high = milliseconds("election-timeout-max-ms")
        else { return }
        func blame(_ name: String, _ text: String) {
            let entry = self[name]
            problems.append(
                ConfigurationError(.conflict, entry?.origin, path: entry?.setting.path, text))
        }
        // The setting that somebody has changed is to blame, not a default.
        func changed(_ first: String, _ second: String) -> String {
            self[first]?.origin == .standard ? second : first
        }
        if heartbeat * 2 > low {
            blame(
                changed("election-timeout-min-ms", "heartbeat-interval-ms"),
                "raft.election_timeout_min_ms (\(low)) must be at least twice "
                    + "raft.heartbeat_interval_ms (\(heartbeat))")
        }
        if low >= high {
            blame(
                changed("election-timeout-max-ms", "election-timeout-min-ms"),
                "raft.election_timeout_max_ms (\(high)) must be above "
                    + "raft.election_timeout_min_ms (\(low))")
        }
    }
}

extension Setting {
    /// The texts in a variable's value.
    package func split(_ text: String) -> [String] {
        guard case .list = kind else { return [text] }
        return text.split(separator: ",").map(String.init)
    }
}
