// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// Times and sizes of one node. All nodes of a cluster should agree on the times.
package struct RaftConfiguration: Sendable {
    package var node: NodeID
    /// This data directory. While the membership in the log names another one under the same node
    /// id, this node has no vote: it has forgotten what that one promised. Nil: not looked at.
    package var replica: ReplicaID?
    package var heartbeatInterval: Duration = .milliseconds(500)
    package var electionTimeoutMin: Duration = .milliseconds(1500)
    package var electionTimeoutMax: Duration = .milliseconds(3000)
    /// How long after SERVICE_GONE those who are not the named successor wait (drawn between).
    package var takeoverDelayMin: Duration = .milliseconds(50)
    package var takeoverDelayMax: Duration = .milliseconds(150)
    /// Most bytes of payload in one append message.
    package var appendBytesMax = 1_000_000
    /// Most append messages on their way to one peer.
    package var appendsInFlightMax = 64
    /// Most bytes of recent entries kept in memory for sending; older ones are fetched.
    package var cacheBytesMax = 16_000_000
    /// Most bytes of entries appended by this leader and not yet committed; beyond it proposals
    /// fail with `tooMany`.
    package var uncommittedBytesMax = 64_000_000
    /// How far behind the newest forwarded proposal of a node an older one may be and still be told
    /// from a double; a multiple of 64. Only the simulator has another one.
    package var forwardWindow = ForwardLedger.bits
    /// See `Limits.learnerLagThreshold`. Only the simulator has another one.
    package var learnerLagMax = UInt64(Limits.learnerLagThreshold)
    /// Bugs to switch on; honoured in test builds only.
    package var plantedBugs: Set<PlantedBug> = []

    package init(node: NodeID) { self.node = node }
}

/// Faults that a test build can be told to have, so that the checks can be checked.
package enum PlantedBug: String, Sendable, CaseIterable {
    case voteTwice = "vote-twice"
    case acknowledgeBeforeDurable = "acknowledge-before-durable"
    case applyBeforeCommit = "apply-before-commit"
    case skipReadRound = "skip-read-round"
    case commitOldTermByCounting = "commit-old-term-by-counting"
    case acceptRecycledRecord = "accept-recycled-record"
    // Of the state machine and its stores: see `KVPlantedBug`.
    case leaseByLocalClock = "lease-by-local-clock"
    case snapshotWithoutLeases = "snapshot-without-leases"
    case leaseLeavesKey = "lease-leaves-key"
    case sweepTooFar = "sweep-too-far"
    /// Any change of voters in one step, without a joint membership.
    case skipJointConsensus = "skip-joint-consensus"
    /// A second change before the first one is committed.
    case overlapChanges = "overlap-membership-changes"
    /// A new leader answers reads before it knows what is committed.
    case readBeforeOwnEntry = "read-before-own-entry"
    /// Whoever is named by the leader takes office without asking anybody.
    case transferWithoutVotes = "transfer-without-votes"
    /// A node whose log is damaged votes and acknowledges as if it were whole.
    case damagedNodeVotes = "damaged-node-votes"
    /// No bound on the appends on their way to a peer.
    case unboundedFlight = "unbounded-appends-in-flight"
    /// A snapshot is put in force although the log goes further.
    case installOlderSnapshot = "install-older-snapshot"
    /// What a learner has counts like what a voter has.
    case learnersCount = "learners-count"
    /// A leader that is no voter any more counts itself.
    case leaverCounts = "leaver-counts-itself"
    /// What comes again in an append brings its membership into force again.
    case changeTwice = "apply-membership-change-twice"
    /// Who was removed asks for votes as if the leader had named it.
    case removedNodeDisrupts = "removed-node-disrupts"
    /// A recovery from the loss of a majority keeps only what this node knew to be committed.
    case recoveryDropsTail = "recovery-drops-tail"
    // Of clients' writes: see `ProposalPlantedBug`.
    case refusedCopyBelieved = "refused-copy-taken-for-fate"
    case newLeaderTakenForLoss = "new-leader-taken-for-loss"
    case copyToLaterLeader = "copy-to-later-leader"
    case skippedTakenForLost = "skipped-taken-for-lost"
    case timeTakenForRefusal = "time-out-taken-for-refusal"
    // Of what surrounds the core.
    /// A replica that took another's name is taken for it.
    case believeOtherReplica = "believe-other-replica"
    /// A read that may be stale is answered however old the state is.
    case staleBeyondBound = "stale-beyond-bound"
    /// The log is cut for a checkpoint that is on disk only when the next one is made.
    case discardBeyondCheckpoint = "discard-beyond-checkpoint"
    // Of the log.
    /// A term or vote that comes without entries is not written.
    case loseHardState = "lose-hard-state"
    /// A log that ends in damage is taken for one that ends there.
    case acceptTornTail = "accept-torn-tail"
    /// A damaged log that has lost the newest membership goes by an older one.
    case forgetNewestMembership = "forget-newest-membership"
    /// What is whole behind the damage of the logs is left there.
    case forgetSalvage = "forget-salvage"
    // Of the state machine: see `KVPlantedBug`.
    case applyRetryTwice = "apply-retry-twice"
    case executeExpiredSession = "execute-expired-session"
    case snapshotWithoutSessions = "snapshot-without-sessions"
    case ignoreCompare = "ignore-compare"
    case rangeClaimsEnd = "range-claims-end"
    case pastReadSeesNow = "past-read-sees-now"
    case revisionGoesBack = "revision-goes-back-at-restart"
    case keepExpiredLease = "keep-alive-revives-lease"
    case pageDropsKey = "page-drops-key"
    case batchReadMixes = "batch-read-mixes-revisions"
    case refusedHalfDone = "refused-transaction-half-done"
    case historyWithoutRemovals = "history-without-removals"
    case backupMixesMoments = "backup-mixes-moments"
    case restoreWithoutLeases = "restore-without-leases"
    case restoreKeepsSessions = "restore-keeps-sessions"
    // Of the database.
    /// What its syncs are asked for does not reach the disk.
    case databaseNotSynced = "database-not-synced"
    /// A checkpoint counts although the frames were left in the WAL.
    case checkpointBelieved = "checkpoint-believed"
    /// A page is read for another, and passes.
    case misdirectedPageServed = "misdirected-page-served"
    /// A page of which the disk has an older part passes.
    case tornPageServed = "torn-page-served"
    // Of watches: see `WatchPlantedBug`.
    case watchSkipsCompacted = "watch-skips-compacted"
    case watchRepeatsAtResume = "watch-repeats-at-resume"
    case watchNewestBeforeOlder = "watch-newest-before-older"
    case watchDropsWhenBlocked = "watch-drops-when-blocked"
    case watchIgnoresSnapshot = "watch-ignores-snapshot"
    case watchSplitsRevision = "watch-splits-revision"
    // Of gossip: see `GossipPlantedBug`.
    case gossipBelievesUnsigned = "gossip-believes-unsigned"
    case gossipBuriesTheLinked = "gossip-buries-the-linked"
    case gossipKeepsNeighbours = "gossip-keeps-every-neighbour"
    case gossipKeepsItsEpoch = "gossip-keeps-its-epoch"

    package static let inDatabase: Set = [
        PlantedBug.databaseNotSynced, .checkpointBelieved, .misdirectedPageServed, .tornPageServed,
    ]
    package static let inGossip: Set = [
        PlantedBug.gossipBelievesUnsigned, .gossipBuriesTheLinked, .gossipKeepsNeighbours,
        .gossipKeepsItsEpoch,
    ]
    /// Of those in the database, what takes a damaged page to be seen.
    package static let inPages: Set = [PlantedBug.misdirectedPageServed, .tornPageServed]
}

/// What the log store found at start-up.
///
/// `snapshotIndex <= appliedIndex <= lastIndex` must hold. Where the state is ahead of the log
/// (its tail was damaged), the store starts the log anew just behind the state; where entries are
/// missing between the two, the node is rebuilt: an empty log and state, an untrusted tail, and
/// `untrustedBelow` as far as the old log went.
package struct RaftRecovery: Sendable {
    /// Right even when the tail is not to be trusted: a vote must never be hidden by damage to log
    /// entries.
    package var hardState: HardState
    /// The membership in force at the end of the log, and the one at `snapshotIndex` or the last
    /// one known committed, to fall back on when the tail is replaced.
    package var memberships: [(index: LogIndex, membership: Membership)]
    /// Index and term just before the first entry of the log (zero if the log starts at 1).
    package var snapshotIndex: LogIndex
    package var snapshotTerm: Term
    package var lastIndex: LogIndex
    /// For each run of entries of one term: its first index and the term, ascending.
    package var termStarts: [(index: LogIndex, term: Term)]
    /// What the state machine had applied; at most the commit index.
    package var appliedIndex: LogIndex
    /// The newest time stamp in log or state.
    package var lastTime: ClusterTime
    /// False when the end of the log is damaged in a way that may hide an acknowledged entry. What
    /// is left (up to `lastIndex`) is intact. Such a node neither votes (but on condition) nor
    /// acknowledges until a leader has brought its log up to `untrustedBelow`; then a `LogWrite`
    /// with `endsRepair` says so. Until that is durable every start must say false again, whatever
    /// was appended meanwhile. See Repair.swift.
    package var isTailTrusted: Bool
    /// With an untrusted tail: the index up to which entries may once have been acknowledged; at
    /// least `lastIndex`.
    package var untrustedBelow: LogIndex
    /// With an untrusted tail: the newest membership entry that this log is known to have held, lost
    /// or not.
    package var newestMembership: NewestMembership?
    /// With an untrusted tail: whole entries that are still on this disk, behind damage, and those of
    /// the log that are not applied. In any order, some perhaps twice or cut off by a leader long
    /// since; at most `Limits.salvageBytesMax`. See rule 6 in Repair.swift.
    package var salvage: [Entry]

    package init(
        hardState: HardState = HardState(),
        memberships: [(index: LogIndex, membership: Membership)] = [],
        snapshotIndex: LogIndex = .zero, snapshotTerm: Term = .zero, lastIndex: LogIndex = .zero,
        termStarts: [(index: LogIndex, term: Term)] = [], appliedIndex: LogIndex = .zero,
        lastTime: ClusterTime = .zero, isTailTrusted: Bool = true, untrustedBelow: LogIndex = .zero,
        newestMembership: NewestMembership? = nil, salvage: [Entry] = []
    ) {
        self.hardState = hardState
        self.memberships = memberships
        self.snapshotIndex = snapshotIndex
        self.snapshotTerm = snapshotTerm
        self.lastIndex = lastIndex
        self.termStarts = termStarts
        self.appliedIndex = appliedIndex
        self.lastTime = lastTime
        self.isTailTrusted = isTailTrusted
        self.untrustedBelow = untrustedBelow
        self.newestMembership = newestMembership
        self.salvage = salvage
    }
}

/// A membership entry that may be lost, but is known to have been there.
package struct NewestMembership: Equatable, Sendable {
    package var index: LogIndex
    package var term: Term
    package var membership: Membership

    package init(index: LogIndex, term: Term, membership: Membership) {
        self.index = index
        self.term = term
        self.membership = membership
    }
}

/// What happens to a Raft node.
package enum RaftInput: Sendable {
    /// The machine's `deadline` has come.
    case timeout
    case received(Message)
    /// Clients want these appended; a follower or learner passes them on to the leader. Each either
    /// comes back in a `commit` as the `origin` of an entry, or in `proposalFailed`, or, if it was
    /// passed on and the leader was lost, not at all. One batch is one write.
    case propose([Proposal])
    /// Ends in `readReady` or `readFailed`, at the latest after `electionTimeoutMin`.
    case read(ReadID)
    /// This write, and all before it, are durable. Several may be reported by the last one.
    case durable(DurabilityTicket)
    /// The state machine has applied up to here. A leader takes no more than
    /// `Limits.proposalsInFlightMax` proposals ahead of it.
    case applied(LogIndex)
    /// Answers `fetch`: entries from the log, or none if they are no longer there.
    case fetched(for: NodeID, from: LogIndex, entries: [Entry])
    /// Makes this node the first voter of a new cluster; refused once there is a membership. Cluster
    /// time starts from `wallTime`. More voters and the learners follow in a change of their own;
    /// the last entry of it all carries `id`.
    case initialize(Membership, wallTime: ClusterTime, id: ProposalID)
    /// Makes this node the only voter of a cluster of another id, with all that its log holds,
    /// committed or not: for when a majority of the voters is lost for good. Safe only if none of
    /// them ever comes back. Refused by a leader, by nodes that are no members and while the end of
    /// the log is not to be trusted. The entry that does it carries `id`.
    case recover(cluster: ClusterID, id: ProposalID)
    /// Go over to these voters and learners (joint consensus when the voters change; leader only,
    /// elsewhere it fails with `noLeader`). `members`: those that are new or have new addresses. The
    /// last entry of the change carries `id`.
    case changeMembership(
        voters: [NodeID], learners: [NodeID], members: [Membership.Member], id: ProposalID)
    /// Ignored unless this node leads and the target is a voter. Given up after
    /// `electionTimeoutMin`; until then proposals fail with `noLeader`.
    case transferLeadership(to: NodeID)
    /// The peer's net says that the peer's raft daemon is gone (its net is alive).
    case serviceGone(NodeID)
    /// The stream to or from a peer broke (after the redial grace); what was in flight is lost.
    case linkLost(NodeID)
    case linkRestored(NodeID)
    /// This node's own net daemon went or came: a node without it never campaigns.
    case ownNetLost
    case ownNetRestored
    /// The log store has discarded entries up to `index`; all of them are applied, durably.
    case logDiscarded(upTo: LogIndex, term: Term)
    /// A snapshot from the leader has been written, checked and put in force, durably, and the log
    /// store has been reset behind it, after all writes handed out before. Ask `takesSnapshot` just
    /// before putting it in force: anything else is a broken promise.
    case snapshotInstalled(SnapshotMeta)
    /// Sending a snapshot to that peer has ended: `succeeded` if it is in force there. Each
    /// `sendSnapshot` must end in this.
    case snapshotSent(to: NodeID, index: LogIndex, succeeded: Bool)
}

/// A write to the log store. To be carried out in ticket order; truncation comes first, then the
/// entries, then the hard state; one sync makes all of it durable.
package struct LogWrite: Equatable, Sendable {
    package var ticket: DurabilityTicket
    /// Remove every entry after this one first.
    package var truncateAfter: LogIndex?
    package var entries: [Entry]
    package var hardState: HardState?
    /// The log is whole again: from this write on, a recovery no longer says that the tail is not
    /// to be trusted (until there is new damage).
    package var endsRepair: Bool

    package init(
        ticket: DurabilityTicket, truncateAfter: LogIndex? = nil, entries: [Entry] = [],
        hardState: HardState? = nil, endsRepair: Bool = false
    ) {
        self.ticket = ticket
        self.truncateAfter = truncateAfter
        self.entries = entries
        self.hardState = hardState
        self.endsRepair = endsRepair
    }
}

package enum RaftRole: String, Sendable { case follower, preCandidate, candidate, leader, learner }

/// Who leads, as this node sees it.
package struct RaftStanding: Equatable, Sendable {
    package var role: RaftRole
    package var term: Term
    package var leader: NodeID?

    package init(role: RaftRole, term: Term, leader: NodeID?) {
        self.role = role
        self.term = term
        self.leader = leader
    }
}

package enum ProposalFailure: Equatable, Sendable {
    /// Never appended anywhere: safe to send again.
    case noLeader
    /// Too many proposals in flight.
    case tooMany
    /// A membership rule forbids it; the text says which.
    case refused(String)
}

/// What a Raft node wants done.
package enum RaftEffect: Equatable, Sendable {
    case write(LogWrite)
    /// May leave once `after` is durable (at once when nil). Later messages to the same peer and
    /// lane keep their order. Dropped if there is no stream to the peer.
    case send(Message, after: DurabilityTicket?)
    /// Apply these, in order; the last one is `upTo`. They follow what was handed out before, and
    /// are durable here.
    case commit(entries: [Entry], upTo: LogIndex)
    /// Committed entries that are not in memory (after a restart): read them from the log and apply
    /// them before any later `commit`.
    case commitFromLog(from: LogIndex, upTo: LogIndex)
    /// The read may be answered once `index` is applied.
    case readReady(ReadID, index: LogIndex)
    case readFailed(ReadID)
    /// The proposal was not appended; nobody will.
    case proposalFailed(ProposalID, ProposalFailure)
    case standing(RaftStanding)
    /// The membership in force has changed (appended, not yet committed).
    case membership(Membership)
    /// Read entries from the log for this peer, then say `fetched`.
    case fetch(for: NodeID, from: LogIndex, upTo: LogIndex, bytesMax: Int)
    /// The peer needs what the log no longer has: stream a snapshot to it, then say `snapshotSent`.
    case sendSnapshot(to: NodeID)
    /// A peer under this replica id has fewer entries than it acknowledged: it has lost data and is
    /// no longer believed.
    case regressed(NodeID, acknowledged: LogIndex, found: LogIndex)
    /// The leader's log has an entry of term `found` where this node has committed another: a majority
    /// has lost what it had agreed upon. The two can no longer be brought together; whoever goes on
    /// serves something that the others do not have. No message of that leader is answered.
    case contradicted(by: NodeID, at: LogIndex, committed: Term, found: Term)
}
