// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import DequeModule
import LinkCore
import Logging
import NIOCore
import QUIC
import ServiceKit

/// The shell of `aspend-net`: it carries out what `LinkMachine` decides, joins the streams of other
/// nodes to the services here, and answers `net.sock`.
// SAFETY: confined to one event loop; every entry point from outside checks that it runs there.
package final class NetService: @unchecked Sendable {
    let eventLoop: any EventLoop
    let configuration: NetConfiguration
    let logger: Logger
    let endpoint: QUICEndpoint
    let clients: ClientConnections
    let gossip: GossipConnections

    var machine: LinkMachine
    var edgeLog: EdgeLog
    var sessions: [LinkID: PeerSession] = [:]
    /// Streams to peers that wait for a connection.
    var waiting: [EndpointID: [StreamWaiter]] = [:]
    var waiterCount: UInt64 = 0
    /// Inbound streams that are joined to a service here.
    var joined: [ObjectIdentifier: JoinedStream] = [:]
    var joinedClientStreams = 0
    var inboundClients = 0
    var clientCounts = ClientCounts()
    /// Where this node's interfaces were when gossip last told.
    var knownLocated: Set<String> = []
    /// Those among them that have to show a token first; see ClientDoor.
    var clientsWithoutToken = 0
    /// Streams of clients whose beginning is being read.
    var clientHeaders = 0
    var clientWatch: Scheduled<Void>?
    /// Since the last look at what clients hold.
    var clientBytesTaken = 0
    var isLookDue = false
    var localConnections: [ObjectIdentifier: LocalConnection] = [:]
    /// Those that have not said anything yet included.
    var localCount = 0
    /// Who was found, and where this node's interfaces are, as gossip's daemon says.
    var learned: [ConfiguredPeer] = []
    var located: [String] = []
    /// As raft's daemon last said; nil before it has.
    var members: [NetMember]?
    /// What is said of this node's own raft daemon, to peers and in deciding whether to join.
    var raftState = ServiceState.unknown

    /// Tells this start of the program from every other.
    let incarnation = UInt64.random(in: .min ... .max)
    private var random = RandomSource(seed: .random(in: .min ... .max))
    private var inputs = Deque<LinkInput>()
    private var effects: [LinkEffect] = []
    private var isDriving = false
    private(set) var isDraining = false
    private var timer: (at: MonotonicInstant, task: Scheduled<Void>)?
    private var nextLink: UInt64 = 1
    private var listener: (any RunningListener)?
    private var shownStatus = ""
    /// While `stop()` waits for the raft daemon.
    private var raftGone: EventLoopPromise<Void>?

    package init(eventLoop: any EventLoop, configuration: NetConfiguration, logger: Logger) {
        self.eventLoop = eventLoop
        self.configuration = configuration
        self.logger = logger
        edgeLog = EdgeLog(logger: logger)
        machine = LinkMachine(configuration: configuration.link)
        endpoint = QUICEndpoint(
            eventLoop: eventLoop, key: configuration.key, configuration: configuration.quic)
        clients = ClientConnections(endpoint: endpoint)
        let incarnation = incarnation
        var links: UInt64 = 0
        gossip = GossipConnections(endpoint: endpoint) { connection in
            links += 1
            // What raft does is nothing to strangers.
            let session = PeerSession(
                id: LinkID(links), connection: connection, keys: configuration.cookies,
                incarnation: incarnation, service: { .unknown })
            session.proofTimeout = configuration.proofTimeout
            return session
        }
        // Connections that the endpoint closes at the end may outlive this service.
        gossip.onStream = { [weak self] session, stream, service, rest, carried in
            guard let self else { return carried() }
            join(
                stream, to: service, rest: rest, for: .gossip(session), carried: carried)
        }
        gossip.onUnproved = { [weak self] in self?.unproved($0, $1) }
    }

    /// Takes over both sockets and begins to serve and to dial.
    package func start(datagramSocket: CInt, netSocket: CInt) -> EventLoopFuture<Void> {
        eventLoop.preconditionInEventLoop()
        endpoint.serverProtocols = [
            ALPN.raft.rawValue, ALPN.client.rawValue, ALPN.gossip.rawValue,
        ]
        endpoint.acceptPolicy = { [self] peer, alpn, address in
            refusal(of: peer, alpn: alpn, from: Origin(address))
        }
        endpoint.onConnection = { [self] in accepted($0) }
        endpoint.onRefused = { [self] in refused($0, $1, $2) }
        return endpoint.bind(inheritedDatagramSocket: datagramSocket).flatMap { [self] in
            Listener.start(descriptor: netSocket, on: eventLoop) { [self] channel in
                try acceptLocal(channel)
            }
        }.map { [self] listener in
            self.listener = listener
            drive(
                .configured(
                    configuration.configuredPeers.map {
                        LinkPeer(endpoint: $0.peer.endpoint, addresses: $0.peer.addresses)
                    }))
        }
    }

    /// What a signal to stop means: a raft daemon that is here may have got one in the same moment, and
    /// hands over through this net. So it goes on until that one is gone, or is seen to stay.
    package func stop() -> EventLoopFuture<Void> {
        eventLoop.preconditionInEventLoop()
        guard raftState == .serving else { return drain() }
        let gone = eventLoop.makePromise(of: Void.self)
        raftGone = gone
        let timer = eventLoop.scheduleTask(in: configuration.raftGraceMax) { [self] in
            letRaftGo()
        }
        return gone.futureResult.flatMap { [self] in
            timer.cancel()
            return drain()
        }
    }

    /// Nobody is waited for any longer.
    func letRaftGo() {
        raftGone?.succeed()
        raftGone = nil
    }

    /// Takes no more, says goodbye to the peers, closes.
    package func drain() -> EventLoopFuture<Void> {
        eventLoop.preconditionInEventLoop()
        isDraining = true
        listener?.close()
        timer?.task.cancel()
        timer = nil
        clientWatch?.cancel()
        clientWatch = nil
        gossip.stop()
        for connection in Array(localConnections.values) { connection.close() }
        // Whoever still calls back holds on to this service; the endpoint lets go of it at the end.
        return endpoint.close().always { [self] _ in
            endpoint.acceptPolicy = { _, _, _ in "this node is stopping" }
            endpoint.onConnection = { $0.close(code: 0, reason: "stopping") }
            endpoint.onRefused = { _, _, _ in }
        }
    }

    // MARK: - The machine

    func drive(_ input: LinkInput) {
        guard !isDraining else { return }
        inputs.append(input)
        guard !isDriving else { return }
        isDriving = true
        while let next = inputs.popFirst() {
            effects.removeAll(keepingCapacity: true)
            machine.step(next, now: .now, random: &random, into: &effects)
            for effect in effects { carryOut(effect) }
        }
        isDriving = false
        scheduleTimer()
        showStatus()
    }

    private func scheduleTimer() {
        let deadline = machine.deadline
        guard deadline != timer?.at else { return }
        timer?.task.cancel()
        timer = deadline.map { at in
            let task = eventLoop.scheduleTask(deadline: .uptimeNanoseconds(at.nanoseconds)) {
                [self] in
                timer = nil
                drive(.timeout)
            }
            return (at, task)
        }
    }

    private func carryOut(_ effect: LinkEffect) {
        switch effect {
        case .dial(let peer, let addresses): dial(peer, addresses)
        case .close(let id, let reason): close(id, reason)
        case .primary(let peer, let id):
            if let id, let session = sessions[id] { releaseWaiting(for: peer, .success(session)) }
        case .peerUp(let peer):
            logger.info("peer up", metadata: ["peer": "\(peer)"])
            publish(.peerUp(peer))
        case .peerDown(let peer, let reason):
            logger.notice("peer down", metadata: ["peer": "\(peer)", "reason": "\(reason)"])
            publish(.peerDown(peer, reason: reason))
        case .serviceGone(let peer):
            logger.notice("peer's raft is gone", metadata: ["peer": "\(peer)"])
            publish(.serviceGone(peer, .raft))
        }
    }

    private func showStatus() {
        let count = machine.connectedCount
        let status = "serving, \(count) \(count == 1 ? "peer" : "peers") connected"
        guard status != shownStatus else { return }
        shownStatus = status
        Notifier.status(status)
    }

    func publish(_ event: NetEvent) {
        for connection in localConnections.values where connection.isSubscribed {
            connection.send(.event(event))
        }
    }

    // MARK: - Connections of the cluster

    /// An address of this machine is gone, and with it the way back of whoever has dialled it there: such a
    /// connection would only be missed after the idle timeout, at both ends, and cannot be moved by the side
    /// that was dialled (RFC 9000 section 9). Each peer is told something; who has not acknowledged it a
    /// moment later is dialled anew, and takes the new connection for what it is.
    func dropSilentConnections() {
        let asked = sessions.values.filter(\.isProved).map { ($0.id, $0.ask(.raft, raftState)) }
        let gossiping = gossip.askAll()
        eventLoop.assumeIsolated().scheduleTask(in: TimeAmount(configuration.answerAfterMove)) {
            [weak self] in
            guard let self else { return }
            let reason = "this node has other addresses now"
            var left: Set<EndpointID> = []
            for (id, mark) in asked {
                guard let session = sessions[id], !session.hasAnswered(mark) else { continue }
                sessions[id] = nil
                session.close(.none, reason)
                drive(.closed(id, reason: reason))
                left.insert(session.endpoint)
            }
            // Whose peer has made another connection meanwhile is not dialled, and would not tell it so.
            for session in sessions.values where left.contains(session.endpoint) {
                session.tellOver()
            }
            gossip.closeSilent(gossiping, reason)
        }
    }

    private func dial(_ peer: EndpointID, _ addresses: [String]) {
        let numeric = addresses.compactMap { NetAddress.parse($0) }
        endpoint.connect(to: peer, addresses: numeric, alpn: ALPN.raft.rawValue)
            .whenComplete { [self] result in
                switch result {
                case .success(let connection): startSession(connection)
                case .failure(let error):
                    let failure = (error as? QUICError) ?? .library("\(error)")
                    dialFailed(peer, PeerSession.Failure.connection(failure).dialFailure)
                }
            }
    }

    private func dialFailed(_ peer: EndpointID, _ failure: DialFailure) {
        switch failure {
        case .cookie(let reason):
            edgeLog.warning(
                "cannot join this peer: the cookie differs; start both nodes with the same one",
                culprit: "cookie \(peer)", ["peer": "\(peer)", "reason": "\(reason)"])
            releaseWaiting(for: peer, .failure(unreachable(peer, reason)))
        case .refused(let reason):
            edgeLog.warning(
                "refused by peer \(peer): \(reason)", culprit: "refused \(peer)",
                ["peer": "\(peer)"])
            releaseWaiting(for: peer, .failure(unreachable(peer, reason)))
        case .unreachable(let reason):
            logger.debug("dial failed", metadata: ["peer": "\(peer)", "reason": "\(reason)"])
        }
        drive(.dialFailed(peer, failure))
    }

    private func accepted(_ connection: QUICConnection) {
        switch ALPN(rawValue: connection.alpn) {
        case .raft: startSession(connection)
        case .client: acceptClient(connection)
        case .gossip: gossip.accepted(connection)
        default: connection.close(code: StreamErrorCode.noSuchService.rawValue, reason: "")
        }
    }

    private func startSession(_ connection: QUICConnection) {
        let id = LinkID(nextLink)
        nextLink += 1
        let session = PeerSession(
            id: id, connection: connection, keys: configuration.cookies, incarnation: incarnation,
            service: { [self] in raftState })
        session.proofTimeout = configuration.proofTimeout
        session.onProved = { [self] in proved($0, $1, $2) }
        session.onNotice = { [self] session, name, state in
            if name == .raft { drive(.service(session.id, state)) }
        }
        session.over = { [self] in machine.over(with: connection.remoteEndpoint) }
        session.onOver = { [self] session, names in drive(.over(session.id, names)) }
        session.onStream = { [self] in
            join($1, to: $2, rest: $3, for: .member($0), carried: $0.carry())
        }
        session.onEnded = { [self] in ended($0, $1) }
        session.onCarrying = { [self] in drive(.carrying($0.id, $1)) }
        sessions[id] = session
        session.start(on: eventLoop)
    }

    private func proved(_ session: PeerSession, _ incarnation: UInt64, _ service: ServiceState) {
        edgeLog.forgive("cookie \(session.endpoint)")
        edgeLog.forgive("refused \(session.endpoint)")
        logger.debug(
            "peer connected",
            metadata: [
                "peer": "\(session.endpoint)", "inbound": "\(session.connection.isInbound)",
                "address": "\(NetAddress.text(session.connection.remoteAddress))",
            ])
        guard let name = session.name else {
            preconditionFailure("who is proved has shown a proof")
        }
        drive(
            .proved(
                session.id, session.endpoint, isInbound: session.connection.isInbound,
                incarnation: incarnation, service: service, name: name))
    }

    private func ended(_ session: PeerSession, _ failure: PeerSession.Failure) {
        sessions[session.id] = nil
        if session.isProved {
            return drive(.closed(session.id, reason: failure.dialFailure.reason))
        }
        if !session.connection.isInbound {
            if let name = session.name { drive(.unanswered(session.endpoint, name)) }
            return dialFailed(session.endpoint, failure.dialFailure)
        }
        unproved(session, failure)
    }

    /// An inbound connection has ended before the cookie was proved.
    private func unproved(_ session: PeerSession, _ failure: PeerSession.Failure) {
        let address = NetAddress.text(session.connection.remoteAddress)
        let metadata: Logger.Metadata = [
            "peer": "\(session.endpoint)", "address": "\(address)",
            "event": "\(JournalEvent.peerRefused)",
        ]
        switch failure {
        case .cookie(foundHere: true):
            edgeLog.warning(
                "refused: this peer did not prove our cookie",
                culprit: "cookie \(session.endpoint)", metadata)
        case .connection(let error):
            // It went away by itself: one of several attempts of a dialler, or a restart.
            logger.debug("left before the proof: \(error)", metadata: metadata)
        default:
            edgeLog.warning(
                "refused before the cookie was proved: \(failure.dialFailure.reason)",
                culprit: "unproved \(session.endpoint)", metadata)
        }
    }

    private func close(_ id: LinkID, _ reason: LinkClose) {
        guard let session = sessions.removeValue(forKey: id) else { return }
        switch reason {
        case .superseded: session.close(.none, "a newer connection")
        case .duplicate: session.close(.none, "one connection is enough")
        case .notMember: session.close(.refused, "you are no member of this cluster")
        case .tooManyPeers: session.close(.resourceExhausted, "too many peers")
        }
    }

    // MARK: - At the door

    /// Judged inside the handshake: nil is welcome.
    private func refusal(of peer: EndpointID, alpn: String, from origin: Origin) -> String? {
        switch ALPN(rawValue: alpn) {
        case .raft:
            if peer == configuration.key.endpoint { return "this is the node's own key" }
            if machine.admits(peer) {
                return machine.isExpected(peer) ? nil : refusal(ofStrangerFrom: origin)
            }
            return machine.isClosed
                ? "not a member of this cluster" : "more than \(Limits.peersMax) strangers"
        case .client:
            // Its token comes with its first stream: here there is only its key.
            if clientsWithoutToken >= NetLimits.clientsWithoutTokenMax {
                return "too many clients that have not shown a token yet"
            }
            guard inboundClients < NetLimits.clientConnectionsMax else { return "too many clients" }
            return clientCounts.refusal(
                of: peer, from: origin, needsToken: configuration.areTokensRequired)
        case .gossip:
            if peer == configuration.key.endpoint { return "this is the node's own key" }
            return gossip.refusal(from: origin)
        default: return "nobody here speaks \(alpn)"
        }
    }

    /// What others are told to dial: as the settings say, else as the interfaces are.
    var ownAddresses: [String] {
        configuration.advertised.isEmpty ? located : configuration.advertised
    }

    private func refusal(ofStrangerFrom origin: Origin) -> String? {
        let unproved = sessions.values.filter { !$0.isProved && $0.connection.isInbound }
        if unproved.count >= NetLimits.unprovedMax {
            return "more than \(NetLimits.unprovedMax) strangers before the proof"
        }
        let here = unproved.count { Origin($0.connection.remoteAddress) == origin }
        return here < NetLimits.unprovedPerAddressMax
            ? nil
            : "more than \(NetLimits.unprovedPerAddressMax) strangers at one address before the proof"
    }

    private func refused(_ peer: EndpointID?, _ address: SocketAddress, _ reason: String) {
        let name = peer.map { "\($0)" } ?? "unknown"
        edgeLog.warning(
            "refused a connection: \(reason)",
            culprit: "handshake \(peer.map { "\($0)" } ?? address.ipAddress ?? "")",
            [
                "peer": "\(name)", "address": "\(NetAddress.text(address))",
                "event": "\(JournalEvent.peerRefused)",
            ])
    }

    func unreachable(_ peer: EndpointID, _ reason: String) -> AspenError {
        AspenError(.unavailable, "no connection to \(peer): \(reason)", retry: .safe)
    }
}
