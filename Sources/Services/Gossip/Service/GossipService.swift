// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import AspenWire
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
    /// Told of everybody who is found and lost, on the event loop.
    package var onNews: (DiscoveryNews) -> Void = { _ in }

    private let loop: any EventLoop
    private let logger: Logger
    private let node: NodeID
    private let access: LocalAccess
    private let sockets: [MulticastSocket]
    private let net: NetControl
    private var identity: NetIdentity?
    private var interfaces: [RouteInterface]?
    private var choice: InterfaceChoice?
    private var discovery: MDNSDiscovery?
    private var listeners: [any RunningListener] = []
    private var connections: [ObjectIdentifier: FrameChannel] = [:]
    private var hasComplained = false

    package init(
        loop: any EventLoop, logger: Logger, node: NodeID, access: LocalAccess,
        sockets: [MulticastSocket], netSocketPath: String
    ) {
        self.loop = loop
        self.logger = logger
        self.node = node
        self.access = access
        self.sockets = sockets
        net = NetControl(eventLoop: loop, socketPath: netSocketPath)
    }

    package var discovered: [DiscoveredPeer] {
        (discovery?.peers ?? []).map { DiscoveredNode($0) }.map {
            DiscoveredPeer(
                source: $0.source, node: $0.node, endpoint: $0.endpoint, addresses: $0.addresses)
        }
    }

    // MARK: - Start and end

    package func start(gossipSocket: CInt) -> EventLoopFuture<Void> {
        net.onConnected = { [unowned self] in identified($0) }
        net.onEvent = { [unowned self] event in
            if case .peerDown(let endpoint, _) = event { discovery?.step(.doubted(endpoint)) }
        }
        net.onRefused = { [unowned self] error in
            if !hasComplained { logger.warning("aspend-net refuses: \(error.message)") }
            hasComplained = true
        }
        net.start()
        let listening = Listener.start(descriptor: gossipSocket, on: loop) { [unowned self] in
            try accept($0)
        }.map { self.listeners.append($0) }
        let receiving = sockets.map { socket in
            socket.start { [unowned self] in discovery?.step(.received($0)) }
        }
        return EventLoopFuture.andAllSucceed(receiving + [listening], on: loop)
    }

    package func stop() -> EventLoopFuture<Void> {
        for listener in listeners { listener.close() }
        for frames in connections.values { frames.close() }
        discovery?.stop()
        net.stop()
        for socket in sockets { socket.close() }
        return loop.makeSucceededVoidFuture()
    }

    // MARK: - What is to be announced

    /// All interfaces of the machine, at first and whenever one of them changes.
    package func use(_ interfaces: [RouteInterface]) {
        self.interfaces = interfaces
        choose()
    }

    private func identified(_ identity: NetIdentity) {
        hasComplained = false
        let former = self.identity
        self.identity = identity
        if former?.endpoint != identity.endpoint { begin(as: identity.endpoint) }
        choose()
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

    private func choose() {
        guard let identity, let interfaces, let discovery else { return }
        let next = InterfaceChoice(interfaces, advertised: identity.addresses)
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
        case .lost(let endpoint):
            logger.debug("lost a node", metadata: ["peer": "\(endpoint)"])
        }
        onNews(news)
        status()
    }

    private func status() {
        let count = discovery?.peers.count ?? 0
        Notifier.status("\(count) node\(count == 1 ? "" : "s") found on the local link")
    }

    // MARK: - gossip.sock

    private func accept(_ channel: any Channel) throws {
        guard connections.count < GossipLimits.localConnectionsMax else {
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
