// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import ServiceKit

/// Who may ask `gossip.sock`: root, this daemon's own user, the other daemons, and members of `aspen` and
/// `aspen-admin`. Users and groups are looked up once, at start.
package struct LocalAccess: Sendable {
    private var users: Set<uid_t>
    private var groups: Set<gid_t>

    package init(users: Set<uid_t>, groups: Set<gid_t>) {
        self.users = users
        self.groups = groups
    }

    package static func ofSystem() -> LocalAccess {
        var users: Set<uid_t> = [0, getuid()]
        for service in ServiceName.allCases {
            if let entry = getpwnam("aspend-\(service.name)") { users.insert(entry.pointee.pw_uid) }
        }
        if let net = getpwnam("aspend-net") { users.insert(net.pointee.pw_uid) }
        let names: [String] = ["aspen", "aspen-admin"]
        let groups = names.compactMap { name in getgrnam(name)?.pointee.gr_gid }
        return LocalAccess(users: users, groups: Set(groups))
    }

    package func permits(_ peer: LocalPeer) -> Bool {
        users.contains(peer.uid) || groups.contains(peer.gid)
            || peer.groups.contains { groups.contains($0) }
    }
}

/// One row of the table of requests: everything about a request that is not what it does.
struct GossipRule: Sendable {
    /// As in the protocol, for logs and error texts.
    let name: String
    let handler: @Sendable (GossipService) -> GossipReply
}

extension GossipRequest {
    /// Its row in the table below.
    var row: Int {
        switch self {
        case .listDiscovered: 0
        case .listPeers: 1
        }
    }
}

extension GossipService {
    /// In the order of `GossipRequest.row`.
    static let requestTable: [GossipRule] = [
        GossipRule(name: "ListDiscovered") { .discovered($0.discovered) },
        GossipRule(name: "ListPeers") { .peers($0.overlay?.lines ?? []) },
    ]
}
