// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// The newest that is known of one endpoint.
package struct PeerRecord: Sendable {
    package fileprivate(set) var signed: SignedAnnouncement
    package fileprivate(set) var id: MessageID
    /// When somebody last had something new of it.
    package fileprivate(set) var heardAt: MonotonicInstant
    package fileprivate(set) var standing = PeerStanding.alive
    /// The node id that it calls itself by, unless it is another's.
    package fileprivate(set) var node: NodeID?
    package fileprivate(set) var isMember: Bool
    /// Somebody cannot reach it, and when that counts.
    var rumour: (by: EndpointID, dueAt: MonotonicInstant)?
    /// No other rumour counts before.
    var nextRumour: MonotonicInstant?
    /// When to look again whether anyone still has a link with it.
    var nextGoneCheck: MonotonicInstant?
    var announcements = TokenBucket()

    package var announcement: Announcement { signed.announcement }
    package var version: AnnouncementVersion { signed.announcement.version }

    /// In whole seconds, as messages carry it.
    func silence(_ now: MonotonicInstant) -> UInt16 {
        UInt16(clamping: (now - heardAt).milliseconds / 1000)
    }
}

/// Whom a node knows: the newest announcement of each endpoint, bounded.
///
/// Nobody is put out for another: a stranger finds a place when one is gone. What is gone leaves a
/// tombstone, so that an old announcement that still goes round does not bring it back.
struct PeerTable: Sendable {
    private(set) var records: [EndpointID: PeerRecord] = [:]
    /// The keys of `records`, ascending: every walk goes through this, for the same order everywhere.
    private(set) var order: [EndpointID] = []
    private(set) var members: [EndpointID: NodeID] = [:]
    private(set) var memberOrder: [EndpointID] = []
    private var holders: [NodeID: EndpointID] = [:]
    private(set) var strangerCount = 0
    private(set) var tombstones: [EndpointID: Tombstone] = [:]
    /// No record has anything to do before.
    private(set) var dueAt: MonotonicInstant?

    struct Tombstone: Sendable {
        var version: AnnouncementVersion
        var until: MonotonicInstant
    }

    subscript(_ endpoint: EndpointID) -> PeerRecord? { records[endpoint] }

    /// What an announcement has to be newer than.
    func floor(_ endpoint: EndpointID) -> AnnouncementVersion? {
        records[endpoint]?.version ?? tombstones[endpoint]?.version
    }

    func hasRoom(for endpoint: EndpointID) -> Bool {
        records[endpoint] != nil || members[endpoint] != nil || strangerCount < Limits.peersMax
    }

    // MARK: - Changes

    struct Change {
        var isNew: Bool
        var isOtherwise: Bool
        var wasAlive: Bool
        /// Who has the node id that this one calls itself by.
        var conflict: (node: NodeID, holder: EndpointID)?
    }

    /// Takes an announcement that is verified and newer than what is known.
    mutating func accept(
        _ signed: SignedAnnouncement, id: MessageID, heardAt: MonotonicInstant,
        suspectAfter: Duration
    ) -> Change {
        let announcement = signed.announcement
        let endpoint = announcement.endpoint
        precondition(floor(endpoint).map { $0 < announcement.version } ?? true, "newer only")
        precondition(hasRoom(for: endpoint), "the table is bounded")
        let old = records[endpoint]
        let isMember = members[endpoint] != nil
        var record =
            old
            ?? PeerRecord(signed: signed, id: id, heardAt: heardAt, node: nil, isMember: isMember)
        let isOtherwise = old.map { !$0.announcement.isAlike(announcement) } ?? true
        record.signed = signed
        record.id = id
        record.heardAt = max(record.heardAt, heardAt)
        record.standing = .alive
        record.rumour = nil
        record.nextGoneCheck = nil
        if old == nil {
            order.insert(endpoint, at: order.firstIndex { endpoint < $0 } ?? order.endIndex)
            if !isMember { strangerCount += 1 }
        }
        records[endpoint] = record
        tombstones[endpoint] = nil
        let conflict = name(endpoint, announcement.node)
        consider(record.heardAt + suspectAfter)
        return Change(
            isNew: old == nil, isOtherwise: isOtherwise, wasAlive: old?.standing == .alive,
            conflict: conflict)
    }

    /// Gives an endpoint the node id that it claims, unless somebody has it who is not gone.
    private mutating func name(
        _ endpoint: EndpointID, _ claim: NodeID?
    ) -> (node: NodeID, holder: EndpointID)? {
        let claim = members[endpoint] ?? claim
        let former = records[endpoint]?.node
        if let former, former != claim {
            holders[former] = nil
            records[endpoint]?.node = nil
        }
        guard let claim else { return nil }
        if let holder = holders[claim], holder != endpoint { return (claim, holder) }
        holders[claim] = endpoint
        records[endpoint]?.node = claim
        return nil
    }

    mutating func suspect(_ endpoint: EndpointID, _ suspicion: Suspicion) {
        records[endpoint]?.standing = .suspected(suspicion)
        records[endpoint]?.rumour = nil
    }

    /// Somebody's word that it cannot be reached. The first one stands, and for a while it is the only
    /// one, so that nobody has to refute all the time.
    mutating func noteRumour(
        _ endpoint: EndpointID, by reporter: EndpointID, now: MonotonicInstant, delay: Duration,
        pause: Duration
    ) {
        guard let record = records[endpoint], record.standing == .alive,
            record.nextRumour.map({ $0 <= now }) ?? true
        else { return }
        records[endpoint]?.rumour = (reporter, now + delay)
        records[endpoint]?.nextRumour = now + pause
        consider(now + delay)
    }

    mutating func setNextGoneCheck(_ endpoint: EndpointID, _ instant: MonotonicInstant) {
        records[endpoint]?.nextGoneCheck = instant
    }

    mutating func countAnnouncement(_ endpoint: EndpointID, _ now: MonotonicInstant) {
        _ = records[endpoint]?.announcements.take(GossipLimits.announcements, now: now)
    }

    /// Forgets an endpoint but for the version that must not come back.
    mutating func bury(_ endpoint: EndpointID, until: MonotonicInstant) {
        guard let record = records.removeValue(forKey: endpoint) else { return }
        order.removeAll { $0 == endpoint }
        if !record.isMember { strangerCount -= 1 }
        // A member's is kept for it.
        if let node = record.node, !record.isMember { holders[node] = nil }
        if tombstones.count >= GossipLimits.tombstonesMax,
            let oldest = tombstones.min(by: { ($0.value.until, $0.key) < ($1.value.until, $1.key) })
        {
            tombstones[oldest.key] = nil
        }
        tombstones[endpoint] = Tombstone(version: record.version, until: until)
    }

    mutating func expireTombstones(_ now: MonotonicInstant) {
        guard tombstones.contains(where: { $0.value.until <= now }) else { return }
        tombstones = tombstones.filter { $0.value.until > now }
    }

    /// - Returns: those who have lost the node id that they had to a member.
    mutating func setMembers(
        _ list: [GossipMember], own: EndpointID, buryUntil: MonotonicInstant
    ) -> [(node: NodeID, holder: EndpointID, claimant: EndpointID)] {
        members = [:]
        var ownNode: NodeID?
        for member in list.prefix(GossipLimits.membersMax) {
            if member.endpoint == own {
                ownNode = member.node
            } else {
                members[member.endpoint] = member.node
            }
        }
        memberOrder = members.keys.sorted()
        strangerCount = 0
        for endpoint in order {
            let isMember = members[endpoint] != nil
            records[endpoint]?.isMember = isMember
            if !isMember { strangerCount += 1 }
        }
        buryExcess(until: buryUntil)
        // Members first: they have their ids for themselves, and so has this node.
        holders = [:]
        if let ownNode { holders[ownNode] = own }
        for endpoint in order { records[endpoint]?.node = nil }
        for endpoint in memberOrder {
            if let node = members[endpoint] { holders[node] = endpoint }
        }
        var lost: [(NodeID, EndpointID, EndpointID)] = []
        for endpoint in order {
            if let (node, holder) = name(endpoint, records[endpoint]?.announcement.node) {
                lost.append((node, holder, endpoint))
            }
        }
        return lost
    }

    /// Former members may be more strangers than have places.
    private mutating func buryExcess(until: MonotonicInstant) {
        while strangerCount > Limits.peersMax {
            let strangers = order.filter { records[$0]?.isMember == false }
            guard let least = strangers.min(by: { heardAt($0) < heardAt($1) }) else { return }
            bury(least, until: until)
        }
    }

    private func heardAt(_ endpoint: EndpointID) -> MonotonicInstant {
        records[endpoint]?.heardAt ?? .zero
    }

    // MARK: - Time

    private mutating func consider(_ instant: MonotonicInstant) {
        dueAt = min(dueAt ?? instant, instant)
    }

    /// Takes a time in which nothing could be heard off everybody's silence.
    mutating func forgive(_ duration: Duration) {
        for endpoint in order {
            guard let heardAt = records[endpoint]?.heardAt else { continue }
            records[endpoint]?.heardAt = heardAt + duration
        }
    }

    /// Looks at all records for the next time at which one of them has something to do.
    mutating func schedule(suspectAfter: Duration, goneAfter: Duration) {
        dueAt = nil
        for endpoint in order {
            guard let record = records[endpoint] else { continue }
            if record.standing == .alive {
                consider(record.heardAt + suspectAfter)
                if let rumour = record.rumour { consider(rumour.dueAt) }
            } else {
                consider(max(record.heardAt + goneAfter, record.nextGoneCheck ?? .zero))
            }
        }
    }

    /// Whether somebody who is alive says that he has a link with it.
    func isVouchedFor(_ endpoint: EndpointID) -> Bool {
        guard let epoch = records[endpoint]?.version.epoch else { return false }
        return order.contains { other in
            guard other != endpoint, let record = records[other], record.standing == .alive else {
                return false
            }
            return record.announcement.reports.contains {
                $0.subject == endpoint && $0.kind == .linked && $0.version.epoch >= epoch
            }
        }
    }

    func checkInvariants() {
        precondition(order.count == records.count, "every record has its place")
        precondition(strangerCount <= Limits.peersMax, "strangers are bounded")
        precondition(records.count <= GossipLimits.recordsMax, "the table is bounded")
        precondition(tombstones.count <= GossipLimits.tombstonesMax, "tombstones are bounded")
        var strangers = 0
        for (place, endpoint) in order.enumerated() {
            precondition(place == 0 || order[place - 1] < endpoint, "the order is ascending")
            guard let record = records[endpoint] else {
                preconditionFailure("a place has a record")
            }
            precondition(record.announcement.endpoint == endpoint, "a record is of its endpoint")
            precondition(record.isMember == (members[endpoint] != nil), "members are known as such")
            precondition(record.standing != .gone, "the gone are not in the table")
            precondition(tombstones[endpoint] == nil, "nobody is both here and gone")
            if !record.isMember { strangers += 1 }
            if let node = record.node {
                precondition(holders[node] == endpoint, "a node id has one holder")
            }
        }
        precondition(strangers == strangerCount, "strangers are counted")
    }
}

extension Announcement {
    /// Whether it says the same of its node as another one.
    fileprivate func isAlike(_ other: Announcement) -> Bool {
        node == other.node && addresses == other.addresses && services == other.services
            && programVersion == other.programVersion && version.epoch == other.version.epoch
    }
}
