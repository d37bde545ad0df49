// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import Glibc
import NIOCore
import NIOPosix
import NetClient
import Synchronization

@testable import RaftService

/// What `aspend-net` does between nodes, within one process: streams are socket pairs, and whoever
/// opens one is announced by a `Principal`.
final class FakeNetwork: Sendable {
    struct Place: Sendable {
        let node: NodeID
        let endpoint: EndpointID
        let loop: any EventLoop
        let accept: @Sendable (any Channel) throws -> Void
        let post: @Sendable (TransportEvent) -> Void
    }

    private struct State {
        var places: [EndpointID: Place] = [:]
        var cut: Set<Set<EndpointID>> = []
        var channels: [(pair: Set<EndpointID>, channel: any Channel)] = []
        /// Whom each node's net lets in; not there: everybody.
        var allowed: [EndpointID: Set<EndpointID>] = [:]
        /// Who belongs to the cluster, as each node's raft daemon says.
        var members: [EndpointID: [NetMember]] = [:]
    }

    private let state = Mutex(State())

    static func endpoint(_ node: NodeID) -> EndpointID {
        let bytes = (0..<32).map { UInt8($0) ^ UInt8(truncatingIfNeeded: node.rawValue) }
        guard let endpoint = EndpointID(bytes: bytes) else { preconditionFailure("32 bytes") }
        return endpoint
    }

    func add(_ place: Place) {
        let others = state.withLock { state in
            let others = Array(state.places.values)
            state.places[place.endpoint] = place
            return others
        }
        for other in others {
            other.post(.net(.peerUp(place.endpoint)))
            place.post(.net(.peerUp(other.endpoint)))
        }
    }

    /// The node's daemon is dead; its streams break and everybody is told.
    func remove(_ node: NodeID) {
        let endpoint = Self.endpoint(node)
        let (others, channels) = state.withLock { state in
            state.places[endpoint] = nil
            state.allowed[endpoint] = nil
            let gone = state.channels.filter { $0.pair.contains(endpoint) }.map(\.channel)
            state.channels.removeAll { $0.pair.contains(endpoint) }
            return (Array(state.places.values), gone)
        }
        for other in others { other.post(.net(.serviceGone(endpoint, .raft))) }
        for channel in channels { channel.close(promise: nil) }
    }

    func tell(_ members: [NetMember], at endpoint: EndpointID) {
        state.withLock { $0.members[endpoint] = members }
    }

    /// The numbers of the members that `node` has told its net; nil: it has told nothing.
    func members(at node: NodeID) -> [UInt64]? {
        state.withLock { $0.members[Self.endpoint(node)]?.map(\.node.rawValue).sorted() }
    }

    func cut(_ one: NodeID, _ other: NodeID) {
        let pair: Set = [Self.endpoint(one), Self.endpoint(other)]
        let channels = state.withLock { state in
            state.cut.insert(pair)
            let gone = state.channels.filter { $0.pair == pair }.map(\.channel)
            state.channels.removeAll { $0.pair == pair }
            return gone
        }
        for channel in channels { channel.close(promise: nil) }
    }

    /// As net does: streams to and from others end, and no new ones come about.
    func allow(_ peers: [EndpointID]?, at own: EndpointID) {
        let channels = state.withLock { state in
            state.allowed[own] = peers.map { Set($0) }
            guard let peers else { return [any Channel]() }
            func isForbidden(_ pair: Set<EndpointID>) -> Bool {
                pair.contains(own) && !pair.contains { peers.contains($0) && $0 != own }
            }
            let gone = state.channels.filter { isForbidden($0.pair) }.map(\.channel)
            state.channels.removeAll { isForbidden($0.pair) }
            return gone
        }
        for channel in channels { channel.close(promise: nil) }
    }

    func mend(_ one: NodeID, _ other: NodeID) {
        let pair: Set = [Self.endpoint(one), Self.endpoint(other)]
        state.withLock { _ = $0.cut.remove(pair) }
    }

    func open(
        from own: EndpointID, to endpoint: EndpointID, on loop: any EventLoop,
        initialize: @escaping @Sendable (any Channel) throws -> Void
    ) -> EventLoopFuture<any Channel> {
        let pair: Set = [own, endpoint]
        let place = state.withLock { state in
            let isAllowed = [(own, endpoint), (endpoint, own)].allSatisfy { here, there in
                state.allowed[here]?.contains(there) ?? true
            }
            return state.cut.contains(pair) || !isAllowed ? nil : state.places[endpoint]
        }
        guard let place else {
            return loop.makeFailedFuture(
                AspenError(.unavailable, "no such peer at this moment", retry: .safe))
        }
        var descriptors: [CInt] = [-1, -1]
        precondition(
            socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &descriptors) == 0)
        announce(own, on: descriptors[0])
        let far = descriptors[1]
        ClientBootstrap(group: place.loop)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture { try place.accept(channel) }
            }
            .withConnectedSocket(far)
            .whenSuccess { [self] channel in
                state.withLock { $0.channels.append((pair, channel)) }
            }
        return ClientBootstrap(group: loop).withConnectedSocket(descriptors[0])
            .flatMapThrowing { [self] channel in
                try initialize(channel)
                state.withLock { $0.channels.append((pair, channel)) }
                return channel
            }
    }

    private func announce(_ own: EndpointID, on descriptor: CInt) {
        let principal = Principal(
            endpoint: own, alpn: .raft, hasProvedCookie: true, remoteAddress: "test"
        ).encoded()
        var bytes = withUnsafeBytes(of: UInt32(principal.count).littleEndian) { Array($0) }
        bytes += principal
        precondition(write(descriptor, bytes, bytes.count) == bytes.count)
    }
}

/// One node's view of the network.
final class FakeTransport: PeerTransport {
    var onEvent: (TransportEvent) -> Void = { _ in }
    private let network: FakeNetwork
    private let loop: any EventLoop
    private let node: NodeID
    private let peers: [NodeID]

    init(_ network: FakeNetwork, node: NodeID, peers: [NodeID], loop: any EventLoop) {
        self.network = network
        self.node = node
        self.peers = peers
        self.loop = loop
    }

    func start() {
        let configured = peers.map {
            ConfiguredPeer(
                node: $0,
                peer: NetPeer(endpoint: FakeNetwork.endpoint($0), addresses: ["127.0.0.1:\($0)"]))
        }
        onEvent(
            .connected(
                NetIdentity(
                    endpoint: FakeNetwork.endpoint(node), addresses: ["127.0.0.1:\(node)"],
                    configuredPeers: configured)))
    }

    func setPeers(_ peers: [NetPeer], isClosed: Bool) {
        network.allow(isClosed ? peers.map(\.endpoint) : nil, at: FakeNetwork.endpoint(node))
    }

    func setMembers(_ members: [NetMember]) {
        network.tell(members, at: FakeNetwork.endpoint(node))
    }

    func open(
        _ endpoint: EndpointID, initialize: @escaping @Sendable (any Channel) throws -> Void
    ) -> EventLoopFuture<any Channel> {
        network.open(
            from: FakeNetwork.endpoint(node), to: endpoint, on: loop, initialize: initialize)
    }

    func stop() {}
}
