// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore

/// What is promised of single failures in an otherwise healthy cluster, with the times that it has in
/// production: a net that restarts changes no term, and a leader whose daemon dies beside a living
/// net has a successor before anybody's election timer runs out.
enum Rehearsal: Equatable {
    case notBegun
    /// The leader's net was killed.
    case netRestarts(until: MonotonicInstant)
    /// The leader's raft daemon was killed, in this term.
    case successionDue(at: MonotonicInstant, after: Term)
    case over
}

extension World {
    /// Called when all is well. Goes on to the next trial.
    ///
    /// - Returns: whether there is none left.
    func rehearse() throws(Violation) -> Bool {
        switch rehearsal {
        case .notBegun:
            guard scenario.heals, scenario.rehearses, let leader,
                scenario.electionTimeoutMin >= .seconds(1),
                (leader.membership?.voters.count ?? 0) >= 3,
                leader.membership?.isVoter(leader.node.id) == true
            else { return true }
            note("rehearsal: the leader's net restarts")
            killNet(leader.node, restartAfter: .milliseconds(20))
            rehearsal = .netRestarts(until: now + scenario.electionTimeoutMax)
            return false
        case .netRestarts(let until):
            guard now >= until, let leader else { return false }
            note("rehearsal: the leader's daemon dies")
            let patience = scenario.electionTimeoutMin - scenario.heartbeatInterval
            rehearsal = .successionDue(at: now + patience, after: leader.standing.term)
            peaceTerm = nil
            killRaft(leader.node, restartAfter: scenario.electionTimeoutMax * 2)
            return false
        case .successionDue: return false
        case .over: return true
        }
    }

    func checkRehearsal() throws(Violation) {
        guard case .successionDue(let deadline, let term) = rehearsal else { return }
        if let leader, leader.standing.term > term {
            rehearsal = .over
        } else if now > deadline {
            throw Violation(
                .liveness, "succession", "nobody leads since a leader's daemon died: \(situation)")
        }
    }
}
