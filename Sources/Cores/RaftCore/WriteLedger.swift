// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import DequeModule

/// Which writes have been handed out and which of them are durable.
struct WriteLedger {
    private struct Pending {
        let ticket: DurabilityTicket
        /// The last entry of this write that no later write has truncated away.
        var lastIndex: LogIndex
    }

    private var pending: Deque<Pending> = []
    private var last = DurabilityTicket(0)
    /// The newest write of a hard state that is not durable yet.
    private(set) var hardStateTicket: DurabilityTicket?
    /// Every entry up to here is durable as it stands in the log.
    private(set) var durableIndex: LogIndex

    /// The newest write, unless it is durable.
    var newest: DurabilityTicket? { pending.isEmpty ? nil : last }

    init(durableIndex: LogIndex) { self.durableIndex = durableIndex }

    func isDurable(_ ticket: DurabilityTicket) -> Bool {
        guard let first = pending.first else { return true }
        return ticket < first.ticket
    }

    /// - Parameter lastIndex: the end of the log once this write is durable.
    mutating func issue(
        lastIndex: LogIndex, truncateAfter: LogIndex?, hasHardState: Bool
    ) -> DurabilityTicket {
        last = DurabilityTicket(last.number + 1)
        if let cut = truncateAfter {
            // What earlier writes held beyond the cut is replaced: its durability means nothing.
            durableIndex = min(durableIndex, cut)
            for position in pending.indices {
                pending[position].lastIndex = min(pending[position].lastIndex, cut)
            }
        }
        pending.append(Pending(ticket: last, lastIndex: lastIndex))
        if hasHardState { hardStateTicket = last }
        return last
    }

    mutating func settle(_ ticket: DurabilityTicket) {
        promise(ticket <= last, "a ticket that was never handed out cannot be durable")
        while let first = pending.first, first.ticket <= ticket {
            durableIndex = max(durableIndex, first.lastIndex)
            pending.removeFirst()
        }
        if let waiting = hardStateTicket, waiting <= ticket { hardStateTicket = nil }
    }

    /// What has to be durable before an entry may be acknowledged: the entry, and the term under
    /// which that is said. Nil when both are.
    func ticket(covering index: LogIndex) -> DurabilityTicket? {
        guard index > durableIndex else { return hardStateTicket }
        guard let write = pending.first(where: { $0.lastIndex >= index }) else {
            preconditionFailure("an entry that was never written cannot be acknowledged")
        }
        return max(write.ticket, hardStateTicket ?? write.ticket)
    }

    /// The log starts anew behind an installed snapshot.
    mutating func reset(to index: LogIndex) {
        durableIndex = index
        for position in pending.indices { pending[position].lastIndex = index }
    }
}
