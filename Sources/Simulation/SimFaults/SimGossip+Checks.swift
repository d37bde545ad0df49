// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import SimKit

/// What must hold among the gossip daemons, and the bad luck and ill will that must not change it.
extension SimGossip {
    // MARK: - Signatures

    /// Instead of Ed25519: a keyed hash that costs little. Whoever forges here makes worse ones.
    static func sign(_ text: [UInt8], _ key: EndpointID) -> [UInt8] {
        var hash = TraceHash()
        hash.fold(key.bytes)
        hash.fold(text)
        return (1...8).flatMap { number in
            withUnsafeBytes(of: (hash.value &* UInt64(2 * number - 1)).littleEndian) { Array($0) }
        }
    }

    static let isSigned: GossipMachine.SignatureCheck = { signature, text, key in
        sign(text, key) == signature
    }

    /// The key of `endpoint` has signed this.
    func note(_ signature: [UInt8], of endpoint: EndpointID) {
        signed.insert(Self.digest(endpoint, signature))
    }

    private static func digest(_ endpoint: EndpointID, _ signature: [UInt8]) -> UInt64 {
        var hash = TraceHash()
        hash.fold(endpoint.bytes)
        hash.fold(signature)
        return hash.value
    }

    private func hasSigned(_ announcement: SignedAnnouncement) -> Bool {
        signed.contains(
            Self.digest(announcement.announcement.endpoint, Array(announcement.signature)))
    }

    // MARK: - Promises

    /// Of what one daemon holds.
    func audit(_ place: Place) throws(Violation) {
        guard let daemon = sites[place].daemon else { return }
        daemon.machine.checkInvariants()
        var versions = daemon.versions
        for endpoint in daemon.machine.endpoints {
            guard let record = daemon.machine.record(of: endpoint) else { continue }
            guard hasSigned(record.signed) else {
                throw Violation(
                    .safety, "gossip: nothing is believed unsigned",
                    "g\(place + 1) believes what \(endpoint) has not signed")
            }
            if let member = daemon.members.first(where: { $0.node == record.node }),
                member.endpoint != endpoint
            {
                throw Violation(
                    .safety, "gossip: a member's number is its own",
                    "g\(place + 1) has \(endpoint) for node \(member.node)")
            }
            if let before = daemon.versions[endpoint], record.version < before {
                throw Violation(
                    .safety, "gossip: news do not grow old",
                    "g\(place + 1) goes back to older news of \(endpoint)")
            }
            versions[endpoint] = record.version
        }
        sites[place].daemon?.versions = versions
    }

    /// Nobody is gone who is there: who runs and can be reached, or stands still and has a link.
    func judgeGone(_ endpoint: EndpointID, by judge: Place) throws(Violation) {
        // Its old announcements may come back once it is forgotten altogether.
        sites[judge].daemon?.versions[endpoint] = nil
        guard let subject = place(of: endpoint), let daemon = sites[subject].daemon,
            isUndisturbed(subject), isUndisturbed(judge)
        else { return }
        guard daemon.waiting != nil else { throw wronglyGone(subject, judge, "it runs") }
        for (peer, link) in daemon.links.sorted(by: { $0.key < $1.key }) {
            guard !links[link].isCut, isUndisturbed(peer), sites[peer].daemon?.waiting == nil,
                sites[peer].daemon?.links[subject] == link
            else { continue }
            throw wronglyGone(subject, judge, "g\(peer + 1) has a link with it")
        }
    }

    private func wronglyGone(_ subject: Place, _ judge: Place, _ why: String) -> Violation {
        Violation(
            .safety, "gossip: nobody is gone who is there",
            "g\(judge + 1) calls g\(subject + 1) gone, and \(why)")
    }

    /// For longer than it takes to be gone.
    private func isUndisturbed(_ place: Place) -> Bool {
        sites[place].daemon != nil && now - sites[place].disturbedAt > Self.goneAfter * 3 / 2
    }

    // MARK: - Mishaps

    func mishap() throws(Violation) {
        guard isInTrouble else { return }
        schedule(
            .mishap,
            after: random.uniform(options.mishapInterval / 4, options.mishapInterval * 7 / 4))
        let place = random.uniform(0..<sites.count)
        switch random.uniform(0..<10) {
        case 0:
            end(place)
            // The file with the epoch may be lost.
            if random.chance(1, in: 3) { sites[place].epoch = 0 }
            schedule(.start(place), after: random.uniform(.zero, .seconds(30)))
        case 1, 2:
            // One at a time, so that somebody is there to speak for it.
            guard sites[place].daemon != nil, !sites.contains(where: { $0.daemon?.waiting != nil })
            else { return }
            sites[place].daemon?.waiting = []
            schedule(.resume(place), after: random.uniform(.seconds(1), Self.goneAfter * 3))
        case 3:
            let isLeft = sites.indices.map { _ in random.chance(1, in: 3) }
            for place in sites.indices { sites[place].side = isLeft[place] ? 1 : 0 }
            schedule(.reunite, after: random.uniform(.seconds(1), .seconds(40)))
        case 4:
            sites[place].description.addresses = ["198.51.100.\(random.uniform(0..<250)):7001"]
            try step(place, .described(sites[place].description))
        case 5, 6: try forge(at: place)
        case 7: try replay(at: place)
        default:
            let open = links.indices.suffix(50).filter { !links[$0].isCut }
            if !open.isEmpty { cut(open[random.uniform(0..<open.count)]) }
        }
    }

    func reunite() {
        for place in sites.indices {
            sites[place].side = 0
            sites[place].disturbedAt = now
        }
    }

    func overhear(_ bytes: [UInt8]) {
        if overheard.count < 50 {
            overheard.append(bytes)
        } else {
            overheard[random.uniform(0..<overheard.count)] = bytes
        }
    }

    /// Somebody who has the cookie says what another has not said.
    private func forge(at place: Place) throws(Violation) {
        let victim = random.uniform(0..<sites.count)
        let wall = Self.wallStart + Int64(now.nanoseconds / 1_000_000)
        let announcement = Announcement(
            topic: Self.topic, endpoint: sites[victim].endpoint,
            version: AnnouncementVersion(
                epoch: sites[victim].epoch + UInt64(random.uniform(1..<3)),
                timestamp: UInt64(wall)),
            NodeDescription(
                node: NodeID(1), addresses: ["203.0.113.66:1"], services: [1],
                programVersion: "6.6.6"))
        let signature = (0..<SignedAnnouncement.signatureByteCount).map { _ in
            UInt8(random.uniform(0..<256))
        }
        let carried = CarriedAnnouncement(
            SignedAnnouncement(announcement, signature: signature), silence: 0)
        let message =
            random.chance(1, in: 2)
            ? GossipMessage.gossip(carried, round: 0) : .records([carried])
        try intrude(at: place, message.encoded())
    }

    private func replay(at place: Place) throws(Violation) {
        guard !overheard.isEmpty else { return }
        try intrude(at: place, overheard[random.uniform(0..<overheard.count)])
    }

    /// A link, one message, and away.
    private func intrude(at place: Place, _ bytes: [UInt8]) throws(Violation) {
        guard sites[place].daemon != nil, sites[place].daemon?.waiting == nil else { return }
        let intruder = Self.key(250, random.uniform(0..<200))
        try step(place, .linkUp(intruder))
        try step(place, .received(bytes, from: intruder))
        try step(place, .linkDown(intruder))
    }

    // MARK: - The end

    /// The cluster is done. Here trouble goes on for a while; then all must come to know all.
    func finish() throws(Violation) {
        try run(until: now + options.afterwards)
        isInTrouble = false
        reunite()
        for place in sites.indices {
            try resume(place)
            if sites[place].daemon == nil { schedule(.start(place), after: .zero) }
        }
        let end = now + Self.patience
        while let problem = unknown() {
            guard now < end else {
                throw Violation(.liveness, "gossip: all come to know all", problem)
            }
            try run(until: now + .seconds(1))
        }
    }

    private static let patience = Duration.seconds(150)

    /// Whom somebody does not know as he is; nil when all know all.
    private func unknown() -> String? {
        let living = sites.indices.filter { sites[$0].daemon != nil && sites[$0].net != nil }
        for place in living {
            for other in living where other != place {
                guard let record = sites[place].daemon?.machine.record(of: sites[other].endpoint),
                    record.standing == .alive,
                    record.version.epoch
                        == sites[other].daemon?.machine.ownAnnouncement?.version.epoch,
                    record.announcement.addresses == sites[other].description.addresses
                else { return "g\(place + 1) does not know g\(other + 1)" }
            }
        }
        return nil
    }
}
