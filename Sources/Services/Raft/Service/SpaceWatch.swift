// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import Logging
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

/// Watches how much room this node and its peers have, and says what may still be written.
///
/// A write is refused before it is anywhere in a log: by the node that a client asks, and by the
/// leader where one is passed on. What is in a log already goes on to be stored, from the margin
/// below which the refusing began and from the reserve.
///
/// Confined to the event loop.
final class SpaceWatch {
    /// How often the file system is looked at, besides after every so many bytes.
    static let interval = TimeAmount.milliseconds(500)
    /// The same while there is space to be given back.
    static let busyInterval = TimeAmount.milliseconds(50)
    /// What a peer has said counts for this long: it says it again with every look.
    static let reportLifetime = Duration.seconds(3)
    /// A leader that is short hands over at most this often.
    static let handOverInterval = Duration.seconds(5)

    private unowned let node: RaftNode
    private let storage: StorageSpace?
    private var gauge: SpaceGauge
    private var timer: Scheduled<Void>?
    private var isLogStuck = false
    /// Bytes appended and not yet stored by the state: those that wait for its thread count too.
    private var pendingBytes = 0
    private var bytesSinceLook = 0
    private var room = Int.max
    private var reports: [NodeID: (level: SpaceLevel, at: MonotonicInstant)] = [:]
    private let policy = SpacePolicy()

    init(node: RaftNode, storage: StorageSpace?) {
        self.node = node
        self.storage = storage
        gauge = SpaceGauge(storage?.limits ?? SpaceLimits())
    }

    var level: SpaceLevel { gauge.level }
    var limits: SpaceLimits { gauge.limits }
    /// What may be used for a while beside all else.
    var spareBytes: Int { room == .max ? .max : max(0, room - limits.reserveBytes) }
    /// What a snapshot on its way out may take, and as much again what is written meanwhile; nil: it has
    /// to wait. The reserve is not for that.
    var spoolBytesMax: Int? {
        guard room != .max else { return .max }
        return spareBytes / 2 >= SpaceLimits.spoolBytesMin ? spareBytes / 2 : nil
    }
    /// False once not even the reserve is left: entries from the leader have to wait.
    var takesEntries: Bool { level < .exhausted }

    func start() {
        look()
        schedule()
    }

    /// False if that many bytes of a segment that is only prepared would be taken from the half of the
    /// reserve that is the state's.
    func hasRoom(forSegment byteCount: Int) -> Bool {
        byteCount == 0 || room == .max || room - byteCount >= limits.reserveBytes / 2
    }

    func stop() {
        timer?.cancel()
        timer = nil
    }

    /// Once nothing is written any more.
    func close() { storage?.close() }

    private func schedule() {
        guard storage != nil, !node.isStopped else { return }
        timer?.cancel()
        let box = NIOLoopBound(self, eventLoop: node.loop)
        let isBusy = policy.isBusy || storage?.isGrowing == true
        timer = node.loop.scheduleTask(in: isBusy ? Self.busyInterval : Self.interval) {
            box.value.tick()
        }
    }

    private func tick() {
        guard !node.isStopped else { return }
        look()
        // Whoever missed it hears it again; that there is room is said once, and outlives silence.
        if level >= .short { node.links.announce(level) }
        if isLogStuck { node.log.submitToThread(.prepareAgain) }
        if level > .ample { node.state.tryAgain() }
        policy.act(node)
        node.restIfQuiet()
        schedule()
    }

    func trimmed(_ durable: LogIndex, _ hasMore: Bool) {
        policy.trimmed(hasMore: hasMore)
        guard !node.isStopped else { return }
        node.discardLog(durable: durable)
        look()
    }

    /// - Parameter revision: nil if there is nothing to compact.
    func mayCompact(to revision: Revision?) {
        guard let revision, node.core.isLeader, let client = node.client else {
            return policy.compactionEnded()
        }
        client.compact(to: revision) { [self] in policy.compactionEnded() }
    }

    // MARK: - Looking

    /// - Parameter pending: the state will want room for them too.
    func appending(_ bytes: Int, pending: Bool = true) {
        guard storage != nil else { return }
        if pending { pendingBytes += bytes }
        bytesSinceLook += bytes
        if bytesSinceLook >= limits.reserveBytes / 16 { look() }
    }

    func applied(_ bytes: Int) { pendingBytes = max(0, pendingBytes - bytes) }

    /// A snapshot has taken the place of whatever was on its way.
    func caughtUp() { pendingBytes = 0 }

    /// The log has, or could not get, its next segment.
    func prepared(_ isReady: Bool) {
        isLogStuck = !isReady
        look()
    }

    private func look() {
        bytesSinceLook = 0
        if node.applied.index == node.core.lastIndex { pendingBytes = 0 }
        guard let storage, let free = storage.balance() else { return }
        // What is on its way is written to the WAL, then to the database.
        room = free - 2 * pendingBytes
        let before = level
        gauge.update(room: room, isLogStuck: isLogStuck)
        if level != before { changed(from: before) }
    }

    private func changed(from before: SpaceLevel) {
        node.links.announce(level)
        if (before == .ample) != (level == .ample) { node.state.setSpaceTight(level > .ample) }
        let fields: Logger.Metadata = [
            "free": "\(storage?.available ?? 0)", "reserve": "\(storage?.reserve ?? 0)",
        ]
        if level >= .short, level > before {
            let text =
                level == .short
                ? "puts are refused, reads and deletes go on"
                : "the reserve is used up, nothing is written until there is space"
            node.logger.error(
                "no space left on the disk: \(text)",
                metadata: fields.merging(["event": "\(JournalEvent.diskFull)"]) { $1 })
        } else if before >= .short, level < .short {
            node.logger.notice("there is space on the disk again", metadata: fields)
        } else {
            node.logger.debug("space", metadata: fields.merging(["level": "\(level)"]) { $1 })
        }
        node.client?.spaceChanged()
        if level > .ample { schedule() }
    }

    // MARK: - Peers

    func heard(_ level: SpaceLevel, of peer: NodeID) {
        reports[peer] = level == .ample ? nil : (level, RaftNode.now)
    }

    func level(of other: NodeID) -> SpaceLevel {
        if other == node.options.raft.node { return level }
        guard let report = reports[other], RaftNode.now - report.at < Self.reportLifetime else {
            return .ample
        }
        return report.level
    }

    /// True if a majority of the voters (of both sets, in a change) has more room than `bound`.
    func hasMajority(below bound: SpaceLevel) -> Bool {
        guard let membership = node.membership else { return true }
        return [membership.voters, membership.votersOutgoing].allSatisfy { voters in
            voters.isEmpty || voters.count { level(of: $0) < bound } > voters.count / 2
        }
    }

    /// Up to here the log is kept for voters that are there and a little behind; nil once that is
    /// more than can be afforded.
    var oldestForPeers: LogIndex? {
        guard level == .tight, node.core.isLeader else { return nil }
        return node.core.peerStatus(now: RaftNode.now).filter {
            $0.isVoter && node.links.isReachable($0.node)
        }
        .map(\.match).min()
    }

    // MARK: - What may be written

    /// Why a write is not taken now; nil if it is. A single full voter does not stop a cluster,
    /// unless it leads.
    func refusal(grows: Bool) -> AspenError? {
        if let refusal = refusal(at: .exhausted) { return refusal }
        return grows ? refusal(at: .short) : nil
    }

    /// A node that takes no entries never learns what became of a write.
    var refusalOfFollowing: AspenError? {
        guard !takesEntries, !node.core.isLeader else { return nil }
        return AspenError(
            .resourceExhausted,
            "no space left on node \(node.options.raft.node), which cannot follow its leader until "
                + "there is: free some on its disk, or ask another node", retry: .never)
    }

    func refusal(of write: PendingWrite) -> AspenError? {
        switch write.kind {
        case .writeKey, .deleteKey, .transaction, .addTokenRoot, .removeTokenRoot, .revokeToken:
            refusal(grows: write.grows)
        default: nil
        }
    }

    private func refusal(at bound: SpaceLevel) -> AspenError? {
        // Nearly always: nobody is short of anything.
        if level < bound, reports.isEmpty { return nil }
        let leader = node.standing.leader
        let isLeaderFull = leader.map { level(of: $0) >= bound } ?? false
        guard isLeaderFull || !hasMajority(below: bound) else { return nil }
        let full = (node.membership?.voters ?? []).filter { level(of: $0) >= bound }
        let names = full.map(\.description).joined(separator: ", ")
        let place = full.count == 1 ? "node \(names)" : "nodes \(names)"
        return AspenError(
            .resourceExhausted,
            bound == .short
                ? "no space left on \(place): free some on the disk, or delete keys; deletes and "
                    + "reads go on, puts will again when there is space"
                : "no space left on \(place), not even for deletes: free some on the disk; reads "
                    + "go on, writes will again when there is space", retry: .never)
    }

    /// What a follower has passed on, as far as it is taken.
    func divide(_ proposals: [Proposal]) -> (taken: [Proposal], refused: [Proposal]) {
        guard refusal(grows: true) != nil else { return (proposals, []) }
        let isWriting = refusal(grows: false) == nil
        var (taken, refused): ([Proposal], [Proposal]) = ([], [])
        for proposal in proposals {
            let command = try? CommandCodec.decode(proposal.payload)
            if case .transaction(let transaction, _)? = command, transaction.grows || !isWriting {
                refused.append(proposal)
            } else {
                taken.append(proposal)
            }
        }
        return (taken, refused)
    }

    /// Whether a leader should hand over; nil for the sake of nobody.
    var successor: NodeID? {
        guard level >= .short, node.core.isLeader, hasMajority(below: .short) else { return nil }
        let fit = node.core.peerStatus(now: RaftNode.now).filter {
            $0.isVoter && node.links.isReachable($0.node) && level(of: $0.node) < .short
        }
        return fit.max { $0.match < $1.match }?.node
    }

    /// Something in the cluster is short enough for history to go.
    var wantsCompaction: Bool {
        level > .ample || reports.keys.contains { level(of: $0) >= .short }
    }

    /// For the status line.
    var statusText: String {
        switch level {
        case .ample, .tight: ""
        case .short: ", disk full: no puts until there is space"
        case .exhausted: ", disk full, reserve used up: no writes until there is space"
        }
    }
}

extension Transaction {
    /// May take space that only compaction gives back: even where it puts something smaller.
    var grows: Bool {
        (success + failure).contains { if case .put = $0 { true } else { false } }
    }
}
