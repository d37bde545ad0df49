// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import Dispatch
import FoundationEssentials
import Glibc
import Logging
import NIOCore
import NIOPosix
import RaftCore
import RaftStorage
import ServiceKit
import SwiftProtobuf
import Synchronization
import Testing

@testable import RaftService

/// A client of one node over a socket pair, as a local program would be.
final class TestClient: Sendable {
    private struct State {
        var next: UInt64 = 1
        var waiting: [UInt64: EventLoopPromise<WireResponse>] = [:]
        var streams: [UInt64: @Sendable (WireResponse) -> Void] = [:]
        var isClosed = false
    }

    let channel: any Channel
    private let frames: NIOLoopBound<FrameChannel>
    private let state: NIOLoopBoundBox<State>
    let closed: EventLoopFuture<Void>

    static func connect(
        on loop: any EventLoop, accept: @escaping @Sendable (any Channel) throws -> Void,
        serverLoop: any EventLoop
    ) async throws -> TestClient {
        var descriptors: [CInt] = [-1, -1]
        try #require(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &descriptors) == 0)
        _ = try await ClientBootstrap(group: serverLoop)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture { try accept(channel) }
            }
            .withConnectedSocket(descriptors[1]).get()
        let channel = try await ClientBootstrap(group: loop).withConnectedSocket(descriptors[0])
            .get()
        return try await loop.submit { try TestClient(channel) }.get()
    }

    private init(_ channel: any Channel) throws {
        self.channel = channel
        let frames = FrameChannel()
        self.frames = NIOLoopBound(frames, eventLoop: channel.eventLoop)
        let state = NIOLoopBoundBox(State(), eventLoop: channel.eventLoop)
        self.state = state
        closed = channel.closeFuture
        frames.onFrame = { _, frame in
            var frame = frame
            guard let id = frame.readInteger(endianness: .little, as: UInt64.self),
                let response = try? WireResponse(serializedBytes: Array(buffer: frame))
            else { return }
            if let stream = state.value.streams[id] { return stream(response) }
            state.value.waiting.removeValue(forKey: id)?.succeed(response)
        }
        frames.onClosed = { _, _ in
            state.value.isClosed = true
            for promise in state.value.waiting.values { promise.fail(ChannelError.eof) }
            state.value.waiting.removeAll()
        }
        try channel.pipeline.syncOperations.addHandler(frames)
    }

    func send(
        _ request: WireRequest.OneOf_Request, timeoutMs: UInt32 = 0
    ) -> EventLoopFuture<WireResponse> {
        let promise = channel.eventLoop.makePromise(of: WireResponse.self)
        channel.eventLoop.execute { [frames, state] in
            guard !state.value.isClosed else { return promise.fail(ChannelError.eof) }
            let id = state.value.next
            state.value.next += 1
            state.value.waiting[id] = promise
            var message = WireRequest()
            message.timeoutMs = timeoutMs
            message.request = request
            let bytes: [UInt8] = (try? message.serializedBytes()) ?? []
            frames.value.send {
                $0.writeInteger(id, endianness: .little)
                $0.writeBytes(bytes)
            }
        }
        return promise.futureResult
    }

    /// The first frame of a stream that comes from another machine.
    func introduce(_ principal: Principal) {
        channel.eventLoop.execute { [frames] in
            frames.value.send { $0.writeBytes(principal.encoded()) }
        }
    }

    /// A request with several answers, up to the one that `isLast` says is the last.
    func stream(
        _ request: WireRequest.OneOf_Request,
        until isLast: @escaping @Sendable (WireResponse) -> Bool
    ) async throws -> [WireResponse] {
        let promise = channel.eventLoop.makePromise(of: [WireResponse].self)
        let parts = NIOLoopBoundBox.makeBoxSendingValue(
            [WireResponse](), eventLoop: channel.eventLoop)
        _ = try await follow(request) { response in
            parts.value.append(response)
            if isLast(response) { promise.succeed(parts.value) }
        }
        return try await promise.futureResult.get()
    }

    /// A request that is answered by many messages.
    /// - Returns: its id.
    func follow(
        _ request: WireRequest.OneOf_Request, _ each: @escaping @Sendable (WireResponse) -> Void
    ) async throws -> UInt64 {
        try await channel.eventLoop.submit { [frames, state] in
            let id = state.value.next
            state.value.next += 1
            state.value.streams[id] = each
            var message = WireRequest()
            message.request = request
            let bytes: [UInt8] = try message.serializedBytes()
            frames.value.send {
                $0.writeInteger(id, endianness: .little)
                $0.writeBytes(bytes)
            }
            return id
        }.get()
    }

    /// Takes no more bytes, as a program that hangs.
    func setReading(_ isOn: Bool) async throws {
        try await channel.setOption(.autoRead, value: isOn).get()
        if isOn { channel.read() }
    }

    func ask(
        _ request: WireRequest.OneOf_Request, timeoutMs: UInt32 = 0
    ) async throws -> WireResponse {
        try await send(request, timeoutMs: timeoutMs).get()
    }

    func put(
        _ key: String, _ value: [UInt8], session: Aspen_Client_V1_SessionRequest? = nil
    ) -> EventLoopFuture<WireResponse> {
        var body = Aspen_Client_V1_WriteKeyRequest()
        body.key = Data(key.utf8)
        body.value = Data(value)
        if let session { body.session = session }
        return send(.writeKey(body))
    }

    func delete(_ key: String) async throws -> WireResponse {
        var body = Aspen_Client_V1_DeleteKeyRequest()
        body.key = Data(key.utf8)
        return try await ask(.deleteKey(body))
    }

    func addLearner(_ node: UInt64) async throws -> WireResponse {
        var body = Aspen_Client_V1_AddLearnerRequest()
        body.nodeID = node
        return try await ask(.addLearner(body))
    }

    func nodeInfo() async throws -> Aspen_Client_V1_GetNodeInfoResponse {
        try await ask(.getNodeInfo(.init())).getNodeInfo
    }

    /// Once the node has applied that much; see the time limit of the test.
    func nodeInfo(applied index: UInt64) async throws -> Aspen_Client_V1_GetNodeInfoResponse {
        while true {
            let info = try await nodeInfo()
            if info.node.applied >= index { return info }
        }
    }

    func get(
        _ key: String, revision: UInt64 = 0, stale: Bool = false
    ) async throws -> WireResponse {
        var body = Aspen_Client_V1_ReadKeyRequest()
        body.key = Data(key.utf8)
        body.revision = revision
        body.consistency = stale ? .stale : .linearizable
        return try await ask(.readKey(body))
    }
}

/// Nodes in one process, each on an event loop of its own, over a `FakeNetwork`.
final class TestCluster: Sendable {
    final class Running: Sendable {
        let id: NodeID
        let loop: any EventLoop
        let server: RaftServer
        let fatal = Mutex<StorageError?>(nil)

        init(_ id: NodeID, _ loop: any EventLoop, _ server: RaftServer) {
            self.id = id
            self.loop = loop
            self.server = server
        }

        /// The state's thread does nothing meanwhile: nothing is applied, no snapshot taken in.
        func whileStateStandsStill(_ body: () async throws -> Void) async throws {
            let gate = DispatchSemaphore(value: 0)
            defer { gate.signal() }
            try await loop.submit { [server] in
                server.node.state.perform { _ in
                    gate.wait()
                    return {}
                }
            }.get()
            try await body()
        }
    }

    let group = MultiThreadedEventLoopGroup(numberOfThreads: 4)
    let network = FakeNetwork()
    let ids: [NodeID]
    private let nodes = Mutex<[NodeID: Running]>([:])

    init(_ count: Int) { ids = (1...count).map { NodeID(UInt64($0)) } }

    static func settings(_ node: NodeID, directory: String?) throws -> RaftSettings {
        var arguments = [
            "--node-id", "\(node)", "--heartbeat-interval-ms", "100",
            "--election-timeout-min-ms", "300", "--election-timeout-max-ms", "600",
            "--tokens-required", "false",
        ]
        if let directory {
            arguments += ["--state-dir", "\(directory)/\(node)"]
        } else {
            arguments += ["--storage-backend", "inmemory"]
        }
        return try RaftSettings(arguments: arguments)
    }

    /// Starts a node; with `storage` on that, else in memory.
    @discardableResult
    func start(
        _ id: NodeID, storage: (@Sendable (RaftSettings) throws -> OpenedStorage)? = nil,
        adjust: @escaping @Sendable (inout RaftSettings) -> Void = { _ in },
        onFatal: (@Sendable (StorageError) -> Void)? = nil
    ) async throws -> Running {
        let loop = group.next()
        let others = ids.filter { $0 != id }
        let network = network
        let running = try await loop.submit {
            var settings = try Self.settings(id, directory: nil)
            adjust(&settings)
            let opened = try storage?(settings) ?? OpenedStorage.inMemory()
            var logger = Logger(label: "node-\(id)")
            logger.logLevel =
                Environment["ASPEN_TEST_LOG"].flatMap { Logger.Level(rawValue: $0) } ?? .critical
            logger[metadataKey: "node"] = "\(id)"
            let transport = FakeTransport(network, node: id, peers: others, loop: loop)
            let server = RaftServer(
                settings: settings, storage: opened, loop: loop, logger: logger,
                transport: transport,
                onFatal: { error in
                    if let onFatal { return onFatal(error) }
                    Issue.record("node \(id) stopped: \(error)")
                })
            server.start()
            let box = NIOLoopBound(transport, eventLoop: loop)
            network.add(
                FakeNetwork.Place(
                    node: id, endpoint: FakeNetwork.endpoint(id), loop: loop,
                    accept: { try server.acceptStream($0) },
                    post: { event in loop.execute { box.value.onEvent(event) } }))
            return Running(id, loop, server)
        }.get()
        nodes.withLock { $0[id] = running }
        return running
    }

    func running(_ id: NodeID) throws -> Running {
        try #require(nodes.withLock { $0[id] })
    }

    func client(of id: NodeID) async throws -> TestClient {
        let node = try running(id)
        let server = node.server
        return try await TestClient.connect(
            on: group.next(), accept: { try server.acceptClient($0) }, serverLoop: node.loop)
    }

    /// A client on another machine, as aspend-net hands it over.
    func remoteClient(
        of id: NodeID, endpoint: EndpointID, token: [UInt8]
    ) async throws -> TestClient {
        let node = try running(id)
        let server = node.server
        let client = try await TestClient.connect(
            on: group.next(), accept: { try server.acceptStream($0) }, serverLoop: node.loop)
        client.introduce(
            Principal(
                endpoint: endpoint, alpn: .client, hasProvedCookie: false, tokenChain: token,
                remoteAddress: "192.0.2.7:1"))
        return client
    }

    /// As `kill -9` of its daemon would.
    func kill(_ id: NodeID) async throws {
        let node = try running(id)
        network.remove(id)
        nodes.withLock { $0[id] = nil }
        try await node.loop.submit { node.server.stop() }.get()
    }

    /// All nodes up, the first one founding the cluster, the others joined as voters.
    func form() async throws {
        for id in ids { try await start(id) }
        try await found()
    }

    func found() async throws {
        let client = try await client(of: ids[0])
        let founded = try await client.ask(.initCluster(Aspen_Client_V1_InitClusterRequest()))
        try #require(founded.failure == nil, "\(founded)")
        for id in ids.dropFirst() {
            let added = try await client.addLearner(id.rawValue)
            try #require(added.failure == nil, "\(added)")
        }
        guard ids.count > 1 else { return }
        var body = Aspen_Client_V1_ChangeMembershipRequest()
        body.voters = ids.map(\.rawValue)
        let changed = try await client.ask(.changeMembership(body))
        try #require(changed.failure == nil, "\(changed)")
        for id in ids { try await hasHeardOfAll(id) }
    }

    /// A quorum has agreed; the others hear of the voters, and link up, a little later.
    private func hasHeardOfAll(_ id: NodeID) async throws {
        let client = try await client(of: id)
        while true {
            let answer = try await client.ask(.getClusterStatus(.init())).getClusterStatus
            if answer.nodes.count == ids.count,
                answer.nodes.allSatisfy({ $0.reachable && $0.isVoter })
            {
                break
            }
        }
        try await client.channel.close().get()
    }

    func leader() async throws -> NodeID {
        for node in nodes.withLock({ Array($0.values) }) {
            let leader = try await node.loop.submit { node.server.node.standing.leader }.get()
            if let leader, nodes.withLock({ $0[leader] != nil }) { return leader }
        }
        throw AspenError(.unavailable, "no leader")
    }

    func stop() async throws {
        for node in nodes.withLock({ Array($0.values) }) {
            try await node.loop.submit { node.server.stop() }.get()
        }
        try await group.shutdownGracefully()
    }
}

/// One end of a socket pair whose other end a server has accepted; without framing.
enum RawConnection {
    static func open(
        on loop: any EventLoop, serverLoop: any EventLoop,
        accept: @escaping @Sendable (any Channel) throws -> Void
    ) async throws -> any Channel {
        var descriptors: [CInt] = [-1, -1]
        try #require(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &descriptors) == 0)
        _ = try await ClientBootstrap(group: serverLoop)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture { try accept(channel) }
            }
            .withConnectedSocket(descriptors[1]).get()
        return try await ClientBootstrap(group: loop).withConnectedSocket(descriptors[0]).get()
    }
}
