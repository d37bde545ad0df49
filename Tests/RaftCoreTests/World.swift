// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore

/// A few cores, a network that delivers when told to, and disks that sync when told to. Whatever
/// happens, it checks what Raft promises; `violations` must stay empty.
final class World {
    final class Disk {
        var base = (index: LogIndex.zero, term: Term.zero)
        var entries: [Entry] = []
        var hardState = HardState()
        /// The membership at `base`.
        var baseMembership: (index: LogIndex, membership: Membership)?
        var untrustedBelow: LogIndex?
        /// What a log store keeps of the newest membership entry it ever held.
        var newestMembership: NewestMembership?
        /// What is whole behind the damage.
        var salvage: [Entry] = []

        var lastIndex: LogIndex { base.index.advanced(by: entries.count) }

        func entry(_ index: LogIndex) -> Entry? {
            guard index > base.index, index <= lastIndex else { return nil }
            return entries[Int(index.rawValue - base.index.rawValue - 1)]
        }

        func cut(after index: LogIndex) {
            let keep =
                index.rawValue > base.index.rawValue ? index.rawValue - base.index.rawValue : 0
            entries.removeSubrange(min(entries.count, Int(keep))...)
        }

        func carryOut(_ write: LogWrite) {
            if let cut = write.truncateAfter { self.cut(after: cut) }
            for entry in write.entries where entry.index == lastIndex.next { append(entry) }
            if let state = write.hardState { hardState = state }
            if write.endsRepair {
                untrustedBelow = nil
                salvage = []
            }
        }

        private func append(_ entry: Entry) {
            entries.append(entry)
            guard entry.kind == .membership, let membership = Membership(payload: entry.payload)
            else { return }
            newestMembership = NewestMembership(
                index: entry.index, term: entry.term, membership: membership)
        }

        /// What follows `index` turns out to be unreadable, and may have been acknowledged.
        func damage(after index: LogIndex) {
            untrustedBelow = lastIndex
            cut(after: index)
        }

        /// These entries turn out to be unreadable, those behind them can be read.
        func damage(_ lost: ClosedRange<LogIndex>) {
            untrustedBelow = max(untrustedBelow ?? .zero, lastIndex)
            salvage += entries.filter { $0.index > lost.upperBound }
            cut(after: lost.lowerBound.previous)
        }

        /// In the log, behind damage, or applied and discarded.
        func holds(_ entry: Entry) -> Bool {
            base.index >= entry.index || self.entry(entry.index) == entry || salvage.contains(entry)
        }

        /// What a log store would find.
        func recovery(applied: LogIndex) -> RaftRecovery {
            var memberships: [(index: LogIndex, membership: Membership)] = []
            if let baseMembership { memberships.append(baseMembership) }
            var starts: [(index: LogIndex, term: Term)] = []
            for entry in entries {
                if starts.last?.term != entry.term { starts.append((entry.index, entry.term)) }
                if entry.kind == .membership, let membership = Membership(payload: entry.payload) {
                    memberships.append((entry.index, membership))
                }
            }
            return RaftRecovery(
                hardState: hardState, memberships: memberships, snapshotIndex: base.index,
                snapshotTerm: base.term, lastIndex: lastIndex, termStarts: starts,
                appliedIndex: applied, lastTime: entries.last?.time ?? .zero,
                isTailTrusted: untrustedBelow == nil,
                untrustedBelow: max(untrustedBelow ?? .zero, lastIndex),
                newestMembership: newestMembership,
                salvage: untrustedBelow == nil
                    ? [] : salvage + entries.filter { $0.index > applied }
            )
        }
    }

    final class Node {
        let id: NodeID
        var core: RaftCore?
        var disk = Disk()
        /// How often it has lost its disk: each time it comes back as another replica.
        var wipes: UInt64 = 0
        var pending: [LogWrite] = []
        var durable = DurabilityTicket(0)
        var held: [(message: Message, after: DurabilityTicket)] = []
        /// What the state machine has applied; survives a crash.
        var applied: [Entry] = []
        var appliedIndex = LogIndex.zero
        /// Peers that wait for a snapshot of this node.
        var snapshotsWanted: [NodeID] = []
        /// Successes and failures of reads and proposals, in order.
        var readsReady: [(id: ReadID, index: LogIndex)] = []
        var readsFailed: [ReadID] = []
        var proposalsFailed: [ProposalID] = []
        /// How far this node's clock is ahead of the world's.
        var skew = Duration.zero

        /// When it wants its timeout, in the world's time.
        var due: MonotonicInstant? { core?.deadline.map { $0 + (.zero - skew) } }

        init(id: NodeID) { self.id = id }
    }

    let clusterID = ClusterID(7)
    private(set) var nodes: [Node] = []
    var now = MonotonicInstant(nanoseconds: 1_000_000_000)
    var random: RandomSource
    var inFlight: [Message] = []
    var plantedBugs: Set<PlantedBug> = []
    var adjust: (inout RaftConfiguration) -> Void = { _ in }
    private(set) var violations: [String] = []
    /// Called with each effect, before it is carried out.
    var onEffect: (NodeID, RaftEffect) -> Void = { _, _ in }

    private var followUps: [(NodeID, RaftInput)] = []
    private var buffer: [RaftEffect] = []
    private var committed: [LogIndex: Entry] = [:]
    private var leaders: [Term: NodeID] = [:]
    private var proposals: UInt64 = 0

    init(seed: UInt64) { random = RandomSource(seed: seed) }

    // MARK: Nodes

    func node(_ id: NodeID) -> Node {
        if let node = nodes.first(where: { $0.id == id }) { return node }
        let node = Node(id: id)
        nodes.append(node)
        nodes.sort { $0.id < $1.id }
        return node
    }

    static func member(_ id: NodeID) -> Membership.Member {
        guard let endpoint = EndpointID(bytes: [UInt8](repeating: UInt8(id.rawValue), count: 32))
        else { preconditionFailure("32 bytes") }
        return Membership.Member(
            node: id, endpoint: endpoint, replica: ReplicaID(id.rawValue * 100), addresses: [])
    }

    /// The replica that lives under this id now.
    func present(_ id: NodeID) -> Membership.Member {
        var member = Self.member(id)
        member.replica = ReplicaID(id.rawValue * 100 + node(id).wipes)
        return member
    }

    func membership(voters: [NodeID], learners: [NodeID] = []) -> Membership {
        Membership(
            cluster: clusterID, voters: voters, learners: learners,
            members: (voters + learners).sorted().map(present))
    }

    func start(_ id: NodeID) {
        let node = node(id)
        var configuration = RaftConfiguration(node: id)
        configuration.plantedBugs = plantedBugs
        adjust(&configuration)
        node.pending = []
        node.held = []
        node.durable = DurabilityTicket(0)
        node.snapshotsWanted = []
        if node.appliedIndex > node.disk.lastIndex {
            violations.append("the state of \(id) is ahead of its log")
            node.appliedIndex = node.disk.lastIndex
            node.applied.removeAll { $0.index > node.appliedIndex }
        }
        let recovery = node.disk.recovery(applied: node.appliedIndex)
        node.core = RaftCore(
            configuration: configuration, recovery: recovery, now: now + node.skew,
            random: &random)
    }

    /// A cluster whose first entry, the membership, is on every disk and applied.
    func found(voters: [NodeID], learners: [NodeID] = []) {
        let membership = membership(voters: voters, learners: learners)
        for id in voters + learners {
            let node = node(id)
            let entry = Entry(
                index: LogIndex(1), term: Term(1), kind: .membership, origin: nil, time: .zero,
                payload: membership.payload)
            node.disk.entries = [entry]
            node.disk.hardState = HardState(term: Term(1), votedFor: voters[0])
            node.appliedIndex = LogIndex(1)
            node.applied = [entry]
            start(id)
        }
    }

    /// - Parameter syncedWrites: how many of the writes not yet durable survive.
    func crash(_ id: NodeID, syncedWrites: Int = 0) {
        let node = node(id)
        for write in node.pending.prefix(syncedWrites) { node.disk.carryOut(write) }
        node.core = nil
        node.pending = []
        node.held = []
    }

    /// The disk is new; what comes back under this id is another replica. Streams to the former one
    /// are no streams to this one.
    func wipe(_ id: NodeID) {
        crash(id)
        let node = node(id)
        node.disk = Disk()
        node.applied = []
        node.appliedIndex = .zero
        node.wipes += 1
        inFlight.removeAll { $0.from == id || $0.to == id }
        start(id)
    }

    func isUp(_ id: NodeID) -> Bool { node(id).core != nil }

    var leader: Node? {
        nodes.filter { $0.core?.isLeader == true }.max {
            ($0.core?.term ?? .zero) < ($1.core?.term ?? .zero)
        }
    }

    // MARK: Steps

    func step(_ id: NodeID, _ input: RaftInput) {
        run(id, input)
        while !followUps.isEmpty {
            let (next, input) = followUps.removeFirst()
            run(next, input)
        }
    }

    private func run(_ id: NodeID, _ input: RaftInput) {
        let node = node(id)
        guard node.core != nil else { return }
        buffer.removeAll(keepingCapacity: true)
        node.core?.step(input, now: now + node.skew, random: &random, into: &buffer)
        node.core?.checkInvariants()
        let effects = buffer
        for effect in effects {
            onEffect(id, effect)
            carryOut(effect, of: node)
        }
        if let core = node.core, core.isLeader {
            let known = leaders[core.term]
            if let known, known != id {
                violations.append("term \(core.term) has leaders \(known) and \(id)")
            }
            if known == nil { checkCompleteness(of: core) }
            leaders[core.term] = id
        }
    }

    /// A leader has every committed entry (Raft §5.4).
    private func checkCompleteness(of core: RaftCore) {
        for (index, entry) in committed where index >= core.firstIndex {
            if core.term(at: index) != entry.term {
                violations.append("leader of term \(core.term) lacks committed entry \(index)")
                return
            }
        }
    }

    private func carryOut(_ effect: RaftEffect, of node: Node) {
        switch effect {
        case .write(let write): node.pending.append(write)
        case .send(let message, let ticket):
            if let ticket, ticket > node.durable {
                node.held.append((message, ticket))
            } else {
                inFlight.append(message)
            }
        case .commit(let entries, let upTo):
            apply(entries, of: node)
            if node.appliedIndex != upTo { violations.append("commit says \(upTo), brings less") }
            followUps.append((node.id, .applied(node.appliedIndex)))
        case .commitFromLog(let from, let upTo):
            apply(read(node, from: from, upTo: upTo, bytesMax: .max), of: node)
            followUps.append((node.id, .applied(node.appliedIndex)))
        case .fetch(let peer, let from, let upTo, let bytesMax):
            let entries = read(node, from: from, upTo: upTo, bytesMax: bytesMax)
            followUps.append((node.id, .fetched(for: peer, from: from, entries: entries)))
        case .sendSnapshot(let peer): node.snapshotsWanted.append(peer)
        case .readReady(let id, let index): node.readsReady.append((id, index))
        case .readFailed(let id): node.readsFailed.append(id)
        case .proposalFailed(let id, _): node.proposalsFailed.append(id)
        case .standing, .membership, .regressed, .contradicted: break
        }
    }

    private func read(
        _ node: Node, from: LogIndex, upTo: LogIndex, bytesMax: Int
    ) -> [Entry] {
        let copy = Disk()
        copy.base = node.disk.base
        copy.entries = node.disk.entries
        for write in node.pending { copy.carryOut(write) }
        var result: [Entry] = []
        var (index, bytes) = (from, 0)
        while index <= upTo, let entry = copy.entry(index) {
            bytes += entry.payload.count
            if bytes > bytesMax, !result.isEmpty { break }
            result.append(entry)
            index = index.next
        }
        return result
    }

    private func apply(_ entries: [Entry], of node: Node) {
        for entry in entries {
            if entry.index != node.appliedIndex.next {
                violations.append(
                    "node \(node.id) applies \(entry.index) after \(node.appliedIndex)")
            }
            if let known = committed[entry.index], known != entry {
                violations.append("node \(node.id) has another entry \(entry.index) committed")
            }
            if node.disk.entry(entry.index) == nil {
                violations.append("node \(node.id) applies \(entry.index), which is not durable")
            }
            committed[entry.index] = entry
            node.applied.append(entry)
            node.appliedIndex = entry.index
        }
    }

    /// Only this node's clock runs, up to its deadline: Raft's safety must not depend on clocks.
    func fireTimer(_ id: NodeID) {
        let node = node(id)
        guard let due = node.due else { return }
        if due > now { node.skew += due - now }
        step(id, .timeout)
    }

    // MARK: Disks and network

    /// Makes the first `count` pending writes of a node durable (nil: all) and tells it.
    func sync(_ id: NodeID, count: Int? = nil) {
        let node = node(id)
        let writes = node.pending.prefix(count ?? node.pending.count)
        guard let last = writes.last, node.core != nil else { return }
        for write in writes { node.disk.carryOut(write) }
        node.pending.removeFirst(writes.count)
        node.durable = last.ticket
        let free = node.held.filter { $0.after <= last.ticket }
        node.held.removeAll { $0.after <= last.ticket }
        inFlight.append(contentsOf: free.map(\.message))
        step(id, .durable(last.ticket))
    }

    func deliver(_ message: Message) {
        guard isUp(message.to) else { return }
        step(message.to, .received(message))
    }

    /// Syncs and delivers until nothing moves any more.
    ///
    /// - Parameter isOpen: links for which this is false lose what is sent.
    func settle(isOpen: (Message) -> Bool = { _ in true }, roundsMax: Int = 10_000) {
        for _ in 0..<roundsMax {
            for node in nodes where !node.pending.isEmpty && node.core != nil { sync(node.id) }
            for node in nodes where node.core != nil {
                for peer in node.snapshotsWanted { passSnapshot(from: node.id, to: peer) }
            }
            if inFlight.isEmpty {
                if nodes.allSatisfy({ $0.pending.isEmpty || $0.core == nil }) { return }
                continue
            }
            let message = inFlight.removeFirst()
            if isOpen(message) { deliver(message) }
        }
        violations.append("the network does not settle")
    }

    /// Lets time pass in small pieces, delivering everything on the way.
    func pass(_ duration: Duration, isOpen: (Message) -> Bool = { _ in true }) {
        let end = now + duration
        settle(isOpen: isOpen)
        while let next = nodes.compactMap(\.due).min(), next <= end {
            now = max(now, next)
            for node in nodes {
                if let due = node.due, due <= now {
                    step(node.id, .timeout)
                    if node.due == due {
                        violations.append("node \(node.id) ignores its deadline")
                        return
                    }
                }
            }
            settle(isOpen: isOpen)
        }
        now = end
    }

    /// The state went with the log.
    func forgetApplied(_ id: NodeID, after index: LogIndex) {
        let node = node(id)
        node.appliedIndex = min(node.appliedIndex, index)
        node.applied.removeAll { $0.index > index }
    }

    // MARK: Snapshots

    /// Puts what `from` has applied in force at `to`, as the two shells would.
    func passSnapshot(from: NodeID, to: NodeID) {
        let (source, target) = (node(from), node(to))
        source.snapshotsWanted.removeAll { $0 == to }
        guard let meta = snapshotMeta(of: source) else { return }
        guard target.core?.takesSnapshot(meta) == true else {
            step(from, .snapshotSent(to: to, index: meta.index, succeeded: false))
            return
        }
        // The log store resets behind whatever was still to be written.
        sync(to)
        guard target.core?.takesSnapshot(meta) == true else { return }
        target.disk.base = (meta.index, meta.term)
        target.disk.entries = []
        target.disk.baseMembership = (meta.index, meta.membership)
        target.applied = source.applied.filter { $0.index <= meta.index }
        target.appliedIndex = meta.index
        step(to, .snapshotInstalled(meta))
        step(from, .snapshotSent(to: to, index: meta.index, succeeded: true))
    }

    private func snapshotMeta(of node: Node) -> SnapshotMeta? {
        guard let core = node.core, let term = core.term(at: node.appliedIndex) else { return nil }
        var membership = node.disk.baseMembership?.membership
        for entry in node.applied where entry.kind == .membership {
            membership = Membership(payload: entry.payload) ?? membership
        }
        guard let membership else { return nil }
        return SnapshotMeta(
            index: node.appliedIndex, term: term, membership: membership,
            time: node.applied.last?.time ?? .zero)
    }

    /// Forgets the log up to `index`, which must be applied.
    func discard(_ id: NodeID, upTo index: LogIndex) {
        let node = node(id)
        guard index <= node.appliedIndex, index > node.disk.base.index,
            let term = node.disk.entry(index)?.term
        else { return }
        for entry in node.disk.entries where entry.index <= index && entry.kind == .membership {
            if let membership = Membership(payload: entry.payload) {
                node.disk.baseMembership = (entry.index, membership)
            }
        }
        node.disk.entries.removeFirst(Int(index.rawValue - node.disk.base.index.rawValue))
        node.disk.base = (index, term)
        step(id, .logDiscarded(upTo: index, term: term))
    }

    // MARK: Clients

    func propose(_ id: NodeID, _ text: String) { propose(id, all: [text]) }

    /// As one batch.
    func propose(_ id: NodeID, all texts: [String]) {
        step(
            id,
            .propose(
                texts.map { text in
                    proposals += 1
                    return Proposal(
                        id: ProposalID(node: id, incarnation: 1, number: proposals),
                        payload: Array(text.utf8))
                }))
    }

    func note(_ violation: String) { violations.append(violation) }

    /// Entries at equal index and term are equal, and so is all before them (Raft §5.3).
    func checkLogMatching() {
        for (position, one) in nodes.enumerated() {
            for other in nodes.dropFirst(position + 1) {
                var agree = false
                for entry in one.disk.entries.reversed() {
                    guard let counterpart = other.disk.entry(entry.index) else { continue }
                    if counterpart.term == entry.term { agree = true }
                    if agree, counterpart != entry {
                        violations.append(
                            "logs of \(one.id) and \(other.id) part at \(entry.index)")
                        return
                    }
                }
            }
        }
    }

    func committedEntry(at index: LogIndex) -> Entry? { committed[index] }

    /// The last entry applied anywhere.
    var committedIndex: LogIndex { committed.keys.max() ?? .zero }
}
