// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import NIOCore
import RaftCore
import RaftStorage
import SwiftProtobuf

/// What a leader needs to know of the state to keep house. Comes with every batch applied, and
/// costs nothing to find out.
struct HousekeepingFacts: Sendable {
    /// Commands up to this version may be proposed.
    var activeVersion: UInt8
    /// No lease is due before this.
    var leaseExpiryHint: ClusterTime?
    /// History is to be compacted to this revision.
    var compaction: Revision?

    init(_ store: any StateStore, _ policy: CompactionPolicy) {
        let meta = store.meta
        activeVersion = meta.activeVersion
        leaseExpiryHint = store.leaseExpiryHint
        compaction = policy.decision(meta)
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
    /// Longest time between two looks at the leases while there are any.
    static let leaseInterval = Duration.seconds(60)
    /// Two compactions are at least this far apart: each sweeps up to
    /// `KVLimits.sweptPerCompact` rows, and writes sweep too.
    static let compactionInterval = Duration.milliseconds(100)
    /// How often members are asked which versions they know, while one is not in force.
    static let versionInterval = Duration.seconds(1)
    static let versionTimeout = TimeAmount.seconds(2)

    var sessions: Scheduled<Void>?
    var leases: Scheduled<Void>?
    /// Cluster time for which `leases` is set.
    var leasesArmedFor: ClusterTime?
    var isLookingForLeases = false
    var compaction: Scheduled<Void>?
    var compactedAt: MonotonicInstant?
    var versions: Scheduled<Void>?
    /// The newest version that each member said it knows.
    var known: [NodeID: UInt8] = [:]

    mutating func cancel() {
        for timer in [sessions, leases, compaction, versions] { timer?.cancel() }
        (sessions, leases, compaction, versions) = (nil, nil, nil, nil)
        leasesArmedFor = nil
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

    private func propose(_ command: Command) {
        submit(command, .housekeeping, hasSession: false, nil)
    }

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
        if due <= node.core.clusterTime(now: RaftNode.now) {
            propose(.expireLeases)
            armLeases(for: due, atLeast: Housekeeping.leaseRepeat)
        } else {
            armLeases(for: due, atLeast: .zero)
        }
    }

    /// A proposal of ours has been applied: if there are more leases due, they need not wait.
    func housekeepingApplied() {
        guard isKeepingHouse, housekeeping.leasesArmedFor != nil else { return }
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
    private func propose(compaction revision: Revision) {
        guard housekeeping.compaction == nil else { return }
        let now = RaftNode.now
        let earliest = housekeeping.compactedAt.map { $0 + Housekeeping.compactionInterval } ?? now
        guard earliest <= now else {
            housekeeping.compaction = schedule(in: earliest - now) {
                $0.housekeeping.compaction = nil
                $0.keepHouse()
            }
            return
        }
        housekeeping.compactedAt = now
        propose(.compact(revision))
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
