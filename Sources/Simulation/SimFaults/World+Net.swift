// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import LinkCore
import RaftCore
import SimKit

/// The net daemons: `LinkMachine` decides, and here its effects are carried out.
extension World {
    /// Between two nodes, in each direction: the messages of Raft's two lanes, what opens a stream,
    /// what answers it, and what nets tell each other in each of a few connections.
    static let greetingLane = Lane.allCases.count
    static let answerLane = 2 * Lane.allCases.count
    static let noticeLane = 3 * Lane.allCases.count
    static let connectionsMax = 6
    static let lanes = noticeLane + connectionsMax

    func endpoint(_ node: Int) -> EndpointID { nodes[node].member.endpoint }

    private func linkConfiguration(_ node: SimNode) -> LinkConfiguration {
        var link = LinkConfiguration(own: node.member.endpoint)
        // All in proportion to the grace, which is 300 ms in production.
        let grace = scenario.redialGrace
        link.redialGrace = grace
        link.backOffMin = grace / 6
        link.backOffMax = grace * 20 / 3
        link.refusedBackOffMin = grace * 10 / 3
        link.refusedBackOffMax = grace * 50 / 3
        link.wantedSpacing = grace * 5 / 6
        link.courtesy = grace / 15
        link.retireAfter = grace * 10 / 3
        return link
    }

    // MARK: - Life and death

    func startNet(_ node: SimNode) {
        guard node.net == nil, !node.isLost else { return }
        note("n\(node.id) net starts")
        let net = SimNet(
            node: node, life: netRandom.next(),
            machine: LinkMachine(configuration: linkConfiguration(node)),
            random: netRandom.split())
        node.net = net
        drive(
            net,
            .configured(
                nodes.filter { $0 !== node }.map {
                    LinkPeer(endpoint: $0.member.endpoint, addresses: $0.member.addresses)
                }))
    }

    func killNet(_ node: SimNode, restartAfter delay: Duration) {
        guard let net = node.net else { return }
        note("n\(node.id) net is gone")
        node.net = nil
        if let shell = node.shell {
            schedule(
                .netLost(node: node.index, life: shell.life, net: net.life),
                after: .microseconds(50))
        }
        for connection in connections where connection[node.index].net == net.life {
            breakOff(connection)
            connection[node.index] = .init()
            // The other end notices when it is answered with a stateless reset, or by silence.
            let notice = min(
                delay + netRandom.uniform(.milliseconds(1), .milliseconds(20)),
                scenario.idleTimeout)
            schedule(
                .connectionLost(
                    node: connection.other(than: node.index), connection: connection.number),
                after: notice)
        }
        connections.removeAll(where: \.isOver)
        schedule(.startNet(node: node.index), after: delay)
    }

    // MARK: - The machine

    func drive(_ net: SimNet, _ input: LinkInput) {
        net.inputs.append(input)
        guard !net.isDriving else { return }
        net.isDriving = true
        var effects: [LinkEffect] = []
        while !net.inputs.isEmpty {
            let next = net.inputs.removeFirst()
            effects.removeAll(keepingCapacity: true)
            net.machine.step(
                next, now: net.node.clock.reading(at: now), random: &net.random, into: &effects)
            net.machine.checkInvariants()
            for effect in effects { carryOut(effect, net) }
        }
        net.isDriving = false
        arrangeWake(net)
    }

    private func arrangeWake(_ net: SimNet) {
        guard let deadline = net.machine.deadline else { return }
        let time = net.node.clock.time(showing: deadline, from: now)
        if let planned = net.wakeAt, planned <= time { return }
        net.wakeAt = time
        heap.schedule(.netWake(node: net.node.index, net: net.life), at: time)
    }

    func wake(_ net: SimNet) {
        if let planned = net.wakeAt, planned > now { return }
        net.wakeAt = nil
        if let deadline = net.machine.deadline, deadline <= net.node.clock.reading(at: now) {
            drive(net, .timeout)
        } else {
            arrangeWake(net)
        }
    }

    private func carryOut(_ effect: LinkEffect, _ net: SimNet) {
        switch effect {
        case .dial(let peer, addresses: _): dial(peer, net)
        case .close(let link, let reason):
            guard let connection = connection(link.rawValue) else { return }
            note("n\(net.node.id) closes its connection \(link) (\(reason))")
            let other = connection.other(than: net.node.index)
            end(connection, at: net.node.index)
            schedule(
                .connectionClosed(node: other, connection: link.rawValue), after: networkDelay())
        case .primary(let peer, let link):
            guard let link, let connection = connection(link.rawValue) else { return }
            let waiting = net.waiting.filter { $0.peer == peer }
            net.waiting.removeAll { $0.peer == peer }
            for waiter in waiting {
                begin(waiter.lane, in: connection, for: waiter.request, net)
            }
        case .peerUp(let peer): tell(net, .event(.peerUp(peer)))
        case .peerDown(let peer, let reason): tell(net, .event(.peerDown(peer, reason: reason)))
        case .serviceGone(let peer): tell(net, .event(.serviceGone(peer, .raft)))
        }
    }

    // MARK: - Connections

    func networkDelay() -> Duration {
        netRandom.uniform(scenario.network.delayMin, scenario.network.delayMax)
    }

    func connection(_ number: UInt64) -> SimConnection? {
        connections.first { $0.number == number }
    }

    private func isPassable(_ one: Int, _ other: Int) -> Bool {
        !network.isBlocked(from: one, to: other) && !network.isBlocked(from: other, to: one)
    }

    private func dial(_ peer: EndpointID, _ net: SimNet) {
        guard let other = nodes.firstIndex(where: { $0.member.endpoint == peer }) else { return }
        let own = net.node.index
        let taken = connections.filter { $0.joins(own, other) }.map(\.lane)
        guard let lane = (Self.noticeLane..<Self.lanes).first(where: { !taken.contains($0) })
        else { return drive(net, .dialFailed(peer, .unreachable("too many connections"))) }
        let connection = SimConnection(
            number: nextEpoch, dialler: own, acceptor: other, lane: lane,
            givenUpAt: now + scenario.redialGrace * 16)
        nextEpoch += 1
        connection.ends.dialler.net = net.life
        connection.ends.dialler.isOpen = true
        connections.append(connection)
        schedule(.handshake(connection: connection.number), after: networkDelay() * 2)
    }

    /// Is tried again, as QUIC does, until it comes through or is given up.
    func handshake(_ number: UInt64) {
        guard let connection = connection(number), let net = nodes[connection.dialler].net,
            connection.ends.dialler.net == net.life, connection.ends.dialler.isOpen
        else { return }
        let (one, other) = (connection.dialler, connection.acceptor)
        func fail(_ failure: DialFailure) {
            connections.removeAll { $0 === connection }
            drive(net, .dialFailed(endpoint(other), failure))
        }
        guard isPassable(one, other), let host = nodes[other].net else {
            guard now < connection.givenUpAt else { return fail(.unreachable("no answer")) }
            connection.attempts += 1
            let wait = min(
                scenario.redialGrace / 10 * (1 << min(connection.attempts, 6)),
                scenario.redialGrace * 3)
            schedule(.handshake(connection: number), after: netRandom.uniform(wait / 2, wait))
            return
        }
        guard host.machine.admits(endpoint(one)) else { return fail(.refused("no member")) }
        connection.ends.acceptor.net = host.life
        connection.ends.acceptor.isOpen = true
        network.open(from: one, to: other, lane: connection.lane, epoch: number)
        network.open(from: other, to: one, lane: connection.lane, epoch: number)
        tell(connection, from: one, proof(connection, by: net))
    }

    private func proof(_ connection: SimConnection, by net: SimNet) -> LinkNotice {
        // In the place of a keyed hash over the handshake: whose it is, and of which connection.
        var mac = [UInt8](repeating: UInt8(net.node.index + 1), count: LinkNotice.proofByteCount)
        mac[0] = UInt8(truncatingIfNeeded: connection.number)
        return .proof(mac: mac, incarnation: net.life, raft: net.raft)
    }

    private func tell(_ connection: SimConnection, from node: Int, _ notice: LinkNotice) {
        let bytes = notice.encoded()
        trace.fold(bytes)
        network.send(
            from: node, to: connection.other(than: node), lane: connection.lane, payload: bytes,
            now: now)
        sendDepartures()
    }

    func hear(_ bytes: [UInt8], _ segment: SimNetwork.Segment) throws(Violation) {
        guard let connection = connection(segment.epoch), let net = nodes[segment.to].net,
            connection[segment.to].net == net.life, connection[segment.to].isOpen
        else { return }
        connection[segment.to].unread += bytes
        let notices: [LinkNotice]
        do {
            notices = try LinkNotice.take(from: &connection[segment.to].unread)
        } catch {
            throw Violation(.safety, "codec", "a notice of a net is not understood: \(error)")
        }
        for notice in notices { heard(notice, connection, net) }
    }

    private func heard(_ notice: LinkNotice, _ connection: SimConnection, _ net: SimNet) {
        let node = net.node.index
        let peer = connection.other(than: node)
        switch notice {
        case .proof(let mac, let incarnation, let raft):
            precondition(
                mac[0] == UInt8(truncatingIfNeeded: connection.number)
                    && mac[1] == UInt8(peer + 1), "bytes never change connections")
            if node == connection.acceptor {
                tell(connection, from: node, proof(connection, by: net))
            } else {
                note("n\(net.node.id) = n\(nodes[peer].id) connected")
            }
            connection[node].isProved = true
            drive(
                net,
                .proved(
                    LinkID(connection.number), endpoint(peer),
                    isInbound: node == connection.acceptor, incarnation: incarnation,
                    service: raft, name: LinkName(connection.number)))
        case .service(ServiceName.raft.rawValue, let state):
            drive(net, .service(LinkID(connection.number), state))
        case .over(let names): drive(net, .over(LinkID(connection.number), names))
        case .service, .unknown: break
        }
    }

    /// How the raft daemon here is: every peer's net is told.
    func setRaft(_ state: ServiceState, _ net: SimNet) {
        guard net.raft != state else { return }
        net.raft = state
        let node = net.node.index
        for connection in connections where connection[node].net == net.life {
            // An acceptor has not said anything before its proof.
            guard connection[node].isOpen, node == connection.dialler || connection[node].isProved
            else { continue }
            tell(connection, from: node, .service(ServiceName.raft.rawValue, state))
        }
    }

    // MARK: - Ends

    /// Nothing passes any more, and what is on its way is lost; the ends find out by themselves.
    func breakOff(_ connection: SimConnection) {
        let (one, other) = (connection.dialler, connection.acceptor)
        network.close(from: one, to: other, lane: connection.lane, epoch: connection.number)
        network.close(from: other, to: one, lane: connection.lane, epoch: connection.number)
        for stream in streams where stream.connection == connection.number { silence(stream) }
    }

    func cut(_ one: Int, _ other: Int, noticeAfter notice: Duration) {
        for connection in connections where connection.joins(one, other) {
            guard connection.ends.acceptor.isOpen else { continue }
            breakOff(connection)
            for node in [one, other] {
                schedule(
                    .connectionLost(node: node, connection: connection.number), after: notice)
            }
        }
    }

    /// One end is over: the streams in it are too.
    private func end(_ connection: SimConnection, at node: Int) {
        breakOff(connection)
        connection[node] = .init()
        for stream in streams where stream.connection == connection.number {
            tellOfEnd(of: stream, at: node)
        }
        if connection.isOver {
            connections.removeAll { $0 === connection }
            streams.removeAll { $0.connection == connection.number }
        }
    }

    func connectionLost(_ node: Int, _ number: UInt64) {
        guard let connection = connection(number), connection[node].isOpen,
            let net = nodes[node].net, connection[node].net == net.life
        else { return }
        let isProved = connection[node].isProved
        let peer = connection.other(than: node)
        note("n\(nodes[node].id) loses its connection to n\(nodes[peer].id)")
        end(connection, at: node)
        if isProved {
            drive(net, .closed(LinkID(number), reason: "lost"))
        } else if node == connection.dialler {
            drive(net, .dialFailed(endpoint(peer), .unreachable("lost")))
        }
    }

    /// The other end has said so, which takes a network that lets it pass.
    func connectionClosed(_ node: Int, _ number: UInt64) {
        guard let connection = connection(number), connection[node].isOpen else { return }
        if network.isBlocked(from: connection.other(than: node), to: node) {
            schedule(
                .connectionClosed(node: node, connection: number), after: scenario.redialGrace / 5)
        } else {
            connectionLost(node, number)
        }
    }

    // MARK: - Partitions

    func block(_ directions: [(from: Int, to: Int)]) {
        blockadeNumber += 1
        for (from, to) in directions {
            blockades[from * nodes.count + to] += 1
            network.block(from: from, to: to)
            schedule(
                .idle(min(from, to), max(from, to), blockade: blockadeNumber),
                after: scenario.idleTimeout)
        }
    }

    func unblock(_ directions: [(from: Int, to: Int)]) {
        for (from, to) in directions {
            let slot = from * nodes.count + to
            blockades[slot] = max(0, blockades[slot] - 1)
            if blockades[slot] == 0 { network.unblock(from: from, to: to, now: now) }
        }
        sendDepartures()
    }

    func idle(_ one: Int, _ other: Int, _ blockade: UInt64) {
        guard !isPassable(one, other) else { return }
        cut(one, other, noticeAfter: netRandom.uniform(.zero, .milliseconds(50)))
    }
}
