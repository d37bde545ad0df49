// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import Logging
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

/// All streams between this node and one peer.
final class PeerLink {
    let node: NodeID
    let endpoint: EndpointID
    /// Nil until a membership names it.
    var replica: ReplicaID?
    private(set) var lanes: [OutgoingLane] = []
    /// They let go of this link when it ends; what then still comes in finds them.
    private let links: PeerLinks
    private var incoming: [ObjectIdentifier: IncomingStream] = [:]
    private var standing = Standing.new
    private var grace: Scheduled<Void>?

    private enum Standing { case new, whole, broken, lost }

    init(node: NodeID, endpoint: EndpointID, replica: ReplicaID?, links: PeerLinks) {
        self.node = node
        self.endpoint = endpoint
        self.replica = replica
        self.links = links
        lanes = Lane.allCases.map { OutgoingLane(node: node, lane: $0, links: links) }
    }

    var incomingCount: Int { incoming.count }

    /// The membership names another replica: see `Message.isAnswer`.
    func isForeign(_ other: ReplicaID?) -> Bool {
        guard let replica, let other else { return false }
        return other != replica
    }

    /// We can send to it.
    var isUp: Bool { lanes.allSatisfy { $0.channel != nil && !isForeign($0.remote) } }

    private var isWhole: Bool {
        isUp
            && Lane.allCases.allSatisfy { lane in
                incoming.values.contains { $0.lane == lane && !isForeign($0.replica) }
            }
    }

    func send(_ message: Message, after: DurabilityTicket?, durable: DurabilityTicket) {
        let lane = lanes[Int(message.lane.rawValue)]
        if message.isAnswer || !isForeign(lane.remote) {
            lane.send(message, after: after, durable: durable)
        }
    }

    func dial() { for lane in lanes { lane.dial() } }
    func resetBackOff() { for lane in lanes { lane.resetBackOff() } }

    func add(_ stream: IncomingStream) {
        incoming[ObjectIdentifier(stream)] = stream
        // A peer that can reach us can be reached.
        resetBackOff()
        dial()
        changed()
    }

    func remove(_ stream: IncomingStream) {
        guard incoming.removeValue(forKey: ObjectIdentifier(stream)) != nil else { return }
        links.streamEnded(self)
    }

    /// Looks at the streams again and tells the node what that means.
    func changed() {
        if isWhole {
            grace?.cancel()
            grace = nil
            if standing != .whole {
                standing = .whole
                links.logger.info("peer connected", metadata: ["peer": "\(node)"])
                links.delegate?.linkRestored(node)
            }
        } else if standing == .whole {
            standing = .broken
            startGrace()
        }
    }

    /// Our own net was away: the peer gets the whole grace from now.
    func restartGrace() {
        guard standing == .broken else { return }
        startGrace()
    }

    private func startGrace() {
        grace?.cancel()
        let box = NIOLoopBound(self, eventLoop: links.loop)
        grace = links.loop.scheduleTask(
            in: .nanoseconds(Limits.redialGrace.nanoseconds)
        ) { box.value.graceIsOver() }
    }

    private func graceIsOver() {
        // Without our own net we know nothing about the peer.
        guard standing == .broken, links.isNetConnected else { return }
        standing = .lost
        links.logger.info("peer lost", metadata: ["peer": "\(node)"])
        links.delegate?.linkLost(node)
    }

    func end() {
        grace?.cancel()
        for lane in lanes { lane.end() }
        let streams = incoming
        incoming.removeAll()
        for stream in streams.values { stream.frames.close() }
    }
}

/// A stream that a peer opened to us.
final class IncomingStream {
    let frames: FrameChannel
    let principal: Principal
    private(set) var lane: Lane?
    private(set) var replica: ReplicaID?
    /// Until it is closed, which may be after its node has ended.
    private let links: PeerLinks
    private weak var link: PeerLink?

    init(frames: FrameChannel, principal: Principal, links: PeerLinks) {
        self.frames = frames
        self.principal = principal
        self.links = links
    }

    func received(_ frame: ByteBuffer, on channel: FrameChannel) {
        let decoded: PeerFrame
        do {
            decoded = try PeerFrame(decoding: frame)
        } catch {
            links.peerIsWrong(link?.node ?? NodeID(0), "sent what we cannot read: \(error)")
            return channel.close()
        }
        guard let link else {
            guard case .hello(let hello) = decoded, lane == nil else { return channel.close() }
            if hello.isProbe {
                lane = hello.lane
                return channel.send { PeerFrame.hello(links.hello(hello.lane)).write(to: &$0) }
            }
            guard let link = links.greeted(hello, by: self) else { return }
            self.link = link
            lane = hello.lane
            replica = hello.replica
            channel.send { PeerFrame.hello(links.hello(hello.lane)).write(to: &$0) }
            return link.add(self)
        }
        switch decoded {
        case .message(let message) where message.from == link.node:
            if message.isAnswer, link.isForeign(replica) { return }
            links.delegate?.received(message)
        case .space(let level): links.delegate?.spaceChanged(level, of: link.node)
        case .request(let id, let bytes):
            links.delegate?.asked(bytes, id: id, by: link.node, on: channel)
        default:
            links.peerIsWrong(link.node, "sent a frame that has no place here")
            channel.close()
        }
    }

    func closed() { link?.remove(self) }
}

/// A short stream to a node that may become a member.
final class Probe {
    static let timeout = Duration.seconds(8)

    private let peer: NetPeer
    private let node: NodeID
    private let time: Duration
    /// Until it has ended, which may be after its node has.
    private let links: PeerLinks
    private var completion: ((Result<PeerHello, AspenError>) -> Void)?
    private var frames: FrameChannel?

    init(
        peer: NetPeer, node: NodeID, time: Duration, links: PeerLinks,
        completion: @escaping (Result<PeerHello, AspenError>) -> Void
    ) {
        self.peer = peer
        self.node = node
        self.time = time
        self.links = links
        self.completion = completion
    }

    func start() {
        // The closures below keep the probe alive until it has ended.
        let box = NIOLoopBound(self, eventLoop: links.loop)
        let timer = links.loop.scheduleTask(in: .nanoseconds(time.nanoseconds)) {
            let probe = box.value
            probe.finish(.failure(probe.unreachable("no answer in \(probe.time.milliseconds) ms")))
        }
        links.transport.open(peer.endpoint) { channel in
            let frames = FrameChannel()
            frames.onFrame = { box.value.received($1, on: $0) }
            frames.onClosed = { _, _ in
                timer.cancel()
                box.value.finish(.failure(box.value.unreachable("the stream was closed")))
            }
            try channel.pipeline.syncOperations.addHandler(frames)
            box.value.greet(frames)
        }.whenFailure { error in
            timer.cancel()
            let reason = (error as? AspenError)?.message ?? "\(error)"
            box.value.finish(.failure(box.value.unreachable(reason)))
        }
    }

    private func unreachable(_ reason: String) -> AspenError {
        let place =
            peer.addresses.isEmpty
            ? "no address of it is known" : "at \(peer.addresses.joined(separator: ", "))"
        return AspenError(
            .unavailable,
            "node \(node) cannot be reached, \(place) (\(reason)); nothing was changed. Is it "
                + "running there, with this cluster's cookie and no cluster of its own, does UDP reach "
                + "it, and is its endpoint id \(peer.endpoint)? (`aspen-cli cluster endpoint` on it)",
            retry: .safe)
    }

    private func greet(_ frames: FrameChannel) {
        self.frames = frames
        var hello = links.hello(.control)
        hello.isProbe = true
        frames.send { [hello] in PeerFrame.hello(hello).write(to: &$0) }
    }

    private func received(_ frame: ByteBuffer, on channel: FrameChannel) {
        switch try? PeerFrame(decoding: frame) {
        case .hello(let hello): finish(.success(hello))
        case .refused(let code, let text):
            finish(.failure(AspenError(code, "the node refuses us: \(text)")))
        default: finish(.failure(AspenError(.unavailable, "the node does not speak our protocol")))
        }
        channel.close()
    }

    private func finish(_ result: Result<PeerHello, AspenError>) {
        guard let completion else { return }
        self.completion = nil
        frames?.close()
        frames = nil
        completion(result)
    }
}
