// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine

// What time brings.

extension ProposalTable {
    /// Ends what is overdue, and proposes again what has been silent or refused for too long.
    package mutating func sweep(
        now: MonotonicInstant, hasLeader: Bool, into effects: inout [ProposalEffect]
    ) {
        guard count > 0 else { return }
        var silent: [Int] = []
        for place in rows.indices where rows[place].stage == .underWay {
            if limit(of: rows[place]) <= now {
                end(
                    place, configuration.has(.timeTakenForRefusal) ? .noLeader : .timedOut,
                    &effects)
            } else if hasLeader, isSilent(rows[place], now) {
                silent.append(place)
            }
        }
        for place in silent.sorted(by: { rows[$0].last.number < rows[$1].last.number }) {
            propose(place, now, &effects)
        }
        for place in waiting where limit(of: rows[place]) <= now {
            end(place, .noLeader, &effects)
        }
        waiting.removeAll { rows[$0].stage == .ended }
        if hasLeader { proposeWaiting(now, &effects) }
    }

    private func limit(of row: Row) -> MonotonicInstant {
        row.deadline ?? row.proposedAt + configuration.patience
    }

    private func isSilent(_ row: Row, _ now: MonotonicInstant) -> Bool {
        row.kind == .repeatable && row.proposedAt + silence(of: row) <= now
    }

    /// Twice as long each further time: what is slow because there is too much is not made more.
    private func silence(of row: Row) -> Duration {
        configuration.repeatInterval * (1 << min(row.earlier.count, 8))
    }

    /// When it wants to be swept next, or nil. A shell with much to do may look every
    /// `retryInterval` instead.
    package func deadline(now: MonotonicInstant, hasLeader: Bool) -> MonotonicInstant? {
        var earliest: MonotonicInstant?
        func wants(_ instant: MonotonicInstant) { earliest = min(earliest ?? instant, instant) }
        for row in rows where row.stage == .underWay || row.stage == .waiting {
            wants(limit(of: row))
            guard hasLeader else { continue }
            if row.stage == .waiting {
                wants(now + configuration.retryInterval)
            } else if row.kind == .repeatable {
                wants(row.proposedAt + silence(of: row))
            }
        }
        return earliest
    }

    /// Traps unless each number leads to its write and each write is in one place.
    package func checkInvariants() {
        var numbers = 0
        var open = 0
        for (place, row) in rows.enumerated() {
            switch row.stage {
            case .underWay:
                open += 1
                numbers += 1 + row.earlier.count
                precondition(places[row.last.number] == place, "the last number leads here")
                for attempt in row.earlier {
                    precondition(places[attempt.number] == place, "earlier ones lead here, too")
                    precondition(attempt.number < row.last.number, "numbers ascend")
                }
                precondition(
                    row.earlier.isEmpty || row.kind == .repeatable,
                    "what must be done once has one number that may be applied")
            case .waiting:
                open += 1
                precondition(
                    row.last.number == 0 && row.earlier.isEmpty, "what waits is in no log")
                precondition(waiting.contains(place), "what waits is offered again")
            case .free, .ended: precondition(row.last.number == 0, "what is over has no number")
            }
        }
        precondition(numbers == places.count && open == count, "none is forgotten")
    }
}
