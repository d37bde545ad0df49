// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenMachine
import AspenTypes
import AspenWire
import Glibc
import Logging
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit
import SwiftProtobuf
import TokenCore

/// `aspend-raft` as a whole.
package enum RaftDaemon {
    package static let manual = DaemonManual(
        name: "aspend-raft", abstract: "consensus, the log and the state of a node",
        known: RaftSettings.known)

    package static func start(
        _ context: DaemonContext, _ sockets: inout ActivatedSockets, _ arguments: [String]
    ) throws -> EventLoopFuture<RunningDaemon> {
        let settings = try RaftSettings(arguments: arguments)
        let clients = sockets.take("raft.sock")
        let peers = sockets.take("raft.peer")
        guard !clients.isEmpty else {
            throw AspenError(
                .invalidArgument,
                "no socket 'raft.sock' was handed over: aspend-raft is started by systemd or "
                    + "aspen-node")
        }
        JournalLogHandler.setNode(settings.node.rawValue)
        // Recovery reads the whole log: more than the supervisor's usual patience.
        Notifier.extendTimeout(.seconds(600))
        let storage = try openStorage(settings, context)
        let loop = context.eventLoop
        let server = RaftServer(
            settings: settings, storage: storage, loop: loop, logger: context.logger,
            transport: NetTransport(
                eventLoop: loop, socketPath: settings.runtimeDirectory + "/net.sock"),
            onFatal: { error in context.fail(error.text, error.exit, event: error.event) })
        server.start()
        let listening =
            clients.map { server.listenToClients($0) } + peers.map { server.listenToPeers($0) }
        return EventLoopFuture.andAllSucceed(listening, on: loop).map {
            RunningDaemon { server.drain() }
        }
    }
}

extension RaftDaemon {
    /// As an `AspenError`, so that what a person can mend is told to whoever connects. A directory
    /// that is in use is not that: whoever holds it is about to end.
    private static func openStorage(
        _ settings: RaftSettings, _ context: DaemonContext
    ) throws -> OpenedStorage {
        do {
            return try OpenedStorage.open(settings, logger: context.logger)
        } catch let error as AspenError where error.code == .corrupt {
            throw AspenError(.corrupt, error.message + rebuilding(settings))
        } catch let error as StorageError {
            let code: AspenErrorCode =
                switch error {
                case .disk: .storage
                case .corrupt: .corrupt
                case .locked: .unavailable
                case .newerVersion: .unsupportedVersion
                }
            throw AspenError(code, error.text + (code == .corrupt ? rebuilding(settings) : ""))
        }
    }

    /// What to do about a data directory that does not mend itself.
    static func rebuilding(_ settings: RaftSettings) -> String {
        let node = settings.node
        return """
            . The node cannot mend that by itself; the others have everything. Rebuild it: on another \
            node `aspen-cli cluster remove --node-id \(node)`; here \
            `rm -r \(settings.stateDirectory)/*`, and start it again; then \
            `aspen-cli cluster add-learner --node-id \(node)` and \
            `aspen-cli cluster promote --learner-id \(node) --wait`
            """
    }

    /// What is said on the sockets when the daemon cannot start.
    package static let refusals = [
        SocketRefusal(socket: "raft.sock") { reason in
            { frame in answer(frame, reason, retry: .never) }
        },
        // A stream begins with whose it is. Peers see theirs closed; clients from elsewhere are
        // told, and may ask another node.
        SocketRefusal(socket: "raft.peer") { reason in
            let principal = FirstFrame()
            return { frame in
                if principal.isRead { return answer(frame, reason, retry: .safe) }
                principal.isRead = true
                let isClient =
                    (try? Principal(decoding: Array(buffer: frame)))?.alpn == .client
                return isClient ? .nothing : .close
            }
        },
    ]

    /// Confined to the event loop of its connection.
    private final class FirstFrame {
        var isRead = false
    }

    private static func answer(
        _ frame: ByteBuffer, _ reason: AspenError, retry: AspenError.Retry
    ) -> SocketRefusal.Answer {
        let error = AspenError(
            .unavailable, "aspend-raft on this node cannot start: \(reason.message)", retry: retry)
        guard
            let id = frame.getInteger(at: frame.readerIndex, endianness: .little, as: UInt64.self),
            let bytes: FrameBytes = try? WireResponse(error).serializedBytes()
        else { return .close }
        var content = ByteBuffer(integer: id, endianness: .little)
        content.writeImmutableBuffer(bytes.buffer)
        return .reply(content)
    }
}

extension StorageError {
    /// For the log and `systemctl status`: what happened, and what to do.
    var text: String {
        switch self {
        case .disk(let reason): "the disk failed: \(reason)"
        case .corrupt(let reason): "stored data is damaged: \(reason)"
        case .locked(let reason): "the data directory is in use: \(reason)"
        case .newerVersion(let reason): "written by a newer program: \(reason)"
        }
    }

    /// There was no room: to be mended by whoever makes some.
    var isFull: Bool { event == .diskFull }

    var event: JournalEvent? {
        switch self {
        case .disk(let reason): .ofDisk(reason)
        case .corrupt: .damageFound
        case .locked, .newerVersion: nil
        }
    }

    var exit: DaemonExit {
        switch self {
        case .disk: .ioError
        case .corrupt: .dataError
        case .locked: .unavailable
        case .newerVersion: .configuration
        }
    }
}

/// One node with its listeners. Confined to its event loop.
// SAFETY: confined to `loop`; futures and the drain closure only carry the reference.
package final class RaftServer: @unchecked Sendable {
    /// How long a stopping node waits for requests in flight.
    static let drainTimeout = TimeAmount.seconds(2)
    /// How long a stopping leader waits for its successor.
    static let transferTimeout = TimeAmount.milliseconds(1500)

    package let node: RaftNode
    let service: ClientService
    let links: PeerLinks
    private let loop: any EventLoop
    /// Looked up for the first local client: names of daemons that are not installed are looked for
    /// in every source of users that the system has, systemd's included, and that takes milliseconds.
    private lazy var access = LocalAccess()
    private let options: RaftNodeOptions
    private var listeners: [any RunningListener] = []
    /// Hold the locks of the data directory.
    private var disks: [any Disk]
    private var recording: StateRecording?

    package init(
        settings: RaftSettings, storage: OpenedStorage, loop: any EventLoop, logger: Logger,
        transport: any PeerTransport, onFatal: @escaping (StorageError) -> Void
    ) {
        self.loop = loop
        disks = storage.disks
        recording = storage.recording
        var options = settings.options
        options.raft.replica = storage.replica
        if let limits = storage.space?.limits {
            options.raft.uncommittedBytesMax = min(
                options.raft.uncommittedBytesMax, limits.uncommittedBytes)
        }
        if settings.backend == .persistent {
            options.eventFile = settings.stateDirectory + "/events"
            options.spoolDirectory = settings.stateDirectory
        }
        self.options = options
        links = PeerLinks(
            loop: loop, transport: transport,
            identity: LocalIdentity(
                cluster: storage.recovery.memberships.last?.membership.cluster,
                node: settings.node, replica: storage.replica), logger: logger)
        node = RaftNode(
            options: options,
            parts: RaftNodeParts(
                loop: loop, logger: logger, log: storage.log, state: storage.state,
                recovery: storage.recovery, seed: UInt64.random(in: 0...UInt64.max),
                space: storage.space),
            links: links, onFatal: onFatal)
        service = ClientService(node: node, links: links)
    }

    package func start() {
        node.start()
        service.loadSystemTables()
        service.sayStatus()
    }

    // MARK: - Listening

    func listenToClients(_ descriptor: CInt) -> EventLoopFuture<Void> {
        listen(descriptor) { server, channel in
            try server.acceptClient(channel)
        }
    }

    func listenToPeers(_ descriptor: CInt) -> EventLoopFuture<Void> {
        listen(descriptor) { server, channel in try server.acceptStream(channel) }
    }

    private func listen(
        _ descriptor: CInt,
        _ accept: @escaping @Sendable (RaftServer, any Channel) throws -> Void
    ) -> EventLoopFuture<Void> {
        // One that had been accepted may come when the server is gone.
        Listener.start(descriptor: descriptor, on: loop) { [weak self] channel in
            guard let self else { throw ChannelError.ioOnClosedChannel }
            try accept(self, channel)
        }.map { self.listeners.append($0) }
    }

    /// A local client.
    package func acceptClient(_ channel: any Channel) throws {
        let frames = FrameChannel()
        try channel.pipeline.syncOperations.addHandler(frames)
        service.accept(
            frames, permission: access.permission(of: frames.peer), denial: Self.localDenial)
    }

    /// A stream that net hands over: whose it is stands in its first frame.
    package func acceptStream(_ channel: any Channel) throws {
        let frames = FrameChannel()
        frames.onFrame = { [weak self] frames, frame in
            guard let self else { return frames.close() }
            route(frames, frame)
        }
        try channel.pipeline.syncOperations.addHandler(frames)
    }

    private func route(_ frames: FrameChannel, _ frame: ByteBuffer) {
        guard let principal = try? Principal(decoding: Array(buffer: frame)) else {
            service.clientIsWrong("a stream without a principal")
            return frames.close()
        }
        switch principal.alpn {
        case .raft:
            try? frames.channel?.syncOptions?.setOption(
                .writeBufferWaterMark,
                value: ChannelOptions.Types.WriteBufferWaterMark(
                    low: OutgoingLane.controlBytesMax / 2, high: OutgoingLane.controlBytesMax))
            links.accept(frames, principal)
        case .client:
            acceptRemote(frames, principal)
        default:
            service.clientIsWrong("a stream of \(principal.alpn.rawValue)")
            frames.close()
        }
    }

    /// A client on another machine. aspend-net has looked at its token; nothing of that is believed.
    private func acceptRemote(_ frames: FrameChannel, _ principal: Principal) {
        guard !principal.tokenChain.isEmpty else {
            // Without tokens, being able to reach the node is being its administrator: net is bound
            // to loopback only then.
            let permission: Permission = options.areTokensRequired ? .none : .admin
            return service.accept(frames, permission: permission, denial: Self.remoteDenial)
        }
        let chain = try? TokenChain(decoding: principal.tokenChain)
        service.accept(
            frames, permission: .none, denial: Self.damagedToken,
            bearer: chain.map { TokenBearer(client: principal.endpoint, chain: $0) })
    }

    private static let damagedToken = AspenError(
        .unauthenticated, "the token is damaged: copy it again")

    private static let localDenial = AspenError(
        .permissionDenied,
        "your user may not use this socket: be a member of the group aspen, or of aspen-admin to "
            + "administer")
    private static let remoteDenial = AspenError(
        .unauthenticated,
        "this cluster wants a token from clients on other machines: ask an administrator for one for "
            + "your client key (`aspen-token client-key` prints it), and set ASPEN_TOKEN")

    // MARK: - Stopping

    /// Answers what is in flight, hands leadership over, makes the state durable.
    package func drain() -> EventLoopFuture<Void> {
        for listener in listeners { listener.close() }
        let answered = service.drain()
        let timer = loop.scheduleTask(in: Self.drainTimeout) { [self] in service.giveUpDrain() }
        let handedOver = loop.makePromise(of: Void.self)
        // The net may have gone first. The sooner the next process is there, the better.
        let watch = loop.scheduleRepeatedTask(initialDelay: .zero, delay: .milliseconds(20)) {
            [self] _ in
            guard isCutOff else { return }
            service.giveUpDrain()
            handedOver.succeed()
        }
        answered.whenSuccess { [self] in handOver(handedOver) }
        return handedOver.futureResult.map { [self] in
            timer.cancel()
            watch.cancel()
            close()
        }
    }

    /// No quorum can be reached: nothing is answered any more, and there is nobody to hand over to.
    private var isCutOff: Bool {
        guard let voters = node.membership?.voters else { return false }
        return voters.filter { links.isReachable($0) }.count < voters.count / 2 + 1
    }

    private func handOver(_ done: EventLoopPromise<Void>) {
        let status = node.core.peerStatus(now: RaftNode.now).filter {
            $0.isVoter && links.isReachable($0.node)
        }
        guard let best = status.max(by: { $0.match < $1.match }) else { return done.succeed() }
        service.onStandingChange = { standing in
            guard standing.leader != nil, standing.role != .leader else { return }
            done.succeed()
        }
        loop.scheduleTask(in: Self.transferTimeout) { done.succeed() }
        node.step(.transferLeadership(to: best.node))
    }

    /// Without any ceremony; for tests.
    package func stop() {
        for listener in listeners { listener.close() }
        close()
    }

    private func close() {
        service.closeConnections()
        node.stop()
        disks.removeAll()
        recording = nil
    }
}
