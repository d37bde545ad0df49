// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import ServiceKit

/// Who a local caller of `net.sock` is.
package enum LocalRole: Equatable, Sendable {
    /// The same user as this process: in development all daemons are.
    case owner
    case daemon(ServiceName)
    /// root, or a member of the group `aspen-admin`.
    case admin
    /// A member of the group `aspen`.
    case user
    case stranger
}

/// The table of who may ask `net.sock` for what. Users and groups are looked up once, at start.
package struct AccessTable: Sendable {
    /// May be replaced in tests.
    package var daemons: [uid_t: ServiceName]
    package var owner: uid_t
    package var adminGroup: gid_t?
    package var userGroup: gid_t?

    /// Services that have a daemon with a user of its own, `aspend-NAME`.
    private static let services: [ServiceName] = [.raft, .gossip, .blob, .forge, .sql, .jobs, .dns]

    package init(
        daemons: [uid_t: ServiceName], owner: uid_t, adminGroup: gid_t? = nil,
        userGroup: gid_t? = nil
    ) {
        self.daemons = daemons
        self.owner = owner
        self.adminGroup = adminGroup
        self.userGroup = userGroup
    }

    package static func ofSystem() -> AccessTable {
        var daemons: [uid_t: ServiceName] = [:]
        for service in services {
            if let entry = getpwnam("aspend-\(service.name)") {
                daemons[entry.pointee.pw_uid] = service
            }
        }
        return AccessTable(
            daemons: daemons, owner: getuid(),
            adminGroup: getgrnam("aspen-admin").map(\.pointee.gr_gid),
            userGroup: getgrnam("aspen").map(\.pointee.gr_gid))
    }

    package func role(of peer: LocalPeer) -> LocalRole {
        if peer.uid == owner { return .owner }
        if let service = daemons[peer.uid] { return .daemon(service) }
        let groups = peer.groups + [peer.gid]
        if peer.uid == 0 { return .admin }
        if let adminGroup, groups.contains(adminGroup) { return .admin }
        if let userGroup, groups.contains(userGroup) { return .user }
        return .stranger
    }

    /// The text says what the caller may not do; nil allows.
    package func refusal(of request: NetRequest, to role: LocalRole) -> String? {
        switch (role, request) {
        case (.owner, .sign(let context, _)):
            Self.services.contains { $0.name == context } ? nil : "there is no such context"
        case (.owner, _): nil
        case (.stranger, _): "only the daemons and people of this node may use net.sock"
        case (_, .identify): nil
        case (.admin, .openStream(_, .client, _)), (.user, .openStream(_, .client, _)): nil
        case (.admin, _), (.user, _): "this is for the node's own daemons"
        case (.daemon(let service), .openStream(_, let alpn, let wanted)):
            service == wanted && (alpn == Self.alpn(of: service) || alpn == .client)
                ? nil : "aspend-\(service.name) may open streams to its like only"
        case (.daemon(.raft), .setPeers): nil
        case (.daemon(let service), .setPeers):
            "the members are aspend-raft's to tell, not aspend-\(service.name)'s"
        case (.daemon(.raft), .members): nil
        case (.daemon(let service), .members):
            "the members are aspend-raft's to tell, not aspend-\(service.name)'s"
        case (.daemon(.gossip), .learned), (.daemon(.gossip), .located): nil
        case (.daemon(let service), .learned), (.daemon(let service), .located):
            "where nodes are is aspend-gossip's to tell, not aspend-\(service.name)'s"
        case (.daemon(.gossip), .gossipSetup), (.daemon(.gossip), .listConnections): nil
        case (.daemon(let service), .listConnections):
            "the connections for gossip are aspend-gossip's to ask for, not aspend-\(service.name)'s"
        case (.daemon(let service), .gossipSetup):
            "the topic is for aspend-gossip, not for aspend-\(service.name)"
        case (.daemon(.raft), .listLearned), (.daemon(.gossip), .listLearned): nil
        case (.daemon(let service), .listLearned):
            "who was found is for aspend-raft to ask, not for aspend-\(service.name)"
        case (.daemon, .subscribe): nil
        case (.daemon(let service), .sign(let context, _)):
            service.name == context ? nil : "aspend-\(service.name) signs as '\(service.name)' only"
        }
    }

    private static func alpn(of service: ServiceName) -> ALPN? {
        switch service {
        case .raft: .raft
        case .gossip: .gossip
        case .blob: .blob
        case .forge: .forge
        case .sql, .jobs, .dns, .cookie: nil
        }
    }

    /// Which services the streams of a protocol may be for.
    package static func serves(_ service: ServiceName, over alpn: ALPN) -> Bool {
        switch alpn {
        case .raft: service == .raft
        case .client: service == .raft
        case .gossip: service == .gossip
        case .blob: service == .blob
        case .forge: service == .forge
        }
    }
}
