// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import RaftCore

/// The writes of one node's clients, each from the request to the answer: under which numbers it was
/// proposed, in which term, and what is known of its fate.
///
/// A write is proposed under a number of its own, which the entry bears; who applies an entry with
/// that number answers. Until then a node knows three things. *Refused*: whoever was given the number
/// says that it is in no log. That is believed of the first time it was given to anyone, and not of a
/// copy: the leader that took the first may be another process by now, and knows nothing of what its
/// log holds. *Lost*: an entry of a later term has been applied, and none with the number before it; a
/// leader takes no number that was given to the leader of an earlier term, so none will follow. *In
/// doubt*: neither. What is refused or lost is proposed again under a new number; what is in doubt is
/// proposed again only if it is repeatable, and passed on once more under the *same* number to the
/// leader of the same term when the link to it has been broken, for such a leader takes each number
/// once.
///
/// A shell tells it what happens, carries its effects out in order, and keeps what the answer needs
/// under the write's id. Nothing here allocates per write but the dictionary's slots.
package struct ProposalTable: Sendable {
    /// One number of a write.
    struct Attempt {
        var number: UInt64
        /// The term in which it was given to the core; nil until then.
        var term: Term?
        /// It was passed on a second time.
        var isCopied = false
    }

    enum Stage: UInt8 { case free, underWay, waiting, ended }

    struct Row {
        var stage = Stage.free
        var kind = WriteClass.once
        var payload: [UInt8] = []
        var deadline: MonotonicInstant?
        /// When the newest attempt was made.
        var proposedAt = MonotonicInstant.zero
        /// While under way: under which number it was last proposed.
        var last = Attempt(number: 0)
        /// Numbers before it that may still be applied.
        var earlier: [Attempt] = []
        /// A snapshot has skipped entries that it may have been among. What was proposed again for
        /// that reason may be refused in every way and be done all the same.
        var isFateUnknown = false
    }

    let configuration: ProposalConfiguration
    var rows: [Row] = []
    private var free: [Int] = []
    /// The row of each number that may still be applied.
    var places: [UInt64: Int] = [:]
    /// Proposed in this turn, not yet given to the core.
    private var unstamped: [(number: UInt64, place: Int)] = []
    /// Nothing of these is in any log. In the order in which they came here.
    var waiting: [Int] = []
    private var nextNumber: UInt64 = 1
    private var appliedTerm: Term
    /// Writes that have not ended.
    package private(set) var count = 0

    /// - Parameter appliedTerm: of the last entry applied.
    package init(_ configuration: ProposalConfiguration = .init(), appliedTerm: Term) {
        self.configuration = configuration
        self.appliedTerm = appliedTerm
    }

    // MARK: - Beginning

    /// A number for a proposal that nobody follows.
    package mutating func takeNumber() -> UInt64 {
        defer { nextNumber += 1 }
        return nextNumber
    }

    /// The last number taken.
    package var newestNumber: UInt64 { nextNumber - 1 }

    /// A write that is proposed at the end of this turn.
    /// - Parameter deadline: nil: `ProposalConfiguration.patience` after each proposal.
    package mutating func begin(
        _ kind: WriteClass, _ payload: [UInt8], deadline: MonotonicInstant?,
        now: MonotonicInstant, into effects: inout [ProposalEffect]
    ) -> WriteID {
        let place = makeRow(kind, payload, deadline)
        propose(place, now, &effects)
        return WriteID(place: place)
    }

    /// A write that the caller gives to the core at once, in `term`, in its own way.
    package mutating func begin(
        _ kind: WriteClass, givenIn term: Term, deadline: MonotonicInstant, now: MonotonicInstant
    ) -> (id: WriteID, number: UInt64) {
        let place = makeRow(kind, [], deadline)
        let number = takeNumber()
        rows[place].last = Attempt(number: number, term: term)
        rows[place].proposedAt = now
        places[number] = place
        return (WriteID(place: place), number)
    }

    private mutating func makeRow(
        _ kind: WriteClass, _ payload: [UInt8], _ deadline: MonotonicInstant?
    ) -> Int {
        count += 1
        let row = Row(stage: .underWay, kind: kind, payload: payload, deadline: deadline)
        if let place = free.popLast() {
            rows[place] = row
            return place
        }
        rows.append(row)
        return rows.count - 1
    }

    mutating func propose(
        _ place: Int, _ now: MonotonicInstant, _ effects: inout [ProposalEffect]
    ) {
        let number = takeNumber()
        let hasNumber = rows[place].last.number != 0
        let isFirst = !hasNumber && !rows[place].isFateUnknown
        if hasNumber { rows[place].earlier.append(rows[place].last) }
        rows[place].stage = .underWay
        rows[place].last = Attempt(number: number)
        rows[place].proposedAt = now
        places[number] = place
        unstamped.append((number, place))
        effects.append(
            .propose(
                WriteID(place: place), number: number, payload: rows[place].payload,
                isFirst: isFirst))
    }

    /// What was proposed in this turn goes to the core now, in this term.
    package mutating func willPropose(in term: Term) {
        for (number, place) in unstamped where rows[place].last.number == number {
            rows[place].last.term = term
        }
        unstamped.removeAll(keepingCapacity: true)
    }

    // MARK: - Ending

    /// An entry with this number has been applied: the write is done, if it is one of these.
    /// - Returns: whom to tell, then to be released; when it was proposed last; and whether it may
    ///   have been done before, under a number that a snapshot has skipped: an answer that its session
    ///   has ended does not say that it has not.
    package mutating func applied(
        _ number: UInt64
    ) -> (id: WriteID, proposedAt: MonotonicInstant, isFateUnknown: Bool)? {
        guard let place = places[number] else { return nil }
        finish(place)
        return (WriteID(place: place), rows[place].proposedAt, rows[place].isFateUnknown)
    }

    /// The shell refuses it, or does not follow it any further; telling is the caller's.
    package mutating func end(_ id: WriteID) {
        precondition(rows[id.place].stage == .underWay, "only what is under way is taken back")
        finish(id.place)
    }

    /// Whoever waited has been told: the id may name another write.
    package mutating func release(_ id: WriteID) {
        precondition(rows[id.place].stage == .ended, "only what has ended is forgotten")
        rows[id.place] = Row()
        free.append(id.place)
    }

    private mutating func finish(_ place: Int) {
        forgetNumbers(of: place)
        rows[place].stage = .ended
        count -= 1
    }

    mutating func end(
        _ place: Int, _ outcome: WriteOutcome, _ effects: inout [ProposalEffect]
    ) {
        finish(place)
        let isInDoubt = rows[place].isFateUnknown && rows[place].kind == .repeatable
        effects.append(
            .ended(
                WriteID(place: place),
                isInDoubt && outcome.isNothingDone ? .skippedInDoubt : outcome))
    }

    private mutating func forgetNumbers(of place: Int) {
        if rows[place].last.number != 0 { places[rows[place].last.number] = nil }
        rows[place].last = Attempt(number: 0)
        guard !rows[place].earlier.isEmpty else { return }
        for attempt in rows[place].earlier { places[attempt.number] = nil }
        rows[place].earlier = []
    }

    // MARK: - Fates

    /// Everything up to an entry of `term` has been applied, and `applied` was told of all that is
    /// ours among it.
    package mutating func applied(
        upTo term: Term, now: MonotonicInstant, into effects: inout [ProposalEffect]
    ) {
        guard term > appliedTerm else { return }
        appliedTerm = term
        proposeLost(before: term, now, &effects)
    }

    private mutating func proposeLost(
        before term: Term, _ now: MonotonicInstant, _ effects: inout [ProposalEffect]
    ) {
        for place in inOrder() {
            let isInDoubt = rows[place].isFateUnknown && rows[place].kind != .repeatable
            guard !isInDoubt || configuration.has(.skippedTakenForLost),
                let proposed = rows[place].last.term, proposed < term
            else { continue }
            switch rows[place].kind {
            case .founding: continue
            case .administrative, .housekeeping: end(place, .lost, &effects)
            case .once, .repeatable:
                forgetNumbers(of: place)
                propose(place, now, &effects)
            }
        }
    }

    /// A snapshot has taken the place of entries, and with them perhaps of answers.
    package mutating func skipped(now: MonotonicInstant, into effects: inout [ProposalEffect]) {
        for place in inOrder() {
            rows[place].isFateUnknown = true
            if rows[place].kind == .repeatable { propose(place, now, &effects) }
        }
    }

    /// The link to the leader of `term` is whole again: what was on its way through the old one may
    /// be lost.
    /// - Returns: what to pass on at once, under these same numbers; not to the core if it leads.
    package mutating func copies(in term: Term) -> [(number: UInt64, payload: [UInt8])] {
        var copies: [(number: UInt64, payload: [UInt8])] = []
        for place in inOrder() {
            guard let given = rows[place].last.term,
                given == term || configuration.has(.copyToLaterLeader)
            else { continue }
            switch rows[place].kind {
            case .administrative, .founding: continue
            case .once, .repeatable, .housekeeping: break
            }
            rows[place].last.isCopied = true
            copies.append((rows[place].last.number, rows[place].payload))
        }
        return copies
    }

    /// Whoever was given this number says that it is in no log. Of a copy that says nothing: the
    /// first may be in one. An entry of a later term will tell, or time runs out.
    package mutating func failed(
        _ number: UInt64, _ failure: ProposalFailure, into effects: inout [ProposalEffect]
    ) {
        guard let place = places[number] else { return }
        if isCopied(number, of: place), !configuration.has(.refusedCopyBelieved) { return }
        places[number] = nil
        if rows[place].last.number != number {
            rows[place].earlier.removeAll { $0.number == number }
            return
        }
        if let earlier = rows[place].earlier.popLast() {
            // Under that one it may still be applied.
            rows[place].last = earlier
            return
        }
        rows[place].last = Attempt(number: 0)
        switch failure {
        case .noLeader: refused(place, &effects)
        case .tooMany: end(place, .tooMany, &effects)
        case .refused(let text): end(place, .refused(text), &effects)
        }
    }

    private func isCopied(_ number: UInt64, of place: Int) -> Bool {
        if rows[place].last.number == number { return rows[place].last.isCopied }
        return rows[place].earlier.contains { $0.number == number && $0.isCopied }
    }

    private mutating func refused(_ place: Int, _ effects: inout [ProposalEffect]) {
        switch rows[place].kind {
        case .administrative, .founding: end(place, .leadsNoMore, &effects)
        case .housekeeping: end(place, .noLeader, &effects)
        case .once, .repeatable:
            rows[place].stage = .waiting
            waiting.append(place)
        }
    }

    /// A leader is known, or another one.
    package mutating func leaderKnown(
        now: MonotonicInstant, into effects: inout [ProposalEffect]
    ) {
        if configuration.has(.newLeaderTakenForLoss) {
            proposeLost(before: Term(.max), now, &effects)
        }
        proposeWaiting(now, &effects)
    }

    mutating func proposeWaiting(
        _ now: MonotonicInstant, _ effects: inout [ProposalEffect]
    ) {
        guard !waiting.isEmpty else { return }
        for place in waiting { propose(place, now, &effects) }
        waiting.removeAll(keepingCapacity: true)
    }

    /// This node is no member any more. What was given to a leader may be carried out yet.
    package mutating func dismiss(into effects: inout [ProposalEffect]) {
        for place in inOrder() { end(place, .leftInDoubt, &effects) }
        for place in waiting { end(place, .left, &effects) }
        waiting.removeAll()
    }

    /// What is under way, in the order of the numbers.
    private func inOrder() -> [Int] {
        guard count > waiting.count else { return [] }
        return rows.indices.filter { rows[$0].stage == .underWay }
            .sorted { rows[$0].last.number < rows[$1].last.number }
    }
}
