// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import AspenWire
import LinkCore
import RaftCore
import SimKit

/// `net.sock` and the streams through it: what a raft daemon and the net beside it say to each other,
/// and how raft daemons come by streams to one another.
extension World {
    private static let socketDelay = Duration.microseconds(30)

    // MARK: - The control connection

    func connectNet(_ shell: RaftShell) throws(Violation) {
        guard shell.net == nil else { return }
        guard let net = shell.node.net else {
            shell.netFailures += 1
            let wait = scenario.redialGrace / 15 * (1 << min(shell.netFailures, 6))
            schedule(
                .connectNet(node: shell.index, life: shell.life),
                after: min(wait, scenario.redialGrace * 3))
            return
        }
        shell.net = net.life
        shell.netFailures = 0
        publishPeers(shell)
        ask(shell, .subscribe)
    }

    /// The members. Nets stay open to all that prove the cookie: see the fault model.
    func publishPeers(_ shell: RaftShell) {
        let members = shell.core.reachableMembership?.members ?? []
        ask(
            shell,
            .setPeers(
                peers: members.filter { $0.node != shell.node.id }.map {
                    NetPeer(endpoint: $0.endpoint, addresses: $0.addresses)
                }, isClosed: false))
    }

    /// - Parameter request: names the socket connection that a stream is asked for on.
    private func ask(
        _ shell: RaftShell, _ question: NetRequest, request: UInt64 = 0, _ lane: Lane = .control
    ) {
        guard let net = shell.net else { return }
        let bytes = question.encoded()
        trace.fold(bytes)
        schedule(
            .fromRaft(
                node: shell.index, net: net, life: shell.life, request: request, lane: lane,
                bytes), after: Self.socketDelay)
    }

    func fromRaft(
        _ net: SimNet, _ life: UInt64, _ request: UInt64, _ lane: Lane, _ bytes: [UInt8]
    ) throws(Violation) {
        let question: NetRequest
        do {
            question = try NetRequest(decoding: bytes)
        } catch {
            throw Violation(.safety, "codec", "net.sock: a request is not understood: \(error)")
        }
        // Who asks may have died meanwhile.
        guard nodes[net.node.index].shell?.life == life else { return }
        switch question {
        case .setPeers(let peers, let isClosed):
            net.caller = life
            drive(
                net,
                .members(
                    peers.map { LinkPeer(endpoint: $0.endpoint, addresses: $0.addresses) },
                    isClosed: isClosed))
            setRaft(.serving, net)
            reply(net, .done)
        case .subscribe:
            net.isSubscribed = true
            reply(net, .done)
            for (peer, standing) in net.machine.standings where standing == .up {
                tell(net, .event(.peerUp(peer)))
            }
        case .openStream(let peer, .raft, .raft):
            if let link = net.machine.primary(of: peer), let connection = connection(link.rawValue)
            {
                begin(lane, in: connection, for: request, net)
            } else if net.machine.isExpected(peer) {
                net.waiting.append((peer, lane, request))
                schedule(
                    .waitedLong(node: net.node.index, net: net.life, request: request),
                    after: scenario.redialGrace * 20 / 3)
                drive(net, .wanted(peer))
            } else {
                reply(net, .failed(code: .unavailable, message: "not expected"), request)
            }
        case .openStream, .identify, .sign, .learned, .listLearned, .gossipSetup, .located,
            .members, .listConnections:
            break
        }
    }

    func waitedLong(_ net: SimNet, _ request: UInt64) {
        guard let place = net.waiting.firstIndex(where: { $0.request == request }) else { return }
        net.waiting.remove(at: place)
        reply(net, .failed(code: .unavailable, message: "not in time"), request)
    }

    /// To whoever subscribed.
    func tell(_ net: SimNet, _ event: NetReply) {
        guard net.isSubscribed else { return }
        reply(net, event)
    }

    private func reply(
        _ net: SimNet, _ answer: NetReply, _ request: UInt64 = 0, stream: UInt64 = 0
    ) {
        guard let life = net.caller else { return }
        let bytes = answer.encoded()
        trace.fold(bytes)
        schedule(
            .fromNet(
                node: net.node.index, life: life, net: net.life, request: request, stream: stream,
                bytes), after: Self.socketDelay)
    }

    func fromNet(
        _ shell: RaftShell, _ net: UInt64, _ request: UInt64, _ stream: UInt64, _ bytes: [UInt8]
    ) throws(Violation) {
        guard shell.net == net else { return }
        let answer: NetReply
        do {
            answer = try NetReply(decoding: bytes)
        } catch {
            throw Violation(.safety, "codec", "net.sock: an answer is not understood: \(error)")
        }
        switch answer {
        case .done:
            shell.netAnswers += 1
            // Subscribed: the second answer on this connection.
            guard shell.netAnswers == 2 else { return }
            try feed(shell, .ownNetRestored)
            for peer in nodes.indices where peer != shell.index {
                dialAgain(shell, peer)
                if shell.peers[peer].standing == .broken { startGrace(shell, peer) }
            }
        case .opened: greet(shell, request, stream)
        case .failed: openFailed(shell, request)
        case .event(.peerUp(let endpoint)):
            if let peer = position(endpoint) { dialAgain(shell, peer) }
        case .event(.peerDown), .event(.located), .event(.members): break
        case .event(.serviceGone(let endpoint, _)):
            guard let peer = position(endpoint) else { return }
            note("n\(shell.node.id) hears SERVICE_GONE of n\(nodes[peer].id)")
            try feed(shell, .serviceGone(nodes[peer].id))
        case .identity, .signature, .learned, .gossipSetup, .connections: break
        }
    }

    private func position(_ endpoint: EndpointID) -> Int? {
        nodes.firstIndex { $0.member.endpoint == endpoint }
    }

    /// The sockets of a net that died are closed, the streams' too.
    func netLost(_ shell: RaftShell, _ net: UInt64) throws(Violation) {
        guard shell.net == net else { return }
        shell.net = nil
        shell.netAnswers = 0
        try feed(shell, .ownNetLost)
        guard shell.node.shell === shell else { return }
        let node = shell.index
        for peer in nodes.indices where peer != node {
            for lane in Lane.allCases {
                let index = Int(lane.rawValue)
                shell.peers[peer].outgoing[index] = .idle
                shell.peers[peer].incoming[index] = nil
                shell.held[peer * Lane.allCases.count + index].removeAll()
            }
            try changed(shell, peer)
        }
        schedule(.connectNet(node: node, life: shell.life), after: scenario.redialGrace / 15)
    }

    /// A raft daemon died: its net sees its sockets close.
    func raftLost(_ net: SimNet, _ life: UInt64) {
        guard net.caller == life else { return }
        net.caller = nil
        net.isSubscribed = false
        net.waiting.removeAll()
        setRaft(.gone, net)
        let node = net.node.index
        for stream in streams where stream.from == node || stream.to == node {
            close(stream, by: node)
        }
    }

    // MARK: - Streams, at the nets

    func begin(_ lane: Lane, in connection: SimConnection, for request: UInt64, _ net: SimNet) {
        let node = net.node.index
        let peer = connection.other(than: node)
        let stream = SimStream(
            number: nextEpoch, from: node, to: peer, lane: lane, connection: connection.number)
        nextEpoch += 1
        let index = Int(lane.rawValue)
        network.open(from: node, to: peer, lane: index, epoch: stream.number)
        network.open(from: node, to: peer, lane: Self.greetingLane + index, epoch: stream.number)
        network.open(from: peer, to: node, lane: Self.answerLane + index, epoch: stream.number)
        streams.append(stream)
        carry(connection, node, 1)
        reply(net, .opened, request, stream: stream.number)
    }

    private func carry(_ connection: SimConnection, _ node: Int, _ change: Int) {
        guard connection[node].isOpen, let net = nodes[node].net,
            connection[node].net == net.life
        else { return }
        let before = connection[node].streams
        connection[node].streams = max(0, before + change)
        if (before == 0) != (connection[node].streams == 0) {
            drive(net, .carrying(LinkID(connection.number), before == 0))
        }
    }

    /// No byte of it passes any more.
    func silence(_ stream: SimStream) {
        let lane = Int(stream.lane.rawValue)
        let (from, to, epoch) = (stream.from, stream.to, stream.number)
        network.close(from: from, to: to, lane: lane, epoch: epoch)
        network.close(from: from, to: to, lane: Self.greetingLane + lane, epoch: epoch)
        network.close(from: to, to: from, lane: Self.answerLane + lane, epoch: epoch)
    }

    /// One side resets it; the other one hears of it, once the network lets that pass.
    func close(_ stream: SimStream, by node: Int) {
        silence(stream)
        if let connection = connection(stream.connection) { carry(connection, node, -1) }
        let other = stream.from == node ? stream.to : stream.from
        schedule(.streamReset(node: other, stream: stream.number), after: networkDelay())
    }

    func streamReset(_ node: Int, _ number: UInt64) {
        guard let stream = streams.first(where: { $0.number == number }) else { return }
        let other = stream.from == node ? stream.to : stream.from
        guard !network.isBlocked(from: other, to: node) else {
            schedule(
                .streamReset(node: node, stream: number), after: scenario.redialGrace / 5)
            return
        }
        streams.removeAll { $0.number == number }
        if let connection = connection(stream.connection) { carry(connection, node, -1) }
        tellOfEnd(of: stream, at: node)
    }

    /// The raft daemon at `node` sees its socket close.
    func tellOfEnd(of stream: SimStream, at node: Int) {
        guard let shell = nodes[node].shell else { return }
        schedule(
            .streamGone(
                node: node, life: shell.life, stream: stream.number,
                peer: stream.from == node ? stream.to : stream.from), after: Self.socketDelay)
    }

    // MARK: - Streams, at the raft daemons

    /// There is news that the peer can be reached.
    private func dialAgain(_ shell: RaftShell, _ peer: Int) {
        for lane in Lane.allCases {
            shell.peers[peer].failures[Int(lane.rawValue)] = 0
            dialLane(shell, peer, lane)
        }
    }

    func dialLane(_ shell: RaftShell, _ peer: Int, _ lane: Lane) {
        let index = Int(lane.rawValue)
        guard shell.net != nil, shell.netAnswers >= 2, shell.peers[peer].outgoing[index] == .idle
        else { return }
        shell.peers[peer].outgoing[index] = .dialling
        shell.nextRequest += 1
        shell.requests[shell.nextRequest] = (peer, lane)
        ask(
            shell, .openStream(endpoint: endpoint(peer), alpn: .raft, service: .raft),
            request: shell.nextRequest, lane)
    }

    private func openFailed(_ shell: RaftShell, _ request: UInt64) {
        guard let (peer, lane) = shell.requests.removeValue(forKey: request) else { return }
        let index = Int(lane.rawValue)
        guard shell.peers[peer].outgoing[index] == .dialling else { return }
        shell.peers[peer].outgoing[index] = .idle
        dialLater(shell, peer, lane)
    }

    private func dialLater(_ shell: RaftShell, _ peer: Int, _ lane: Lane) {
        let index = Int(lane.rawValue)
        let wait = scenario.redialGrace / 30 * (1 << min(shell.peers[peer].failures[index], 7))
        shell.peers[peer].failures[index] += 1
        schedule(
            .dialLane(node: shell.index, life: shell.life, peer: peer, lane: lane),
            after: min(wait, scenario.redialGrace * 10 / 3))
    }

    private func greet(_ shell: RaftShell, _ request: UInt64, _ stream: UInt64) {
        guard let (peer, lane) = shell.requests.removeValue(forKey: request),
            shell.peers[peer].outgoing[Int(lane.rawValue)] == .dialling
        else { return }
        shell.peers[peer].outgoing[Int(lane.rawValue)] = .greeting(stream)
        sayHello(shell, to: peer, lane, on: Self.greetingLane)
        // It may have ended before its number was known here.
        if !streams.contains(where: { $0.number == stream }) {
            schedule(
                .streamGone(node: shell.index, life: shell.life, stream: stream, peer: peer),
                after: Self.socketDelay)
        }
    }

    private func sayHello(_ shell: RaftShell, to peer: Int, _ lane: Lane, on base: Int) {
        var writer = ByteWriter(capacity: 40)
        writer.byte(PeerFrameKind.hello.rawValue)
        PeerHello(
            version: ProtocolVersion.raftPeer, cluster: shell.membership?.cluster,
            node: shell.node.id, replica: shell.node.member.replica, lane: lane
        ).encode(into: &writer)
        trace.fold(writer.bytes)
        network.send(
            from: shell.index, to: peer, lane: base + Int(lane.rawValue),
            payload: writer.bytes, now: now)
    }

    /// The first frame of a stream that a peer opened.
    func greeted(_ bytes: [UInt8], _ segment: SimNetwork.Segment) throws(Violation) {
        guard let stream = streams.first(where: { $0.number == segment.epoch }),
            let net = nodes[segment.to].net
        else { return }
        guard net.raft == .serving, let shell = nodes[segment.to].shell else {
            return close(stream, by: segment.to)
        }
        if let connection = connection(stream.connection) { carry(connection, segment.to, 1) }
        let hello = try hello(in: bytes)
        if let own = shell.membership?.cluster, let other = hello.cluster, own != other {
            throw Violation(.safety, "codec", "n\(shell.node.id) was greeted by another cluster")
        }
        shell.peers[segment.from].incoming[Int(stream.lane.rawValue)] = stream.number
        sayHello(shell, to: segment.from, stream.lane, on: Self.answerLane)
        // A peer that can reach us can be reached.
        dialAgain(shell, segment.from)
        try changed(shell, segment.from)
    }

    /// The answer to our hello.
    func answered(_ bytes: [UInt8], _ segment: SimNetwork.Segment) throws(Violation) {
        guard let shell = nodes[segment.to].shell else { return }
        let lane = Int(try hello(in: bytes).lane.rawValue)
        guard shell.peers[segment.from].outgoing[lane] == .greeting(segment.epoch) else { return }
        shell.peers[segment.from].outgoing[lane] = .up(segment.epoch)
        shell.peers[segment.from].failures[lane] = 0
        try changed(shell, segment.from)
    }

    private func hello(in bytes: [UInt8]) throws(Violation) -> PeerHello {
        do {
            var reader = ByteReader(bytes)
            guard try reader.byte("kind") == PeerFrameKind.hello.rawValue else {
                throw Violation(.safety, "codec", "a stream that does not begin with a hello")
            }
            let hello = try PeerHello(from: &reader)
            try reader.end()
            return hello
        } catch let violation as Violation {
            throw violation
        } catch {
            throw Violation(.safety, "codec", "a hello is not understood: \(error)")
        }
    }

    func streamGone(_ shell: RaftShell, _ stream: UInt64, peer: Int) throws(Violation) {
        for lane in Lane.allCases {
            let index = Int(lane.rawValue)
            if shell.peers[peer].incoming[index] == stream {
                shell.peers[peer].incoming[index] = nil
            }
            switch shell.peers[peer].outgoing[index] {
            case .greeting(stream), .up(stream):
                shell.peers[peer].outgoing[index] = .idle
                shell.held[peer * Lane.allCases.count + index].removeAll()
                dialLater(shell, peer, lane)
            default: break
            }
        }
        try changed(shell, peer)
    }

    // MARK: - What it means

    /// All four streams up, with the replica that the membership names: a link. One of them gone, and not back within the grace: lost.
    func changed(_ shell: RaftShell, _ peer: Int) throws(Violation) {
        if shell.peers[peer].isWhole, !isForeign(peer, to: shell) {
            shell.peers[peer].grace += 1
            guard shell.peers[peer].standing != .whole else { return }
            shell.peers[peer].standing = .whole
            try feed(shell, .linkRestored(nodes[peer].id))
            try forwardAgain(shell, to: peer)
        } else if shell.peers[peer].standing == .whole {
            shell.peers[peer].standing = .broken
            startGrace(shell, peer)
        }
    }

    private func startGrace(_ shell: RaftShell, _ peer: Int) {
        shell.peers[peer].grace += 1
        schedule(
            .graceOver(
                node: shell.index, life: shell.life, peer: peer,
                grace: shell.peers[peer].grace), after: scenario.redialGrace)
    }

    func graceOver(_ shell: RaftShell, _ peer: Int, _ grace: UInt64) throws(Violation) {
        guard shell.peers[peer].grace == grace, shell.peers[peer].standing == .broken,
            shell.netAnswers >= 2
        else { return }
        shell.peers[peer].standing = .lost
        note("n\(shell.node.id) has lost n\(nodes[peer].id)")
        try feed(shell, .linkLost(nodes[peer].id))
    }

    // MARK: - Bytes that arrive

    func deliver(_ segment: SimNetwork.Segment) throws(Violation) {
        let frames = network.arrive(segment, now: now)
        for frame in frames {
            switch segment.lane {
            case Self.noticeLane...: try hear(frame, segment)
            case Self.answerLane...: try answered(frame, segment)
            case Self.greetingLane...: try greeted(frame, segment)
            default: if let shell = nodes[segment.to].shell { try received(frame, shell) }
            }
        }
    }
}
