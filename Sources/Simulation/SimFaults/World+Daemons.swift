// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import RaftStorage
import SimKit

/// Daemons that start, stop and are killed.
extension World {
    // MARK: - Raft

    func startRaft(_ node: SimNode) throws(Violation) {
        guard node.shell == nil else { return }
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
        var state = node.checkpoint.copy()
        let isStateAhead = state.appliedIndex > log.lastIndex
        let isStateBehind = state.appliedIndex < log.firstIndex.previous
        let recovery: RaftRecovery
        do throws(StorageError) { recovery = try log.recovery(joining: &state) } catch {
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
            node: node, core: core, log: log, state: state, random: random, peers: nodes.count)
        shell.membership = recovery.memberships.last?.membership
        for known in recovery.memberships { observer.membership(node.index, known.membership) }
        node.shell = shell
        try observer.committed(node.index, upTo: state.appliedIndex, leading: nil)
        note(
            "n\(node.id) raft starts: log \(log.firstIndex)...\(log.lastIndex), applied "
                + "\(state.appliedIndex)\(recovery.isTailTrusted ? "" : ", tail untrusted")")
        if !node.isNetUp { try feed(shell, .ownNetLost) }
        announceService(node)
        // The first deadline is known before the first event.
        heap.schedule(.wake(node: node.index, life: shell.life), at: now)
    }

    /// - Note: with a disk that is full or has just failed this is expected; systemd tries again.
    private func cannotStart(_ node: SimNode, _ error: StorageError) throws(Violation) {
        note("n\(node.id) cannot start: \(error)")
        guard case .disk = error else {
            throw Violation(.safety, "storage", "node \(node.id) cannot start: \(error)")
        }
        node.disk.endProcess()
        schedule(.startRaft(node: node.index), after: scenario.downtimeMax)
    }

    private func configuration(_ node: SimNode) -> RaftConfiguration {
        var configuration = RaftConfiguration(node: node.id)
        configuration.heartbeatInterval = scenario.heartbeatInterval
        configuration.electionTimeoutMin = scenario.electionTimeoutMin
        configuration.electionTimeoutMax = scenario.electionTimeoutMax
        configuration.takeoverDelayMin = min(.milliseconds(50), scenario.heartbeatInterval / 4)
        configuration.takeoverDelayMax = min(.milliseconds(150), scenario.heartbeatInterval)
        configuration.appendBytesMax = scenario.appendBytesMax
        configuration.appendsInFlightMax = scenario.appendsInFlightMax
        configuration.cacheBytesMax = scenario.cacheBytesMax
        configuration.plantedBugs = scenario.planted
        return configuration
    }

    /// The daemon stops by itself, as it must after any storage error.
    func stop(_ shell: RaftShell, _ error: StorageError) throws(Violation) {
        guard case .disk = error else {
            throw Violation(.safety, "storage", "n\(shell.node.id) stops: \(error)")
        }
        note("n\(shell.node.id) raft stops: \(error)")
        trace.fold(0x5702)
        effects.removeAll(keepingCapacity: true)
        killRaft(shell.node, restartAfter: fate.uniform(.milliseconds(5), scenario.downtimeMax))
    }

    func killRaft(_ node: SimNode, restartAfter delay: Duration) {
        if node.shell?.standing.role == .leader, node.isNetUp { leaderKilledAt = now }
        guard endRaft(node) else { return }
        note("n\(node.id) raft is gone")
        if node.isNetUp { announceServiceGone(node) }
        schedule(.startRaft(node: node.index), after: delay)
    }

    /// - Returns: false if it was down already.
    @discardableResult
    func endRaft(_ node: SimNode) -> Bool {
        guard let shell = node.shell else { return false }
        node.shell = nil
        node.disk.endProcess()
        observer.ended(node.index)
        // A local client sees its connection break. In the order of the numbers: no hash order.
        for request in (shell.proposals.sorted { $0.key < $1.key }.map(\.value)) {
            answer(request, .lost)
        }
        for request in (shell.reads.sorted { $0.key < $1.key }.map(\.value)) {
            answer(request, .lost)
        }
        return true
    }

    // MARK: - Net

    func killNet(_ node: SimNode, restartAfter delay: Duration) {
        guard node.isNetUp else { return }
        note("n\(node.id) net is gone")
        node.isNetUp = false
        if let shell = node.shell {
            schedule(
                .link(node: node.index, life: shell.life, change: .ownNetLost, peer: node.index),
                after: .microseconds(50))
        }
        for peer in nodes.indices where peer != node.index {
            // Its peers notice when it answers with a stateless reset, or by silence.
            let notice = min(
                delay + netRandom.uniform(.milliseconds(1), .milliseconds(20)),
                scenario.idleTimeout)
            cut(node.index, peer, noticeAfter: notice)
        }
        schedule(.startNet(node: node.index), after: delay)
    }

    func startNet(_ node: SimNode) throws(Violation) {
        guard !node.isNetUp else { return }
        note("n\(node.id) net starts")
        node.isNetUp = true
        if let shell = node.shell {
            schedule(
                .link(
                    node: node.index, life: shell.life, change: .ownNetRestored, peer: node.index),
                after: .microseconds(200))
        }
        for peer in nodes.indices where peer != node.index {
            schedule(
                .dial(min(node.index, peer), max(node.index, peer)),
                after: netRandom.uniform(.milliseconds(1), .milliseconds(20)))
        }
    }

    // MARK: - Machines

    /// Both daemons are killed; what they wrote is in the page cache.
    func killNode(_ node: SimNode, restartAfter delay: Duration) {
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
        node.pausedUntil = .zero
    }
}
