// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import RaftCore

/// Names a write from its beginning until it is released; then another may get the same name.
package struct WriteID: Hashable, Sendable {
    /// Small, and none is left out for long: an index into a table of the shell's own.
    package let place: Int
}

/// What a node may do with a write whose first proposal came to nothing, or may have.
package enum WriteClass: Sendable, CaseIterable {
    /// Applied twice it would be done twice: proposed again only when it is certain that what was
    /// proposed before is in no log and never will be.
    case once
    /// Applied twice it is done once, by its session or by what it says: proposed again whenever
    /// nothing is heard of it.
    case repeatable
    /// Made for the leader as it is. Whoever asked asks again.
    case administrative
    /// What begins a term by itself, the founding of a cluster: no later term says that it is lost.
    case founding
    /// Of the node's own accord. Nobody waits, and it will be wanted again if it was needed.
    case housekeeping
}

/// How a write ended, for whoever waits for it.
package enum WriteOutcome: Equatable, Sendable {
    // Nothing was carried out, and never will be.
    /// No leader took it in time.
    case noLeader
    /// Of an administrative write: this node leads no more.
    case leadsNoMore
    /// Of an administrative write: its leader's term ended before it was committed.
    case lost
    case tooMany
    case refused(String)
    /// This node left its cluster before any leader had it.
    case left
    // It may still be carried out.
    /// Time ran out.
    case timedOut
    /// This node left its cluster before it knew.
    case leftInDoubt
    /// A snapshot skipped entries that it may have been among, and what was proposed again was refused.
    case skippedInDoubt

    /// It is a promise: whoever hears it may ask again as if for the first time.
    package var isNothingDone: Bool {
        switch self {
        case .timedOut, .leftInDoubt, .skippedInDoubt: false
        default: true
        }
    }
}

package enum ProposalEffect: Equatable, Sendable {
    /// Give this to the core at the end of the turn, under this number.
    /// - `isFirst`: nothing of it is in any log. The shell may refuse it yet, by `end`.
    case propose(WriteID, number: UInt64, payload: [UInt8], isFirst: Bool)
    /// Tell whoever waits, and release it.
    case ended(WriteID, WriteOutcome)
}

package struct ProposalConfiguration: Sendable {
    /// A repeatable write that has not been answered is proposed again after this time, then after
    /// twice as long, and so on.
    package var repeatInterval = Duration.seconds(2)
    /// A write without a deadline is given up this long after it was proposed.
    package var patience = Duration.seconds(10)
    /// What waits for a leader that is known but takes nothing is offered again after this time.
    package var retryInterval = Duration.milliseconds(20)
    /// Honoured in test builds only.
    package var plantedBug: ProposalPlantedBug?

    package init() {}

    /// False unless this is a test build.
    @inline(__always)
    func has(_ bug: ProposalPlantedBug) -> Bool {
        #if ASPEN_TEST_BUILD
            plantedBug == bug
        #else
            false
        #endif
    }
}

/// Faults that the table of a test build can be told to have, so that the checks can be checked.
package enum ProposalPlantedBug: String, Sendable, CaseIterable {
    /// A copy that is refused counts as the write that is refused.
    case refusedCopyBelieved = "refused-copy-taken-for-fate"
    /// A new leader is taken for the loss of all that the old one was given.
    case newLeaderTakenForLoss = "new-leader-taken-for-loss"
    /// What was given to the leader of an earlier term is passed on to that of this one.
    case copyToLaterLeader = "copy-to-later-leader"
    /// What a snapshot may have carried out is proposed again as if it were lost.
    case skippedTakenForLost = "skipped-taken-for-lost"
    /// Time that runs out is taken for a write that was not carried out.
    case timeTakenForRefusal = "time-out-taken-for-refusal"
}
