// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// Ids of announcements that were taken, and whose they are: whoever asks for one that has been
/// superseded gets the newest. Bounded; the oldest go.
struct SeenMessages: Sendable {
    private var endpoints: [MessageID: EndpointID] = [:]
    private var ring: [MessageID] = []
    private var next = 0

    var count: Int { ring.count }

    subscript(_ id: MessageID) -> EndpointID? { endpoints[id] }

    mutating func insert(_ id: MessageID, _ endpoint: EndpointID) {
        guard endpoints.updateValue(endpoint, forKey: id) == nil else { return }
        if ring.count < GossipLimits.seenMax {
            ring.append(id)
        } else {
            endpoints[ring[next]] = nil
            ring[next] = id
            next = (next + 1) % GossipLimits.seenMax
        }
    }
}

/// An announcement that neighbours have announced and nobody has pushed.
struct MissingMessage: Sendable {
    struct Announcer: Equatable, Sendable {
        var endpoint: EndpointID
        var round: UInt8
    }

    let id: MessageID
    var announcers: [Announcer]
    var dueAt: MonotonicInstant

    mutating func forget(_ endpoint: EndpointID) {
        announcers.removeAll { $0.endpoint == endpoint }
    }
}

/// Plumtree: announcements are pushed along a tree and announced on all other links, which repair
/// the tree.
///
/// Beyond the paper: each announcing endpoint has a tree of its own, so that no node carries the
/// load of an inner node for all of them, and two announcements that are on their way at once
/// cannot cut each other's tree; the timer for what is missing is drawn from a range, so that where
/// a tree is broken, few ask and the others get it along the tree from them; what was superseded is
/// not kept; and whoever has too much to push leaves some of it to others. Asked for it, a node sends
/// the newest announcement of the same endpoint, and only news are passed on.
extension GossipMachine {
    // MARK: - Pushing

    /// Pushes to all neighbours but one; `round` is that of the message to send.
    mutating func broadcast(
        _ carried: CarriedAnnouncement, round: UInt8, except source: EndpointID?,
        _ turn: inout GossipTurn
    ) {
        let id = MessageID(of: carried.signed.bytes)
        let subject = carried.signed.announcement.endpoint
        seen.insert(id, subject)
        let message = GossipMessage.gossip(carried, round: round).encoded()
        for neighbor in activeView where neighbor != source {
            guard isLazy(neighbor, of: subject) else {
                turn.emit(.send(message, to: neighbor))
                continue
            }
            lazyQueue[neighbor, default: []].append(GossipMessage.LazyPush(id: id, round: round))
            if lazyQueue[neighbor]?.count == GossipLimits.idsPerMessageMax {
                send(.iHave(lazyQueue[neighbor] ?? []), to: neighbor, &turn)
                lazyQueue[neighbor] = nil
            }
        }
        if lazyFlushAt == nil, !lazyQueue.isEmpty {
            lazyFlushAt = turn.now + configuration.lazyDelay
        }
    }

    mutating func flushLazy(_ turn: inout GossipTurn) {
        lazyFlushAt = nil
        for neighbor in activeView {
            guard let pushes = lazyQueue.removeValue(forKey: neighbor) else { continue }
            send(.iHave(pushes), to: neighbor, &turn)
        }
    }

    /// Whether a neighbour is only told of what `subject` announces.
    package func isLazy(_ neighbor: EndpointID, of subject: EndpointID) -> Bool {
        lazySubjects[neighbor]?.contains(subject) ?? false
    }

    private mutating func makeEager(_ neighbor: EndpointID, of subject: EndpointID) {
        lazySubjects[neighbor]?.remove(subject)
    }

    private mutating func makeLazy(_ neighbor: EndpointID, of subject: EndpointID) {
        guard activeView.contains(neighbor),
            subject == configuration.own || table[subject] != nil
        else { return }
        lazySubjects[neighbor, default: []].insert(subject)
    }

    /// Whoever is an inner node of many trees leaves some of that to others: it makes neighbours lazy by
    /// itself, and they ask somebody at random once. Only where there are many trees, and neighbours enough.
    mutating func shedLoad(_ turn: inout GossipTurn) {
        let subjects = table.order
        guard subjects.count >= configuration.sheddingFrom, activeView.count > 2 else { return }
        let pushed = activeView.reduce(0) {
            $0 + subjects.count - (lazySubjects[$1]?.count ?? 0)
        }
        // One of them is where it comes from.
        let excess = pushed - subjects.count - subjects.count * 3 / 2
        guard excess > 0 else { return }
        for _ in 0..<min(excess, configuration.shedAtOnceMax) {
            let neighbor = activeView[turn.random.uniform(0..<activeView.count)]
            makeLazy(neighbor, of: subjects[turn.random.uniform(0..<subjects.count)])
        }
    }

    mutating func receiveGossip(
        _ carried: CarriedAnnouncement, _ round: UInt8, _ from: EndpointID,
        _ turn: inout GossipTurn
    ) {
        let announced = missing.isEmpty ? [] : announcers(of: carried.signed)
        let subject = carried.signed.announcement.endpoint
        switch judge(carried, from: from, &turn) {
        case .accepted:
            makeEager(from, of: subject)
            broadcast(carried, round: round == .max ? .max : round + 1, except: from, &turn)
            optimise(announced, carried.signed, round, from, &turn)
        case .duplicate:
            guard activeView.contains(from) else { break }
            prune(from, MessageID(of: carried.signed.bytes), of: subject, &turn)
        case .refused: break
        }
        if links[from] != nil, !activeView.contains(from) { tellApart(from, &turn) }
    }

    private mutating func prune(
        _ neighbor: EndpointID, _ id: MessageID, of subject: EndpointID,
        _ turn: inout GossipTurn
    ) {
        counters.prunes += 1
        makeLazy(neighbor, of: subject)
        send(.prune(id), to: neighbor, &turn)
    }

    private func announcers(of signed: SignedAnnouncement) -> [MissingMessage.Announcer] {
        let id = MessageID(of: signed.bytes)
        return missing.first { $0.id == id }?.announcers ?? []
    }

    /// A neighbour that would have brought it over much fewer hops takes the place of the one that
    /// did.
    private mutating func optimise(
        _ announcers: [MissingMessage.Announcer], _ signed: SignedAnnouncement, _ round: UInt8,
        _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        guard let better = announcers.min(by: { $0.round < $1.round }), better.endpoint != from,
            activeView.contains(from), activeView.contains(better.endpoint),
            Int(better.round) + Int(configuration.optimisationHops) <= Int(round)
        else { return }
        counters.grafts += 1
        let (id, subject) = (MessageID(of: signed.bytes), signed.announcement.endpoint)
        makeEager(better.endpoint, of: subject)
        send(.graft(id, round: 0, isWanted: false), to: better.endpoint, &turn)
        prune(from, id, of: subject, &turn)
    }

    // MARK: - Repair

    mutating func receiveIHave(
        _ pushes: [GossipMessage.LazyPush], _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        guard activeView.contains(from) else { return tellApart(from, &turn) }
        var open = missing.count { $0.announcers.contains { $0.endpoint == from } }
        for push in pushes where seen[push.id] == nil {
            guard open < GossipLimits.missingPerPeerMax else { return }
            let announcer = MissingMessage.Announcer(endpoint: from, round: push.round)
            if let place = missing.firstIndex(where: { $0.id == push.id }) {
                guard !missing[place].announcers.contains(where: { $0.endpoint == from }) else {
                    continue
                }
                missing[place].announcers.append(announcer)
            } else {
                guard missing.count < GossipLimits.missingMax else { return }
                missing.append(
                    MissingMessage(
                        id: push.id, announcers: [announcer],
                        dueAt: turn.now
                            + turn.random.uniform(
                                configuration.missingTimeout, configuration.missingTimeout * 3)))
            }
            open += 1
        }
    }

    /// Asks those who have announced what has not come, one after the other.
    mutating func settleMissing(_ turn: inout GossipTurn) {
        guard missing.contains(where: { $0.dueAt <= turn.now }) else { return }
        for place in missing.indices where missing[place].dueAt <= turn.now {
            guard !missing[place].announcers.isEmpty else { continue }
            let chosen = turn.random.uniform(0..<missing[place].announcers.count)
            let next = missing[place].announcers.remove(at: chosen)
            missing[place].dueAt = turn.now + configuration.graftTimeout
            counters.grafts += 1
            // In whose tree, is known when it comes.
            send(
                .graft(missing[place].id, round: next.round, isWanted: true), to: next.endpoint,
                &turn)
        }
        missing.removeAll { $0.dueAt <= turn.now && $0.announcers.isEmpty }
    }

    mutating func receiveGraft(
        _ id: MessageID, _ round: UInt8, _ isWanted: Bool, _ from: EndpointID,
        _ turn: inout GossipTurn
    ) {
        guard activeView.contains(from) else { return tellApart(from, &turn) }
        guard let subject = seen[id] else { return }
        makeEager(from, of: subject)
        guard isWanted else { return }
        if subject == configuration.own {
            guard let signed = own.signed else { return }
            send(
                .gossip(CarriedAnnouncement(signed, silence: 0), round: round), to: from, &turn)
        } else if let record = table[subject] {
            let carried = CarriedAnnouncement(record.signed, silence: record.silence(turn.now))
            send(.gossip(carried, round: round), to: from, &turn)
        }
    }

    mutating func receivePrune(_ id: MessageID, _ from: EndpointID) {
        guard let subject = seen[id] else { return }
        makeLazy(from, of: subject)
    }
}
