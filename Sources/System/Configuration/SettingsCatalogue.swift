// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Everything that can be set. The order is that of the default file and of the documentation.
package enum SettingsCatalogue {
    package static let all: [Setting] = node + cluster + storage + raft + discovery + security + log

    package static let tables = [
        "node", "cluster", "storage", "raft", "discovery", "security", "log",
    ]

    package static func setting(named name: String) -> Setting? { all.first { $0.name == name } }

    package static func setting(table: String, key: String) -> Setting? {
        all.first { $0.table == table && $0.key == key }
    }

    private static let daemons = ["aspend-net", "aspend-raft"]
    private static let allDaemons = daemons + ["aspend-gossip"]

    /// aspend-net serves one UDP socket so far; another would be bound and never read.
    private static let listenAddressesMax = 1

    /// As many as aspend-egress uses.
    private static let dnsServersMax = 4

    private static let node: [Setting] = [
        Setting(
            name: "node-id", table: "node", key: "id", kind: .integer(1...Int.max), standard: nil,
            standardNote: "none: it must be set",
            summary: "This node's number, which no other node of the cluster has.", example: "1",
            users: allDaemons),
        Setting(
            name: "listen", table: "node", key: "listen",
            kind: .list(.listenAddress, countMax: listenAddressesMax), standard: nil,
            standardNote: "port 7700 on every address; under aspen-node 127.0.0.1:7700",
            summary: "UDP address and port of the QUIC endpoint. A port alone means every address.",
            example: "\":7700\"", users: ["aspen-generator", "aspen-node"]),
        Setting(
            name: "advertise", table: "node", key: "advertise",
            kind: .list(.address, countMax: Limits.addressesMax), standard: nil,
            standardNote: "the address listened on, or the interfaces'",
            summary:
                "Addresses that others dial, where they are not those that the machine has itself.",
            example: "[\"192.0.2.1:7700\"]", users: ["aspend-net"]),
        Setting(
            name: "peers", table: "node", key: "peers",
            kind: .list(.peer, countMax: Limits.peersMax), standard: "[]", standardNote: nil,
            summary:
                "Nodes to know from the start, each NODE@ENDPOINT@ADDRESS:PORT; those in peers.d besides.",
            example: nil, users: ["aspend-net"]),
        Setting(
            name: "ticket", table: "node", key: "ticket", kind: .text(.ticket), standard: nil,
            standardNote: "none", summary: "A ticket of the cluster, in place of peers.",
            example: "\"aspen…\"", users: ["aspend-net"]),
    ]

    private static let cluster: [Setting] = [
        Setting(
            name: "auto-join", table: "cluster", key: "auto_join", kind: .boolean,
            standard: "false", standardNote: nil,
            summary:
                "`true`: while this node leads, nodes with the same cookie become members by themselves.",
            example: nil, users: ["aspend-raft"])
    ]

    private static let discovery: [Setting] = [
        Setting(
            name: "disable-mdns", table: "discovery", key: "disable_mdns", kind: .boolean,
            standard: "false", standardNote: nil,
            summary: "`true`: neither looks for nodes on the local link nor tells it of this one.",
            example: nil, users: ["aspend-gossip"]),
        Setting(
            name: "disable-gossip", table: "discovery", key: "disable_gossip", kind: .boolean,
            standard: "false", standardNote: nil,
            summary: "`true`: takes no part in gossip. Nodes are found in the other ways alone.",
            example: nil, users: ["aspend-gossip"]),
        Setting(
            name: "enable-dns-discovery", table: "discovery", key: "enable_dns_discovery",
            kind: .boolean, standard: "false", standardNote: nil,
            summary: "`true`: asks DNS where nodes are whose endpoint id is known.", example: nil,
            users: ["aspend-gossip"]),
        Setting(
            name: "dns-discovery-origin", table: "discovery", key: "dns_discovery_origin",
            kind: .text(.domainName), standard: nil, standardNote: "none",
            summary:
                "The domain below which DNS has them, as TXT records at _iroh.ENDPOINT.ORIGIN.",
            example: "\"nodes.example.org\"", users: ["aspend-gossip"]),
        Setting(
            name: "dns-servers", table: "discovery", key: "dns_servers",
            kind: .list(.address, countMax: dnsServersMax), standard: nil,
            standardNote: "those of /etc/resolv.conf",
            summary: "Name servers to ask, in this order.", example: "[\"192.0.2.53:53\"]",
            users: ["aspend-egress"]),
        Setting(
            name: "enable-pkarr", table: "discovery", key: "enable_pkarr", kind: .notYet,
            standard: "false", standardNote: nil,
            summary: "Finding nodes through pkarr and the DHT does not exist yet.", example: nil,
            users: ["aspend-gossip"]),
    ]

    private static let storage: [Setting] = [
        Setting(
            name: "storage-backend", table: "storage", key: "backend",
            kind: .word(["persistent", "inmemory", "redb"]), standard: "\"persistent\"",
            standardNote: nil,
            summary:
                "Where log and state live. `inmemory` forgets all at the end; `redb` is an older "
                + "word for persistent.", example: nil, users: ["aspend-raft"]),
        Setting(
            name: "log-tail-entries", table: "storage", key: "log_tail_entries",
            kind: .integer(0...10_000_000), standard: "10000", standardNote: nil,
            summary: "Log entries kept behind the last checkpoint, for peers that were away.",
            example: nil, users: ["aspend-raft"]),
        Setting(
            name: "history-revisions", table: "storage", key: "history_revisions",
            kind: .integer(1000...1_000_000_000), standard: "100000", standardNote: nil,
            summary:
                "Revisions that can be read and watched from; older history is compacted away.",
            example: nil, users: ["aspend-raft"]),
        Setting(
            name: "history-bytes-max", table: "storage", key: "history_bytes_max",
            kind: .integer(1_000_000...1_000_000_000_000), standard: "25165824", standardNote: nil,
            summary:
                "Bytes of history from which on fewer revisions are kept (at least 1,000 are).",
            example: nil, users: ["aspend-raft"]),
    ]

    private static let milliseconds = Setting.Kind.integer(1...3_600_000)

    private static let raft: [Setting] = [
        Setting(
            name: "heartbeat-interval-ms", table: "raft", key: "heartbeat_interval_ms",
            kind: milliseconds, standard: "500", standardNote: nil,
            summary: "Milliseconds between a leader's heartbeats.", example: nil,
            users: ["aspend-raft"]),
        Setting(
            name: "election-timeout-min-ms", table: "raft", key: "election_timeout_min_ms",
            kind: milliseconds, standard: "1500", standardNote: nil,
            summary: "Shortest election timeout in milliseconds, at least twice the heartbeat.",
            example: nil, users: ["aspend-raft"]),
        Setting(
            name: "election-timeout-max-ms", table: "raft", key: "election_timeout_max_ms",
            kind: milliseconds, standard: "3000", standardNote: nil,
            summary: "Longest election timeout in milliseconds, above the shortest.", example: nil,
            users: ["aspend-raft"]),
    ]

    private static let security: [Setting] = [
        Setting(
            name: "tokens-required", table: "security", key: "tokens_required", kind: .boolean,
            standard: "true", standardNote: nil,
            summary: "Clients on other machines must show a token. `false` on loopback only.",
            example: nil, users: daemons)
    ]

    private static let log: [Setting] = [
        Setting(
            name: "log-level", table: "log", key: "level",
            kind: .word(["trace", "debug", "info", "notice", "warning", "error", "critical"]),
            standard: "\"info\"", standardNote: nil, summary: "The least that is logged.",
            example: nil, users: allDaemons)
    ]
}
