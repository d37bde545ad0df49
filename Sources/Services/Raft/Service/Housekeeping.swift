// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import NIOCore
import RaftCore
import RaftStorage
import SwiftProtobuf

/// What a node needs to know of its state to keep house. Comes with every batch applied, and
/// costs nothing to find out.
struct HousekeepingFacts: Sendable {
    /// Commands up to this version may be proposed.
    var activeVersion: UInt8
    /// No lease is due before this.
    var leaseExpiryHint: ClusterTime?
    /// History is to be compacted to this revision, if not all at once.
    var compaction: Revision?
    var compacted: Revision
    /// Changes kept, and how many of them a revision of history has on average.
    var changeCount: UInt64
    var changesPerRevision: UInt64
    var isCheckpointDue: Bool

    init(_ store: any StateStore, _ policy: CompactionPolicy) {
        let meta = store.meta
        activeVersion = meta.activeVersion
        leaseExpiryHint = store.leaseExpiryHint
        compaction = policy.decision(meta)
        compacted = meta.compacted
        changeCount = meta.figures.changeCount
        let span = meta.revision.rawValue - meta.compacted.rawValue
        changesPerRevision = meta.figures.historyCount / max(1, span)
        isCheckpointDue = store.isCheckpointDue
    }
}

/// What a leader does by itself, all by proposing commands: it ends leases and sessions whose time
/// is up, lets history go, and takes a new version of the state machine into force once all members
/// know it. An idle cluster writes nothing: whatever is asked now and then is asked of the state,
/// not of the log. Confined to the event loop.
struct Housekeeping {
    /// A leader looks for silent sessions at least this often.
    static let sessionInterval = Duration.seconds(15)
    static let sessionIntervalMin = Duration.seconds(1)
    /// Leases that are due and have been proposed for are looked at again after this time.
    static let leaseRepeat = Duration.milliseconds(250)
    /// Entries that end leases and are on their way at once: twice as many after each round that
    /// was quick, half as many after one that was slow, so that whoever reads meanwhile is not held
    /// up for long by what they remove.
    static let expiriesInFlightMax = 32
    static let expiryRoundShort = Duration.milliseconds(100)
    static let expiryRoundLong = Duration.milliseconds(200)
    /// Longest time between two looks at the leases while there are any.
    static let leaseInterval = Duration.seconds(60)
    /// How often members are asked which versions they know, while one is not in force.
    static let versionInterval = Duration.seconds(1)
    static let versionTimeout = TimeAmount.seconds(2)

    var sessions: Scheduled<Void>?
    var leases: Scheduled<Void>?
    /// Cluster time for which `leases` is set.
    var leasesArmedFor: ClusterTime?
    var isLookingForLeases = false
    var expiriesInFlight = 0
    /// How many may be in flight now; 1 while nothing is due.
    var expiryWindow = 1
    var expiriesProposedAt: MonotonicInstant?
    var compaction: Scheduled<Void>?
    var pace = CompactionPace()
    var versions: Scheduled<Void>?
    /// The newest version that each member said it knows.
    var known: [NodeID: UInt8] = [:]

    mutating func cancel() {
        for timer in [sessions, leases, compaction, versions] { timer?.cancel() }
        (sessions, leases, compaction, versions) = (nil, nil, nil, nil)
        leasesArmedFor = nil
        if !pace.isUnderWay { pace = CompactionPace() }
        expiryWindow = 1
        expiriesProposedAt = nil
    }

    /// Call when half of what was proposed is through.
    mutating func adaptExpiryWindow(_ now: MonotonicInstant) {
        guard let began = expiriesProposedAt else { return }
        expiriesProposedAt = nil
        if now - began <= Self.expiryRoundShort {
            expiryWindow = min(expiryWindow * 2, Self.expiriesInFlightMax)
        } else if now - began > Self.expiryRoundLong {
            expiryWindow = max(expiryWindow / 2, 1)
        }
    }
}

extension ClientService {
    private var isKeepingHouse: Bool { node.standing.role == .leader && !node.isStopped }

    /// Call when this node begins or ceases to lead.
    func scheduleHousekeeping() {
        guard isKeepingHouse else { return housekeeping.cancel() }
        if housekeeping.sessions == nil { scheduleSessions(in: Housekeeping.sessionInterval) }
        keepHouse()
    }

    /// Call when something was applied: cheap if there is nothing to do.
    func keepHouse() {
        guard isKeepingHouse else { return }
        let facts = node.applied.facts
        armLeases(facts.leaseExpiryHint)
        if let revision = facts.compaction { propose(compaction: revision) }
        if facts.activeVersion < KVVersion.supported, housekeeping.versions == nil {
            scheduleVersions(in: .zero)
        }
    }

    private func schedule(
        in delay: Duration, _ body: @escaping (ClientService) -> Void
    ) -> Scheduled<Void> {
        let box = NIOLoopBound((self, body), eventLoop: node.loop)
        return node.loop.scheduleTask(in: .nanoseconds(delay.nanoseconds)) {
            let (service, body) = box.value
            body(service)
        }
    }

    private func propose(_ command: Command) { proposeHousekeeping(command) { _ in } }

    // MARK: - Leases

    /// The timer follows the earliest deadline, which only a grant makes earlier; one that fires too
    /// early, because a lease was kept alive, asks the state and is set anew.
    private func armLeases(_ due: ClusterTime?) {
        guard let due else {
            housekeeping.leases?.cancel()
            housekeeping.leases = nil
            housekeeping.leasesArmedFor = nil
            return
        }
        guard !housekeeping.isLookingForLeases else { return }
        if let armed = housekeeping.leasesArmedFor, armed <= due { return }
        armLeases(for: due, atLeast: .zero)
    }

    private func armLeases(for due: ClusterTime, atLeast: Duration) {
        let now = node.core.clusterTime(now: RaftNode.now)
        let wait = due > now ? due.milliseconds - now.milliseconds : 0
        let delay = min(
            max(atLeast, .milliseconds(Int64(clamping: wait))), Housekeeping.leaseInterval)
        housekeeping.leases?.cancel()
        housekeeping.leasesArmedFor = due
        housekeeping.leases = schedule(in: delay) { $0.lookForLeases() }
    }

    private func lookForLeases() {
        housekeeping.leases = nil
        housekeeping.leasesArmedFor = nil
        guard isKeepingHouse, !housekeeping.isLookingForLeases else { return }
        housekeeping.isLookingForLeases = true
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.state.perform { store in
            let due = try store.nextLeaseExpiry()
            return {
                box.value.housekeeping.isLookingForLeases = false
                box.value.expireLeases(due)
            }
        }
    }

    private func expireLeases(_ due: ClusterTime?) {
        guard isKeepingHouse, let due else { return }
        let now = RaftNode.now
        guard due <= node.core.clusterTime(now: now) else {
            housekeeping.expiryWindow = 1
            housekeeping.expiriesProposedAt = nil
            return armLeases(for: due, atLeast: .zero)
        }
        let room = housekeeping.expiryWindow - housekeeping.expiriesInFlight
        for _ in 0..<max(0, room) {
            housekeeping.expiriesInFlight += 1
            housekeeping.expiriesProposedAt = now
            proposeHousekeeping(.expireLeases) { $0.housekeeping.expiriesInFlight -= 1 }
        }
        armLeases(for: due, atLeast: Housekeeping.leaseRepeat)
    }

    /// A proposal of ours has been applied: if there are more leases due, they need not wait. One
    /// entry too many does nothing; a round trip for each 200 leases would take too long.
    func housekeepingApplied() {
        guard isKeepingHouse, housekeeping.leasesArmedFor != nil,
            housekeeping.expiriesInFlight <= housekeeping.expiryWindow / 2
        else { return }
        housekeeping.adaptExpiryWindow(RaftNode.now)
        housekeeping.leases?.cancel()
        lookForLeases()
    }

    // MARK: - Sessions

    private func scheduleSessions(in delay: Duration) {
        housekeeping.sessions = schedule(in: delay) { $0.lookForSilentSessions() }
    }

    private func lookForSilentSessions() {
        housekeeping.sessions = nil
        guard isKeepingHouse else { return }
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.state.perform { store in
            let due = try store.nextSessionExpiry()
            return { box.value.expireSessions(due) }
        }
    }

    private func expireSessions(_ due: ClusterTime?) {
        guard isKeepingHouse, housekeeping.sessions == nil else { return }
        let now = node.core.clusterTime(now: RaftNode.now)
        guard let due else { return scheduleSessions(in: Housekeeping.sessionInterval) }
        guard due <= now else {
            let wait = Duration.milliseconds(Int64(clamping: due.milliseconds - now.milliseconds))
            return scheduleSessions(
                in: max(
                    Housekeeping.sessionIntervalMin, min(wait, Housekeeping.sessionInterval)))
        }
        propose(.expireSessions)
        scheduleSessions(in: Housekeeping.sessionIntervalMin)
    }

    // MARK: - Compaction

    /// Applying it asks the policy again, and so on until everything is swept. Whoever is short of
    /// space proposes the same command, with a later revision and sooner.
    private func propose(compaction target: Revision) {
        guard housekeeping.compaction == nil, !housekeeping.pace.isUnderWay else { return }
        let look = compactionLook
        guard housekeeping.pace.next <= look.at else {
            housekeeping.compaction = schedule(in: housekeeping.pace.next - look.at) {
                $0.housekeeping.compaction = nil
                $0.keepHouse()
            }
            return
        }
        let facts = node.applied.facts
        let step = housekeeping.pace.propose(
            from: facts.compacted, towards: target, changesPerRevision: facts.changesPerRevision,
            look)
        proposeHousekeeping(.compact(step)) {
            $0.housekeeping.pace.finished($0.compactionLook)
            $0.keepHouse()
        }
    }

    private var compactionLook: CompactionPace.Look {
        CompactionPace.Look(
            at: RaftNode.now, revision: node.applied.revision,
            changeCount: node.applied.facts.changeCount)
    }

    // MARK: - Versions

    private func scheduleVersions(in delay: Duration) {
        housekeeping.versions = schedule(in: delay) { $0.askForVersions() }
    }

    /// A version is taken into force when all members have said that they know it; learners too, for
    /// they apply the same entries.
    private func askForVersions() {
        housekeeping.versions = nil
        guard isKeepingHouse, node.applied.facts.activeVersion < KVVersion.supported,
            let membership = node.membership
        else { return }
        scheduleVersions(in: Housekeeping.versionInterval)
        housekeeping.known[options.raft.node] = KVVersion.supported
        var common = KVVersion.supported
        for member in membership.members {
            let known = housekeeping.known[member.node] ?? 0
            common = min(common, known)
            if known < KVVersion.supported { askForVersion(member.node) }
        }
        if common > node.applied.facts.activeVersion {
            propose(.activateVersion(UInt16(common)))
        }
    }

    private func askForVersion(_ member: NodeID) {
        var request = WireRequest()
        request.timeoutMs = UInt32(clamping: Housekeeping.versionTimeout.nanoseconds / 1_000_000)
        request.getNodeInfo = Aspen_Client_V1_GetNodeInfoRequest()
        let bytes: [UInt8] = (try? request.serializedBytes()) ?? []
        links.request(bytes, to: member, timeout: Housekeeping.versionTimeout) { [self] answer in
            let response = answer.flatMap { try? WireResponse(serializedBytes: $0) }
            guard case .getNodeInfo(let info)? = response?.response else { return }
            // A program of version 1 does not say.
            let version = UInt8(clamping: max(1, info.stateVersion))
            let isNews = housekeeping.known.updateValue(version, forKey: member) != version
            guard isNews, version > node.applied.facts.activeVersion else { return }
            housekeeping.versions?.cancel()
            askForVersions()
        }
    }
}
