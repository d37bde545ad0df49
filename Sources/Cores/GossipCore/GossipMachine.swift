// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes

/// Who is out there: an epidemic broadcast of signed announcements among those who have proved the
/// cookie to one another.
///
/// - HyParView keeps a small active view, the links on which this node talks, and a passive view of
///   others to take when one of those is lost. Plumtree makes a tree of the active views for what is
///   broadcast, and repairs it by what the other links announce. Both are as published (Leitão,
///   Pereira, Rodrigues: DSN 2007 and SRDS 2007).
/// - Each node broadcasts a signed announcement of itself at an interval and at each change. Two
///   nodes that get a link tell each other what the other lacks.
/// - Nothing is trusted because gossip said it. An announcement counts when its endpoint has signed
///   it for this topic and it is newer than what is known; then it says where an endpoint claims to
///   be, no more. That a node is silent or out of reach is a rumour, which it refutes by a newer
///   announcement; it is gone only after a long silence in which nobody had a link with it.
/// - Nobody is read faster than `GossipLimits.frames` and `GossipLimits.bytes` allow, be he a member or
///   not: beyond that his link is paused, and what he has not sent yet waits with him. Who has
///   to wait for longer than `GossipLimits.floodMax` is shunned.
package struct GossipMachine: Machine {
    package typealias Input = GossipInput
    package typealias Effect = GossipEffect
    /// Whether the 64 bytes are that key's Ed25519 signature of the text.
    package typealias SignatureCheck =
        @Sendable (_ signature: [UInt8], _ text: [UInt8], _ key: EndpointID) -> Bool

    struct LinkState: Sendable {
        /// Outside of the active view it is closed when it was not used for a while.
        var usedAt: MonotonicInstant
        /// Has been told that it is no neighbour, and need not be told again.
        var isToldApart = false
        /// Has been told what this node knows.
        var hasDigest = false
        /// Until when it is not read; nil: it is.
        var pausedUntil: MonotonicInstant?
    }

    /// A connection under way, and what to say when it is there.
    struct Dial: Sendable {
        var endsAt: MonotonicInstant
        var messages: [GossipMessage]
        static let messagesMax = 4

        /// Whether the two may know different things: not where one only answers a shuffle, or asks
        /// somebody it knows to be a neighbour.
        var isForNews: Bool {
            messages.isEmpty || messages.contains { if case .join = $0 { true } else { false } }
        }
    }

    struct Request: Sendable {
        var isHighPriority: Bool
        var endsAt: MonotonicInstant
    }

    let configuration: GossipConfiguration
    let checkSignature: SignatureCheck
    private var lastStepAt: MonotonicInstant?
    var wall: (milliseconds: UInt64, at: MonotonicInstant)?
    var own: OwnAnnouncement
    var table = PeerTable()
    var meters = PeerMeters()
    package internal(set) var counters = GossipCounters()

    // Links
    var links: [EndpointID: LinkState] = [:]
    var dials: [EndpointID: Dial] = [:]
    /// Found by the caller, and not in the table yet; the newest last.
    var contacts: [EndpointID] = []

    // HyParView
    package internal(set) var activeView: [EndpointID] = []
    package internal(set) var passiveView: [EndpointID] = []
    /// Asked to be a neighbour, and not answered yet.
    var requests: [EndpointID: Request] = [:]
    var repairAt: MonotonicInstant?
    var repairDelay: Duration
    var shuffleAt: MonotonicInstant?
    /// Until when the answer to a shuffle is taken.
    var shuffleEnds: MonotonicInstant?
    var probeAt: MonotonicInstant?
    var probeDelay: Duration

    // Plumtree
    /// Per neighbour, those whose announcements it is only told of. All others are pushed to it.
    var lazySubjects: [EndpointID: Set<EndpointID>] = [:]
    var lazyQueue: [EndpointID: [GossipMessage.LazyPush]] = [:]
    var lazyFlushAt: MonotonicInstant?
    var seen = SeenMessages()
    var missing: [MissingMessage] = []

    // Suspicion
    /// Neighbours whose link was lost, and what was known then, until there is another link or none.
    var lost: [EndpointID: AnnouncementVersion] = [:]
    /// Those that this node could not reach, and the version that says otherwise when it is newer.
    var unreachable: [EndpointID: AnnouncementVersion] = [:]

    package init(configuration: GossipConfiguration, checkSignature: @escaping SignatureCheck) {
        precondition(configuration.activeMax > 0, "an overlay has neighbours")
        self.configuration = configuration
        self.checkSignature = checkSignature
        own = OwnAnnouncement(epoch: configuration.epoch)
        repairDelay = configuration.repairDelayMin
        probeDelay = configuration.probeDelayMin
    }

    package mutating func step(
        _ input: consuming GossipInput, now: MonotonicInstant, random: inout RandomSource,
        into effects: inout [GossipEffect]
    ) {
        var turn = GossipTurn(now: now, random: random, effects: [])
        swap(&turn.effects, &effects)
        if let lastStepAt, now - lastStepAt > configuration.announceInterval * 2 {
            // This node has slept, not all the others.
            table.forgive(now - lastStepAt)
        }
        lastStepAt = now
        take(input, &turn)
        settle(&turn)
        swap(&turn.effects, &effects)
        random = turn.random
    }

    private mutating func take(_ input: consuming GossipInput, _ turn: inout GossipTurn) {
        switch input {
        case .timeout: break
        case .wallClock(let milliseconds):
            wall = (milliseconds, turn.now)
            if own.announceAt == nil { own.announceAt = turn.now }
        case .described(let description): describe(description, turn)
        case .members(let list): setMembers(list, &turn)
        case .contact(let endpoint): addContact(endpoint, &turn)
        case .linkUp(let endpoint): linkUp(endpoint, &turn)
        case .linkDown(let endpoint): linkDown(endpoint, &turn)
        case .connectFailed(let endpoint): connectFailed(endpoint, &turn)
        case .received(let bytes, let endpoint): receive(bytes, endpoint, &turn)
        case .signed(let ticket, let signature): signed(ticket, signature, &turn)
        }
    }

    /// Whatever is due.
    private mutating func settle(_ turn: inout GossipTurn) {
        settleAnnouncement(&turn)
        settleStandings(&turn)
        settleMissing(&turn)
        if let at = lazyFlushAt, at <= turn.now { flushLazy(&turn) }
        settleRequests(&turn)
        settleRepair(&turn)
        settleProbe(&turn)
        settleShuffle(&turn)
        settleLinks(&turn)
    }

    package var deadline: MonotonicInstant? {
        var earliest: MonotonicInstant?
        func consider(_ instant: MonotonicInstant?) {
            guard let instant else { return }
            earliest = min(earliest ?? instant, instant)
        }
        consider(announcementDueAt)
        consider(table.dueAt)
        consider(lazyFlushAt)
        for message in missing { consider(message.dueAt) }
        for dial in dials.values { consider(dial.endsAt) }
        for request in requests.values { consider(request.endsAt) }
        if own.signed != nil {
            consider(repairAt)
            consider(probeAt)
            consider(shuffleAt)
        }
        for (endpoint, link) in links where isIdle(endpoint) {
            consider(link.usedAt + configuration.linkIdleAfter)
        }
        for link in links.values { consider(link.pausedUntil) }
        return earliest
    }

    // MARK: - What the shell may ask

    /// In ascending order.
    package var endpoints: [EndpointID] { table.order }

    package func record(of endpoint: EndpointID) -> PeerRecord? { table[endpoint] }

    /// The newest that this node has announced of itself.
    package var ownAnnouncement: Announcement? { own.signed?.announcement }

    /// What is remembered only to be bounded, in entries.
    package var memoryCounts: (seen: Int, missing: Int, meters: Int, tombstones: Int, contacts: Int)
    { (seen.count, missing.count, meters.count, table.tombstones.count, contacts.count) }

    // MARK: - Links

    private mutating func linkUp(_ endpoint: EndpointID, _ turn: inout GossipTurn) {
        guard endpoint != configuration.own else { return turn.emit(.disconnect(endpoint)) }
        if links[endpoint] != nil { loseLink(endpoint, turn) }
        let dial = dials.removeValue(forKey: endpoint)
        lost[endpoint] = nil
        let shunned = meters.quarantine(of: endpoint, turn.now)
        guard shunned == nil, links.count < GossipLimits.linksMax else {
            requests[endpoint] = nil
            if let shunned { turn.emit(.shunned(endpoint, shunned)) }
            return turn.emit(.disconnect(endpoint))
        }
        links[endpoint] = LinkState(usedAt: turn.now)
        // A new link is no new allowance.
        holdUp(endpoint, isRead: false, &turn)
        unreachable[endpoint] = nil
        if let dial, dial.isForNews { sendDigest(to: endpoint, &turn) }
        for message in dial?.messages ?? [] { send(message, to: endpoint, &turn) }
        addPassive(endpoint, &turn)
        wakeRepair(turn)
    }

    private mutating func linkDown(_ endpoint: EndpointID, _ turn: inout GossipTurn) {
        guard links[endpoint] != nil else { return }
        let wasNeighbour = activeView.contains(endpoint)
        loseLink(endpoint, turn)
        retryRepair(turn)
        guard wasNeighbour else { return }
        // Is it only the link? If not, a later version than this one says that it is there.
        guard reach(endpoint, [], &turn), let record = table[endpoint] else { return }
        lost[endpoint] = record.version
    }

    /// Everything that hangs on a link that is there no more.
    mutating func loseLink(_ endpoint: EndpointID, _ turn: GossipTurn) {
        links[endpoint] = nil
        requests[endpoint] = nil
        removeActive(endpoint, turn)
    }

    private mutating func connectFailed(_ endpoint: EndpointID, _ turn: inout GossipTurn) {
        guard dials.removeValue(forKey: endpoint) != nil else { return }
        requests[endpoint] = nil
        passiveView.removeAll { $0 == endpoint }
        if let version = lost.removeValue(forKey: endpoint) {
            noteUnreachable(endpoint, version, turn)
        }
        retryRepair(turn)
    }

    /// Sends over the link, or makes one first.
    ///
    /// - Returns: false when there is no place for another link.
    @discardableResult
    mutating func reach(
        _ endpoint: EndpointID, _ messages: [GossipMessage], _ turn: inout GossipTurn
    ) -> Bool {
        guard endpoint != configuration.own, !meters.isQuarantined(endpoint, turn.now) else {
            return false
        }
        if links[endpoint] != nil {
            for message in messages { send(message, to: endpoint, &turn) }
            return true
        }
        if let dial = dials[endpoint] {
            guard dial.messages.count + messages.count <= Dial.messagesMax else { return false }
            dials[endpoint]?.messages += messages
            return true
        }
        guard dials.count < GossipLimits.dialsMax, links.count < GossipLimits.linksMax else {
            return false
        }
        dials[endpoint] = Dial(
            endsAt: turn.now + configuration.requestTimeout, messages: messages)
        turn.emit(.connect(to: endpoint))
        return true
    }

    mutating func send(
        _ message: GossipMessage, to endpoint: EndpointID, _ turn: inout GossipTurn
    ) {
        turn.emit(.send(message.encoded(), to: endpoint))
    }

    /// Whether a link is there for nothing that lasts.
    private func isIdle(_ endpoint: EndpointID) -> Bool {
        !activeView.contains(endpoint) && requests[endpoint] == nil
    }

    private mutating func settleLinks(_ turn: inout GossipTurn) {
        let rested = links.filter { $0.value.pausedUntil.map { $0 <= turn.now } ?? false }
        for endpoint in rested.keys.sorted() {
            links[endpoint]?.pausedUntil = nil
            turn.emit(.resume(endpoint))
        }
        let late = dials.filter { $0.value.endsAt <= turn.now }.keys.sorted()
        for endpoint in late { connectFailed(endpoint, &turn) }
        let idle = links.filter {
            isIdle($0.key) && $0.value.usedAt + configuration.linkIdleAfter <= turn.now
        }
        for endpoint in idle.keys.sorted() {
            links[endpoint] = nil
            turn.emit(.disconnect(endpoint))
        }
    }

    // MARK: - Messages

    private mutating func receive(
        _ bytes: [UInt8], _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        guard let link = links[from] else { return }
        guard link.pausedUntil == nil else {
            counters.unread += 1
            return refuse(.flooding, about: nil, from, &turn)
        }
        meters.read(bytes.count, of: from, turn.now)
        counters.read += 1
        counters.bytesRead += bytes.count
        handle(bytes, from, &turn)
        holdUp(from, isRead: true, &turn)
    }

    /// Pauses a link that has used up what is read of it, or ends it when that lasts too long.
    private mutating func holdUp(
        _ endpoint: EndpointID, isRead: Bool, _ turn: inout GossipTurn
    ) {
        guard links[endpoint] != nil,
            let until = meters.readableAt(endpoint, isRead: isRead, turn.now)
        else { return }
        guard meters.holdUp(endpoint, turn.now) < GossipLimits.floodMax else {
            return shun(endpoint, .flooding, &turn)
        }
        links[endpoint]?.pausedUntil = until
        counters.pauses += 1
        turn.emit(.pause(endpoint))
    }

    private mutating func handle(
        _ bytes: [UInt8], _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        let message: GossipMessage
        do {
            message = try GossipMessage(decoding: bytes)
        } catch .unknown(field: "format"), .unknown(field: "kind") {
            // Of a later version.
            counters.unread += 1
            return
        } catch {
            return refuse(.malformed, about: nil, from, &turn)
        }
        switch message {
        case .join(let signed): receiveJoin(signed, from, &turn)
        case .forwardJoin(let signed, let ttl): receiveForwardJoin(signed, ttl, from, &turn)
        case .neighbor(let isHighPriority): receiveNeighbor(isHighPriority, from, &turn)
        case .neighborReply(let isAccepted): receiveNeighborReply(isAccepted, from, &turn)
        case .disconnect: receiveDisconnect(from, &turn)
        case .shuffle(let origin, let ttl, let nodes):
            receiveShuffle(origin, ttl, nodes, from, &turn)
        case .shuffleReply(let nodes): receiveShuffleReply(nodes, from, &turn)
        case .gossip(let carried, let round): receiveGossip(carried, round, from, &turn)
        case .iHave(let pushes): receiveIHave(pushes, from, &turn)
        case .graft(let id, let round, let isWanted):
            receiveGraft(id, round, isWanted, from, &turn)
        case .prune(let id): receivePrune(id, from)
        case .digest(let entries): receiveDigest(entries, from, &turn)
        case .records(let records): receiveRecords(records, from, &turn)
        }
    }

    // MARK: - Promises

    package func checkInvariants() {
        table.checkInvariants()
        // The views are short: looking through them costs less than sets of them.
        precondition(activeView.count <= configuration.activeMax, "the active view is bounded")
        precondition(passiveView.count <= configuration.passiveMax, "the passive view is bounded")
        for (place, endpoint) in activeView.enumerated() {
            precondition(!activeView[..<place].contains(endpoint), "a neighbour is one once")
            precondition(links[endpoint] != nil, "neighbours have links")
            precondition(endpoint != configuration.own, "nobody is his own neighbour")
            precondition(!passiveView.contains(endpoint), "the views are apart")
        }
        for (place, endpoint) in passiveView.enumerated() {
            precondition(!passiveView[..<place].contains(endpoint), "passive ones are there once")
            precondition(table[endpoint] != nil, "passive ones are known")
        }
        precondition(table[configuration.own] == nil, "nobody is his own peer")
        precondition(
            lazyQueue.keys.allSatisfy(activeView.contains)
                && lazySubjects.keys.allSatisfy(activeView.contains),
            "what hangs on neighbours goes with them")
        precondition(
            lazySubjects.values.allSatisfy { subjects in
                subjects.allSatisfy { $0 == configuration.own || table[$0] != nil }
            }, "trees are of those who are known")
        precondition(
            links.count <= GossipLimits.linksMax && dials.count <= GossipLimits.dialsMax,
            "links are bounded")
        precondition(dials.keys.allSatisfy { links[$0] == nil }, "a link is made once")
        precondition(
            seen.count <= GossipLimits.seenMax && missing.count <= GossipLimits.missingMax
                && meters.count <= GossipLimits.metersMax
                && contacts.count <= GossipLimits.contactsMax
                && lost.keys.allSatisfy { dials[$0] != nil }
                && unreachable.keys.allSatisfy { table[$0] != nil },
            "what is remembered is bounded")
    }
}
