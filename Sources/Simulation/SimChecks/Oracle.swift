// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimFaults

/// Knows everything that ever happened in a world and says when a promise of Raft (Ongaro and
/// Ousterhout 2014, figure 3) or of ours is broken, at the event that broke it.
package final class Oracle: WorldObserver {
    package enum Strictness: Sendable {
        /// Also the rules by which the promises are kept: what is durable before what is said, who
        /// may commit what.
        case rules
        /// Only what an outsider can see: what was committed, what states hold, what clients got.
        case outcomes
    }

    struct Place: Hashable {
        var index: LogIndex
        var term: Term
    }

    struct Committed {
        var mark: EntryMark
        /// The leader's term when it was first called committed.
        var committedIn: Term
    }

    let strictness: Strictness
    var disks: [ShadowDisk]
    /// `isMembershipNew` of any of them.
    private var areMembershipsNew = false
    /// What was durable on disks that are gone: what they acknowledged was true when it was said.
    var lostDisks: [ReplicaID: ShadowLog] = [:]
    /// Log matching: what stands at a place, and the term of what stands before it.
    var places = KnownPlaces()
    /// Of each membership entry: what it says.
    var changes: [Place: [UInt8]] = [:]
    var leaders: [Term: Int] = [:]
    var votes: [[Term: NodeID]]
    /// The committed log, from index 1.
    var committedLog: [Committed] = []
    var stateHashes: [LogIndex: UInt64] = [:]
    private(set) var book: LeaseBook
    var fates = WriteFates()
    var reference: Reference
    /// What was committed when each waiting read came, by node.
    var looks: [[UInt64: LogIndex]]
    /// When each further index was committed first.
    var commitTimes: [(at: MonotonicInstant, index: LogIndex)] = []
    var watchers: [Int: WatcherBook] = [:]
    var eventsTold = 0
    /// What was answered to `isFullyTold`, in order: a second run of the seed must get the same.
    var saidOfWatchers: [Bool] = []
    /// Where a state was last looked through.
    var audited = LogIndex.zero
    /// Entries from one look to the next.
    static let auditInterval: UInt64 = 128

    package init(
        nodes: Int, strictness: Strictness = .rules,
        sessionTimeout: Duration = Limits.sessionTimeout, bounds: KVBounds = KVBounds()
    ) {
        self.strictness = strictness
        reference = Reference(sessionTimeout: sessionTimeout, bounds: bounds)
        book = LeaseBook(bounds)
        looks = Array(repeating: [:], count: nodes)
        disks = Array(repeating: ShadowDisk(), count: nodes)
        votes = Array(repeating: [:], count: nodes)
    }

    /// The last index ever called committed.
    package var committedIndex: LogIndex { LogIndex(UInt64(committedLog.count)) }

    func committedEntry(at index: LogIndex) -> Committed? {
        guard index > .zero, index <= committedIndex else { return nil }
        return committedLog[Int(index.rawValue) - 1]
    }

    func breach(_ name: String, _ detail: String) -> Violation {
        Violation(.safety, name, detail)
    }

    // MARK: - Writing

    package func wrote(_ node: Int, _ write: LogWrite) throws(Violation) {
        if let cut = write.truncateAfter, cut < disks[node].committed {
            throw breach(
                "committed never changes",
                "n\(node + 1) cuts its log after \(cut), committed \(disks[node].committed)")
        }
        if write.truncateAfter != nil {
            // What was cut off may have been in force.
            disks[node].isMembershipNew = true
            areMembershipsNew = true
        }
        // Where the log ends, entry by entry: the log itself is not copied for it.
        var end = disks[node].written.end(truncatedAfter: write.truncateAfter)
        var marks: [EntryMark] = []
        marks.reserveCapacity(write.entries.count)
        for entry in write.entries {
            guard entry.index == end.index.next else {
                throw breach(
                    "log without holes", "n\(node + 1) writes \(entry.index) after \(end.index)")
            }
            let mark = EntryMark(entry)
            if entry.kind == .membership {
                try checkChange(node, entry)
                changes[Place(index: entry.index, term: entry.term)] = entry.payload
            }
            try match(node, entry.index, mark, previousTerm: end.term)
            end = (entry.index, entry.term)
            marks.append(mark)
        }
        disks[node].write(
            ShadowWrite(
                ticket: write.ticket, truncateAfter: write.truncateAfter, marks: marks,
                hardState: write.hardState))
    }

    /// Log matching: one place, one entry, one predecessor. By induction equal places mean equal
    /// logs up to there.
    private func match(
        _ node: Int, _ index: LogIndex, _ mark: EntryMark, previousTerm: Term
    ) throws(Violation) {
        guard let known = places[index, mark.term] else {
            places.add(index, mark, previousTerm: previousTerm)
            return
        }
        if known.mark != mark || known.previousTerm != previousTerm {
            throw breach(
                "log matching",
                "n\(node + 1) has another entry \(index) of term \(mark.term) than the others, or "
                    + "another one before it (term \(previousTerm), not \(known.previousTerm))")
        }
    }

    package func synced(_ node: Int, _ writes: [LogWrite]) {
        guard let last = writes.last else { return }
        disks[node].sync(upTo: last.ticket)
    }

    package func discarded(_ node: Int, upTo index: LogIndex) {
        disks[node].written.discard(upTo: index)
        disks[node].durable.discard(upTo: index)
    }

    // MARK: - Leading

    package func standing(_ node: Int, _ standing: RaftStanding) throws(Violation) {
        if let before = disks[node].standing, standing.term < before.term {
            throw breach(
                "terms only grow", "n\(node + 1) went from \(before.term) to \(standing.term)")
        }
        disks[node].standing = standing
        noteCampaign(node, standing)
        guard standing.role == .leader else { return }
        let own = HardState(term: standing.term, votedFor: NodeID(UInt64(node + 1)))
        if strictness == .rules, disks[node].durableHardState != own {
            throw breach(
                "durable before said",
                "n\(node + 1) leads term \(standing.term) before its own vote is durable")
        }
        if let other = leaders[standing.term], other != node {
            throw breach(
                "election safety", "n\(other + 1) and n\(node + 1) both lead term \(standing.term)")
        }
        leaders[standing.term] = node
        let log = disks[node].written
        for (offset, committed) in committedLog.enumerated() {
            let index = LogIndex(UInt64(offset) + 1)
            // Votes may be late: what a later leader committed is not this one's duty.
            guard committed.committedIn < standing.term, index > log.base else { continue }
            if log[index] != committed.mark {
                throw breach(
                    "leader completeness",
                    "n\(node + 1) leads term \(standing.term) without entry \(index) of term "
                        + "\(committed.mark.term), committed in term \(committed.committedIn)")
            }
        }
    }

    package func membership(_ node: Int, _ membership: Membership) {
        disks[node].memberships = Array((disks[node].memberships + [membership]).suffix(2))
        disks[node].membershipsSinceApplied.append((membershipIndex(node), membership))
        disks[node].isMembershipNew = true
        areMembershipsNew = true
    }

    // MARK: - Committing

    package func committed(
        _ node: Int, upTo index: LogIndex, leading: Term?
    ) throws(Violation) {
        let log = disks[node].written
        guard index <= log.lastIndex else {
            throw breach(
                "committed is in the log",
                "n\(node + 1) calls \(index) committed, its log ends at \(log.lastIndex)")
        }
        if index > committedIndex { try firstCommitted(node, upTo: index, leading) }
        var next = max(disks[node].committed, log.base).next
        while next <= index {
            if log[next] != committedEntry(at: next)?.mark {
                throw breach(
                    "committed never changes",
                    "n\(node + 1) calls another entry \(next) committed than was committed before")
            }
            next = next.next
        }
        disks[node].committed = max(disks[node].committed, index)
    }

    private func firstCommitted(
        _ node: Int, upTo index: LogIndex, _ leading: Term?
    ) throws(Violation) {
        let disk = disks[node]
        let term = leading ?? disk.standing?.term ?? .zero
        if strictness == .rules {
            guard leading != nil else {
                throw breach(
                    "commit rule", "n\(node + 1) calls \(index) committed before any leader does")
            }
            guard disk.written.term(at: index) == term else {
                throw breach(
                    "commit rule",
                    "n\(node + 1) commits \(index) of an older term by counting, in term \(term)")
            }
            guard disk.memberships.contains(where: { isOnQuorum(of: $0, index, like: disk) }) else {
                throw breach(
                    "commit rule", "n\(node + 1) commits \(index), which no quorum has durably")
            }
        }
        while committedIndex < index {
            guard let mark = disk.written[committedIndex.next] else {
                throw breach("commit rule", "n\(node + 1) commits what its log does not hold")
            }
            committedLog.append(Committed(mark: mark, committedIn: term))
        }
    }

    private func isOnQuorum(
        of membership: Membership, _ index: LogIndex, like disk: ShadowDisk
    ) -> Bool {
        func isMajority(_ voters: [NodeID]) -> Bool {
            let having = voters.count { voter in
                let lost = membership.member(voter).flatMap { lostDisks[$0.replica] }
                let theirs = disks[Int(voter.rawValue) - 1]
                return [lost ?? theirs.durable, theirs.beforeDamage].contains {
                    $0.base >= index || $0[index] == disk.written[index]
                }
            }
            return having * 2 > voters.count
        }
        return isMajority(membership.voters)
            && (!membership.isJoint || isMajority(membership.votersOutgoing))
    }

    // MARK: - Applying

    package func applied(
        _ node: Int, _ entries: [Entry], contentHash: UInt64
    ) throws(Violation) {
        for entry in entries {
            if entry.index > disks[node].committed {
                throw breach(
                    "applied is committed",
                    "n\(node + 1) applies \(entry.index), committed \(disks[node].committed)")
            }
            if committedEntry(at: entry.index)?.mark != EntryMark(entry) {
                throw breach(
                    "state machine safety",
                    "n\(node + 1) applies another entry \(entry.index) than was committed")
            }
        }
        guard let last = entries.last else { return }
        noteAppliedChanges(node, entries)
        try compareState(node, at: last.index, contentHash)
    }

    package func applied(
        _ node: Int, _ entries: [Entry], _ results: [CommandResult], _ state: MemoryState
    ) throws(Violation) {
        try checkResults(node, entries, results)
        try book.applied(node, entries, results, state)
        try judgeFates(entries)
        try auditIfDue(node, state)
    }

    private func compareState(
        _ node: Int, at index: LogIndex, _ hash: UInt64
    ) throws(Violation) {
        if let known = stateHashes[index], known != hash {
            throw breach(
                "equal state", "n\(node + 1) holds another state at \(index) than another node")
        }
        stateHashes[index] = hash
    }

    package func answered(_ node: Int, _ entry: Entry) throws(Violation) {
        if committedEntry(at: entry.index)?.mark != EntryMark(entry) {
            throw breach(
                "acknowledged is committed",
                "n\(node + 1) acknowledges \(entry.index), which is not committed")
        }
    }

    package func installs(_ node: Int, _ meta: SnapshotMeta) {
        disks[node].restart = (meta.index, meta.term)
    }

    package func installed(
        _ node: Int, _ meta: SnapshotMeta, contentHash: UInt64
    ) throws(Violation) {
        guard committedEntry(at: meta.index)?.mark.term == meta.term else {
            throw breach(
                "snapshots hold what is committed",
                "n\(node + 1) installs a snapshot at \(meta.index) of term \(meta.term)")
        }
        let log = disks[node].written
        let goesFurther = log.lastIndex > meta.index && log.term(at: meta.index) == meta.term
        if meta.index < disks[node].committed || goesFurther {
            throw breach(
                "a snapshot takes nothing back",
                "n\(node + 1) puts a snapshot at \(meta.index) in the place of a log up to "
                    + "\(log.lastIndex), committed \(disks[node].committed)")
        }
        try compareState(node, at: meta.index, contentHash)
        restartLog(node, after: meta.index, term: meta.term)
    }

    package func restartedLog(
        _ node: Int, after index: LogIndex, term: Term
    ) throws(Violation) {
        // An empty one is a replica that has to be filled again.
        guard index == .zero || committedEntry(at: index)?.mark.term == term else {
            throw breach(
                "states hold what is committed",
                "n\(node + 1) has a state at \(index) of term \(term)")
        }
        restartLog(node, after: index, term: term)
    }

    private func restartLog(_ node: Int, after index: LogIndex, term: Term) {
        disks[node].written.restart(after: index, term: term)
        disks[node].durable.restart(after: index, term: term)
        disks[node].committed = max(disks[node].committed, index)
        // The log store makes what it is told durable before it starts anew.
        for write in disks[node].pending {
            if let state = write.hardState { disks[node].durableHardState = state }
        }
        disks[node].pending.removeAll()
        disks[node].restart = nil
    }

    package func regressed(
        _ node: Int, peer: NodeID, acknowledged: LogIndex, found: LogIndex
    ) throws(Violation) {
        throw breach(
            "acknowledged is durable",
            "n\(node + 1) finds n\(peer) at \(found), it had acknowledged \(acknowledged)")
    }

    package func contradicted(
        _ node: Int, by leader: NodeID, at index: LogIndex, _ committed: Term, found: Term
    ) throws(Violation) {
        throw breach(
            "committed is in every leader's log",
            "n\(node + 1) committed \(index) of term \(committed), n\(leader) has term \(found)")
    }

    package func afterEvent(_ world: World) throws(Violation) {
        let known = committedIndex
        if known > commitTimes.last?.index ?? .zero { commitTimes.append((world.now, known)) }
        let flyingMax = world.scenario.appendsInFlightMax
        for node in world.nodes {
            guard let shell = node.shell else { continue }
            if areMembershipsNew { try checkMembershipInForce(node.index) }
            try check(shell, known, flyingMax)
        }
        if areMembershipsNew { areMembershipsNew = disks.contains(where: \.isMembershipNew) }
    }

    /// - Note: everything is asked for once: this is done for each node after each event.
    private func check(
        _ shell: RaftShell, _ known: LogIndex, _ flyingMax: Int
    ) throws(Violation) {
        let (figures, applied) = (shell.figures, shell.state.appliedIndex)
        if figures.isReady, shell.standing.leader == nil {
            throw breach("who is ready is led", "n\(shell.nodeID) says that it is ready")
        }
        if applied > figures.commitIndex {
            throw breach(
                "applied is committed",
                "n\(shell.nodeID) has applied \(applied), committed \(figures.commitIndex)")
        }
        if figures.commitIndex > known {
            throw breach(
                "commit rule",
                "n\(shell.nodeID) believes \(figures.commitIndex) committed, nobody committed "
                    + "more than \(known)")
        }
        if figures.appendsInFlight > flyingMax {
            throw breach(
                "queues keep their limits",
                "n\(shell.nodeID) has \(figures.appendsInFlight) appends on their way to one peer")
        }
    }
}
