// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// HyParView: a small symmetric active view, and a passive view to repair it from.
///
/// Beyond the paper: JOIN and FORWARDJOIN carry the newcomer's signed announcement, so that whoever
/// is at the end of the walk knows where it is; JOIN is answered like NEIGHBOR, so that both sides
/// know what came of it; priority is high with one neighbour, too; somebody who talks as a neighbour and is none is told DISCONNECT; and only
/// endpoints that have announced themselves get into the passive view, which is filled up from the
/// table when it has run dry.
extension GossipMachine {
    // MARK: - Views

    private mutating func addActive(_ endpoint: EndpointID, _ turn: inout GossipTurn) {
        requests[endpoint] = nil
        guard links[endpoint] != nil, !activeView.contains(endpoint) else { return }
        passiveView.removeAll { $0 == endpoint }
        if activeView.count >= configuration.activeMax, !configuration.has(.keepsNeighbours) {
            let victim = activeView[turn.random.uniform(0..<activeView.count)]
            removeActive(victim, turn)
            tellApart(victim, &turn)
            addPassive(victim, &turn)
        }
        activeView.append(endpoint)
        links[endpoint]?.isToldApart = false
        sendDigest(to: endpoint, &turn)
    }

    /// Takes somebody off the active view; its place is filled soon.
    mutating func removeActive(_ endpoint: EndpointID, _ turn: GossipTurn) {
        guard let place = activeView.firstIndex(of: endpoint) else { return }
        activeView.remove(at: place)
        lazyQueue[endpoint] = nil
        lazySubjects[endpoint] = nil
        for place in missing.indices { missing[place].forget(endpoint) }
        links[endpoint]?.usedAt = turn.now
        // Should it become one again: what has gone past it meanwhile comes by that.
        links[endpoint]?.hasDigest = false
        repairDelay = configuration.repairDelayMin
        wakeRepair(turn)
    }

    /// Once for each time that it was a neighbour, or thinks so. Not while it may be about to accept
    /// a request: both would cross, and leave the two with different views.
    mutating func tellApart(_ endpoint: EndpointID, _ turn: inout GossipTurn) {
        guard let link = links[endpoint], !link.isToldApart, requests[endpoint] == nil else {
            return
        }
        links[endpoint]?.isToldApart = true
        links[endpoint]?.usedAt = turn.now
        send(.disconnect, to: endpoint, &turn)
    }

    mutating func addPassive(_ endpoint: EndpointID, _ turn: inout GossipTurn) {
        guard table[endpoint] != nil, !activeView.contains(endpoint),
            !passiveView.contains(endpoint), !meters.isQuarantined(endpoint, turn.now)
        else { return }
        if passiveView.count >= configuration.passiveMax { _ = turn.draw(&passiveView) }
        passiveView.append(endpoint)
    }

    // MARK: - Joining

    mutating func receiveJoin(
        _ signed: SignedAnnouncement, _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        guard signed.announcement.endpoint == from else {
            return refuse(.malformed, about: signed.announcement.endpoint, from, &turn)
        }
        spread(CarriedAnnouncement(signed, silence: 0), from, &turn)
        guard links[from] != nil else { return }
        links[from]?.usedAt = turn.now
        guard table[from] != nil,
            meters.take(\.joins, GossipLimits.joins, of: from, turn.now)
        else { return send(.neighborReply(isAccepted: false), to: from, &turn) }
        addActive(from, &turn)
        send(.neighborReply(isAccepted: true), to: from, &turn)
        for neighbor in activeView where neighbor != from {
            send(
                .forwardJoin(signed, ttl: configuration.activeWalkLength), to: neighbor, &turn)
        }
    }

    mutating func receiveForwardJoin(
        _ signed: SignedAnnouncement, _ ttl: UInt8, _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        guard activeView.contains(from) else { return tellApart(from, &turn) }
        let newcomer = signed.announcement.endpoint
        guard newcomer != configuration.own else { return }
        spread(CarriedAnnouncement(signed, silence: 0), from, &turn)
        guard links[from] != nil, table[newcomer] != nil else { return }
        let ttl = min(ttl, configuration.activeWalkLength)
        let others = activeView.filter { $0 != from && $0 != newcomer }
        guard ttl > 0, !others.isEmpty else {
            return ask(newcomer, isHighPriority: true, &turn)
        }
        if ttl == configuration.passiveWalkLength { addPassive(newcomer, &turn) }
        let next = others[turn.random.uniform(0..<others.count)]
        send(.forwardJoin(signed, ttl: ttl - 1), to: next, &turn)
    }

    // MARK: - Neighbours

    private mutating func ask(
        _ endpoint: EndpointID, isHighPriority: Bool, _ turn: inout GossipTurn
    ) {
        guard !activeView.contains(endpoint), requests[endpoint] == nil,
            reach(endpoint, [.neighbor(isHighPriority: isHighPriority)], &turn)
        else { return }
        requests[endpoint] = Request(
            isHighPriority: isHighPriority, endsAt: turn.now + configuration.requestTimeout)
    }

    private mutating func join(_ endpoint: EndpointID, _ turn: inout GossipTurn) {
        guard let signed = own.signed, requests[endpoint] == nil,
            reach(endpoint, [.join(signed)], &turn)
        else { return }
        requests[endpoint] = Request(
            isHighPriority: true, endsAt: turn.now + configuration.requestTimeout)
    }

    mutating func receiveNeighbor(
        _ isHighPriority: Bool, _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        links[from]?.usedAt = turn.now
        var isAccepted =
            activeView.contains(from) || activeView.count < configuration.activeMax
        if !isAccepted, isHighPriority {
            isAccepted = meters.take(\.joins, GossipLimits.joins, of: from, turn.now)
        }
        // Also where it is one already: the other side has forgotten, or asked at the same time.
        if isAccepted { addActive(from, &turn) }
        send(.neighborReply(isAccepted: isAccepted), to: from, &turn)
    }

    mutating func receiveNeighborReply(
        _ isAccepted: Bool, _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        let request = requests.removeValue(forKey: from)
        links[from]?.usedAt = turn.now
        guard isAccepted else { return }
        if activeView.contains(from) { return }
        if let request, request.isHighPriority || activeView.count < configuration.activeMax {
            addActive(from, &turn)
        } else {
            // Nobody waits for it any more.
            links[from]?.isToldApart = false
            tellApart(from, &turn)
        }
    }

    /// A request that waits for its answer goes on waiting: this was said before the answer.
    mutating func receiveDisconnect(_ from: EndpointID, _ turn: inout GossipTurn) {
        guard activeView.contains(from) else { return }
        removeActive(from, turn)
        links[from]?.isToldApart = true
        addPassive(from, &turn)
    }

    mutating func settleRequests(_ turn: inout GossipTurn) {
        guard requests.contains(where: { $0.value.endsAt <= turn.now }) else { return }
        let late = requests.filter { $0.value.endsAt <= turn.now }.keys.sorted()
        for endpoint in late {
            requests[endpoint] = nil
            passiveView.removeAll { $0 == endpoint }
        }
        retryRepair(turn)
    }

    // MARK: - Repair

    /// After an attempt that failed: after the next wait.
    mutating func retryRepair(_ turn: GossipTurn) {
        let next = turn.now + repairDelay
        repairAt = min(repairAt ?? next, next)
    }

    mutating func wakeRepair(_ turn: GossipTurn) {
        let soon = turn.now + configuration.repairDelayMin / 4
        repairAt = min(repairAt ?? soon, soon)
    }

    /// One attempt at a time to fill the active view.
    mutating func settleRepair(_ turn: inout GossipTurn) {
        guard own.signed != nil, let at = repairAt, at <= turn.now else { return }
        repairAt = nil
        guard activeView.count + requests.count < configuration.activeMax else { return }
        let candidates = repairCandidates(turn.now)
        guard !candidates.isEmpty else {
            // Whoever is alone looks again, whatever else there may be to wake it.
            if activeView.isEmpty { repairAt = turn.now + configuration.repairDelayMax }
            return
        }
        let chosen = candidates[turn.random.uniform(0..<candidates.count)]
        if activeView.isEmpty {
            join(chosen, &turn)
        } else {
            ask(chosen, isHighPriority: activeView.count < 2, &turn)
        }
        repairAt = turn.now + turn.random.uniform(repairDelay / 2, repairDelay)
        repairDelay = min(repairDelay * 2, configuration.repairDelayMax)
    }

    private func repairCandidates(_ now: MonotonicInstant) -> [EndpointID] {
        func isFree(_ endpoint: EndpointID) -> Bool {
            !activeView.contains(endpoint) && requests[endpoint] == nil && dials[endpoint] == nil
                && !meters.isQuarantined(endpoint, now)
        }
        let passive = passiveView.filter { isFree($0) && table[$0]?.standing == .alive }
        if !passive.isEmpty { return passive }
        let known = table.order.filter { table[$0]?.standing == .alive && isFree($0) }
        if !known.isEmpty || !activeView.isEmpty { return known }
        return unheard().filter { isToBeReached($0, now) }
    }

    // MARK: - Those of whom nothing is heard

    /// Whoever may be there, and is silent here: after a cut, the other side.
    private func unheard() -> [EndpointID] {
        let suspected = table.order.filter { table[$0]?.standing != .alive }
        let others =
            table.memberOrder + contacts
            + table.tombstones.keys.sorted().filter {
                table.members[$0] == nil && !contacts.contains($0)
            }
        return suspected + others.filter { table[$0] == nil }
    }

    private func isToBeReached(_ endpoint: EndpointID, _ now: MonotonicInstant) -> Bool {
        links[endpoint] == nil && dials[endpoint] == nil && !meters.isQuarantined(endpoint, now)
    }

    mutating func wakeProbe(_ turn: inout GossipTurn) {
        probeDelay = configuration.probeDelayMin
        let soon = turn.now + turn.random.uniform(.zero, probeDelay)
        probeAt = min(probeAt ?? soon, soon)
    }

    /// One attempt at a time to reach somebody unheard; what comes of it is a JOIN, which weaves two
    /// overlays together.
    mutating func settleProbe(_ turn: inout GossipTurn) {
        guard own.signed != nil, let at = probeAt, at <= turn.now else { return }
        probeAt = nil
        table.expireTombstones(turn.now)
        let all = unheard()
        guard !all.isEmpty else { return }
        let candidates = all.filter { isToBeReached($0, turn.now) }
        if !candidates.isEmpty {
            join(candidates[turn.random.uniform(0..<candidates.count)], &turn)
        }
        probeAt = turn.now + turn.random.uniform(probeDelay / 2, probeDelay)
        probeDelay = min(probeDelay * 2, configuration.probeDelayMax)
    }

    // MARK: - Shuffling

    mutating func settleShuffle(_ turn: inout GossipTurn) {
        guard own.signed != nil, let at = shuffleAt, at <= turn.now else { return }
        let interval = configuration.shuffleInterval
        shuffleAt = turn.now + turn.random.uniform(interval * 9 / 10, interval * 11 / 10)
        table.expireTombstones(turn.now)
        // Where all are neighbours there is nothing to tell.
        guard !activeView.isEmpty, table.order.count > activeView.count else { return }
        let nodes =
            turn.sample(activeView, configuration.shuffleActiveCount)
            + turn.sample(passiveView, configuration.shufflePassiveCount)
        let target = activeView[turn.random.uniform(0..<activeView.count)]
        shuffleEnds = turn.now + configuration.requestTimeout
        send(
            .shuffle(
                origin: configuration.own, ttl: configuration.activeWalkLength,
                nodes: nodes.filter { $0 != target }), to: target, &turn)
    }

    mutating func receiveShuffle(
        _ origin: EndpointID, _ ttl: UInt8, _ nodes: [EndpointID], _ from: EndpointID,
        _ turn: inout GossipTurn
    ) {
        guard activeView.contains(from) else { return tellApart(from, &turn) }
        guard origin != configuration.own, table[origin] != nil else { return }
        let ttl = min(ttl, configuration.activeWalkLength)
        let others = activeView.filter { $0 != from && $0 != origin }
        if ttl > 1, !others.isEmpty {
            let next = others[turn.random.uniform(0..<others.count)]
            return send(.shuffle(origin: origin, ttl: ttl - 1, nodes: nodes), to: next, &turn)
        }
        reach(origin, [.shuffleReply(turn.sample(passiveView, nodes.count))], &turn)
        for node in nodes + [origin] { addPassive(node, &turn) }
    }

    mutating func receiveShuffleReply(
        _ nodes: [EndpointID], _ from: EndpointID, _ turn: inout GossipTurn
    ) {
        links[from]?.usedAt = turn.now
        guard let ends = shuffleEnds, turn.now <= ends else { return }
        shuffleEnds = nil
        for node in nodes where node != configuration.own { addPassive(node, &turn) }
    }
}
