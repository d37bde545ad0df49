// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import GossipCore
import KVCore
import RaftCore
import RaftStorage
import SQLiteKit
import SimKit
import WatchCore

/// What one seed lives through: sizes, times, and which kinds of trouble at which rates. Drawn like a
/// swarm (Groce and others, 2012): each run leaves most kinds out, so that those it has are not
/// drowned by the others.
package struct Scenario: Sendable {
    package enum Trouble: String, Sendable, CaseIterable {
        /// One raft daemon is killed; its net stays.
        case killRaft
        /// One net daemon is killed.
        case killNet
        /// Both daemons of a node are killed; the machine goes on.
        case killNode
        /// The same, and they are back before anybody misses them.
        case restart
        /// One machine loses power.
        case cutPower
        /// All machines lose power, at once or one after the other.
        case cutAllPower
        /// Some directions between nodes pass nothing for a while.
        case partition
        /// The same, but it comes and goes.
        case flap
        /// What goes to some node, or from it, takes far longer for a while.
        case clog
        /// One connection is reset.
        case reset
        /// One raft daemon stands still for a while, its clock doesn't.
        case pause
        /// One disk syncs slowly for a while.
        case slowDisk
        /// One sync fails.
        case failSync
        /// One disk takes no more bytes for a while.
        case fullDisk
        /// A bit of one log flips while no process runs.
        case rot
        /// One disk is lost for good; an administrator replaces the replica.
        case wipe
        /// All machines lose power at once, and each log is damaged at another entry.
        case decay

        /// After these a log may have to be repaired from those of all other voters.
        static let damaging: Set<Trouble> = [
            .cutPower, .cutAllPower, .failSync, .rot, .decay,
        ]
    }

    package struct Rate: Sendable {
        package var trouble: Trouble
        /// Mean time between two of them.
        package var interval: Duration

        package init(_ trouble: Trouble, every interval: Duration) {
            self.trouble = trouble
            self.interval = interval
        }
    }

    package var seed: UInt64
    package var planted: Set<PlantedBug> = []
    /// Nodes that found the cluster, and those that wait to be added.
    package var founders = 3
    package var spares = 0
    /// Events in the part with trouble.
    package var steps = 4000

    package var heartbeatInterval = Duration.milliseconds(500)
    package var electionTimeoutMin = Duration.milliseconds(1500)
    package var electionTimeoutMax = Duration.milliseconds(3000)
    package var appendBytesMax = 1_000_000
    package var appendsInFlightMax = 64
    package var cacheBytesMax = 16_000_000
    package var uncommittedBytesMax = 64_000_000
    package var forwardWindow: UInt64 = 4096
    package var learnerLagMax = UInt64(Limits.learnerLagThreshold)
    /// Of the state machines of all nodes.
    package var bounds = KVBounds()

    package var network = SimNetwork.Conditions()
    package var redialGrace = Duration.milliseconds(300)
    /// After this long without a word a connection is given up.
    package var idleTimeout = Duration.seconds(2)
    package var clockDriftPPMMax: Int64 = 0

    package var syncLatencyMin = Duration.microseconds(50)
    package var syncLatencyMax = Duration.microseconds(500)
    package var applyLatencyMax = Duration.microseconds(300)
    package var applyBatchMax = 64
    package var segmentBytes = 20_480
    /// Entries between two checkpoints of the state.
    package var checkpointInterval: UInt64 = 200
    /// Entries kept in the log behind a checkpoint.
    package var logTail: UInt64 = 20
    package var snapshotChunkBytes = 4096
    /// Nodes keep their state in the real database, too; nil: in memory only.
    package var database: SQLiteState.Options?

    package var clients = 4
    package var keys = 3
    package var valueBytesMax = 16
    package var thinkTimeMax = Duration.milliseconds(100)
    package var requestTimeout = Duration.seconds(2)
    /// In a hundred operations.
    package var readPercent = 40
    package var swapPercent = 15
    package var deletePercent = 5
    /// In a hundred clients: those who write without a session.
    package var sessionlessPercent = 0

    /// In a hundred things that a client does: those with leases.
    package var leasePercent = 0
    /// Clients and the administrator ask, now and then, for what makes no sense, and clients keep
    /// answers for later.
    package var hasMischief = false
    package var compaction = CompactionPolicy()
    /// In a hundred other things that a client does: transactions of several keys, and reads of
    /// several keys or ranges.
    package var transactionPercent = 0
    /// Clients ask for what is just allowed, or just not.
    package var reachesLimits = false
    package var sessionTimeout = Duration.seconds(60)
    package var watchers = 0
    package var watches = WatchConfiguration()

    /// Nil: there are no gossip daemons.
    package var gossip: GossipScenario?

    package var rates: [Rate] = []
    package var downtimeMax = Duration.seconds(1)
    package var troubleMax = Duration.seconds(3)
    /// In a hundred, trouble picks the leader.
    package var leaderHuntPercent: UInt64 = 50
    /// Mean time between membership changes and transfers; nil: none.
    package var operatorInterval: Duration?
    /// Learners become voters only when their leader says that they have caught up, and it is looked
    /// at whether they have.
    package var waitsForLearners = false
    /// In a hundred founders: those that begin with a program that knows the first version of the state
    /// machine only.
    package var oldProgramPercent = 0
    /// In a hundred new leaders: those beside whom all disks stand still for a while.
    package var stalledLeaderPercent: UInt64 = 0
    /// Trouble ends with the loss of a majority for good, and one node becomes the cluster.
    package var losesMajority = false
    /// Trouble ends by healing; when false, whatever is blocked or down then stays so, and a check
    /// for liveness must notice.
    package var heals = true

    /// Once all has come right, single failures are tried for which times are promised.
    package var rehearses = true

    package var nodes: Int { founders + spares }

    /// The time from one entry to the next that one follower may need when all is well: where appends
    /// are small, few are under way and the network is slow, clients who repeat themselves ask for
    /// more than that, and what is in the log already has to be worked off first.
    var entryInterval: Duration {
        let roundTrip = network.delayMax * 2 + syncLatencyMax
        let entriesAtOnce = max(1, appendBytesMax / (valueBytesMax + 100)) * appendsInFlightMax
        return roundTrip / entriesAtOnce
    }
}

extension Scenario {
    /// - Parameters:
    ///   - founders: overrides what the seed says; so does `steps`.
    ///   - keepsDatabase: whatever the seed says.
    package init(
        seed: UInt64, founders: Int? = nil, steps: Int? = nil, keepsDatabase: Bool = false,
        planted: Set<PlantedBug> = []
    ) {
        // Every concern draws from its own stream: adding a draw to one leaves the others alone.
        var source = RandomSource(seed: seed)
        var sizes = source.split()
        var times = source.split()
        var net = source.split()
        var storage = source.split()
        var work = source.split()
        var trouble = source.split()
        var keeping = source.split()
        var following = source.split()
        var ending = source.split()
        var mischief = source.split()
        var decaying = source.split()
        var storing = source.split()
        var restarting = source.split()
        var limiting = source.split()
        var upgrading = source.split()
        var leading = source.split()
        var gossiping = source.split()

        self.seed = seed
        self.planted = planted
        drawSizes(&sizes)
        drawTimes(&times)
        drawNetwork(&net)
        drawStorage(&storage)
        drawWork(&work)
        drawTrouble(&trouble)
        drawDecay(&decaying)
        drawRestarts(&restarting)
        drawKeeping(&keeping)
        drawFollowing(&following)
        drawLimits(&limiting)
        drawLeading(&leading)
        drawGossip(&gossiping)
        // One program for all of them would be nothing new.
        if upgrading.chance(1, in: 5) { oldProgramPercent = upgrading.uniform(20..<80) }
        // It takes a leader that has cut its log while an acknowledgement was on its way, or while a
        // node was behind that had a write of its own in it.
        if !planted.isDisjoint(with: [.installOlderSnapshot, .skippedTakenForLost]) {
            checkpointInterval = 5
            logTail = 0
        }
        // A write is still waited for when its node has been given a snapshot and another leader.
        if planted.contains(.skippedTakenForLost), network.datagramLanes == 0 {
            sessionlessPercent = 80
            requestTimeout = electionTimeoutMax * 8
        }
        losesMajority = ending.chance(1, in: planted.contains(.recoveryDropsTail) ? 1 : 6)
        if mischief.chance(1, in: 3) {
            hasMischief = true
            if mischief.chance(1, in: 2) { uncommittedBytesMax = mischief.uniform(100..<3000) }
        }
        if storing.chance(1, in: 8) || keepsDatabase
            || !planted.isDisjoint(with: PlantedBug.inDatabase)
        {
            drawDatabase(&storing)
        }
        // What is planted in the tables in memory is not in the database.
        if !planted.isSubset(of: PlantedBug.inDatabase) { database = nil }
        if let founders { self.founders = founders }
        if let steps { self.steps = steps }
    }

    private mutating func drawSizes(_ random: inout RandomSource) {
        founders = random.chance(1, in: 4) ? 5 : 3
        spares = random.chance(1, in: 3) ? random.uniform(1..<3) : 0
        steps = random.uniform(2000..<5000)
        if random.chance(1, in: 3) { appendBytesMax = random.uniform(1..<400) }
        if random.chance(1, in: 3) { appendsInFlightMax = random.uniform(1..<5) }
        if random.chance(1, in: 2) { cacheBytesMax = random.uniform(0..<3000) }
    }

    private mutating func drawTimes(_ random: inout RandomSource) {
        if random.chance(2, in: 3) {
            // Fast clusters see ten times as many elections in as many events.
            heartbeatInterval = .milliseconds(50)
            electionTimeoutMin = .milliseconds(150)
            electionTimeoutMax = .milliseconds(300)
            redialGrace = .milliseconds(50)
            idleTimeout = .milliseconds(random.uniform(200..<1000))
            requestTimeout = .milliseconds(random.uniform(200..<1000))
            downtimeMax = .milliseconds(random.uniform(50..<600))
            troubleMax = .milliseconds(random.uniform(100..<1500))
            thinkTimeMax = .milliseconds(random.uniform(1..<60))
        } else {
            idleTimeout = .milliseconds(random.uniform(1000..<5000))
            downtimeMax = .milliseconds(random.uniform(50..<4000))
            troubleMax = .milliseconds(random.uniform(300..<8000))
            thinkTimeMax = .milliseconds(random.uniform(10..<300))
        }
        clockDriftPPMMax = random.chance(1, in: 2) ? 0 : Int64(random.uniform(100..<50_000))
    }

    private mutating func drawNetwork(_ random: inout RandomSource) {
        let slow = random.chance(1, in: 4)
        network.delayMin = .microseconds(random.uniform(20..<200))
        network.delayMax = .microseconds(random.uniform(200..<(slow ? 40_000 : 3000)))
        if random.chance(1, in: 3) { network.spikePerMille = random.uniform(1..<UInt64(40)) }
        network.spikeMax = .milliseconds(random.uniform(5..<200))
        if random.chance(1, in: 2) { network.splitPerMille = random.uniform(1..<UInt64(300)) }
        if random.chance(1, in: 6) {
            network.datagramLanes = Lane.allCases.count
            network.lossPerMille = random.uniform(0..<UInt64(80))
            network.duplicatePerMille = random.uniform(0..<UInt64(80))
        }
    }

    private mutating func drawStorage(_ random: inout RandomSource) {
        if random.chance(1, in: 3) { syncLatencyMax = .milliseconds(random.uniform(1..<30)) }
        segmentBytes = (16_384 << random.uniform(0..<2)) + 4096
        checkpointInterval = UInt64(random.uniform(5..<300))
        logTail = UInt64(random.uniform(0..<60))
        applyBatchMax = random.uniform(1..<64)
        snapshotChunkBytes = random.uniform(200..<8000)
    }

    private mutating func drawDatabase(_ random: inout RandomSource) {
        var options = SQLiteState.Options()
        options.commitEntries = random.chance(1, in: 4) ? 4096 : random.uniform(1..<200)
        options.checkpointPages = random.uniform(4..<300)
        // So small that pages are written before they are committed.
        if random.chance(1, in: 2) { options.cacheKiB = 64 }
        // So few that generations of garbage come and go.
        options.garbageCountMin = 8
        if random.chance(1, in: 2) { options.deferral = .byHand }
        database = options
    }

    private mutating func drawWork(_ random: inout RandomSource) {
        clients = random.uniform(3..<8)
        keys = random.uniform(1..<6)
        readPercent = random.uniform(10..<70)
        swapPercent = random.uniform(0..<30)
        deletePercent = random.uniform(0..<15)
        valueBytesMax = random.chance(1, in: 4) ? 1500 : 40
        if network.datagramLanes == 0, random.chance(1, in: 3) { sessionlessPercent = 40 }
        if random.chance(1, in: 2) {
            operatorInterval = electionTimeoutMax * random.uniform(1..<12)
        }
    }

    private mutating func drawKeeping(_ random: inout RandomSource) {
        leasePercent = random.uniform(5..<30)
        compaction.revisionsKept = UInt64(random.uniform(10..<150))
        compaction.revisionsKeptMin = UInt64(random.uniform(1..<10))
        if random.chance(1, in: 3) {
            compaction.historyBytesMax = UInt64(random.uniform(1000..<20_000))
        }
    }

    private mutating func drawFollowing(_ random: inout RandomSource) {
        transactionPercent = random.uniform(10..<45)
        watchers = random.chance(1, in: 5) ? 0 : random.uniform(1..<5)
        if random.chance(1, in: 2) {
            sessionTimeout = .milliseconds(random.uniform(800..<4000))
        }
        watches.ringBytesMax = random.chance(1, in: 2) ? random.uniform(300..<4000) : 100_000
        watches.pageChangesMax = random.uniform(1..<12)
        watches.pageBytesMax = random.uniform(100..<4000)
        watches.updateBytesMax = random.uniform(100..<2000)
        watches.dispatchInterval = .milliseconds(random.uniform(0..<10))
        watches.progressInterval = heartbeatInterval * 4
        watches.leaderlessMax = electionTimeoutMax * 3
        for bug in WatchPlantedBug.allCases
        where planted.contains(where: { $0.rawValue == bug.rawValue }) {
            watches.plantedBug = bug
        }
    }

    /// What programs have as a constant, so low that a short run gets there. Each is left as it is in most
    /// runs.
    private mutating func drawLimits(_ random: inout RandomSource) {
        func isLow() -> Bool { random.chance(1, in: 3) }
        reachesLimits = random.chance(1, in: 2)
        if isLow() { bounds.scanPageBytesMax = random.uniform(20..<300) }
        if isLow() { bounds.historyCountMax = random.uniform(1..<6) }
        if isLow() { bounds.countRowsMax = random.uniform(1..<8) }
        if isLow() { bounds.headersAtOnce = random.uniform(1..<20) }
        if isLow() { bounds.chunkCountMax = random.uniform(2..<20) }
        if isLow() { bounds.changePageBytesMax = random.uniform(100..<2000) }
        if isLow() { bounds.recordingBytesMax = random.uniform(200..<1000) }
        if isLow() { bounds.transactionDeletesMax = random.uniform(1..<5) }
        if isLow() { bounds.answerBytesMax = random.uniform(20..<200) }
        if isLow() || isLow() { bounds.inlineAnswerBytesMax = random.uniform(64..<120) }
        if isLow() {
            bounds.sessionAnswersBytesMax = random.uniform(64..<400)
            if random.chance(1, in: 2) { bounds.storedAnswersBytesMax = random.uniform(64..<600) }
        }
        if isLow() { bounds.sweptPerCompact = random.uniform(2..<30) }
        if isLow() { bounds.sweptPerEntry = random.uniform(1..<4) }
        if isLow() { bounds.leaseKeysMax = random.uniform(1..<6) }
        if isLow() { bounds.leasesMax = random.uniform(1..<6) }
        if isLow() {
            bounds.leasesExpiredPerEntry = random.uniform(2..<5)
            bounds.leaseKeysExpiredPerEntry = random.uniform(1..<8)
        }
        if isLow() { bounds.sessionCacheMax = random.uniform(0..<3) }
        // Whoever loses the answer to its opening waits for its sessions to end.
        if isLow(), sessionTimeout < .seconds(5) { bounds.sessionsMax = clients + 2 }
        if isLow() { forwardWindow = UInt64(64 * random.uniform(1..<3)) }
    }

    private mutating func drawLeading(_ random: inout RandomSource) {
        if random.chance(1, in: 4) {
            waitsForLearners = true
            learnerLagMax = UInt64(random.uniform(0..<4))
        }
        if random.chance(1, in: 6) { stalledLeaderPercent = 30 }
    }

    private mutating func drawGossip(_ random: inout RandomSource) {
        let isPlanted = !planted.isDisjoint(with: PlantedBug.inGossip)
        guard random.chance(1, in: 64) || isPlanted else { return }
        var options = GossipScenario()
        options.strangers = random.uniform(0..<5)
        options.activeMax = random.uniform(3..<6)
        options.passiveMax = random.uniform(2..<12)
        options.pace = UInt64(random.uniform(3..<5))
        options.afterwards = .seconds(random.uniform(20..<60))
        options.mishapInterval = .seconds(random.uniform(3..<12))
        // It takes one that stands still for longer than it takes to be gone.
        if isPlanted { options.afterwards = .seconds(400) }
        for bug in GossipPlantedBug.allCases
        where planted.contains(where: { $0.rawValue == bug.rawValue }) {
            options.plantedBug = bug
        }
        gossip = options
    }

    private mutating func drawTrouble(_ random: inout RandomSource) {
        leaderHuntPercent = random.uniform(20..<90)
        // One in twenty lives in peace: then only the protocol itself can be at fault.
        guard !random.chance(1, in: 20) else { return }
        for kind in Trouble.allCases where kind != .decay && kind != .restart {
            let isRare: Bool
            switch kind {
            case .failSync, .fullDisk, .slowDisk: isRare = true
            default: isRare = false
            }
            let interval = electionTimeoutMax * Double(random.uniform(5..<60)) / 10
            if random.chance(isRare ? 1 : 2, in: 5) {
                rates.append(Rate(kind, every: isRare ? interval * 3 : interval))
            }
        }
        // It takes damage before the second membership, and a state from before that, too.
        if planted.contains(.forgetNewestMembership) {
            rates.removeAll { $0.trouble == .wipe }
            rates.append(Rate(.rot, every: electionTimeoutMax))
            checkpointInterval = 300
        }
        if !planted.isDisjoint(with: PlantedBug.inPages) {
            rates.removeAll { $0.trouble == .wipe }
            rates.append(Rate(.rot, every: electionTimeoutMax))
        }
        // A damaged tail and a voter whose disk is gone, together, wait for a person to decide.
        if rates.contains(where: { $0.trouble == .wipe }) {
            rates.removeAll { Trouble.damaging.contains($0.trouble) }
        }
    }

    /// Adds a trouble, and takes away what does not go with it.
    package mutating func insist(on trouble: Trouble) {
        guard !rates.contains(where: { $0.trouble == trouble }) else { return }
        if trouble == .wipe { rates.removeAll { Trouble.damaging.contains($0.trouble) } }
        if Trouble.damaging.contains(trouble) { rates.removeAll { $0.trouble == .wipe } }
        rates.append(Rate(trouble, every: electionTimeoutMax * 3))
    }

    private mutating func drawRestarts(_ random: inout RandomSource) {
        let interval = electionTimeoutMax * Double(random.uniform(5..<60)) / 10
        guard random.chance(1, in: 4), !rates.isEmpty else { return }
        rates.append(Rate(.restart, every: interval))
    }

    private mutating func drawDecay(_ random: inout RandomSource) {
        let interval = electionTimeoutMax * Double(random.uniform(5..<40)) / 10
        let isDrawn = random.chance(1, in: 3)
        guard isDrawn, !rates.isEmpty, !rates.contains(where: { $0.trouble == .wipe })
        else { return }
        rates.append(Rate(.decay, every: interval))
    }
}
