// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import ProposalCore
import RaftCore
import RaftStorage
import SimKit

/// One machine: its disk and clock outlive the daemons on it.
package final class SimNode {
    package let index: Int
    package let id: NodeID
    package let disk: SimDisk
    let clock: SimClock
    var member: Membership.Member
    /// What a checkpoint made durable: the state falls back to it when the raft daemon ends.
    var checkpoint = MemoryState()
    /// In some worlds the state is kept as production keeps it, too.
    var database: SimDatabase?
    /// Nil while the raft daemon is down.
    package internal(set) var shell: RaftShell?
    /// Grows with each start of the raft daemon.
    var life: UInt64 = 0
    /// Nil while the net daemon is down.
    var net: SimNet?
    /// The raft daemon stands still until then.
    var pausedUntil = MonotonicInstant.zero
    /// All the ends that its pauses had: what was put off stands there on the heap.
    var pauseEnds: Set<MonotonicInstant> = []
    var isDiskSlow = false
    /// No sync ends before.
    var diskStalledUntil = MonotonicInstant.zero
    /// The newest version of the state machine that its program knows.
    var program = KVVersion.supported
    /// It never comes back.
    var isLost = false

    init(index: Int, disk: SimDisk, clock: SimClock) {
        self.index = index
        id = NodeID(UInt64(index + 1))
        self.disk = disk
        self.clock = clock
        var key = [UInt8](repeating: 0, count: EndpointID.byteCount)
        key[0] = UInt8(index + 1)
        guard let endpoint = EndpointID(bytes: key) else { preconditionFailure("32 bytes") }
        member = Membership.Member(
            node: id, endpoint: endpoint, replica: ReplicaID(UInt64(index + 1) * 1000),
            addresses: ["192.0.2.\(index + 1):7001"])
        if index == 1 {
            // As long as one may be.
            member.addresses.append("[fe80::2%" + String(repeating: "x", count: 81) + "]:7001")
        }
    }
}

/// What is looked at after each event, by all nodes. To ask a core itself for what it computes copies
/// it, and with it dozens of references.
package struct CoreFigures {
    package var commitIndex: LogIndex
    package var isReady: Bool
    package var appendsInFlight: Int
    var deadline: MonotonicInstant?
}

/// Mutating, although they change nothing but by a step: so the core is lent, not copied.
extension RaftCore {
    mutating func figures() -> CoreFigures {
        CoreFigures(
            commitIndex: commitIndex, isReady: isReady, appendsInFlight: appendsInFlight,
            deadline: deadline)
    }

    /// A step, and what must hold after it.
    mutating func checkedStep(
        _ input: consuming RaftInput, now: MonotonicInstant, random: inout RandomSource,
        into effects: inout [RaftEffect]
    ) -> CoreFigures {
        step(input, now: now, random: &random, into: &effects)
        checkInvariants()
        return figures()
    }

    mutating func time(now: MonotonicInstant) -> ClusterTime { clusterTime(now: now) }
    mutating func peers(now: MonotonicInstant) -> [RaftPeerStatus] { peerStatus(now: now) }
    mutating func end() -> LogIndex { lastIndex }
}

/// The shell of one raft daemon: what lives and dies with the process.
package final class RaftShell {
    enum Committed {
        case entries([Entry])
        case inLog(from: LogIndex, upTo: LogIndex)
    }

    /// A message and the write it waits for.
    struct Held {
        var message: Message
        var after: DurabilityTicket?
    }

    struct WaitingRead {
        var index: LogIndex
        var number: UInt64
    }

    /// It owns this: a strong reference would keep both for ever.
    unowned let node: SimNode
    /// What is asked of the node most often.
    let index: Int
    let clock: SimClock
    let life: UInt64
    package internal(set) var core: RaftCore
    /// As the core's last step left it.
    package internal(set) var figures: CoreFigures
    let log: any LogStore
    package let state: MemoryState
    package var nodeID: NodeID { node.id }
    var random: RandomSource

    // Storage.
    var writes: [LogWrite] = []
    var syncing: [LogWrite]?
    var durable = DurabilityTicket(0)
    /// The end of the log as far as it has been synced.
    var durableIndex: LogIndex
    /// What the log knows to have been durable, whatever a power cut leaves.
    var provenIndex: LogIndex
    /// Messages held back, by peer and lane, in order.
    var held: [[Held]]

    // Applying.
    var committed: [Committed] = []
    var isApplyScheduled = false
    /// With a planted bug: what the next checkpoint will put on disk.
    var lateCheckpoint: MemoryState?

    // Housekeeping.
    /// Version and compaction are proposed again only when something was applied since.
    var versionProposedAt: LogIndex?
    var compactionProposedAt: LogIndex?
    var isSessionLookArranged = false
    var isLeaseLookArranged = false

    // Clients.
    var table: ProposalTable
    var tableEffects: [ProposalEffect] = []
    /// What the answer of each write needs, by the place in its id.
    var followed: [FollowedWrite?] = []
    /// What goes to the core at the end of the turn.
    var gathered: [Proposal] = []
    var isTurnArranged = false
    var sweepAt: MonotonicInstant?
    var reads: [UInt64: ClientRequest] = [:]
    var waitingReads: [WaitingRead] = []
    /// When each read came, by the node's clock.
    var readsBegan: [UInt64: MonotonicInstant] = [:]
    var freshness = ReadFreshness()
    /// When those came that the core has not yet done with.
    var asking: [UInt64: MonotonicInstant] = [:]
    /// When the newest one came that was answered.
    var answeredSince: MonotonicInstant?
    /// Nil until somebody watches here.
    var watching: SimWatchShell?

    // Net.
    /// The net that it is connected with, by its life.
    var net: UInt64?
    /// Requests answered on that connection; from the second on it is subscribed.
    var netAnswers = 0
    var netFailures = 0
    var peers: [PeerStreams]
    var requests: [UInt64: (peer: Int, lane: Lane)] = [:]
    var nextRequest: UInt64 = 0

    // Raft.
    var wakeAt: MonotonicInstant?
    /// What the node's clock shows then.
    var wakeReading = MonotonicInstant.zero
    package internal(set) var standing = RaftStanding(role: .follower, term: .zero, leader: nil)
    package internal(set) var membership: Membership?
    var outgoing: [SnapshotTransfer] = []
    var incoming: SnapshotIntakeInProgress?
    /// Of a leader whose learners are looked at: where its log ended, and when.
    var ends: [(at: MonotonicInstant, index: LogIndex)] = []
    /// What this leader has appended and not yet committed: its size.
    var uncommitted: [(index: LogIndex, bytes: Int)] = []
    /// How many proposals its core has refused.
    var refusals = 0
    /// When leadership was last to go to another.
    var transferredAt: MonotonicInstant?
    /// As which replicas this daemon knows its peers, by position.
    var replicas: [ReplicaID?]

    init(
        node: SimNode, core: RaftCore, log: any LogStore, state: MemoryState,
        table: ProposalTable, random: RandomSource, peers: Int
    ) {
        self.node = node
        index = node.index
        clock = node.clock
        life = node.life
        self.core = core
        figures = self.core.figures()
        self.log = log
        self.state = state
        self.table = table
        self.random = random
        durableIndex = log.lastIndex
        provenIndex = log.lastIndex
        held = Array(repeating: [], count: peers * Lane.allCases.count)
        self.peers = Array(repeating: PeerStreams(), count: peers)
        replicas = Array(repeating: nil, count: peers)
    }
}

/// A snapshot on its way to a peer, one chunk at a time.
struct SnapshotTransfer {
    var id: UInt64
    var peer: NodeID
    var meta: SnapshotMeta
    var bytes: [UInt8]
    var sent = 0
}

/// A snapshot on its way in.
struct SnapshotIntakeInProgress {
    var id: UInt64
    var from: NodeID
    var meta: SnapshotMeta
    var bytes: [UInt8] = []
}
