// SPDX-License-Identifier: GPL-2.0-or-later

extension EffectiveSettings {
    /// What a node of systemd's would refuse to start with, although each setting is right.
    package var nodeProblems: [ConfigurationError] {
        var found: [ConfigurationError] = []
        if self["node-id"]?.value == nil {
            found.append(
                ConfigurationError(
                    .missing, nil, path: "node.id",
                    "node.id is not set: `aspen-cli setup --node-id N` writes it, with a number "
                        + "that no other node of the cluster has"))
        }
        let listen = (self["listen"]?.value?.texts ?? []).compactMap { ListenAddress($0) }
        if self["tokens-required"]?.value == .boolean(false), !Self.areLoopback(listen) {
            found.append(
                ConfigurationError(
                    .conflict, self["tokens-required"]?.origin, path: "security.tokens_required",
                    "security.tokens_required = false is for loopback only, but the node listens "
                        + "on other addresses: whoever reaches it could read and write"))
        }
        return found
    }

    private static func areLoopback(_ addresses: [ListenAddress]) -> Bool {
        !addresses.isEmpty
            && addresses.allSatisfy { $0.host == "::1" || $0.host?.hasPrefix("127.") == true }
    }
}
