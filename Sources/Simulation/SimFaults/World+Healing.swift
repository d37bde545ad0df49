// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimKit

/// The end of a run: no more trouble, and everything must come right.
extension World {
    func advancePart() throws(Violation) {
        if let misunderstanding { throw misunderstanding }
        switch part {
        case .founding, .over: break
        case .trouble:
            guard step >= troubleBegan + UInt64(scenario.steps) else { return }
            if !loseMajority() { beginHealing() }
        case .losing:
            guard isRecovered() else { return }
            statistics.recoveredQuorums += 1
            beginHealing()
        case .healing:
            try giveErrands()
            if try isHealed(), try rehearse() { part = .over }
            try checkRehearsal()
        }
    }

    private func beginHealing() {
        note("trouble ends")
        part = .healing
        schedule(.endOfPatience(.healing), after: patience)
        if scenario.heals { endTroubles() }
    }

    func endTroubles() {
        endPauses()
        for node in nodes {
            node.isDiskSlow = false
            node.diskStalledUntil = .zero
            node.mendDisks()
            node.database?.medium.fuse = nil
        }
        for slot in blockades.indices where blockades[slot] > 0 {
            blockades[slot] = 0
            network.unblock(from: slot / nodes.count, to: slot % nodes.count, now: now)
        }
        network.unclog()
        network.conditions.spikePerMille = 0
        network.conditions.lossPerMille = 0
        network.conditions.duplicatePerMille = 0
        sendDepartures()
    }

    /// Once the membership is settled and everyone in it runs, each client writes through one node
    /// and reads all keys through others.
    private func giveErrands() throws(Violation) {
        guard finalMembers == nil, replacement == nil, let leader,
            let membership = leader.membership,
            !membership.isJoint, leader.state.membership?.membership == membership,
            // Else another one, which some log holds and nobody has committed, may still prevail.
            leader.core.term(at: leader.core.commitIndex) == leader.standing.term
        else { return }
        let members = membership.members.compactMap { position($0.node) }
        // One that stood still may not know that it leads no more, and that others are members now.
        let term = leader.standing.term
        let isCurrent = members.allSatisfy {
            nodes[$0].shell.map { $0.standing.term <= term } ?? false
        }
        guard isCurrent else { return }
        finalMembers = members
        gatherWatchers()
        note("errands through \(members.map { "n\($0 + 1)" }.joined(separator: " "))")
        for client in clients {
            func someone() -> Int { members[workRandom.uniform(0..<members.count)] }
            client.errands = [.put(node: someone())]
            for key in 0..<scenario.keys { client.errands.append(.get(node: someone(), key: key)) }
            client.isDone = false
            if client.pending == nil { schedule(.act(client: client.index), after: .zero) }
        }
    }

    private func isHealed() throws(Violation) -> Bool {
        // Asked after each event: nothing is allocated for it.
        guard let members = finalMembers, clients.allSatisfy({ $0.isDone }),
            let first = members.first.flatMap({ nodes[$0].shell }),
            members.allSatisfy({ nodes[$0].shell.map { isLedAsOthers($0, first) } ?? false })
        else { return false }
        try checkPeace(first)
        guard arePeersWell() else { return false }
        let applied = first.state.appliedIndex
        return members.allSatisfy { nodes[$0].shell?.state.appliedIndex == applied }
            && first.state.meta.leaseCount == 0
            && watchers.allSatisfy { observer.isFullyTold($0.index) }
    }

    /// What their leader says of them to those who ask before they change the membership.
    private func arePeersWell() -> Bool {
        guard let leader else { return false }
        return leader.core.peers(now: leader.clock.reading(at: now)).allSatisfy {
            $0.isAnswering && $0.isCaughtUp && !$0.isRegressed && !$0.isRepairing
        }
    }

    /// Why it is not healed.
    private var whatIsMissing: String {
        guard let members = finalMembers else { return "no settled leadership" }
        var missing = clients.filter { !$0.isDone }.map { "errands of c\($0.index)" }
        for peer in leader.map({ $0.core.peers(now: $0.clock.reading(at: now)) }) ?? [] {
            let faults = [
                (!peer.isAnswering, "silent"), (!peer.isCaughtUp, "behind"),
                (peer.isRegressed, "regressed"), (peer.isRepairing, "damaged"),
            ].filter(\.0).map(\.1)
            if !faults.isEmpty { missing.append("n\(peer.node) is \(faults)") }
        }
        for member in members where nodes[member].shell?.figures.isReady != true {
            missing.append("n\(member + 1) is not ready")
        }
        let leases = leader?.state.meta.leaseCount ?? 0
        if leases > 0 { missing.append("\(leases) leases") }
        missing += watchers.filter { !observer.isFullyTold($0.index) }.map { "w\($0.index)" }
        return missing.isEmpty ? "not equal" : missing.joined(separator: ", ")
    }

    /// Until the last lease has ended nothing else happens: nobody has a reason to campaign.
    private func checkPeace(_ shell: RaftShell) throws(Violation) {
        let term = shell.standing.term
        guard let known = peaceTerm else {
            peaceTerm = term
            return
        }
        guard term == known || !scenario.heals else {
            throw Violation(
                .liveness, "peace keeps its leader",
                "term \(known) ended although nothing was wrong: \(situation)")
        }
    }

    /// One that only hears of commits may look well: it must know whose they are.
    private func isLedAsOthers(_ shell: RaftShell, _ other: RaftShell) -> Bool {
        shell.standing.term == other.standing.term && shell.standing.leader != nil
            && shell.standing.leader == other.standing.leader && shell.figures.isReady
    }

    /// The members of the membership in which the run ends.
    package var finalStates: [RaftShell] { (finalMembers ?? []).compactMap { nodes[$0].shell } }

    /// - Parameter impatient: the part that began a patience ago. Trouble may begin and end within
    ///   it: then the healing has only just begun, and has a patience of its own.
    func runOutOfPatience(_ impatient: Part) throws(Violation) {
        guard part == impatient else { return }
        switch part {
        case .founding:
            throw Violation(.liveness, "founding", "the cluster was not founded: \(situation)")
        case .healing:
            throw Violation(.liveness, "healing", "\(whatIsMissing): \(situation)")
        case .losing:
            throw Violation(.liveness, "recovery", "the last node does not serve: \(situation)")
        case .trouble, .over: break
        }
    }

    /// What clients still wait for when the run ends is of unknown outcome.
    package func finishHistory() {
        for client in clients {
            guard let pending = client.pending, !pending.isRead,
                case .operation(let operation) = pending.purpose
            else { continue }
            history.append(operation)
            client.pending = nil
        }
    }

    /// One line on where everyone stands.
    package var situation: String {
        let places = nodes.map { node in
            guard let shell = node.shell else { return "n\(node.id) down" }
            return "n\(node.id) \(shell.standing.role) t\(shell.standing.term) log "
                + "\(shell.log.firstIndex)...\(shell.log.lastIndex) commit "
                + "\(shell.figures.commitIndex) applied \(shell.state.appliedIndex)"
        }
        let waiting = clients.filter { !$0.isDone }.map(\.index)
        let late = watchers.filter { !observer.isFullyTold($0.index) }.map { watcher in
            "w\(watcher.index) at n\(nodes[watcher.node].id) told \(watcher.told ?? .zero)"
        }
        return places.joined(separator: "; ") + "; clients waiting \(waiting), watchers \(late)"
    }
}
