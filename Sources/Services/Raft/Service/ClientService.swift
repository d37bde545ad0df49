// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import Logging
import NIOCore
import ProposalCore
import RaftCore
import ServiceKit
import SwiftProtobuf

/// Serves clients: takes requests apart, follows each through the log or a read round, and answers.
/// Confined to the event loop; no request has a task or a timer of its own.
// SAFETY: confined to the event loop; closures for other threads only carry the reference.
final class ClientService: @unchecked Sendable {
    /// What a request gets that names no timeout.
    static let defaultTimeout = Duration.seconds(10)
    /// Longest timeout taken seriously.
    static let timeoutMax = Duration.seconds(3600)
    /// How exactly deadlines are kept, and how often what waits for a leader asks again.
    static let sweepInterval = TimeAmount.milliseconds(20)
    /// How long a connection has been silent that may be closed for another one.
    static let silenceMin = Duration.seconds(10)

    let node: RaftNode
    let links: PeerLinks
    let logger: Logger
    let options: RaftNodeOptions

    // Writes: see ClientService+Writes.
    var proposals: ProposalTable
    var proposalEffects: [ProposalEffect] = []
    var isObeyingProposals = false
    /// What the answer of each write needs, by the place in its id.
    var writes: [PendingWrite?] = []
    var admission = AnswerAdmission()

    // Reads: see ClientService+Reads.
    var rounds: [UInt64: [PendingRead]] = [:]
    var executing: [UInt64: [PendingRead]] = [:]
    var waitingReads: [PendingRead] = []
    /// Of clients that have answers to read, by their sinks.
    var held: [ObjectIdentifier: [PendingRead]] = [:]
    var readCount = 0
    /// When each round of `rounds` was asked for at the earliest.
    var roundsBegan: [UInt64: MonotonicInstant] = [:]
    /// The state here is not older than this: a round that began then has been waited for.
    var freshness = ReadFreshness()
    var nextLocalRound: UInt64 = 1 << 63

    /// A backup that is being restored.
    var restoring: RestoreIntake?
    /// Backups that are being sent.
    var backupCount = 0
    let watches: WatchHub

    private var isSweeping = false
    private var connections: [ObjectIdentifier: ClientConnection] = [:]
    /// Of all connections: see `ClientConnection.requestBytesMax`.
    var requestBytes = 0
    var unreadBytes = 0
    private var complaints = LogLimiter(burst: 3)
    private var isDraining = false
    private var drained: EventLoopPromise<Void>?
    var statusText = ""
    var isStatusScheduled = false
    var housekeeping = Housekeeping()
    // Joining: see ClientService+Joining.
    var joining = Joining()
    /// Nil until the state has been asked.
    var roster: JoinRoster?
    // Tokens: see ClientService+Tokens.
    var trust: TokenTrust?
    var trustGeneration: UInt64 = 0
    var isSweepingTokens = false
    /// For whoever waits for a successor.
    var onStandingChange: (RaftStanding) -> Void = { _ in }

    init(node: RaftNode, links: PeerLinks) {
        self.node = node
        self.links = links
        logger = node.logger
        options = node.options
        watches = WatchHub(node: node)
        proposals = ProposalTable(
            Self.proposalConfiguration, appliedTerm: node.applied.term)
        node.client = self
    }

    var isLeader: Bool { node.standing.leader == options.raft.node }

    func deadline(milliseconds: UInt32) -> MonotonicInstant {
        let wanted =
            milliseconds == 0 ? Self.defaultTimeout : .milliseconds(Int64(milliseconds))
        return RaftNode.now + min(wanted, Self.timeoutMax)
    }

    // MARK: - Connections

    /// Serves a client on `frames`. Beyond `Limits.connectionsMax` it is refused, or takes the place of
    /// one that has been silent for long.
    func accept(
        _ frames: FrameChannel, permission: Permission, denial: AspenError,
        bearer: TokenBearer? = nil
    ) {
        if connections.count >= Limits.connectionsMax { closeMostSilent() }
        guard connections.count < Limits.connectionsMax, !isDraining else {
            if !isDraining { clientIsWrong("more than \(Limits.connectionsMax) connections") }
            return refuse(frames, isDraining ? Self.isStopping : Self.tooManyConnections)
        }
        let connection = ClientConnection(
            frames, permission: permission, denial: denial, bearer: bearer, service: self)
        connections[ObjectIdentifier(connection)] = connection
        connection.start()
        if bearer != nil { sweepTokens() }
    }

    /// Under the id 0, which is no request's.
    /// - Parameter turns: of the loop, for which a channel that is still in the making is waited for: it
    ///   would throw away what is sent before.
    private func refuse(_ frames: FrameChannel, _ error: AspenError, turns: Int = 100) {
        if turns > 0, let channel = frames.channel, !channel.isActive {
            let box = NIOLoopBound((self, frames), eventLoop: node.loop)
            return node.loop.execute {
                box.value.0.refuse(box.value.1, error, turns: turns - 1)
            }
        }
        let bytes: [UInt8] = (try? WireResponse(error).serializedBytes()) ?? []
        frames.send { buffer in
            buffer.writeInteger(UInt64(0), endianness: .little)
            buffer.writeBytes(bytes)
        }
        frames.close()
    }

    private static let tooManyConnections = AspenError(
        .resourceExhausted,
        "this node has all \(Limits.connectionsMax) connections that it may have: close some, ask "
            + "another node, or wait for one of them to be silent for "
            + "\(silenceMin.components.seconds) s", retry: .safe)

    static let isStopping = AspenError(
        .unavailable, "this node is stopping: ask another", retry: .safe)

    /// Who has nothing under way and has asked for nothing lately loses nothing but a connection: a
    /// client makes another one when it needs it. Those who hold connections and say nothing would keep
    /// everybody out otherwise.
    private func closeMostSilent() {
        let silent = connections.values.filter(\.isIdle).min { $0.heardAt < $1.heardAt }
        guard let silent, RaftNode.now - silent.heardAt >= Self.silenceMin else { return }
        clientIsWrong("a connection that says nothing makes room for another one")
        silent.cutOff()
    }

    /// Answers that clients have not read are bounded for all of them together: who has most of them,
    /// and for the longest time, goes.
    func boundUnread() {
        guard unreadBytes > ClientConnection.unreadBytesMax else { return }
        let now = RaftNode.now
        connections.values.max { $0.unreadWeight(now) < $1.unreadWeight(now) }?.cutOff()
    }

    var connectionCount: Int { connections.count }

    func ended(_ connection: ClientConnection) {
        connections[ObjectIdentifier(connection)] = nil
    }

    /// Clients with tokens.
    var bearers: [(ClientConnection, TokenBearer)] {
        connections.values.compactMap { connection in connection.bearer.map { (connection, $0) } }
    }

    func closeConnections() { for connection in connections.values { connection.close() } }

    func clientIsWrong(_ reason: String) {
        complaints.record {
            logger.warning("refused a client", metadata: ["reason": "\(reason)"].merging($0) { $1 })
        }
    }

    // MARK: - Requests

    func handle(
        _ request: WireRequest, _ origin: RequestOrigin, permission: Permission,
        denial: AspenError, bearer: TokenBearer? = nil
    ) {
        guard let named = request.request else {
            return origin.fail(
                AspenError(
                    .invalidArgument,
                    "the request names nothing to do, or something this version does not know"))
        }
        if let bearer, !origin.isTrustCurrent, isTrustInDoubt(for: bearer) {
            return whenTrustIsCurrent(origin, bearer) { [self] judged in
                handle(request, judged, permission: permission, denial: denial, bearer: bearer)
            }
        }
        let rule = Self.requestTable[named.row]
        node.metrics.asked(row: named.row)
        if let refusal = refusal(of: named, rule, permission, denial, bearer) {
            return origin.fail(refusal)
        }
        var body = named
        if let veil = bearer?.veil {
            var translated = request
            translated.unveil(veil)
            body = translated.request ?? named
        }
        if isDraining {
            return origin.fail(Self.isStopping)
        }
        if case .leaveCluster(var leave) = body, leave.nodeID == 0 {
            // Whoever carries it out must know who was asked.
            leave.nodeID = options.raft.node.rawValue
            var named = request
            named.leaveCluster = leave
            return handle(
                named, origin, permission: permission, denial: denial, bearer: bearer)
        }
        if hasLeft, !isAnsweredAlone(body) { return origin.fail(Self.hasLeftCluster) }
        if rule.isForLeader, !isLeader {
            return passToLeader(request, origin)
        }
        rule.handler(self, body, origin)
    }

    /// A request that another node passes on, or its question how we are.
    func peerAsked(_ bytes: [UInt8], id: UInt64, on channel: FrameChannel) {
        guard let request = try? WireRequest(serializedBytes: bytes) else {
            return channel.close()
        }
        let origin = RequestOrigin(
            sink: PeerSink(channel), id: id, deadline: deadline(milliseconds: request.timeoutMs),
            isFromPeer: true)
        switch request.request {
        case .getNodeInfo, .getHealth, .addLearner, .changeMembership, .promoteLearner,
            .leaveCluster,
            .transferLeadership, .why:
            break
        default:
            return origin.fail(AspenError(.permissionDenied, "peers do not ask that of each other"))
        }
        handle(
            request, origin, permission: .admin,
            denial: AspenError(.permissionDenied, "peers only"))
    }

    /// Administrative requests are carried out by the leader.
    private func passToLeader(_ request: WireRequest, _ origin: RequestOrigin) {
        if origin.isFromPeer {
            return origin.fail(
                AspenError(.unavailable, "this node leads no more", retry: .safe))
        }
        guard node.membership != nil else { return origin.fail(outsideCluster) }
        let now = RaftNode.now
        guard now < origin.deadline else { return origin.fail(Self.noLeader) }
        if isLeader {
            guard let body = request.request else { return }
            return Self.requestTable[body.row].handler(self, body, origin)
        }
        let remaining = origin.deadline - now
        var passed = request
        passed.timeoutMs = UInt32(clamping: max(1, remaining.milliseconds))
        guard let leader = node.standing.leader,
            let bytes: [UInt8] = try? passed.serializedBytes()
        else { return retryPassing(request, origin) }
        let timeout = TimeAmount.nanoseconds(remaining.nanoseconds)
        links.request(bytes, to: leader, timeout: timeout) { [self] answer in
            guard let answer, let response = try? WireResponse(serializedBytes: answer) else {
                // These requests may be repeated: what is already so is not done again.
                return retryPassing(request, origin)
            }
            if let failure = response.failure, failure.code == .unavailable,
                failure.retry == .safe
            {
                return retryPassing(request, origin)
            }
            origin.reply(response)
        }
    }

    private func retryPassing(_ request: WireRequest, _ origin: RequestOrigin) {
        let box = NIOLoopBound((self, origin), eventLoop: node.loop)
        node.loop.scheduleTask(in: .milliseconds(50)) {
            box.value.0.passToLeader(request, box.value.1)
        }
    }

    static let notInitialized = AspenError(
        .notInitialized,
        "this node belongs to no cluster yet: run `aspen-cli cluster init` on the first node, or "
            + "`aspen-cli cluster add-learner` on a member")

    static let isRebuilt = AspenError(
        .unavailable,
        "this node has lost its state, and its log begins too late to make it again: it waits for a "
            + "leader of its cluster to fill it. Are a majority of the other voters up? If it was "
            + "the only one, restore its data directory from a copy; state/state.db.set-aside is "
            + "what was found", retry: .safe)

    /// Why a node without a membership does nothing for clients.
    var outsideCluster: AspenError { node.isRebuilt ? Self.isRebuilt : Self.notInitialized }

    static let noLeader = AspenError(
        .unavailable,
        "no leader could be reached in time; nothing was carried out: are a majority of the nodes "
            + "up? (`aspen-cli cluster status`)", retry: .safe)

    // MARK: - Deadlines

    /// Looks at what waits every `sweepInterval`, as long as anything does.
    func armSweep() {
        guard !isSweeping else { return }
        isSweeping = true
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.loop.scheduleTask(in: Self.sweepInterval) {
            box.value.isSweeping = false
            box.value.sweep()
        }
    }

    private func sweep() {
        let now = RaftNode.now
        sweepWrites(now)
        sweepReads(now)
        if writeCount > 0 || readCount > 0 { armSweep() } else { finishDrain() }
    }

    // MARK: - Drain

    /// Refuses new requests; succeeds when those in flight are answered.
    func drain() -> EventLoopFuture<Void> {
        isDraining = true
        let promise = node.loop.makePromise(of: Void.self)
        drained = promise
        if writeCount == 0, readCount == 0 { finishDrain() } else { armSweep() }
        return promise.futureResult
    }

    func giveUpDrain() { finishDrain() }

    private func finishDrain() {
        let promise = drained
        drained = nil
        promise?.succeed()
    }
}

/// The way back to a peer that passed a request on.
private final class PeerSink: ReplySink {
    private let channel: FrameChannel
    init(_ channel: FrameChannel) { self.channel = channel }

    func part(_ response: WireResponse, to id: UInt64) {}
    var isOpen: Bool { true }
    var isWritable: Bool { true }

    func reply(_ response: WireResponse, to id: UInt64, bytes counted: Int) {
        guard let bytes: [UInt8] = try? response.serializedBytes() else { return }
        channel.send { PeerFrame.response(id: id, bytes).write(to: &$0) }
    }
}

// MARK: - What the node tells

extension ClientService: RaftNodeClient {
    func answered(_ round: UInt64, _ answers: [StateAnswer]) { finishReads(round, answers) }

    func standingChanged(_ standing: RaftStanding) {
        updateStatus()
        scheduleHousekeeping()
        scheduleJoining()
        onStandingChange(standing)
        guard standing.leader != nil else { return }
        proposeWaiting()
        readWaiting()
    }
}
