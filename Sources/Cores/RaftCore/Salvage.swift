// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// What damaged logs still hold, and how a leader that was elected by conditional votes makes one log
// of it: rule 6 in Repair.swift says why it may and why it must.

/// By index, then by term: the order in which salvage is kept, asked for and sent.
extension Position {
    fileprivate func isBefore(_ other: Position) -> Bool {
        index != other.index ? index < other.index : term < other.term
    }
}

extension Entry {
    var position: Position { Position(index, term) }

    /// The first entry of a leader says in its payload the term of the entry before it, so that it
    /// can be told what it follows when that entry is not at hand. Leaders of old wrote nothing.
    static func firstPayload(after term: Term) -> [UInt8] {
        withUnsafeBytes(of: term.rawValue.littleEndian) { Array($0) }
    }

    /// The term of the entry before this one in every log that holds this one, as far as that can be
    /// told. A leader writes the first entry of its term behind what it found, and all others behind
    /// entries of its own. Only a founding and a recovery from the loss of a majority begin a term with
    /// a membership: for that this names a place that nobody has, and it is joined to nothing.
    var termBefore: Term? {
        guard kind == .noop else { return term }
        guard payload.count == 8 else { return nil }
        return Term(payload.reversed().reduce(0) { $0 << 8 | UInt64($1) })
    }
}

/// Entries that were found on damaged disks: ascending, each once.
struct Salvage {
    private(set) var entries: [Entry]

    init(_ entries: [Entry]) {
        self.entries = []
        add(entries.sorted { $0.position.isBefore($1.position) })
    }

    /// - Parameter others: in order.
    mutating func add(_ others: [Entry]) {
        var merged: [Entry] = []
        merged.reserveCapacity(entries.count + others.count)
        var (own, other) = (entries[...], others[...])
        while let entry = other.first {
            if let mine = own.first, !entry.position.isBefore(mine.position) {
                merged.append(own.removeFirst())
            } else {
                merged.append(other.removeFirst())
            }
            // Equal places hold equal entries.
            let count = merged.count
            if count > 1, merged[count - 1].position == merged[count - 2].position {
                merged.removeLast()
            }
        }
        entries = merged + own
    }

    /// What follows `place`, as far as `bytesMax` goes, at least one; and whether that is all.
    func page(after place: Position, bytesMax: Int) -> (entries: [Entry], isLast: Bool) {
        var (low, high) = (0, entries.count)
        while low < high {
            let middle = (low + high) / 2
            if place.isBefore(entries[middle].position) { high = middle } else { low = middle + 1 }
        }
        var (end, byteCount) = (low, 0)
        while end < entries.count {
            byteCount += entries[end].payload.count + RaftLog.entryOverheadBytes
            if byteCount > bytesMax, end > low { break }
            end += 1
        }
        return (Array(entries[low..<end]), end == entries.count)
    }
}

/// A candidate that everybody has granted, some of them on condition, asks those what they hold.
struct Gathering {
    struct Waiting {
        let node: NodeID
        var after: Position
        var wasAskedAgain = false
    }

    /// Those who have not told all yet, and what they told last; ascending by node.
    var waiting: [Waiting]
    var found: Salvage
    /// The write that brings what was found into this log; office begins once it is durable.
    var written: DurabilityTicket?
}

extension RaftCore {
    // MARK: At the candidate

    /// - Precondition: every voter has granted, and our own vote is durable.
    mutating func gatherSalvage(_ turn: inout Turn) {
        guard gathering == nil else { return }
        // Nothing at or below what is committed here is missing here.
        let start = Position(commitIndex.next, .zero)
        let damaged = ballots.filter { $0.isConditional && $0.node != node }.map(\.node).sorted()
        gathering = Gathering(
            waiting: damaged.map { Gathering.Waiting(node: $0, after: start) },
            found: Salvage(salvage.page(after: start, bytesMax: .max).entries))
        armCampaignTimer(&turn)
        for voter in damaged { askForSalvage(voter, &turn) }
        if !damaged.isEmpty { keepOthersWaiting(&turn) }
        finishGathering(&turn)
    }

    private mutating func askForSalvage(_ voter: NodeID, _ turn: inout Turn) {
        guard let waiting = gathering?.waiting.first(where: { $0.node == voter }) else { return }
        send(
            .salvageRequest(afterIndex: waiting.after.index, afterTerm: waiting.after.term),
            to: voter, &turn)
    }

    /// The link is new, what was asked through the old one is lost. Once for each page: a program that
    /// does not know the question closes the stream each time.
    mutating func repeatSalvageRequest(to voter: NodeID, _ turn: inout Turn) {
        guard let place = gathering?.waiting.firstIndex(where: { $0.node == voter }),
            gathering?.waiting[place].wasAskedAgain == false
        else { return }
        gathering?.waiting[place].wasAskedAgain = true
        askForSalvage(voter, &turn)
    }

    mutating func receiveSalvage(
        _ from: NodeID, after: Position, _ entries: [Entry], isLast: Bool, _ turn: inout Turn
    ) {
        guard role == .candidate,
            let place = gathering?.waiting.firstIndex(where: {
                $0.node == from && $0.after == after
            }),
            let end = endOfPage(entries, after: after), isLast || !entries.isEmpty
        else { return }
        gathering?.found.add(entries.filter { log.term(at: $0.index) != $0.term })
        armCampaignTimer(&turn)
        if isLast {
            gathering?.waiting.remove(at: place)
            finishGathering(&turn)
        } else {
            gathering?.waiting[place] = Gathering.Waiting(node: from, after: end)
            askForSalvage(from, &turn)
            keepOthersWaiting(&turn)
        }
    }

    /// Many pages take longer than anybody waits for a candidate. Those who are asked for pages hear
    /// of us; the others would campaign, and what was gathered would be lost each time: voters, and
    /// whoever may still be one by a membership that is not known to be committed.
    private func keepOthersWaiting(_ turn: inout Turn) {
        var others: Set<NodeID> = [node]
        for waiting in gathering?.waiting ?? [] { others.insert(waiting.node) }
        let granted = ballots.filter(\.isGranted).map(\.node)
        let members = memberships.flatMap { $0.membership.members.map(\.node) }
        for other in (granted + members).sorted() where others.insert(other).inserted {
            requestVote(from: other, &turn)
        }
    }

    /// Nil if the entries are in no order.
    private func endOfPage(_ entries: [Entry], after place: Position) -> Position? {
        var end = place
        for entry in entries {
            guard end.isBefore(entry.position) else { return nil }
            end = entry.position
        }
        return end
    }

    private mutating func finishGathering(_ turn: inout Turn) {
        guard let found = gathering?.found.entries, gathering?.waiting.isEmpty == true else {
            return
        }
        // A term that a damaged node has forgotten: whoever leads must lead in a later one.
        if let newest = found.map(\.term).max(), newest >= term {
            return becomeFollower(of: nil, in: newest, &turn)
        }
        let path = bestPath(through: found)
        guard isElected(underAllOf: path), take(path, &turn), role == .candidate else {
            return becomeFollower(of: nil, in: term, &turn)
        }
        gathering?.found = Salvage([])
        gathering?.written = path.isEmpty ? nil : ledger.newest
        if gathering?.written == nil { becomeLeader(&turn) }
    }

    mutating func salvageBecameDurable(_ turn: inout Turn) {
        guard role == .candidate, let written = gathering?.written, ledger.isDurable(written)
        else { return }
        becomeLeader(&turn)
    }

    /// The entries to put behind ours, or in the place of the end of ours, so that this log ends as
    /// late as can be: at the highest term, and in it at the highest index. Only where each entry is
    /// proved to follow the one before it.
    private func bestPath(through found: [Entry]) -> [Entry] {
        var best = log.end
        var reached: [Entry] = []
        /// Where in `reached` the entries one below begin.
        var below = 0
        var here = 0
        var index = LogIndex.zero
        for entry in found where log.term(at: entry.index) != entry.term {
            if entry.index != index {
                below = entry.index == index.next ? here : reached.count
                here = reached.count
                index = entry.index
            }
            guard let before = entry.termBefore, entry.index > commitIndex,
                log.term(at: index.previous) == before
                    || reached[below..<here].contains(where: { $0.term == before })
            else { continue }
            reached.append(entry)
            if entry.position.isAtLeastAsUpToDate(as: best) { best = entry.position }
        }
        var path: [Entry] = []
        for entry in reached.reversed() where entry.position == best {
            guard let before = entry.termBefore else { break }
            path.append(entry)
            best = Position(entry.index.previous, before)
        }
        return path.reversed()
    }

    /// A leader goes by the newest membership in its log: everybody in each one that comes with the
    /// path, and in the one that the path follows, must have granted.
    private func isElected(underAllOf path: [Entry]) -> Bool {
        guard let first = path.first else { return true }
        var wanted = memberships.filter { $0.index < first.index }.suffix(1).map(\.membership)
        for entry in path where entry.kind == .membership {
            guard let membership = Membership(payload: entry.payload) else { return false }
            wanted.append(membership)
        }
        return !wanted.isEmpty && wanted.allSatisfy { hasGrants(ofAll: $0) }
    }

    // MARK: At the others

    mutating func answerSalvageRequest(
        _ from: NodeID, after: Position, _ turn: inout Turn
    ) {
        guard hardState.votedFor == from, leader == nil, role != .leader else { return }
        armCampaignTimer(&turn)
        let page = salvage.page(after: after, bytesMax: configuration.appendBytesMax)
        send(
            .salvageReply(
                afterIndex: after.index, afterTerm: after.term, entries: page.entries,
                isLast: page.isLast), to: from, &turn)
    }
}
