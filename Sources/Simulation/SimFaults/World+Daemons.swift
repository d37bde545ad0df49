// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import ProposalCore
import RaftCore
import RaftStorage
import SimKit

/// Daemons that start, stop and are killed.
extension World {
    // MARK: - Raft

    func startRaft(_ node: SimNode) throws(Violation) {
        guard node.shell == nil, !node.isLost else { return }
        node.life += 1
        statistics.recoveries += 1
        let log: any LogStore
        let entries: [Entry]
        do throws(StorageError) {
            log = try openLog(node)
            let isEmpty = log.lastIndex < log.firstIndex
            entries =
                isEmpty
                ? [] : try log.read(from: log.firstIndex, upTo: log.lastIndex, bytesMax: .max)
        } catch {
            return try cannotStart(node, error)
        }
        try observer.recovered(node.index, log.recovery, entries: entries)
        var (state, isMadeAnew): (MemoryState, Bool)
        do throws(StorageError) { (state, isMadeAnew) = try openState(node) } catch {
            return try cannotStart(node, error)
        }
        try observer.opened(node.index, state, isMadeAnew: isMadeAnew)
        let isStateAhead = log.isOvertaken(by: state.appliedIndex, state.appliedTerm)
        let isStateBehind = state.appliedIndex < log.firstIndex.previous
        let recovery: RaftRecovery
        do throws(StorageError) {
            recovery = try join(log, &state, node.database)
        } catch {
            return try cannotStart(node, error)
        }
        if isStateAhead || isStateBehind {
            try observer.restartedLog(
                node.index, after: state.appliedIndex, term: state.appliedTerm)
        }
        if !recovery.isTailTrusted { statistics.untrustedTails += 1 }
        var random = bootRandom.split()
        let core = RaftCore(
            configuration: configuration(node), recovery: recovery,
            now: node.clock.reading(at: now), random: &random)
        let shell = RaftShell(
            node: node, core: core, log: log, state: state,
            table: ProposalTable(proposalConfiguration(), appliedTerm: state.appliedTerm),
            random: random, peers: nodes.count)
        #if ASPEN_TEST_BUILD
            shell.freshness.ignoresBound = scenario.planted.contains(.staleBeyondBound)
        #endif
        shell.membership = recovery.memberships.last?.membership
        for known in recovery.memberships { observer.membership(node.index, known.membership) }
        node.shell = shell
        if let membership = core.reachableMembership { learnReplicas(membership, shell) }
        try observer.committed(node.index, upTo: state.appliedIndex, leading: nil)
        note(
            "n\(node.id) raft starts: log \(log.firstIndex)...\(log.lastIndex), applied "
                + "\(state.appliedIndex)\(recovery.isTailTrusted ? "" : ", tail untrusted")")
        schedule(.connectNet(node: node.index, life: shell.life), after: .zero)
        // The first deadline is known before the first event.
        heap.schedule(.wake(node: node.index, life: shell.life), at: now)
    }

    /// - Note: with a disk that is full or has just failed this is expected; systemd tries again.
    private func cannotStart(_ node: SimNode, _ error: StorageError) throws(Violation) {
        note("n\(node.id) cannot start: \(node.describe(error))")
        guard isExpected(error, on: node) else {
            throw Violation(.safety, "storage", "node \(node.id) cannot start: \(error)")
        }
        let losesPower = node.database?.medium.hasCutPower ?? false
        endProcesses(of: node)
        if losesPower { try losePower(node) }
        schedule(.startRaft(node: node.index), after: scenario.downtimeMax)
    }

    private func configuration(_ node: SimNode) -> RaftConfiguration {
        var configuration = RaftConfiguration(node: node.id)
        configuration.replica = node.member.replica
        configuration.heartbeatInterval = scenario.heartbeatInterval
        configuration.electionTimeoutMin = scenario.electionTimeoutMin
        configuration.electionTimeoutMax = scenario.electionTimeoutMax
        configuration.takeoverDelayMin = min(.milliseconds(50), scenario.heartbeatInterval / 4)
        configuration.takeoverDelayMax = min(.milliseconds(150), scenario.heartbeatInterval)
        configuration.appendBytesMax = scenario.appendBytesMax
        configuration.appendsInFlightMax = scenario.appendsInFlightMax
        configuration.cacheBytesMax = scenario.cacheBytesMax
        configuration.uncommittedBytesMax = scenario.uncommittedBytesMax
        configuration.forwardWindow = scenario.forwardWindow
        configuration.learnerLagMax = scenario.learnerLagMax
        configuration.plantedBugs = scenario.planted
        return configuration
    }

    /// The daemon stops by itself, as it must after any storage error.
    func stop(_ shell: RaftShell, _ error: StorageError) throws(Violation) {
        guard isExpected(error, on: shell.node) else {
            throw Violation(.safety, "storage", "n\(shell.node.id) stops: \(error)")
        }
        note("n\(shell.node.id) raft stops: \(shell.node.describe(error))")
        trace.fold(0x5702)
        effects.removeAll(keepingCapacity: true)
        if shell.node.database?.medium.hasCutPower == true { return try losePower(shell.node) }
        killRaft(shell.node, restartAfter: fate.uniform(.milliseconds(5), scenario.downtimeMax))
    }

    func killRaft(_ node: SimNode, restartAfter delay: Duration) {
        if node.shell?.standing.role == .leader, node.net != nil { leaderKilledAt = now }
        guard endRaft(node) else { return }
        note("n\(node.id) raft is gone")
        schedule(.startRaft(node: node.index), after: delay)
    }

    /// - Returns: false if it was down already.
    @discardableResult
    func endRaft(_ node: SimNode) -> Bool {
        guard let shell = node.shell else { return false }
        node.shell = nil
        endProcesses(of: node)
        observer.ended(node.index)
        endWatches(of: shell)
        if let net = shell.net {
            schedule(
                .raftLost(node: node.index, net: net, life: shell.life), after: .microseconds(50))
        }
        // A local client sees its connection break. Not in hash order.
        for write in shell.followed {
            if let request = write?.request { answer(request, .lost) }
        }
        for request in (shell.reads.sorted { $0.key < $1.key }.map(\.value)) {
            answer(request, .lost)
        }
        return true
    }

    // MARK: - Machines

    /// All daemons are killed; what they wrote is in the page cache.
    func killNode(_ node: SimNode, restartAfter delay: Duration) {
        gossip?.killed(node.index, restartAfter: delay)
        // The net first: nobody is left to say SERVICE_GONE.
        killNet(node, restartAfter: delay)
        killRaft(node, restartAfter: delay + fate.uniform(.milliseconds(1), .milliseconds(20)))
    }

    func losePower(_ node: SimNode) throws(Violation) {
        let delay = fate.uniform(.milliseconds(10), scenario.downtimeMax)
        let loss = PowerLoss.allCases[fate.uniform(0..<PowerLoss.allCases.count)]
        note("n\(node.id) loses power: of unsynced writes \(loss)")
        killNode(node, restartAfter: delay)
        node.disk.losePower(loss)
        node.database?.losePower(loss)
        node.pausedUntil = .zero
    }
}
