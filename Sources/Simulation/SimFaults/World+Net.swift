// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import SimKit

/// What two net daemons know of each other; kept once for each pair, under the lower position first.
struct Connection {
    /// Grows with each connection; what concerns an earlier one is out of date.
    var number: UInt64 = 0
    var isUp = false
    /// Raft's streams are open in it.
    var carriesRaft = false
    var isDialling = false
    var attempts = 0
}

/// The net daemons: connections, redialling with its grace, SERVICE_GONE.
extension World {
    /// Raft's two lanes, and what net daemons tell each other.
    static let lanes = Lane.allCases.count + 1
    static let netLane = Lane.allCases.count

    private enum NetWord: UInt8 {
        case serviceGone = 1
        case serviceUp = 2
    }

    private func slot(_ one: Int, _ other: Int) -> Int {
        min(one, other) * nodes.count + max(one, other)
    }

    // MARK: - Connections

    func dial(_ one: Int, _ other: Int) {
        let slot = slot(one, other)
        connections[slot].isDialling = false
        guard !connections[slot].isUp, nodes[one].isNetUp, nodes[other].isNetUp else { return }
        if network.isBlocked(from: one, to: other) || network.isBlocked(from: other, to: one) {
            redial(one, other)
            return
        }
        connections[slot].number += 1
        connections[slot].isUp = true
        connections[slot].attempts = 0
        note("n\(nodes[one].id) = n\(nodes[other].id) connected")
        openLane(one, other, lane: Self.netLane)
        openStreams(one, other)
    }

    private func redial(_ one: Int, _ other: Int) {
        let slot = slot(one, other)
        guard !connections[slot].isDialling else { return }
        connections[slot].isDialling = true
        connections[slot].attempts += 1
        let wait = Duration.milliseconds(10 << min(connections[slot].attempts, 6))
        schedule(
            .dial(min(one, other), max(one, other)),
            after: netRandom.uniform(wait / 2, min(wait, .milliseconds(500))))
    }

    private func openLane(_ one: Int, _ other: Int, lane: Int) {
        network.open(from: one, to: other, lane: lane, epoch: nextEpoch)
        network.open(from: other, to: one, lane: lane, epoch: nextEpoch)
        nextEpoch += 1
    }

    /// Joins both raft daemons by fresh streams, if both are there.
    private func openStreams(_ one: Int, _ other: Int) {
        let slot = slot(one, other)
        guard connections[slot].isUp, let left = nodes[one].shell, let right = nodes[other].shell
        else { return }
        connections[slot].carriesRaft = true
        for lane in Lane.allCases { openLane(one, other, lane: Int(lane.rawValue)) }
        for (shell, peer) in [(left, other), (right, one)] {
            schedule(
                .link(node: shell.node.index, life: shell.life, change: .restored, peer: peer),
                after: .microseconds(20))
        }
    }

    private func closeStreams(_ one: Int, _ other: Int) {
        connections[slot(one, other)].carriesRaft = false
        for lane in Lane.allCases {
            network.close(from: one, to: other, lane: Int(lane.rawValue))
            network.close(from: other, to: one, lane: Int(lane.rawValue))
        }
    }

    /// The connection breaks; what is on its way is lost. Whoever lives finds out later.
    func cut(_ one: Int, _ other: Int, noticeAfter notice: Duration) {
        let slot = slot(one, other)
        guard connections[slot].isUp else { return }
        connections[slot].isUp = false
        closeStreams(one, other)
        network.close(from: one, to: other, lane: Self.netLane)
        network.close(from: other, to: one, lane: Self.netLane)
        let number = connections[slot].number
        for (node, peer) in [(one, other), (other, one)] {
            schedule(.connectionLost(node: node, peer: peer, connection: number), after: notice)
        }
    }

    func connectionLost(_ node: Int, _ peer: Int, _ number: UInt64) {
        let slot = slot(node, peer)
        guard connections[slot].number == number, !connections[slot].isUp, nodes[node].isNetUp
        else { return }
        redial(node, peer)
        schedule(
            .graceOver(node: node, peer: peer, connection: number), after: scenario.redialGrace)
    }

    func graceOver(_ node: Int, _ peer: Int, _ number: UInt64) throws(Violation) {
        let connection = connections[slot(node, peer)]
        guard connection.number == number, !connection.isUp, let shell = nodes[node].shell else {
            return
        }
        note("n\(nodes[node].id) has lost n\(nodes[peer].id)")
        try link(shell, .lost, peer)
    }

    func link(_ shell: RaftShell, _ change: SimEvent.LinkChange, _ peer: Int) throws(Violation) {
        let id = nodes[peer].id
        switch change {
        case .restored: if !isForeign(peer, to: shell) { try feed(shell, .linkRestored(id)) }
        case .lost: try feed(shell, .linkLost(id))
        case .serviceGone: try feed(shell, .serviceGone(id))
        case .ownNetLost: if !shell.node.isNetUp { try feed(shell, .ownNetLost) }
        case .ownNetRestored: if shell.node.isNetUp { try feed(shell, .ownNetRestored) }
        }
    }

    // MARK: - What net daemons tell each other

    func announceServiceGone(_ node: SimNode) { tellPeers(of: node, .serviceGone) }

    /// A raft daemon has come: its own net and those of its peers open new streams.
    func announceService(_ node: SimNode) {
        if node.isNetUp { tellPeers(of: node, .serviceUp) }
    }

    private func tellPeers(of node: SimNode, _ word: NetWord) {
        for peer in nodes.indices where peer != node.index {
            network.send(
                from: node.index, to: peer, lane: Self.netLane, payload: [word.rawValue], now: now)
        }
        sendDepartures()
    }

    func deliver(_ segment: SimNetwork.Segment) throws(Violation) {
        let frames = network.arrive(segment, now: now)
        for frame in frames {
            if segment.lane == Self.netLane {
                try hear(frame, from: segment.from, at: segment.to)
            } else if let shell = nodes[segment.to].shell {
                try received(frame, shell)
            }
        }
    }

    private func hear(_ frame: [UInt8], from: Int, at node: Int) throws(Violation) {
        guard nodes[node].isNetUp, let word = frame.first.flatMap(NetWord.init) else { return }
        switch word {
        case .serviceUp: openStreams(from, node)
        case .serviceGone:
            // Already back, and that was heard first? Streams keep order, so no: but datagrams do
            // not, and then this is old news.
            guard connections[slot(from, node)].carriesRaft else { return }
            if nodes[from].shell == nil { closeStreams(from, node) }
            guard let shell = nodes[node].shell else { return }
            note("n\(nodes[node].id) hears SERVICE_GONE of n\(nodes[from].id)")
            try link(shell, .serviceGone, from)
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
        guard network.isBlocked(from: one, to: other) || network.isBlocked(from: other, to: one)
        else { return }
        cut(one, other, noticeAfter: netRandom.uniform(.zero, .milliseconds(50)))
    }
}
