// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import SimKit

/// What a leader owes to those who ask it for something: commands up to a bound, and changes of the
/// membership.
extension World {
    /// A batch is taken when nothing waits, however large, or else within the bound.
    func checkUncommitted(_ write: LogWrite, _ shell: RaftShell) throws(Violation) {
        guard shell.standing.role == .leader, !write.entries.isEmpty else { return }
        let commands = write.entries.filter { $0.kind == .command }
        let bytes = commands.reduce(0) { $0 + $1.payload.count }
        let committed = shell.figures.commitIndex
        shell.uncommitted.removeAll { $0.index <= committed }
        let waiting = shell.uncommitted.reduce(0) { $0 + $1.bytes }
        if !commands.isEmpty, waiting > 0, waiting + bytes > scenario.uncommittedBytesMax {
            throw Violation(
                .safety, "queues keep their limits",
                "n\(shell.node.id) takes \(bytes) bytes while \(waiting) wait to be committed")
        }
        shell.uncommitted += commands.map { ($0.index, $0.payload.count) }
    }

    func untold(_ shell: RaftShell) -> Violation {
        Violation(
            .safety, "who asks is told", "n\(shell.node.id) neither takes a proposal nor refuses it"
        )
    }

    /// A leader whose term has an entry that is committed, and whose membership is settled, takes a
    /// sensible change.
    func isFreeToChange(_ leader: RaftShell) -> Bool {
        // A leader that stood still meanwhile has not yet noticed that nobody took over.
        if let transferred = leader.transferredAt,
            now - max(transferred, leader.node.pausedUntil) < scenario.electionTimeoutMax * 2
        {
            return false
        }
        guard let membership = leader.membership, !membership.isJoint else { return false }
        let committed = leader.core.commitIndex
        return leader.core.membershipIndex <= committed
            && leader.core.term(at: committed) == leader.standing.term
    }
}
