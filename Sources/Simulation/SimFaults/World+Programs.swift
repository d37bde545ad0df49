// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage

/// Members whose programs differ in age. An old one knows the first version of the state machine only,
/// and is given nothing that it does not understand: a version is taken into force when all members know
/// it, commands of a later one are refused before they are proposed, and snapshots are written in the
/// version that is in force.
extension World {
    func drawPrograms() {
        guard scenario.oldProgramPercent > 0 else { return }
        // The first one is alone at first, and would take the newest version into force.
        for node in nodes[..<scenario.founders]
        where node.index == 0 || nodeRandom.uniform(0..<100) < scenario.oldProgramPercent {
            node.program = KVVersion.first
        }
    }

    /// One after the other; some stay old to the end.
    func planUpgrades() {
        for node in nodes where node.program < KVVersion.supported {
            schedule(
                .upgrade(node: node.index),
                after: nodeRandom.uniform(
                    scenario.heartbeatInterval, scenario.electionTimeoutMax * 12))
        }
    }

    func upgrade(_ node: SimNode) {
        guard part == .trouble, node.program < KVVersion.supported else { return }
        note("n\(node.id) is upgraded")
        node.program = KVVersion.supported
        killRaft(node, restartAfter: nodeRandom.uniform(.milliseconds(5), .milliseconds(50)))
    }

    /// Nobody adds a machine with an old program.
    func upgradeNewcomers(_ wanted: [NodeID], _ membership: Membership) {
        for node in nodes where wanted.contains(node.id) && membership.member(node.id) == nil {
            upgrade(node)
        }
    }

    /// What all members have said that they know; nil: somebody does not answer.
    func commonVersion(_ shell: RaftShell) -> UInt8? {
        guard scenario.oldProgramPercent > 0 else { return KVVersion.supported }
        guard let membership = shell.membership, !membership.isJoint else { return nil }
        var common = KVVersion.supported
        for member in membership.members {
            guard let position = position(member.node), nodes[position].shell != nil else {
                return nil
            }
            common = min(common, nodes[position].program)
        }
        return common
    }

    /// A daemon proposes only what all members understand.
    func refusesAtDoor(_ payload: [UInt8], _ shell: RaftShell) -> Bool {
        guard scenario.oldProgramPercent > 0, let command = try? CommandCodec.decode(payload)
        else { return false }
        return command.version > shell.state.meta.activeVersion
    }

    /// Whoever has just been removed may still be sent what comes behind that: its program stops, and says
    /// that a newer one is needed.
    func meetUnknown(_ shell: RaftShell) throws(Violation) {
        guard let membership = shell.membership, membership.member(shell.node.id) == nil else {
            throw unknownToOldProgram(shell)
        }
        upgrade(shell.node)
        // Where trouble is over, too.
        shell.node.program = KVVersion.supported
        killRaft(shell.node, restartAfter: nodeRandom.uniform(.milliseconds(5), .milliseconds(50)))
    }

    private func unknownToOldProgram(_ shell: RaftShell) -> Violation {
        Violation(
            .safety, "old programs understand",
            "n\(shell.node.id) has a program of version \(shell.node.program), and is given what "
                + "needs a newer one")
    }
}

extension SimNode {
    /// The version of a snapshot stands at its beginning.
    func understands(_ snapshot: [UInt8]) -> Bool {
        program == KVVersion.supported || snapshot.starts(with: StateStream.magic(program))
    }

    /// Of another program's version the first byte of a command is all that an old one can read.
    func knows(_ entry: Entry) -> Bool {
        guard program < KVVersion.supported, entry.kind == .command,
            let version = entry.payload.first
        else { return true }
        if version > program { return false }
        guard case .activateVersion(let next)? = try? CommandCodec.decode(entry.payload) else {
            return true
        }
        return next <= UInt16(program)
    }
}
