// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import Logging
import NIOCore
import NetClient
import RaftCore
import RaftStorage
import ServiceKit

/// What the links tell the node.
protocol PeerLinksDelegate: AnyObject {
    func received(_ message: Message)
    func linkLost(_ node: NodeID)
    func linkRestored(_ node: NodeID)
    func serviceGone(_ node: NodeID)
    func ownNet(isConnected: Bool)
    func spaceChanged(_ level: SpaceLevel, of node: NodeID)
    /// A peer's `ClientRequest`; answered by `PeerFrame.response` with the same id on `channel`.
    func asked(_ request: [UInt8], id: UInt64, by node: NodeID, on channel: FrameChannel)
}

/// Who this node is, for its hello.
struct LocalIdentity {
    var cluster: ClusterID?
    var node: NodeID
    var replica: ReplicaID
}

/// The streams between this node and its peers. Confined to the event loop.
///
/// Between two nodes there are four streams: each opens one a lane to the other. A link is whole
/// when all four are up. When one breaks, the peer gets `Limits.redialGrace` to come back before
/// the core hears `linkLost`; it hears `linkRestored` each time a broken link is whole again, since
/// what was in flight is gone.
final class PeerLinks {
    let loop: any EventLoop
    let transport: any PeerTransport
    let logger: Logger
    weak var delegate: (any PeerLinksDelegate)?
    var identity: LocalIdentity
    /// Who net says we are; nil until it has been reached once.
    private(set) var netIdentity: NetIdentity?
    private(set) var isNetConnected = false
    /// The one in force, if it names this directory.
    private(set) var membership: Membership?
    /// It does not any more.
    private(set) var hasLeft = false

    /// How long a node that has left the membership is still talked to.
    static let leaverGrace = TimeAmount.seconds(5)

    private var links: [NodeID: PeerLink] = [:]
    private var leaving: [NodeID: Scheduled<Void>] = [:]
    /// Where those who are leaving are: net is to let them in until they are gone.
    private var leavers: [NodeID: NetPeer] = [:]
    private var durable = DurabilityTicket(0)
    /// Nodes about to be added: reachable for a probe, though no members yet.
    private var candidates: [NetPeer] = []
    private var requests: [UInt64: PendingRequest] = [:]
    private var nextRequest: UInt64 = 1
    /// Streams that still come are closed.
    private var isStopped = false
    private var wrongPeers: [NodeID: LogLimiter] = [:]
    private var refusals = LogLimiter()

    init(
        loop: any EventLoop, transport: any PeerTransport, identity: LocalIdentity, logger: Logger
    ) {
        self.loop = loop
        self.transport = transport
        self.identity = identity
        self.logger = logger
    }

    func start() {
        transport.onEvent = { [weak self] in self?.handle($0) }
        publishPeers()
        transport.start()
    }

    func stop() {
        isStopped = true
        for node in links.keys.sorted() { removeLink(node) }
        transport.stop()
    }

    // MARK: - Who the peers are

    /// Follows the membership in force: links to its members, to nobody else.
    func update(_ membership: Membership?) {
        for member in self.membership?.members ?? [] {
            guard membership?.member(member.node) == nil, links[member.node] != nil else {
                continue
            }
            leavers[member.node] = NetPeer(endpoint: member.endpoint, addresses: member.addresses)
        }
        let before = self.membership
        // One that does not name this directory is history: of a learner that reads the log from its
        // beginning, or of a node that was removed. Such a node follows whoever has proved the
        // cookie, for those it knew may all have been replaced.
        let own = membership?.member(identity.node)
        self.membership = own?.replica == identity.replica ? membership : nil
        if let membership = self.membership {
            hasLeft = false
            if let old = before?.cluster, old != membership.cluster {
                for node in links.keys.sorted() { removeLink(node) }
            }
            identity.cluster = membership.cluster
            for member in membership.members where member.node != identity.node {
                leavers[member.node] = nil
                if let link = links[member.node], link.endpoint == member.endpoint {
                    leaving.removeValue(forKey: member.node)?.cancel()
                    let isOther = link.isForeign(member.replica)
                    link.replica = member.replica
                    if isOther { link.changed() }
                    continue
                }
                removeLink(member.node)
                addLink(member.node, member.endpoint, member.replica).dial()
            }
            for node in links.keys.sorted() where membership.member(node) == nil {
                scheduleRemoval(node)
            }
        } else if membership == nil {
            identity.cluster = nil
        } else if before != nil {
            hasLeft = true
            for node in links.keys.sorted() { scheduleRemoval(node) }
        }
        publishPeers()
    }

    /// A membership is in force before it is committed, and one who leaves may be the leader that
    /// has to commit it: links to leavers live on for a while.
    private func scheduleRemoval(_ node: NodeID) {
        guard leaving[node] == nil else { return }
        let box = NIOLoopBound(self, eventLoop: loop)
        leaving[node] = loop.scheduleTask(in: Self.leaverGrace) {
            box.value.removeLink(node)
            box.value.publishPeers()
        }
    }

    private func removeLink(_ node: NodeID) {
        leaving.removeValue(forKey: node)?.cancel()
        leavers[node] = nil
        links.removeValue(forKey: node)?.end()
        failRequests(to: node)
    }

    @discardableResult
    private func addLink(
        _ node: NodeID, _ endpoint: EndpointID, _ replica: ReplicaID?
    ) -> PeerLink {
        let link = PeerLink(node: node, endpoint: endpoint, replica: replica, links: self)
        links[node] = link
        return link
    }

    private func publishPeers() {
        transport.setMembers(
            (membership?.members ?? []).map { NetMember(node: $0.node, endpoint: $0.endpoint) })
        if let membership, !membership.members.isEmpty {
            let members = membership.members.filter { $0.node != identity.node }.map {
                NetPeer(endpoint: $0.endpoint, addresses: $0.addresses)
            }
            // One who has left may be the leader that has to hear of its last entries.
            let gone = leavers.keys.sorted().compactMap { self.leavers[$0] }.filter { leaver in
                !members.contains { $0.endpoint == leaver.endpoint }
            }
            let others = candidates.filter { candidate in
                !members.contains { $0.endpoint == candidate.endpoint }
            }
            transport.setPeers(members + gone + others, isClosed: true)
        } else {
            let peers = netIdentity?.configuredPeers.map(\.peer) ?? []
            transport.setPeers(peers, isClosed: false)
        }
    }

    /// Nil while dialling makes no sense.
    func dialable(_ node: NodeID) -> EndpointID? {
        isNetConnected ? links[node]?.endpoint : nil
    }

    func hello(_ lane: Lane) -> PeerHello {
        PeerHello(
            version: ProtocolVersion.raftPeer, cluster: identity.cluster, node: identity.node,
            replica: identity.replica, lane: lane)
    }

    /// Why the node at the other end is not the one we want to talk to; nil if it is.
    func objection(to hello: PeerHello, from node: NodeID) -> String? {
        if let general = objection(to: hello) { return general }
        if hello.node != node { return "says that it is node \(hello.node), not \(node)" }
        return nil
    }

    /// Not refused: whoever is behind may know a former replica of the leader.
    private func noteReplica(_ replica: ReplicaID?, of link: PeerLink) {
        guard link.isForeign(replica) else { return }
        peerIsWrong(
            link.node,
            "has another data directory than the member of that id (wiped?): remove the member and "
                + "add the node again")
    }

    private func objection(to hello: PeerHello) -> String? {
        if hello.version != ProtocolVersion.raftPeer {
            return "speaks version \(hello.version) of the protocol between raft daemons, this "
                + "program \(ProtocolVersion.raftPeer)"
        }
        if hello.node == identity.node { return "uses our own node id \(hello.node)" }
        if let own = identity.cluster, let theirs = hello.cluster, own != theirs {
            return "belongs to another cluster"
        }
        return nil
    }

    // MARK: - Events

    private func handle(_ event: TransportEvent) {
        switch event {
        case .connected(let identity):
            netIdentity = identity
            isNetConnected = true
            if membership == nil { publishPeers() }
            delegate?.ownNet(isConnected: true)
            for node in links.keys.sorted() {
                links[node]?.resetBackOff()
                links[node]?.dial()
                links[node]?.restartGrace()
            }
        case .lost:
            isNetConnected = false
            logger.warning("the connection to aspend-net is lost")
            delegate?.ownNet(isConnected: false)
        case .refused(let error):
            logger.error("aspend-net refuses us", metadata: ["reason": "\(error)"])
        case .net(.peerUp(let endpoint)):
            guard let link = link(endpoint) else { return }
            link.resetBackOff()
            link.dial()
        case .net(.peerDown): break
        case .net(.serviceGone(let endpoint, .raft)):
            guard let link = link(endpoint) else { return }
            delegate?.serviceGone(link.node)
        case .net(.serviceGone), .net(.members): break
        case .net(.located(let addresses)): netIdentity?.addresses = addresses
        }
    }

    private func link(_ endpoint: EndpointID) -> PeerLink? {
        links.values.first { $0.endpoint == endpoint }
    }

    func laneUp(_ node: NodeID, _ lane: Lane) {
        logger.debug("stream up", metadata: ["peer": "\(node)", "lane": "\(lane)"])
        guard let link = links[node] else { return }
        noteReplica(link.lanes[Int(lane.rawValue)].remote, of: link)
        link.changed()
    }

    func laneDown(_ node: NodeID, _ lane: Lane) {
        logger.debug("stream down", metadata: ["peer": "\(node)", "lane": "\(lane)"])
        if lane == .control { failRequests(to: node) }
        links[node]?.changed()
    }

    func dialFailed(_ node: NodeID, _ reason: String) {
        logger.debug("dial failed", metadata: ["peer": "\(node)", "reason": "\(reason)"])
    }

    func peerIsWrong(_ node: NodeID, _ reason: String) {
        wrongPeers[node, default: LogLimiter()].record {
            logger.warning(
                "peer \(reason)", metadata: ["peer": "\(node)"].merging($0) { $1 })
        }
    }

    // MARK: - Sending

    func send(_ message: Message, after: DurabilityTicket?) {
        links[message.to]?.send(message, after: after, durable: durable)
    }

    /// Tells every peer how much room there is here; lost where there is no stream.
    func announce(_ level: SpaceLevel) {
        for link in links.values {
            link.lanes[Int(Lane.control.rawValue)].channel?.send {
                PeerFrame.space(level).write(to: &$0)
            }
        }
    }

    func durable(_ ticket: DurabilityTicket) {
        durable = ticket
        for link in links.values { for lane in link.lanes { lane.release(durable: ticket) } }
    }

    /// Voters and learners that can be talked to at this moment.
    func isReachable(_ node: NodeID) -> Bool {
        node == identity.node || (links[node]?.isUp ?? false)
    }

    // MARK: - Streams from peers

    /// Takes over a stream on which `principal` has been read.
    func accept(_ frames: FrameChannel, _ principal: Principal) {
        guard !isStopped else { return frames.close() }
        guard principal.hasProvedCookie else {
            return refuse(frames, principal, .unauthenticated, "the cookie was not proved")
        }
        let stream = IncomingStream(frames: frames, principal: principal, links: self)
        frames.onFrame = { stream.received($1, on: $0) }
        frames.onClosed = { _, _ in stream.closed() }
    }

    /// - Returns: the link that the stream belongs to, or nil after it has been refused.
    func greeted(_ hello: PeerHello, by stream: IncomingStream) -> PeerLink? {
        guard !isStopped else {
            stream.frames.close()
            return nil
        }
        let endpoint = stream.principal.endpoint
        if let wrong = objection(to: hello) {
            refuse(stream.frames, stream.principal, .permissionDenied, wrong)
            return nil
        }
        if let membership, !membership.members.isEmpty {
            let link = links[hello.node]
            guard let link, link.endpoint == endpoint else {
                refuse(
                    stream.frames, stream.principal, .permissionDenied,
                    "node \(hello.node) with this key is no member")
                return nil
            }
            noteReplica(hello.replica, of: link)
            return link
        }
        if let link = links[hello.node] {
            if link.endpoint == endpoint { return link }
            removeLink(hello.node)
        }
        let link = addLink(hello.node, endpoint, nil)
        link.dial()
        return link
    }

    private func refuse(
        _ frames: FrameChannel, _ principal: Principal, _ code: AspenErrorCode, _ reason: String
    ) {
        refusals.record {
            logger.warning(
                "refused a stream from a peer",
                metadata: ["reason": "\(reason)", "address": "\(principal.remoteAddress)"]
                    .merging($0) { $1 })
        }
        frames.send { PeerFrame.refused(code, reason).write(to: &$0) }
        frames.close()
    }

    func streamEnded(_ link: PeerLink) {
        if membership == nil, link.incomingCount == 0 {
            removeLink(link.node)
        } else {
            link.changed()
        }
    }

    // MARK: - Requests to peers

    private struct PendingRequest {
        var node: NodeID
        var completion: ([UInt8]?) -> Void
        var timer: Scheduled<Void>
    }

    /// Requests to peers that wait for an answer.
    static let requestsMax = 1000

    /// Asks a peer; the completion gets nil when no answer came in time.
    func request(
        _ bytes: [UInt8], to node: NodeID, timeout: TimeAmount,
        completion: @escaping ([UInt8]?) -> Void
    ) {
        guard let channel = links[node]?.lanes[Int(Lane.control.rawValue)].channel,
            requests.count < Self.requestsMax
        else { return completion(nil) }
        let id = nextRequest
        nextRequest += 1
        let box = NIOLoopBound(self, eventLoop: loop)
        let timer = loop.scheduleTask(in: timeout) { box.value.finish(id, nil) }
        requests[id] = PendingRequest(node: node, completion: completion, timer: timer)
        channel.send { PeerFrame.request(id: id, bytes).write(to: &$0) }
    }

    func answered(_ id: UInt64, _ bytes: [UInt8]) { finish(id, bytes) }

    private func finish(_ id: UInt64, _ bytes: [UInt8]?) {
        guard let request = requests.removeValue(forKey: id) else { return }
        request.timer.cancel()
        request.completion(bytes)
    }

    private func failRequests(to node: NodeID) {
        for id in requests.keys.sorted() where requests[id]?.node == node { finish(id, nil) }
    }

    // MARK: - Candidates

    /// Says hello to a node that is no member yet, to learn its replica id.
    /// See `PeerTransport.findPeers`.
    func findPeers(done: @escaping ([ConfiguredPeer]) -> Void) { transport.findPeers(done: done) }

    func probe(
        _ peer: NetPeer, _ node: NodeID, until end: MonotonicInstant,
        completion: @escaping (Result<PeerHello, AspenError>) -> Void
    ) {
        candidates.append(peer)
        publishPeers()
        let box = NIOLoopBound(self, eventLoop: loop)
        let time = max(.zero, min(Probe.timeout, end - RaftNode.now))
        let probe = Probe(peer: peer, node: node, time: time, links: self) { result in
            let links = box.value
            if let place = links.candidates.firstIndex(of: peer) {
                links.candidates.remove(at: place)
            }
            completion(result)
            links.publishPeers()
        }
        probe.start()
    }
}
