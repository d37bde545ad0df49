// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore
import RaftStorage
import SimKit

/// The power fails everywhere at once, and each voter's log is damaged at another entry that was
/// acknowledged: no log is whole, and yet a majority holds every entry.
extension World {
    /// Does nothing where an entry could be lost to a majority, or the newest membership to anybody.
    func rotEverywhere() throws(Violation) {
        guard replacement == nil, let places = drawDamage() else { return }
        statistics.decays += 1
        for node in nodes { try losePower(node) }
        for place in places {
            let offset = place.offset + fate.uniform(0..<Self.recordBytesMin)
            note("n\(place.node.id) a bit of entry \(place.index) flips at \(offset)")
            _ = place.node.disk.flipBit(
                place.file, at: offset, bit: UInt8(fate.uniform(0..<8)))
        }
    }

    private struct Place {
        var node: SimNode
        var index: LogIndex
        var file: String
        var offset: Int
    }

    /// The head of a record, and the time in it: no entry has less.
    private static let recordBytesMin = 56

    /// For each voter an entry of its own, of those that all of them have and that a log knows to have
    /// been durable (of its very last batch it may not: see `LogRecovery`).
    private func drawDamage() -> [Place]? {
        guard let leader, let membership = leader.membership, !membership.isJoint,
            let known = leader.state.membership, known.membership == membership,
            membership.voters.count > 2, !hidesDamage
        else { return nil }
        var (first, last) = (known.index.next, leader.core.commitIndex)
        for member in membership.members {
            guard let position = position(member.node), let shell = nodes[position].shell,
                shell.membership == membership, shell.core.isTailTrusted,
                shell.standing.term == leader.standing.term,
                let log = shell.log as? SegmentedLog, !log.remembersLostMembership,
                member.replica == nodes[position].member.replica
            else { return nil }
            first = max(first, shell.log.firstIndex, shell.core.membershipIndex.next)
            last = min(last, shell.provenIndex)
        }
        let voters = membership.voters.compactMap { position($0) }
        // Near each other, so that now and then they stand side by side, at the end of the log.
        let span = UInt64(voters.count + fate.uniform(0..<12))
        guard last >= first, last.rawValue - first.rawValue >= span else { return nil }
        var indexes = (0...span).map { LogIndex(last.rawValue - $0) }
        return voters.compactMap { voter in
            let index = indexes.remove(at: fate.uniform(0..<indexes.count))
            guard let log = nodes[voter].shell?.log as? SegmentedLog,
                let place = log.place(of: index)
            else { return nil }
            return Place(
                node: nodes[voter], index: index, file: place.file, offset: place.offset)
        }
    }
}
