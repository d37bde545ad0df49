// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

extension GossipMachine {
    enum Verdict: Equatable {
        /// Verified, newer, and in the table now.
        case accepted
        /// The very bytes that are known.
        case duplicate
        case refused(GossipRefusal)
    }

    /// What becomes of an announcement. What is cheap comes first: a signature is verified only for
    /// one that would be taken, within the rates of its link, its endpoint, and all.
    mutating func judge(
        _ carried: CarriedAnnouncement, from link: EndpointID, _ turn: inout GossipTurn
    ) -> Verdict {
        let announcement = carried.signed.announcement
        let endpoint = announcement.endpoint
        guard topic(of: announcement) != nil else {
            return refused(.wrongTopic, announcement, link, &turn)
        }
        if endpoint == configuration.own { return judgeOwn(carried.signed, link, &turn) }
        let known = table[endpoint]
        if let known, known.signed.bytes == carried.signed.bytes {
            counters.duplicates += 1
            return .duplicate
        }
        if let floor = table.floor(endpoint), announcement.version <= floor {
            return refused(.replayed, announcement, link, &turn)
        }
        guard let wall = wallClock(turn.now) else {
            return refused(.futureDated, announcement, link, &turn)
        }
        let timestamp = announcement.version.timestamp
        guard timestamp <= wall &+ GossipLimits.futureMaxMilliseconds else {
            return refused(.futureDated, announcement, link, &turn)
        }
        guard timestamp &+ GossipLimits.ageMaxMilliseconds >= wall else {
            return refused(.tooOld, announcement, link, &turn)
        }
        guard table.hasRoom(for: endpoint) else {
            return refused(.tableFull, announcement, link, &turn)
        }
        guard known?.announcements.has(GossipLimits.announcements, now: turn.now) ?? true,
            mayVerify(isKnown: known != nil || table.members[endpoint] != nil, link, turn.now)
        else { return refused(.flooding, announcement, link, &turn) }
        guard verifies(carried.signed) else {
            return refused(.forged, announcement, link, &turn)
        }
        accept(carried, from: link, &turn)
        return .accepted
    }

    private mutating func refused(
        _ refusal: GossipRefusal, _ announcement: Announcement, _ link: EndpointID,
        _ turn: inout GossipTurn
    ) -> Verdict {
        refuse(refusal, about: announcement.endpoint, link, &turn)
        return .refused(refusal)
    }

    /// Takes from the rates when all of them allow it.
    private mutating func mayVerify(
        isKnown: Bool, _ link: EndpointID, _ now: MonotonicInstant
    ) -> Bool {
        guard meters.has(\.verifications, GossipLimits.verifications, of: link, now) else {
            return false
        }
        // Strangers that nobody has heard of have a purse of their own: they starve nobody else.
        let isWithin =
            isKnown
            ? meters.known.take(GossipLimits.knownVerifications, now: now)
            : meters.unknown.take(GossipLimits.unknownVerifications, now: now)
        return isWithin && meters.take(\.verifications, GossipLimits.verifications, of: link, now)
    }

    private mutating func verifies(_ signed: SignedAnnouncement) -> Bool {
        guard let topic = topic(of: signed.announcement) else { return false }
        counters.verifications += 1
        if configuration.has(.believesUnsigned) { return true }
        return checkSignature(
            Array(signed.signature), Announcement.signedText(signed.body, topic),
            signed.announcement.endpoint)
    }

    private func topic(of announcement: Announcement) -> GossipTopic? {
        ([configuration.topic] + configuration.acceptedTopics).first {
            $0.tag == announcement.topicTag
        }
    }

    private mutating func judgeOwn(
        _ signed: SignedAnnouncement, _ link: EndpointID, _ turn: inout GossipTurn
    ) -> Verdict {
        if signed.bytes == own.signed?.bytes { return .duplicate }
        let version = signed.announcement.version
        let newest = own.pending?.announcement.version ?? own.signed?.announcement.version
        guard newest.map({ $0 < version }) ?? (version.epoch >= own.epoch) else {
            return refused(.replayed, signed.announcement, link, &turn)
        }
        guard mayVerify(isKnown: true, link, turn.now) else {
            return refused(.flooding, signed.announcement, link, &turn)
        }
        guard verifies(signed) else { return refused(.forged, signed.announcement, link, &turn) }
        raiseEpoch(above: version, &turn)
        return .refused(.replayed)
    }

    mutating func refuse(
        _ refusal: GossipRefusal, about endpoint: EndpointID?, _ link: EndpointID,
        _ turn: inout GossipTurn
    ) {
        counters.refusals[refusal, default: 0] += 1
        // Old news come from honest nodes, too, while news are on their way.
        if refusal != .replayed,
            meters.take(\.refusals, GossipLimits.reportsOfRefusals, of: link, turn.now)
        {
            turn.emit(.refused(refusal, about: endpoint, from: link))
        }
        guard refusal.isHostile else { return }
        shun(link, refusal, &turn)
    }

    /// Ends the link, if there is one, and wants none for a while.
    mutating func shun(_ link: EndpointID, _ why: GossipRefusal, _ turn: inout GossipTurn) {
        meters.quarantine(link, until: turn.now + configuration.quarantine, why, turn.now)
        passiveView.removeAll { $0 == link }
        if links[link] != nil {
            loseLink(link, turn)
            turn.emit(.shunned(link, why))
            turn.emit(.disconnect(link))
        }
    }

    // MARK: - Taking

    private mutating func accept(
        _ carried: CarriedAnnouncement, from link: EndpointID, _ turn: inout GossipTurn
    ) {
        let signed = carried.signed
        let announcement = signed.announcement
        let endpoint = announcement.endpoint
        // A lie about its silence can make a node a suspect at once, but not make it go.
        let silence = min(Duration.seconds(Int(carried.silence)), configuration.suspectAfter)
        let id = MessageID(of: signed.bytes)
        let change = table.accept(
            signed, id: id, heardAt: turn.now + (.zero - silence),
            suspectAfter: configuration.suspectAfter)
        table.countAnnouncement(endpoint, turn.now)
        counters.accepted += 1
        seen.insert(id, endpoint)
        missing.removeAll { $0.id == id }
        contacts.removeAll { $0 == endpoint }
        unreachable[endpoint] = nil
        if change.isNew || change.isOtherwise {
            turn.emit(.learned(announcement, source: link))
        }
        if change.isNew || !change.wasAlive { turn.emit(.standing(endpoint, .alive)) }
        if let conflict = change.conflict, change.isNew || change.isOtherwise {
            turn.emit(.conflict(conflict.node, holder: conflict.holder, claimant: endpoint))
        }
        if change.isNew || !change.wasAlive { wakeRepair(turn) }
        for report in announcement.reports { hear(report, by: endpoint, turn) }
    }

    mutating func setMembers(_ list: [GossipMember], _ turn: inout GossipTurn) {
        let lost = table.setMembers(
            list, own: configuration.own, buryUntil: turn.now + configuration.tombstoneKept)
        for (node, holder, claimant) in lost {
            turn.emit(.conflict(node, holder: holder, claimant: claimant))
        }
        forgetBuried()
        wakeRepair(turn)
        wakeProbe(&turn)
    }

    mutating func addContact(_ endpoint: EndpointID, _ turn: inout GossipTurn) {
        guard endpoint != configuration.own, table[endpoint] == nil, !contacts.contains(endpoint)
        else { return }
        if contacts.count >= GossipLimits.contactsMax { contacts.removeFirst() }
        contacts.append(endpoint)
        if activeView.isEmpty { wakeRepair(turn) }
        wakeProbe(&turn)
    }

    // MARK: - Anti-entropy

    /// All that this node has, itself included; ascending.
    func digest() -> GossipMessage {
        var entries = table.order.compactMap { endpoint in
            table[endpoint].map {
                GossipMessage.DigestEntry(endpoint: endpoint, version: $0.version)
            }
        }
        if let signed = own.signed {
            let place = entries.firstIndex { configuration.own < $0.endpoint } ?? entries.count
            entries.insert(
                GossipMessage.DigestEntry(
                    endpoint: configuration.own, version: signed.announcement.version), at: place)
        }
        return .digest(entries)
    }

    /// Once on each link: from the side that made it for news, from the other in answer, and from both
    /// when they become neighbours.
    mutating func sendDigest(to endpoint: EndpointID, _ turn: inout GossipTurn) {
        guard links[endpoint]?.hasDigest == false else { return }
        links[endpoint]?.hasDigest = true
        send(digest(), to: endpoint, &turn)
    }

    mutating func receiveDigest(
        _ entries: [GossipMessage.DigestEntry], _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        guard meters.take(\.digests, GossipLimits.digests, of: from, turn.now) else { return }
        sendDigest(to: from, &turn)
        var theirs: [EndpointID: AnnouncementVersion] = [:]
        for entry in entries { theirs[entry.endpoint] = entry.version }
        var records: [CarriedAnnouncement] = []
        func add(_ signed: SignedAnnouncement, _ silence: UInt16) {
            let announcement = signed.announcement
            // Of the peer itself, too: it may have forgotten how far its epochs went.
            if let version = theirs[announcement.endpoint], version >= announcement.version {
                return
            }
            records.append(CarriedAnnouncement(signed, silence: silence))
        }
        // Itself first: the peer may want to know with whom it talks.
        if let signed = own.signed { add(signed, 0) }
        for endpoint in table.order {
            if let record = table[endpoint] { add(record.signed, record.silence(turn.now)) }
        }
        for message in GossipMessage.records(splitting: records) {
            send(message, to: from, &turn)
        }
    }

    mutating func receiveRecords(
        _ records: [CarriedAnnouncement], _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        for carried in records {
            guard links[from] != nil else { return }
            spread(carried, from, &turn)
        }
        addPassive(from, &turn)
    }

    /// Judges what came otherwise than by the tree, and passes on what is news.
    mutating func spread(
        _ carried: CarriedAnnouncement, _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        guard judge(carried, from: from, &turn) == .accepted else { return }
        broadcast(carried, round: 0, except: from, &turn)
    }
}
