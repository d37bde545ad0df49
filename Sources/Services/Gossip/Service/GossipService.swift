// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
import GossipCore
import Logging
import MDNSCore
import NIOCore
import NetClient
import ServiceKit

/// Who is out there, as far as this daemon has found out. Confined to its event loop.
///
/// Its own name on the network is aspend-net's to tell: discovery begins when net has, and goes on
/// whatever happens to net.
// SAFETY: confined to `loop`; futures and the drain closure only carry the reference.
package final class GossipService: @unchecked Sendable {
    private let loop: any EventLoop
    private let logger: Logger
    private let node: NodeID
    private let access: LocalAccess
    private let sockets: [MulticastSocket]
    private let netSocketPath: String
    private let net: NetControl
    private let epochs: EpochFile
    private var identity: NetIdentity?
    private var interfaces: [RouteInterface]?
    private var choice: InterfaceChoice?
    private var discovery: MDNSDiscovery?
    private let dns: DNSDiscovery?
    private let isGossipDisabled: Bool
    /// Members to whom net has no connection.
    private var missingMembers: Set<EndpointID> = []
    private(set) var overlay: GossipOverlay?
    /// What aspend-net says of this node.
    private var setup: (port: UInt16, advertised: [String])?
    private var listeners: [any RunningListener] = []
    private var connections: [ObjectIdentifier: FrameChannel] = [:]
    private var hasComplained = false
    private var located: [String]?
    private var members: [NetMember] = []
    private var shownStatus = ""

    package init(
        loop: any EventLoop, logger: Logger, node: NodeID, access: LocalAccess,
        sockets: [MulticastSocket], netSocketPath: String, dns: DNSDiscovery? = nil,
        isGossipDisabled: Bool = false, epochs: EpochFile? = nil
    ) {
        self.epochs = epochs ?? EpochFile(disk: nil, logger: logger)
        self.loop = loop
        self.logger = logger
        self.node = node
        self.access = access
        self.sockets = sockets
        self.netSocketPath = netSocketPath
        self.dns = dns
        self.isGossipDisabled = isGossipDisabled
        net = NetControl(eventLoop: loop, socketPath: netSocketPath)
    }

    package var discovered: [DiscoveredPeer] {
        (discovery?.peers ?? []).map { DiscoveredNode($0) }.map {
            DiscoveredPeer(
                source: $0.source, node: $0.node, endpoint: $0.endpoint, addresses: $0.addresses)
        }
    }

    // MARK: - Start and end

    /// - Parameter peerSocket: where aspend-net hands over streams of other nodes; nil: nowhere.
    package func start(
        gossipSocket: CInt, peerSocket: CInt? = nil
    ) -> EventLoopFuture<Void> {
        net.onConnected = { [unowned self] in identified($0) }
        net.onEvent = { [unowned self] event in heard(event) }
        dns?.onNews = { [unowned self] in told($0) }
        net.onRefused = { [unowned self] error in
            if !hasComplained { logger.warning("aspend-net refuses: \(error.message)") }
            hasComplained = true
        }
        net.start()
        let listening = Listener.start(descriptor: gossipSocket, on: loop) { [unowned self] in
            try accept($0)
        }.map { self.listeners.append($0) }
        let peers = peerSocket.map { descriptor in
            Listener.start(descriptor: descriptor, on: loop) { [unowned self] channel in
                guard let overlay else {
                    throw AspenError(.unavailable, "aspend-net has not said yet who this is")
                }
                try overlay.accept(channel)
            }.map { self.listeners.append($0) }
        }
        let receiving = sockets.map { socket in
            socket.start { [unowned self] in discovery?.step(.received($0)) }
        }
        return EventLoopFuture.andAllSucceed(
            receiving + [listening] + (peers.map { [$0] } ?? []), on: loop)
    }

    package func stop() -> EventLoopFuture<Void> {
        for listener in listeners { listener.close() }
        for frames in connections.values { frames.close() }
        discovery?.stop()
        dns?.stop()
        overlay?.stop()
        net.stop()
        for socket in sockets { socket.close() }
        return loop.makeSucceededVoidFuture()
    }

    // MARK: - What is to be announced

    /// All interfaces of the machine, at first and whenever one of them changes.
    package func use(_ interfaces: [RouteInterface]) {
        self.interfaces = interfaces
        describe()
    }

    /// Who belongs to the cluster, as aspend-raft has told net. Known from then on, also while raft or net
    /// are away.
    private func use(_ members: [NetMember]) {
        self.members = members
        missingMembers.formIntersection(members.map(\.endpoint))
        overlay?.setMembers(members)
    }

    private func identified(_ identity: NetIdentity) {
        hasComplained = false
        missingMembers = []
        let former = self.identity
        self.identity = identity
        if former?.endpoint != identity.endpoint {
            overlay?.stop()
            overlay = nil
            begin(as: identity.endpoint)
        }
        askForSetup(as: identity)
    }

    /// Each time: the cookie, and the topic with it, may be another one.
    private func askForSetup(as identity: NetIdentity) {
        net.ask(.gossipSetup) { [weak self] reply in
            guard let self, case .gossipSetup(let encoded, let port, let advertised) = reply,
                self.identity == identity
            else { return }
            let topics = encoded.compactMap { GossipTopic(bytes: $0) }
            guard !topics.isEmpty else { return }
            setup = (port, advertised)
            if overlay?.topics != topics { beginGossip(as: identity.endpoint, topics) }
            for peer in identity.configuredPeers {
                overlay?.found(
                    peer.peer.endpoint, node: peer.node, addresses: peer.peer.addresses,
                    by: peer.node == nil ? .ticket : .manual)
            }
            describe()
        }
    }

    private func beginGossip(as endpoint: EndpointID, _ topics: [GossipTopic]) {
        overlay?.stop()
        let fresh = GossipOverlay(
            own: endpoint, topics: topics, loop: loop, logger: logger, net: net,
            netSocketPath: netSocketPath, epochs: epochs, isGossiping: !isGossipDisabled)
        fresh.onChange = { [weak self] in self?.status() }
        overlay = fresh
        fresh.setMembers(members)
        fresh.start()
        for peer in discovery?.peers ?? [] { heard(.found(DiscoveredNode(peer))) }
        dns?.forget()
    }

    /// What this node says of itself. Where it may be dialled: as the settings say, else as its
    /// interfaces are.
    private func describe() {
        guard let setup, let overlay else { return }
        let located = InterfaceChoice.located(interfaces ?? [], port: setup.port)
        if located != self.located {
            self.located = located
            net.setLocated(located)
        }
        let addresses = setup.advertised.isEmpty ? located : setup.advertised
        choose(addresses)
        overlay.describe(
            NodeDescription(
                node: node, addresses: addresses,
                services: [ServiceName.raft.rawValue, ServiceName.gossip.rawValue],
                programVersion: ProtocolVersion.program))
    }

    private func begin(as endpoint: EndpointID) {
        for peer in discovery?.peers ?? [] { heard(.lost(peer.endpoint)) }
        discovery?.stop()
        discovery = nil
        choice = nil
        guard !sockets.isEmpty else { return }
        let fresh = MDNSDiscovery(
            configuration: MDNSConfiguration(endpoint: endpoint, node: node), sockets: sockets,
            loop: loop)
        fresh.onNews = { [unowned self] in heard($0) }
        discovery = fresh
    }

    private func choose(_ addresses: [String]) {
        guard let interfaces, let discovery else { return }
        let next = InterfaceChoice(interfaces, advertised: addresses)
        guard next != choice else { return }
        choice = next
        discovery.use(next)
        let names = interfaces.filter { one in
            next.interfaces.contains { $0.index == one.index }
        }.map(\.name)
        logger.info(
            "multicast DNS",
            metadata: [
                "interfaces": "\(names.joined(separator: " "))",
                "name": "\(discovery.instanceName)",
            ])
        status()
    }

    private func heard(_ news: DiscoveryNews) {
        switch news {
        case .found(let found):
            logger.debug(
                "found a node",
                metadata: [
                    "peer": "\(found.endpoint)", "number": "\(found.node)",
                    "addresses": "\(found.addresses.joined(separator: " "))",
                ])
            overlay?.found(
                found.endpoint, node: found.node, addresses: found.addresses, by: .mdns)
        case .lost(let endpoint):
            logger.debug("lost a node", metadata: ["peer": "\(endpoint)"])
            overlay?.lost(endpoint, by: .mdns)
        }
        status()
    }

    private func heard(_ event: NetEvent) {
        switch event {
        case .peerUp(let endpoint):
            missingMembers.remove(endpoint)
            overlay?.reached(endpoint, is: true)
        case .peerDown(let endpoint, _):
            if missingMembers.count < PeerBook.entriesMax { missingMembers.insert(endpoint) }
            discovery?.step(.doubted(endpoint))
            overlay?.reached(endpoint, is: false)
        case .members(let list): use(list)
        case .serviceGone, .located: return
        }
        status()
    }

    private func told(_ news: DNSNews) {
        switch news {
        case .found(let endpoint, let addresses):
            overlay?.found(endpoint, node: nil, addresses: addresses, by: .dns)
        case .lost(let endpoint): overlay?.lost(endpoint, by: .dns)
        }
    }

    private func status() {
        if let dns, let overlay { dns.want(missingMembers.union(overlay.missing)) }
        let (near, linked) = (discovery?.peers.count ?? 0, overlay?.linkCount ?? 0)
        let text =
            "\(near) node\(near == 1 ? "" : "s") found on the local link, "
            + (isGossipDisabled ? "gossip is off" : "gossip with \(linked)")
        guard text != shownStatus else { return }
        shownStatus = text
        Notifier.status(text)
    }

    // MARK: - gossip.sock

    private func accept(_ channel: any Channel) throws {
        guard connections.count < GossipSocketLimits.localConnectionsMax else {
            throw AspenError(.resourceExhausted, "too many connections on gossip.sock")
        }
        let frames = FrameChannel(frameBytesMax: GossipRequest.frameBytesMax)
        connections[ObjectIdentifier(frames)] = frames
        frames.onFrame = { [unowned self] frames, frame in received(frame, frames) }
        frames.onClosed = { [weak self] frames, _ in
            self?.connections[ObjectIdentifier(frames)] = nil
        }
        try channel.pipeline.syncOperations.addHandler(frames)
    }

    private func received(_ frame: ByteBuffer, _ frames: FrameChannel) {
        guard let peer = frames.peer, access.permits(peer) else {
            send(
                .failed(
                    code: .permissionDenied,
                    message: "only the daemons and people of this node may use gossip.sock"),
                frames)
            return frames.close()
        }
        let request: GossipRequest
        do throws(DecodeError) {
            request = try GossipRequest(decoding: Array(buffer: frame))
        } catch {
            send(
                .failed(code: .invalidArgument, message: "the request cannot be read: \(error)"),
                frames)
            return frames.close()
        }
        send(Self.requestTable[request.row].handler(self), frames)
    }

    private func send(_ reply: GossipReply, _ frames: FrameChannel) {
        frames.send { $0.writeBytes(reply.encoded()) }
        // Whoever does not read the answers is not waited for.
        if !frames.isWritable { frames.close() }
    }
}
