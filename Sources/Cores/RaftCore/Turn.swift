// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// What one step may use besides the core's own state, and where it leaves its effects.
struct Turn {
    let now: MonotonicInstant
    var random: RandomSource
    var effects: [RaftEffect] = []

    init(now: MonotonicInstant, random: RandomSource) {
        self.now = now
        self.random = random
    }

    mutating func emit(_ effect: RaftEffect) { effects.append(effect) }
}

/// A place in a log: two logs that have the same term at the same index agree up to there.
struct Position: Equatable {
    var index: LogIndex
    var term: Term

    init(_ index: LogIndex, _ term: Term) {
        self.index = index
        self.term = term
    }

    /// Raft §5.4.1: by term first, then by length.
    func isAtLeastAsUpToDate(as other: Position) -> Bool {
        term != other.term ? term > other.term : index >= other.index
    }
}

/// The planted bugs in force; all off unless this is a test build.
struct ActiveBugs {
    var any = false
    var voteTwice = false
    var acknowledgeBeforeDurable = false
    var applyBeforeCommit = false
    var skipReadRound = false
    var commitOldTermByCounting = false
    var skipJointConsensus = false
    var overlapChanges = false
    var readBeforeOwnEntry = false
    var transferWithoutVotes = false
    var damagedNodeVotes = false
    var forgetNewestMembership = false
    var forgetSalvage = false
    var unboundedFlight = false
    var installOlderSnapshot = false
    var learnersCount = false
    var leaverCounts = false
    var recoveryDropsTail = false
    var changeTwice = false
    var removedNodeDisrupts = false

    init(_ planted: Set<PlantedBug>) {
        #if ASPEN_TEST_BUILD
            any = !planted.isEmpty
            voteTwice = planted.contains(.voteTwice)
            acknowledgeBeforeDurable = planted.contains(.acknowledgeBeforeDurable)
            applyBeforeCommit = planted.contains(.applyBeforeCommit)
            skipReadRound = planted.contains(.skipReadRound)
            commitOldTermByCounting = planted.contains(.commitOldTermByCounting)
            overlapChanges = planted.contains(.overlapChanges)
            skipJointConsensus = planted.contains(.skipJointConsensus)
            readBeforeOwnEntry = planted.contains(.readBeforeOwnEntry)
            transferWithoutVotes = planted.contains(.transferWithoutVotes)
            damagedNodeVotes = planted.contains(.damagedNodeVotes)
            forgetNewestMembership = planted.contains(.forgetNewestMembership)
            forgetSalvage = planted.contains(.forgetSalvage)
            unboundedFlight = planted.contains(.unboundedFlight)
            installOlderSnapshot = planted.contains(.installOlderSnapshot)
            learnersCount = planted.contains(.learnersCount)
            leaverCounts = planted.contains(.leaverCounts)
            recoveryDropsTail = planted.contains(.recoveryDropsTail)
            changeTwice = planted.contains(.changeTwice)
            removedNodeDisrupts = planted.contains(.removedNodeDisrupts)
        #endif
    }
}

/// A precondition whose message survives optimisation: whoever finds a dead daemon should also find
/// out which promise was broken.
@inline(__always)
func promise(
    _ condition: @autoclosure () -> Bool, _ message: StaticString, file: StaticString = #fileID,
    line: UInt = #line
) {
    if !condition() { fatalError("broken promise: \(message)", file: file, line: line) }
}

extension RaftCore {
    var node: NodeID { configuration.node }

    /// A promise about our own state, kept in release. With a planted bug promises do break, and
    /// then it is for the checks around the core to notice: a trap would take them along.
    func require(_ condition: @autoclosure () -> Bool, _ message: StaticString) {
        if bugs.any { return }
        promise(condition(), message)
    }

    func send(
        _ body: Message.Body, to peer: NodeID, after ticket: DurabilityTicket? = nil,
        _ turn: inout Turn
    ) {
        turn.emit(.send(Message(from: node, to: peer, term: term, body: body), after: ticket))
    }

    /// Writes what is new: log entries already appended to `log`, and the hard state if it changed.
    @discardableResult
    mutating func write(
        entries: [Entry] = [], truncateAfter: LogIndex? = nil, endsRepair: Bool = false,
        _ turn: inout Turn
    ) -> DurabilityTicket {
        let ticket = ledger.issue(
            lastIndex: log.lastIndex, truncateAfter: truncateAfter, hasHardState: isHardStateDirty)
        turn.emit(
            .write(
                LogWrite(
                    ticket: ticket, truncateAfter: truncateAfter, entries: entries,
                    hardState: isHardStateDirty ? hardState : nil, endsRepair: endsRepair)))
        isHardStateDirty = false
        return ticket
    }

    mutating func announce(_ turn: inout Turn) {
        let standing = self.standing
        guard standing != announced else { return }
        announced = standing
        turn.emit(.standing(standing))
    }
}
