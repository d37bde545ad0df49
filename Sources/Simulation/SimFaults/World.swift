// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimKit
import WatchCore

/// A cluster, its clients and its bad luck, in virtual time. Everything that happens is an event on
/// one heap; one seed gives one run, byte for byte.
///
/// A run has three parts: the cluster is founded in peace; then for a number of events there is
/// trouble; then all trouble ends, and within a bound everything outstanding must be answered, new
/// requests must succeed and all members must hold the same state.
package final class World {
    package enum Part: UInt8, Sendable { case founding = 0, trouble, healing, over, losing }

    package let scenario: Scenario
    package private(set) var now = MonotonicInstant.zero
    /// Events so far.
    package private(set) var step: UInt64 = 0
    package internal(set) var part = Part.founding
    package let nodes: [SimNode]
    package internal(set) var history: [ClientOperation] = []
    package internal(set) var statistics = Statistics()

    var trace: Trace
    let observer: any WorldObserver
    var heap = EventHeap<SimEvent>()
    var network: SimNetwork
    var connections: [SimConnection] = []
    var streams: [SimStream] = []
    var nextEpoch: UInt64 = 1
    /// How many partitions forbid a direction, by `from * nodes + to`.
    var blockades: [Int]
    var blockadeNumber: UInt64 = 0
    var clients: [SimClient] = []
    var watchers: [SimWatcher] = []
    var nextValue: UInt64 = 1
    /// The next write that a node follows.
    var nextWrite: UInt64 = 1
    var effects: [RaftEffect] = []
    /// An empty buffer for `effects`, while the former one is worked off.
    var spareEffects: [RaftEffect] = []
    /// The disk that is lost and not yet replaced.
    var replacement: Replacement?
    /// When the last leader's raft daemon ended, until there is another.
    var leaderKilledAt: MonotonicInstant?
    /// The newest commit anywhere, and when it was made (or when trouble began).
    var newestCommit = (index: LogIndex.zero, at: MonotonicInstant.zero)
    /// When the part with trouble began.
    var troubleBegan: UInt64 = 0

    /// The members through which the clients' last errands go.
    var finalMembers: [Int]?
    /// What is tried once more when all has come right.
    var rehearsal = Rehearsal.notBegun
    /// The term in which all of them had a leader, and all clients were done.
    var peaceTerm: Term?
    /// A client was told something that makes no sense.
    var misunderstanding: Violation?

    // A stream of randomness for each concern.
    var fate: RandomSource
    var storageRandom: RandomSource
    var workRandom: RandomSource
    var netRandom: RandomSource
    var bootRandom: RandomSource
    var leaseRandom: RandomSource
    var watchRandom: RandomSource
    var kvRandom: RandomSource
    /// Of backups, histories and reads that may be stale.
    var lookRandom: RandomSource
    /// Of requests that make no sense.
    var mischiefRandom: RandomSource
    /// Of what daemons gather, and how long they follow a write.
    var proposalRandom: RandomSource
    /// Of requests that go as far as is allowed.
    var limitRandom: RandomSource
    /// Of programs, and of disks beside new leaders.
    var nodeRandom: RandomSource

    private var databases: SimDatabases?
    /// Nil in worlds without.
    private(set) var gossip: SimGossip?

    package struct Statistics: Equatable, Sendable {
        package var messages = 0
        package var elections = 0
        package var answered = 0
        /// What clients have asked for and were told the end of: operations, and also sessions, leases,
        /// transactions and longer reads.
        package var finished = 0
        package var unknown = 0
        package var troubles = 0
        package var recoveries = 0
        package var untrustedTails = 0
        package var snapshots = 0
        package var memberships = 0
        package var wipes = 0
        package var decays = 0
        package var leases = 0
        package var compactions = 0
        package var backups = 0
        package var staleReads = 0
        /// Writes passed on once more when the link to their leader was whole again.
        package var copies = 0
        package var recoveredQuorums = 0
        /// Starts from a database, and those that found it damaged.
        package var databases = 0
        package var damagedDatabases = 0
        package var watchEvents = 0
        package var watchesCompacted = 0
        /// Between gossip daemons.
        package var gossipMessages = 0
        /// From the end of a leader's raft daemon (not of its net) to the next leader.
        package var takeovers: [Duration] = []
        /// The longest time in trouble without any new commit.
        package var commitGapMax = Duration.zero
        package var virtualTime = MonotonicInstant.zero
    }

    package init(
        _ scenario: Scenario, observer: any WorldObserver, sink: ((String) -> Void)? = nil
    ) {
        var source = RandomSource(seed: scenario.seed ^ 0x5eed_0000_0000_0000)
        self.scenario = scenario
        self.observer = observer
        trace = Trace(sink: sink)
        network = SimNetwork(
            nodes: scenario.nodes, lanes: Self.lanes, conditions: scenario.network,
            random: source.split())
        blockades = Array(repeating: 0, count: scenario.nodes * scenario.nodes)
        fate = source.split()
        storageRandom = source.split()
        workRandom = source.split()
        netRandom = source.split()
        bootRandom = source.split()
        var hardware = source.split()
        leaseRandom = source.split()
        watchRandom = source.split()
        kvRandom = source.split()
        lookRandom = source.split()
        mischiefRandom = source.split()
        proposalRandom = source.split()
        limitRandom = source.split()
        nodeRandom = source.split()
        nodes = (0..<scenario.nodes).map { index in
            let drift = scenario.clockDriftPPMMax
            let clock = SimClock(
                offset: hardware.uniform(0..<1_000_000_000_000),
                driftPPM: drift == 0 ? 0 : Int64(hardware.uniform(0..<Int(2 * drift))) - drift)
            return SimNode(index: index, disk: SimDisk(seed: hardware.next()), clock: clock)
        }
        clients = (0..<scenario.clients).map { index in
            SimClient(
                index: index,
                hasSession: hardware.uniform(0..<100) >= scenario.sessionlessPercent)
        }
        for node in nodes { node.checkpoint = emptyState() }
        drawPrograms()
        watchers = makeWatchers()
        if let options = scenario.database {
            let databases = SimDatabases(
                disks: nodes.map { _ in SimDisk(seed: hardware.next(), remembersPages: true) },
                options: options, scenario)
            for (node, database) in zip(nodes, databases.all) { node.database = database }
            self.databases = databases
        }
        if let options = scenario.gossip {
            gossip = SimGossip(options, world: self, random: source.split())
        }
    }

    /// Runs to the end, or to the first broken promise.
    package func run() throws(Violation) {
        var broken: Violation?
        KVBounds.$current.withValue(scenario.bounds) {
            do throws(Violation) { try live() } catch { broken = error }
        }
        if let broken { throw broken }
    }

    private func live() throws(Violation) {
        try found()
        while part != .over {
            guard let (at, event) = heap.pop() else {
                throw Violation(.liveness, "still life", "nothing will ever happen again")
            }
            precondition(at >= now, "time never goes back")
            now = at
            try gossip?.advance(to: now)
            if let postponed = postpone(event) {
                heap.schedule(event, at: postponed)
                continue
            }
            step += 1
            let label = event.label
            statistics.virtualTime = now
            trace.event(now, kind: label.kind, subject: label.subject)
            try handle(event)
            sendDepartures()
            try observer.afterEvent(self)
            try advancePart()
        }
        try gossip?.finish()
        statistics.gossipMessages = gossip?.messages ?? 0
    }

    package var traceHash: TraceHash {
        guard let gossip else { return trace.hash }
        var both = trace.hash
        both.fold(gossip.hash.value)
        return both
    }

    /// A raft daemon that stands still sees nothing until it goes on.
    private func postpone(_ event: SimEvent) -> MonotonicInstant? {
        guard let target = event.seenBy else { return nil }
        let until = nodes[target].pausedUntil
        return until > now ? until : nil
    }

    /// What daemons have not seen meanwhile comes now: left where their pauses would have ended, it
    /// would hold up all that comes after it, timers included.
    func endPauses() {
        for node in nodes { node.pausedUntil = .zero }
        var planned: [(at: MonotonicInstant, event: SimEvent)] = []
        while let next = heap.pop() { planned.append(next) }
        for (at, event) in planned {
            var isPutOff = event.seenBy.map { nodes[$0].pauseEnds.contains(at) } ?? false
            // Nor do disks stand still any longer.
            if case .synced(let node, _) = event, at >= nodes[node].diskStalledUntil {
                isPutOff = isPutOff || nodes[node].diskStalledUntil > now
            }
            heap.schedule(event, at: isPutOff ? now : at)
        }
    }

    private func handle(_ event: SimEvent) throws(Violation) {
        if let daemon = event.daemon {
            guard let shell = nodes[daemon.node].shell else {
                switch event {
                case .request(let request): refuse(request)
                case .watchOpens(_, let watcher, let session):
                    watchRefused(watchers[watcher], session)
                default: break
                }
                return
            }
            if let life = daemon.life, life != shell.life { return }
            try handle(event, shell)
            return
        }
        switch event {
        case .segment(let segment): try deliver(segment)
        case .startRaft(let node): try startRaft(nodes[node])
        case .startNet(let node): startNet(nodes[node])
        case .netWake(let node, let net): if let net = alive(node, net) { wake(net) }
        case .fromRaft(let node, let net, let life, let request, let lane, let bytes):
            guard let net = alive(node, net) else { return }
            try fromRaft(net, life, request, lane, bytes)
        case .raftLost(let node, let net, let life):
            if let net = alive(node, net) { raftLost(net, life) }
        case .waitedLong(let node, let net, let request):
            if let net = alive(node, net) { waitedLong(net, request) }
        case .handshake(let connection): handshake(connection)
        case .connectionLost(let node, let connection): connectionLost(node, connection)
        case .connectionClosed(let node, let connection): connectionClosed(node, connection)
        case .streamReset(let node, let stream): streamReset(node, stream)
        case .idle(let one, let other, let blockade): idle(one, other, blockade)
        case .act(let client): act(clients[client])
        case .answer(let client, let attempt, let answer):
            answered(clients[client], attempt, answer)
        case .requestTimeout(let client, let attempt):
            timedOut(clients[client], attempt)
        case .watchHears(let watcher, let session, let message):
            try hear(watchers[watcher], session, message)
        case .watchLeaves(let watcher, let session): leave(watchers[watcher], session)
        case .watchLost(let watcher, let session): watchRefused(watchers[watcher], session)
        case .watchTick(let node): watchTick(nodes[node])
        case .trouble(let number): try strike(number)
        case .heal(let blocks): unblock(blocks)
        case .block(let blocks): if part == .trouble { block(blocks) }
        case .unclog(let from, let to): network.clog(from: from, to: to, by: .zero)
        case .loosePower(let node): try losePower(nodes[node])
        case .quickDisk(let node): nodes[node].isDiskSlow = false
        case .spaciousDisk(let node): nodes[node].mendDisks()
        case .upgrade(let node): upgrade(nodes[node])
        case .operate: try operate()
        case .endOfPatience(let impatient): try runOutOfPatience(impatient)
        case .replace: try replace()
        case .recoverQuorum(let node): try recoverQuorum(nodes[node])
        default: preconditionFailure("an event for a daemon has been handled above")
        }
    }

    private func handle(_ event: SimEvent, _ shell: RaftShell) throws(Violation) {
        switch event {
        case .wake: try wake(shell)
        case .synced: try synced(shell)
        case .apply: try apply(shell)
        case .fetch(_, _, let peer, let from, let upTo, let bytesMax):
            try fetch(shell, for: peer, from: from, upTo: upTo, bytesMax: bytesMax)
        case .discarded(_, _, let index, let term):
            try feed(shell, .logDiscarded(upTo: index, term: term))
        case .connectNet: try connectNet(shell)
        case .netLost(_, _, let net): try netLost(shell, net)
        case .fromNet(_, _, let net, let request, let stream, let bytes):
            try fromNet(shell, net, request, stream, bytes)
        case .streamGone(_, _, let stream, let peer): try streamGone(shell, stream, peer: peer)
        case .dialLane(_, _, let peer, let lane): dialLane(shell, peer, lane)
        case .graceOver(_, _, let peer, let grace): try graceOver(shell, peer, grace)
        case .replicaLearned(_, _, let peer): try changed(shell, peer)
        case .snapshotTimeout(_, _, let transfer): try snapshotTimeout(shell, transfer)
        case .turn: try endTurn(shell)
        case .sweep: try sweep(shell)
        case .keepHouse: try lookForLeases(shell)
        case .lookForSessions: try lookForSessions(shell)
        case .watchAnswers: shell.watching?.deliver()
        case .watchDispatch:
            shell.watching?.feed.dispatchDue(now: shell.clock.reading(at: now))
        case .watchWritable(_, _, let watcher, let session):
            watchWritable(watchers[watcher], session, shell)
        case .watchOpens(_, let watcher, let session): open(watchers[watcher], session, shell)
        case .request(let request): try take(request, shell)
        default: preconditionFailure("not an event for a raft daemon")
        }
    }

    private func alive(_ node: Int, _ net: UInt64) -> SimNet? {
        guard let running = nodes[node].net, running.life == net else { return nil }
        return running
    }

    func schedule(_ event: SimEvent, after delay: Duration) {
        heap.schedule(event, at: now + delay)
    }

    func sendDepartures() {
        if network.departures.isEmpty { return }
        for departure in network.departures {
            heap.schedule(.segment(departure.segment), at: departure.at)
        }
        network.departures.removeAll(keepingCapacity: true)
    }

    func note(_ text: @autoclosure () -> String) { trace.line(now, text()) }
}
