// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore
import SimFaults

/// What nodes say of their clients' writes, held against what was committed: what is told not to be
/// carried out never is, and what has no session to be recognised by is committed once.
struct WriteFates {
    private struct Fate {
        let mayRepeat: Bool
        /// The entry that it became first.
        var committed: LogIndex?
        var isRefused = false
    }

    private var fates: [UInt64: Fate] = [:]
    private var serials: [ProposalID: UInt64] = [:]
    /// The last entry looked at.
    private var judged = LogIndex.zero

    mutating func began(_ serial: UInt64, mayRepeat: Bool) {
        fates[serial] = Fate(mayRepeat: mayRepeat)
    }

    mutating func proposed(_ serial: UInt64, as id: ProposalID) { serials[id] = serial }

    /// - Returns: what is wrong.
    mutating func refused(_ serial: UInt64) -> String? {
        fates[serial]?.isRefused = true
        return fates[serial]?.committed.map { "a write is refused that is entry \($0)" }
    }

    mutating func applied(_ entries: [Entry]) -> String? {
        for entry in entries where entry.index == judged.next {
            judged = entry.index
            guard let id = entry.origin, let serial = serials[id], var fate = fates[serial] else {
                continue
            }
            if fate.isRefused {
                return "entry \(entry.index) is a write that n\(id.node) has refused"
            }
            if let first = fate.committed, !fate.mayRepeat {
                return "entries \(first) and \(entry.index) are one write of n\(id.node)"
            }
            fate.committed = fate.committed ?? entry.index
            fates[serial] = fate
        }
        return nil
    }
}

extension Oracle {
    package func writeBegan(_ serial: UInt64, mayRepeat: Bool) {
        fates.began(serial, mayRepeat: mayRepeat)
    }

    package func proposed(_ serial: UInt64, as id: ProposalID) { fates.proposed(serial, as: id) }

    package func refused(_ serial: UInt64) throws(Violation) { try judge(fates.refused(serial)) }

    func judgeFates(_ entries: [Entry]) throws(Violation) { try judge(fates.applied(entries)) }

    private func judge(_ wrong: String?) throws(Violation) {
        if let wrong { throw breach("a write has one fate", wrong) }
    }
}
