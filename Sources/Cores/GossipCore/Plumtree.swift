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
    /// In the order in which they said so.
    var announcers: [Announcer]
    var dueAt: MonotonicInstant

    mutating func forget(_ endpoint: EndpointID) {
        announcers.removeAll { $0.endpoint == endpoint }
    }
}

/// Plumtree: announcements are pushed along a tree and announced on all other links, which repair
/// the tree.
///
/// Beyond the paper: the timer for what is missing is drawn from a range, so that where a tree is
/// broken, few ask and the others get it along the tree from them; a link that has just been of use
/// is not always pruned; and what was superseded is not kept. Asked for it, a node sends the newest
/// announcement of the same endpoint, and only news are passed on.
extension GossipMachine {
    // MARK: - Pushing

    /// Pushes to all neighbours but one; `round` is that of the message to send.
    mutating func broadcast(
        _ carried: CarriedAnnouncement, round: UInt8, except source: EndpointID?,
        _ turn: inout GossipTurn
    ) {
        let id = MessageID(of: carried.signed.bytes)
        seen.insert(id, carried.signed.announcement.endpoint)
        for neighbor in eager where neighbor != source {
            send(.gossip(carried, round: round), to: neighbor, &turn)
        }
        for neighbor in lazy where neighbor != source {
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

    private mutating func makeEager(_ endpoint: EndpointID) {
        guard let place = lazy.firstIndex(of: endpoint) else { return }
        eager.append(lazy.remove(at: place))
    }

    private mutating func makeLazy(_ endpoint: EndpointID) {
        guard let place = eager.firstIndex(of: endpoint) else { return }
        lazy.append(eager.remove(at: place))
    }

    mutating func receiveGossip(
        _ carried: CarriedAnnouncement, _ round: UInt8, _ from: EndpointID,
        _ turn: inout GossipTurn
    ) {
        let announced = missing.isEmpty ? [] : announcers(of: carried.signed)
        switch judge(carried, from: from, &turn) {
        case .accepted:
            makeEager(from)
            if activeView.contains(from) { usefulAt[from] = turn.now }
            broadcast(carried, round: round == .max ? .max : round + 1, except: from, &turn)
            optimise(announced, round, from, &turn)
        case .duplicate:
            guard activeView.contains(from), isToBePruned(from, &turn) else { break }
            counters.prunes += 1
            makeLazy(from)
            send(.prune, to: from, &turn)
        case .refused: break
        }
        if links[from] != nil, !activeView.contains(from) { tellApart(from, &turn) }
    }

    /// There is one tree for the announcements of all, and two that are on their way at once may each
    /// find another link of a circle superfluous. So a link that has brought news a moment ago is
    /// given up now and then only: the next duplicate comes soon, and seldom two links go at once.
    private mutating func isToBePruned(_ from: EndpointID, _ turn: inout GossipTurn) -> Bool {
        guard let last = usefulAt[from], turn.now - last < configuration.usefulFor else {
            return true
        }
        return turn.random.chance(1, in: configuration.usefulPrunedOneIn)
    }

    private func announcers(of signed: SignedAnnouncement) -> [MissingMessage.Announcer] {
        let id = MessageID(of: signed.bytes)
        return missing.first { $0.id == id }?.announcers ?? []
    }

    /// A neighbour that would have brought it over much fewer hops takes the place of the one that
    /// did.
    private mutating func optimise(
        _ announcers: [MissingMessage.Announcer], _ round: UInt8, _ from: EndpointID,
        _ turn: inout GossipTurn
    ) {
        guard let better = announcers.min(by: { $0.round < $1.round }), better.endpoint != from,
            activeView.contains(from), activeView.contains(better.endpoint),
            Int(better.round) + Int(configuration.optimisationHops) <= Int(round)
        else { return }
        counters.grafts += 1
        counters.prunes += 1
        makeEager(better.endpoint)
        send(.graft(nil, round: 0), to: better.endpoint, &turn)
        makeLazy(from)
        send(.prune, to: from, &turn)
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
            let next = missing[place].announcers.removeFirst()
            missing[place].dueAt = turn.now + configuration.graftTimeout
            counters.grafts += 1
            makeEager(next.endpoint)
            send(.graft(missing[place].id, round: next.round), to: next.endpoint, &turn)
        }
        missing.removeAll { $0.dueAt <= turn.now && $0.announcers.isEmpty }
    }

    mutating func receiveGraft(
        _ id: MessageID?, _ round: UInt8, _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        guard activeView.contains(from) else { return tellApart(from, &turn) }
        makeEager(from)
        guard let id, let endpoint = seen[id] else { return }
        if endpoint == configuration.own {
            guard let signed = own.signed else { return }
            send(
                .gossip(CarriedAnnouncement(signed, silence: 0), round: round), to: from, &turn)
        } else if let record = table[endpoint] {
            let carried = CarriedAnnouncement(record.signed, silence: record.silence(turn.now))
            send(.gossip(carried, round: round), to: from, &turn)
        }
    }

    mutating func receivePrune(_ from: EndpointID) { makeLazy(from) }
}
