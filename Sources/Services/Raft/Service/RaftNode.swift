// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DequeModule
import KVCore
import Logging
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

/// What the node tells the part that serves clients. Called on the event loop.
protocol RaftNodeClient: AnyObject {
    /// Answers to proposals of this process, in log order.
    func applied(_ answers: [AppliedAnswer], batch: AppliedBatch)
    func proposalFailed(_ number: UInt64, _ failure: ProposalFailure)
    /// The reads of that round may be answered from what is applied.
    func readReady(_ round: UInt64)
    func readFailed(_ round: UInt64)
    func answered(_ round: UInt64, _ answers: [StateAnswer])
    func standingChanged(_ standing: RaftStanding)
    /// What was proposed in this turn is given to the core now.
    func willPropose(in term: Term)
    /// The link to the leader of `term` is whole again.
    func forwardAgain(in term: Term)
    /// A snapshot took the place of entries; answers among them are lost.
    func skipped()
    /// Proposes that history below `revision` may go. `ended` is called when it is applied, or will
    /// not be.
    func compact(to revision: Revision, ended: @escaping () -> Void)
    /// This node's room has changed.
    func spaceChanged()
}

/// The hands of a `RaftCore`: carries its effects out and tells it what came of them. Everything
/// here happens on one event loop; the log and the state have a thread each to block on.
///
/// One turn of the loop takes in all that the sockets hold, then, in this order: proposals and reads
/// of the turn are given to the core as one; messages leave; what must be written is written and
/// synced once; what is committed is applied as one transaction. So batches grow with load by
/// themselves, and followers sync while the leader does.
// SAFETY: confined to `loop`; the closures that cross threads only carry the reference.
package final class RaftNode: @unchecked Sendable {
    /// Payload bytes given to the core as one list of proposals.
    static let proposeBytesMax = 1_000_000
    /// Entries applied between two looks at whether a checkpoint is due.
    static let maintenanceEntries = 512

    package let loop: any EventLoop
    let logger: Logger
    let options: RaftNodeOptions
    /// Distinguishes the proposals of this process from those of one before it.
    let incarnation: UInt64
    let log: LogThread
    let state: StateThread
    let links: PeerLinks
    let metrics = NodeMetrics()
    let events: NodeEvents
    var stages = CommitStages()
    weak var client: (any RaftNodeClient)?

    private(set) var core: RaftCore
    private var random: RandomSource
    private var effects: [RaftEffect] = []
    private var slowSyncs = LogLimiter(burst: 3)
    private var isCarryingOut = false
    private(set) var isStopped = false
    var isPaused = false
    private let onFatal: (StorageError) -> Void

    var news = CommitNews()
    var isNewsScheduled = false
    private var armedFor: MonotonicInstant?
    private var timer: Scheduled<Void>?

    private(set) var standing: RaftStanding
    private(set) var membership: Membership?
    var applied: AppliedBatch
    /// The index of the last membership entry applied.
    var membershipAppliedIndex = LogIndex.zero
    private(set) var firstLogIndex: LogIndex

    // What this turn has gathered.
    private var proposals: [Proposal] = []
    private var gate = ProposalGate()
    /// In front of what a leader appends.
    private var appendGate = ProposalGate()
    /// What peers have forwarded to this leader.
    private var forwards: [Message] = []
    private var gatheredBytes = 0
    private var gateTimer: Scheduled<Void>?
    /// When that fires.
    private var gateDue = MonotonicInstant.zero
    private var isReadWanted = false
    private var nextRound: UInt64 = 1
    private var isTurnScheduled = false
    private var writes: [LogJob] = []
    private var writeBytes = 0
    var isDiskScheduled = false

    var committed = ApplyQueue()
    var isApplyScheduled = false
    /// What the log had for the state while a snapshot was taking its place.
    var heldReplay: (entries: [Entry], from: LogIndex)?
    var maintenanceCountdown = RaftNode.maintenanceEntries
    /// The same for bytes of payload.
    var maintenanceBytes = SpaceLimits.walBytesMax
    var isMaintaining = false
    /// What was applied when somebody last looked, and for how many looks that has been so.
    var quiet = (index: LogIndex.zero, looks: 0)
    /// Read rounds that wait until an index is applied, ascending by round.
    private var roundsToApply: [(round: UInt64, index: LogIndex)] = []

    private(set) lazy var space = SpaceWatch(node: self, storage: storageSpace)
    private let storageSpace: StorageSpace?
    lazy var snapshots = SnapshotTransfers(node: self)

    init(
        options: RaftNodeOptions, parts: RaftNodeParts, links: PeerLinks,
        onFatal: @escaping (StorageError) -> Void
    ) {
        loop = parts.loop
        storageSpace = parts.space
        logger = parts.logger
        self.options = options
        self.links = links
        events = NodeEvents(path: options.eventFile)
        self.onFatal = onFatal
        var random = RandomSource(seed: parts.seed)
        incarnation = random.next()
        self.random = random.split()
        log = LogThread(store: parts.log, loop: loop)
        state = StateThread(
            store: parts.state, loop: loop, node: options.raft.node, incarnation: incarnation,
            compaction: options.compaction)
        let recovery = parts.recovery
        core = RaftCore(
            configuration: options.raft, recovery: recovery, now: Self.now, random: &random)
        standing = core.standing
        membership = recovery.memberships.last?.membership
        firstLogIndex = parts.log.firstIndex
        applied = AppliedBatch(
            index: parts.state.appliedIndex, term: parts.state.appliedTerm,
            revision: parts.state.revision, answers: [],
            facts: HousekeepingFacts(parts.state, options.compaction), membershipIndex: nil)
        membershipAppliedIndex = parts.state.membership?.index ?? .zero
    }

    /// What this node knew is lost: until a leader has filled it, it does not even know its cluster.
    var isRebuilt: Bool { membership == nil && !core.isTailTrusted }

    /// Starts threads, links and timers; call on the loop.
    func start() {
        // What the threads report may come after the node's end.
        log.onEvents = { [weak self] in self?.take($0) }
        state.onEvents = { [weak self] in self?.take($0) }
        log.onPreparation = { [weak self] in self?.space.prepared($0) }
        log.start()
        state.start()
        links.delegate = self
        links.update(core.reachableMembership)
        links.start()
        space.start()
        loop.scheduleTask(in: options.snapshots.partialKept) { [weak self] in
            if let self, !isStopped { snapshots.forgetPartial() }
        }
        events.record("started", "aspend-raft started")
        armTimer()
    }

    static var now: MonotonicInstant {
        MonotonicInstant(nanoseconds: NIODeadline.now().uptimeNanoseconds)
    }

    // MARK: - Steps

    /// Gives the core one input and carries out what it wants. Inputs that arise meanwhile are taken
    /// in at once; their effects queue behind those that are being carried out.
    func step(_ input: consuming RaftInput) {
        if isStopped { return }
        core.step(input, now: Self.now, random: &random, into: &effects)
        if isCarryingOut { return }
        isCarryingOut = true
        var next = 0
        while next < effects.count {
            let effect = effects[next]
            next += 1
            carryOut(effect)
        }
        effects.removeAll(keepingCapacity: true)
        isCarryingOut = false
        armTimer()
    }

    private func carryOut(_ effect: RaftEffect) {
        switch effect {
        case .write(let write):
            stages.wrote(write, isLeader: core.isLeader, Self.now)
            if write.endsRepair {
                logger.notice(
                    core.isLeader
                        ? "repaired: no voter has more than this log now holds, and it leads"
                        : "repaired by its peers: the log holds again all that was acknowledged",
                    metadata: [
                        "last": "\(core.lastIndex)", "event": "\(JournalEvent.repaired)",
                    ])
                links.update(core.reachableMembership)
            }
            writes.append(.write(write))
            var bytes = 0
            for entry in write.entries { bytes += entry.payload.count }
            writeBytes += bytes
            space.appending(bytes)
            scheduleDisk()
        case .send(let message, let after):
            message.tellElection(to: logger)
            if news.maySend(message, isAppendDue: isAppendDue) {
                links.send(message, after: after)
            } else {
                scheduleNews()
            }
        case .commit(let entries, let upTo):
            stages.committed(upTo: upTo, Self.now)
            if core.isLeader {
                news.committed(entries, own: options.raft.node)
                appendGate.landed(upTo.rawValue, gathered: proposals.count, Self.now)
                if hasGathered { scheduleTurn() }
            }
            committed.append(entries)
            scheduleApply()
        case .commitFromLog(let from, let upTo):
            committed.append(from: from, upTo: upTo)
            scheduleApply()
        case .readReady(let id, let index): readReady(id.number, index)
        case .readFailed(let id): client?.readFailed(id.number)
        case .proposalFailed(let id, let failure):
            guard id.incarnation == incarnation else { return }
            landed(id.number)
            client?.proposalFailed(id.number, failure)
        case .standing(let standing): changed(standing)
        case .membership(let membership): changed(membership)
        case .fetch(let peer, let from, let upTo, let bytesMax):
            log.submitToThread(.fetch(for: peer, from: from, upTo: upTo, bytesMax: bytesMax))
        case .sendSnapshot(let peer): snapshots.send(to: peer)
        case .regressed(let peer, let acknowledged, let found):
            events.record(
                "peer-regressed",
                "node \(peer) has only \(found) entries, it had acknowledged \(acknowledged)")
            logger.error(
                """
                a peer has lost entries that it had acknowledged and is no longer believed: remove \
                it from the cluster and add it again with an empty data directory
                """,
                metadata: [
                    "peer": "\(peer)", "acknowledged": "\(acknowledged)", "found": "\(found)",
                ])
        case .contradicted(let leader, let index, let committed, let found):
            fatal(
                .corrupt(
                    """
                    entry \(index) was agreed upon in term \(committed), but node \
                    \(leader), which leads now, has one of term \(found) there: most of the voters \
                    have lost what they had on their disks. What this node has, and they do not, is in \
                    its data directory: keep a copy of that. To have the node follow them, remove it \
                    from the cluster and add it again with an empty data directory
                    """))
        }
    }

    private func changed(_ standing: RaftStanding) {
        news.reset()
        gate.reset()
        appendGate.reset()
        if hasGathered { scheduleTurn() }
        let before = self.standing
        self.standing = standing
        let change = events.changed(from: before, to: standing, own: options.raft.node)
        if change.isCampaign { metrics.elections += 1 }
        if change.isNewLeader { metrics.leaderChanges += 1 }
        if standing.role != .leader { stages.drop() }
        logger.debug(
            "standing",
            metadata: [
                "role": "\(standing.role)", "term": "\(standing.term)",
                "last": "\(core.lastTerm)/\(core.lastIndex)",
            ])
        if standing.leader != before.leader || standing.term != before.term,
            let leader = standing.leader
        {
            let isOwn = leader == options.raft.node
            var fields: Logger.Metadata = ["leader": "\(leader)", "term": "\(standing.term)"]
            if isOwn { fields["event"] = "\(JournalEvent.leaderElected)" }
            logger.log(
                level: isOwn ? .notice : .info, isOwn ? "became the leader" : "follows a leader",
                metadata: fields)
        } else if standing.leader == nil, before.leader != nil {
            logger.info("has no leader", metadata: ["term": "\(standing.term)"])
        }
        if before.leader == options.raft.node, standing.leader != before.leader {
            logger.notice(
                "leads no more",
                metadata: [
                    "term": "\(standing.term)", "event": "\(JournalEvent.leadershipLost)",
                ])
        }
        snapshots.standingChanged(standing)
        client?.standingChanged(standing)
    }

    private func changed(_ membership: Membership) {
        logMembers(from: self.membership, to: membership)
        // An empty one: the entry that founded the cluster was cut off again.
        self.membership = membership.members.isEmpty ? nil : membership
        logger.info(
            "membership",
            metadata: [
                "voters": "\(membership.voters)", "learners": "\(membership.learners)",
                "joint": "\(membership.isJoint)",
            ])
        links.update(core.reachableMembership)
    }

    func armTimer() {
        guard let deadline = core.deadline, !isStopped, !isPaused else { return }
        // One that fires too early only looks again: cheaper than moving it with each heartbeat.
        if let armedFor, armedFor <= deadline { return }
        timer?.cancel()
        armedFor = deadline
        timer = loop.scheduleTask(deadline: .uptimeNanoseconds(deadline.nanoseconds)) { [self] in
            armedFor = nil
            timer = nil
            if let deadline = core.deadline, deadline <= Self.now, !isPaused {
                step(.timeout)
            } else {
                armTimer()
            }
        }
    }

    // MARK: - Proposals and reads of a turn

    func proposalID(_ number: UInt64) -> ProposalID {
        ProposalID(node: options.raft.node, incarnation: incarnation, number: number)
    }

    /// Proposes a command at the end of this turn. Its answer comes under this number, which is
    /// greater than those before it.
    func propose(_ payload: [UInt8], number: UInt64) {
        if proposals.isEmpty { stages.proposed(Self.now) }
        proposals.append(Proposal(id: proposalID(number), payload: payload))
        gatheredBytes += payload.count
        scheduleTurn()
    }

    /// Takes what a peer has forwarded to this leader, for the end of this turn.
    func gather(_ forward: Message, bytes: Int) {
        forwards.append(forward)
        gatheredBytes += bytes
        scheduleTurn()
    }

    private var hasGathered: Bool { !proposals.isEmpty || !forwards.isEmpty }

    /// This turn will end with appends.
    private var isAppendDue: Bool {
        isTurnScheduled && hasGathered && appendGate.isOpen && core.isLeader
    }

    /// Passes proposals of this process on once more, under the numbers that they have.
    func forwardAgain(_ proposals: [(number: UInt64, payload: [UInt8])]) {
        guard !proposals.isEmpty, standing.role != .leader else { return }
        step(
            .propose(
                proposals.map { Proposal(id: proposalID($0.number), payload: $0.payload) }))
    }

    /// The read round that begins at the end of this turn.
    func read() -> UInt64 {
        isReadWanted = true
        scheduleTurn()
        return nextRound
    }

    private func scheduleTurn() {
        guard !isTurnScheduled else { return }
        isTurnScheduled = true
        loop.execute { [self] in
            isTurnScheduled = false
            endTurn()
        }
    }

    private func endTurn() {
        if isReadWanted {
            isReadWanted = false
            let round = nextRound
            nextRound += 1
            step(.read(ReadID(round)))
        }
        guard hasGathered else { return }
        if core.isLeader { appendGathered() } else { forwardGathered() }
    }

    private func appendGathered() {
        let now = Self.now
        if let until = appendGate.waits(now, count: proposals.count, bytes: gatheredBytes) {
            endTurn(at: until)
        } else {
            let before = core.lastIndex
            let count = proposals.count
            giveGathered()
            if core.lastIndex > before {
                appendGate.passed(core.lastIndex.rawValue, count: count, now)
            }
        }
        for message in news.releaseAwaited() { links.send(message, after: nil) }
    }

    private func forwardGathered() {
        if let last = proposals.last {
            let now = Self.now
            if let until = gate.waits(now, count: proposals.count, bytes: gatheredBytes) {
                return endTurn(at: until)
            }
            gate.passed(last.id.number, count: proposals.count, now)
        }
        giveGathered()
    }

    private func giveGathered() {
        gateTimer?.cancel()
        gateTimer = nil
        gatheredBytes = 0
        var gathered: [Message] = []
        swap(&gathered, &forwards)
        for message in gathered {
            if core.isLeader, case .forward(let proposals) = message.body {
                news.forwarded(proposals.count, by: message.from)
            }
            step(.received(message))
        }
        if !proposals.isEmpty { giveProposals() }
    }

    private func giveProposals() {
        client?.willPropose(in: core.term)
        var rest: [Proposal] = []
        swap(&rest, &proposals)
        var total = 0
        for proposal in rest { total += proposal.payload.count }
        if total <= Self.proposeBytesMax { return step(.propose(rest)) }
        var begin = 0
        var bytes = 0
        for place in rest.indices {
            bytes += rest[place].payload.count
            if bytes >= Self.proposeBytesMax || place == rest.count - 1 {
                step(.propose(Array(rest[begin...place])))
                begin = place + 1
                bytes = 0
            }
        }
    }

    private func endTurn(at instant: MonotonicInstant) {
        if let gateTimer {
            guard instant < gateDue else { return }
            gateTimer.cancel()
        }
        gateDue = instant
        gateTimer = loop.scheduleTask(deadline: .uptimeNanoseconds(instant.nanoseconds)) { [self] in
            gateTimer = nil
            if !isStopped { endTurn() }
        }
    }

    /// Proposals of this process were answered, or will not be, up to this one.
    func landed(_ number: UInt64) {
        gate.landed(number, gathered: proposals.count, Self.now)
        if !proposals.isEmpty { scheduleTurn() }
    }

    private func readReady(_ round: UInt64, _ index: LogIndex) {
        if index <= applied.index {
            client?.readReady(round)
        } else {
            roundsToApply.append((round, index))
        }
    }

    func releaseRounds() {
        guard !roundsToApply.isEmpty else { return }
        let ready = roundsToApply.filter { $0.index <= applied.index }
        guard !ready.isEmpty else { return }
        roundsToApply.removeAll { $0.index <= applied.index }
        for (round, _) in ready { client?.readReady(round) }
    }

    // MARK: - The log

    private func scheduleDisk() {
        guard !isDiskScheduled else { return }
        isDiskScheduled = true
        // Behind the flushes of this turn: peers are to sync while we do.
        loop.execute { [self] in
            isDiskScheduled = false
            var jobs: [LogJob] = []
            swap(&jobs, &writes)
            let bytes = writeBytes
            writeBytes = 0
            if !jobs.isEmpty { log.submit(jobs, bytes: bytes) }
        }
    }

    /// Everything written so far, then nothing but the place where a snapshot ends.
    func resetLog(to index: LogIndex, term: Term) {
        writes.append(.reset(to: index, term: term))
        scheduleDisk()
    }

    private func take(_ events: [LogEvent]) {
        if isStopped { return }
        for event in events {
            switch event {
            case .durable(let ticket, let times):
                links.durable(ticket)
                stages.durable(ticket, times)
                step(.durable(ticket))
            case .slowSync(let duration): noteSlowSync(duration)
            case .fetched(nil, let from, let entries): replay(entries, from: from)
            case .fetched(let peer?, let from, let entries):
                step(.fetched(for: peer, from: from, entries: entries))
            case .discarded(let upTo, let term, let firstIndex):
                firstLogIndex = firstIndex
                if term != .zero { step(.logDiscarded(upTo: upTo, term: term)) }
            case .reset(let index, _):
                firstLogIndex = index.next
                snapshots.logWasReset()
            case .preparation(let preparation): prepare(preparation)
            case .nothing: break
            case .failed(let error): fatal(error)
            }
        }
    }

    private func prepare(_ preparation: SegmentPreparation) {
        if space.hasRoom(forSegment: preparation.neededBytes) { return log.prepare(preparation) }
        log.submitToThread(.preparationFailed(preparation))
        space.prepared(false)
    }

    private func noteSlowSync(_ duration: Duration) {
        metrics.slowSyncs += 1
        events.record("slow-sync", "the disk took \(duration.milliseconds) ms to sync the log")
        slowSyncs.record {
            logger.warning(
                "the disk was slow to make the log durable",
                metadata: ["milliseconds": "\(duration.milliseconds)"].merging($0) { $1 })
        }
    }

    func fatal(_ error: StorageError) {
        guard !isStopped else { return }
        isStopped = true
        events.record(error.event?.rawValue ?? "stopped", error.text)
        onFatal(error)
    }

    /// Stops the machine and waits for the disk. Nothing is answered afterwards.
    package func stop() {
        isStopped = true
        timer?.cancel()
        space.stop()
        links.stop()
        log.stop()
        snapshots.stop()
        state.stop()
        space.close()
    }
}
