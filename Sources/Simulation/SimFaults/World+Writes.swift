// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import ProposalCore
import RaftCore
import SimKit

/// A write of a client, as the node knows it that was asked: `ProposalTable` decides what becomes of
/// it, and here its effects are carried out.
struct FollowedWrite {
    /// Unlike the numbers under which it is proposed it stays the same, and no other has it.
    var serial: UInt64
    /// Nil: of the node's own accord.
    var request: ClientRequest?
}

extension World {
    func proposalConfiguration() -> ProposalConfiguration {
        var configuration = ProposalConfiguration()
        configuration.repeatInterval = scenario.requestTimeout * 2 / 3
        configuration.patience = scenario.requestTimeout
        configuration.retryInterval = scenario.heartbeatInterval / 5
        for bug in ProposalPlantedBug.allCases
        where scenario.planted.contains(where: { $0.rawValue == bug.rawValue }) {
            configuration.plantedBug = bug
        }
        return configuration
    }

    // MARK: - From the request to the core

    /// - Parameter request: nil: housekeeping.
    func follow(
        _ payload: [UInt8], for request: ClientRequest?, _ shell: RaftShell
    ) throws(Violation) {
        let clock = shell.clock.reading(at: now)
        var kind = WriteClass.housekeeping
        var deadline: MonotonicInstant?
        if let request {
            let command = try? CommandCodec.decode(payload)
            kind = command?.isRepeatable == true ? .repeatable : .once
            // Sooner or later than the client gives up.
            let half = requestTimeout(clients[request.client]) / 2
            deadline = clock + proposalRandom.uniform(half, half * 3)
        }
        let id = shell.table.begin(
            kind, payload, deadline: deadline, now: clock, into: &shell.tableEffects)
        let write = FollowedWrite(serial: nextWrite, request: request)
        nextWrite += 1
        if request != nil, !hasDuplicates {
            observer.writeBegan(write.serial, mayRepeat: kind == .repeatable)
        }
        if id.place == shell.followed.count {
            shell.followed.append(write)
        } else {
            shell.followed[id.place] = write
        }
        try obeyTable(shell)
    }

    /// A network that delivers a message twice is one that no daemon has: a leader that forgot the
    /// first refuses the second, and what is told of it is wrong.
    private var hasDuplicates: Bool { scenario.network.datagramLanes > 0 }

    func obeyTable(_ shell: RaftShell) throws(Violation) {
        for effect in shell.tableEffects {
            switch effect {
            case .propose(let id, let number, let payload, isFirst: _):
                let proposal = ProposalID(
                    node: shell.node.id, incarnation: shell.life, number: number)
                shell.gathered.append(Proposal(id: proposal, payload: payload))
                if let write = shell.followed[id.place] {
                    observer.proposed(write.serial, as: proposal)
                }
                arrangeTurn(shell)
            case .ended(let id, let outcome):
                guard let write = release(id, shell), let request = write.request else { break }
                note("n\(shell.node.id) tells c\(request.client): \(outcome)")
                if outcome.isNothingDone { try observer.refused(write.serial) }
                answer(request, outcome.isNothingDone ? .unavailable : .lost)
            }
        }
        shell.tableEffects.removeAll(keepingCapacity: true)
        shell.table.checkInvariants()
        arrangeSweep(shell)
    }

    private func release(_ id: WriteID, _ shell: RaftShell) -> FollowedWrite? {
        defer { shell.followed[id.place] = nil }
        shell.table.release(id)
        return shell.followed[id.place]
    }

    /// Daemons gather what comes, while other batches are on their way.
    private func arrangeTurn(_ shell: RaftShell) {
        guard !shell.isTurnArranged else { return }
        shell.isTurnArranged = true
        let wait =
            proposalRandom.chance(1, in: 8)
            ? Duration.milliseconds(2) : proposalRandom.uniform(.zero, .microseconds(50))
        schedule(.turn(node: shell.index, life: shell.life), after: wait)
    }

    func endTurn(_ shell: RaftShell) throws(Violation) {
        shell.isTurnArranged = false
        shell.table.willPropose(in: shell.core.term)
        let proposals = shell.gathered
        shell.gathered = []
        let (before, wasLed) = (shell.refusals, shell.standing.leader != nil)
        try feed(shell, .propose(proposals))
        if !wasLed, shell.refusals - before < proposals.count { throw untold(shell) }
    }

    // MARK: - What happens to it

    /// - Parameter results: one for each entry.
    func answerWrites(
        _ entries: [Entry], _ results: [CommandResult], _ shell: RaftShell
    ) throws(Violation) {
        for (entry, result) in zip(entries, results) {
            guard let origin = entry.origin, origin.node == shell.node.id,
                origin.incarnation == shell.life,
                let (id, _, isFateUnknown) = shell.table.applied(origin.number),
                let request = release(id, shell)?.request
            else { continue }
            try observer.answered(shell.index, entry)
            if isFateUnknown, case .failed(.sessionExpired, _) = result {
                answer(request, .lost)
            } else {
                answer(request, .result(result))
            }
        }
        guard let last = entries.last else { return }
        shell.table.applied(
            upTo: last.term, now: shell.clock.reading(at: now), into: &shell.tableEffects)
        try obeyTable(shell)
    }

    func proposalFailed(
        _ id: ProposalID, _ failure: ProposalFailure, _ shell: RaftShell
    ) throws(Violation) {
        note("n\(shell.node.id) proposal \(id.number) failed: \(failure)")
        shell.refusals += 1
        guard id.incarnation == shell.life else { return }
        shell.table.failed(id.number, failure, into: &shell.tableEffects)
        try obeyTable(shell)
    }

    func proposeWaiting(_ standing: RaftStanding, _ shell: RaftShell) throws(Violation) {
        guard standing.leader != nil else { return }
        shell.table.leaderKnown(
            now: shell.clock.reading(at: now), into: &shell.tableEffects)
        try obeyTable(shell)
    }

    func forwardAgain(_ shell: RaftShell, to peer: Int) throws(Violation) {
        guard shell.node.shell === shell, shell.standing.leader == nodes[peer].id else { return }
        let copies = shell.table.copies(in: shell.core.term)
        guard !copies.isEmpty, shell.standing.role != .leader else { return }
        statistics.copies += copies.count
        try feed(
            shell,
            .propose(
                copies.map { number, payload in
                    Proposal(
                        id: ProposalID(
                            node: shell.node.id, incarnation: shell.life, number: number),
                        payload: payload)
                }))
    }

    func skipped(_ shell: RaftShell) throws(Violation) {
        shell.table.skipped(now: shell.clock.reading(at: now), into: &shell.tableEffects)
        try obeyTable(shell)
    }

    // MARK: - Time

    private func arrangeSweep(_ shell: RaftShell) {
        guard
            let deadline = shell.table.deadline(
                now: shell.clock.reading(at: now), hasLeader: shell.standing.leader != nil)
        else { return }
        let time = shell.clock.time(showing: deadline, from: now)
        if let planned = shell.sweepAt, planned <= time { return }
        shell.sweepAt = time
        heap.schedule(.sweep(node: shell.index, life: shell.life), at: time)
    }

    func sweep(_ shell: RaftShell) throws(Violation) {
        if let planned = shell.sweepAt, planned > now { return }
        shell.sweepAt = nil
        shell.table.sweep(
            now: shell.clock.reading(at: now), hasLeader: shell.standing.leader != nil,
            into: &shell.tableEffects)
        try obeyTable(shell)
    }
}
