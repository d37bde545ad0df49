// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// A log whose end is damaged (protocol-aware recovery, after Alagappan and others, FAST 2018).
//
// The store has found damage that may hide entries this node once acknowledged, the last of them at
// most at `untrustedBelow`. What lies below the damage is intact, and so is the hard state. The
// danger: such a node, voting or acknowledging as if nothing had happened, could help a quorum to
// forget a committed entry. So, while its tail is untrusted, a node
//
// 1. answers appends with `repairing` instead of an acknowledgement: the leader learns where to go
//    on, but counts nothing new;
// 2. is trusted again only when a leader says `repaired`: when its log agrees, durably, with the
//    leader's up to `min(untrustedBelow, the leader's last entry)`. Let e be an entry that it lost
//    and that is or will be committed with its help. It acknowledged e in a term it remembers, to a
//    leader that is now this one or an earlier one; every later leader has e (leader completeness;
//    the proof needs only that no voter of a later election had lost e, see 3), so this leader has
//    e, at or below both bounds, and now the node has it again. The leader compares when the
//    request arrives and the answer names the asking process, so old answers prove nothing;
// 3. votes only on condition. A quorum of unconditional votes elects as ever; conditional ones count
//    only if *every* voter grants. Then the candidate's log is at least as up to date as the intact
//    part of every voter's. If a committed e is in the intact part of any log, the candidate's has it
//    too (log matching). This is how a cluster comes back that lost power as a whole and finds a torn
//    tail on every node: the longest intact log leads, with what can be gathered besides (6), and the
//    others are repaired from it. The price: it waits for all voters, because it cannot know which one
//    holds the only copy left;
// 4. elected so, is trusted at once: its log is now the truth;
// 5. goes by no membership that it has outlived. Rule 3 asks every voter, but of which membership? If
//    the damage took newer ones along, the log names an older one: of the founder, perhaps, from
//    before the others joined, and then its own consent is everybody's. So the log store keeps the
//    newest membership entry N that it ever held where damage to the log does not hide it
//    (`RaftRecovery.newestMembership`), durable with the entry itself. As long as its log is not as
//    up to date as N, a node
//    - grants nobody a vote whose log is not as up to date as N: it held N, and its vote must not
//      help to forget it. In this it is as good a voter as if its log still reached N;
//    - is itself elected by conditional votes only if, besides, every voter of N grants.
//    Let e be committed, and C elected by conditional votes although C lacks e. If C's log is as up
//    to date as the newest membership that each voter ever held, the electorate is at least as new as
//    any that could have committed e, and 3 applies. Else C has lost N, and every voter of N (of both
//    sets, if it is joint) granted. A membership after N was committed, if at all, by a majority of
//    N's voters, who hold it or have held it: either way they refuse C. So e was committed under N
//    or before it, and a majority of N's voters, or of the outgoing ones, held it or the joint entry
//    behind it: who still has it, refuses. Hence the data of a majority was lost.
//    It may be that N was never committed and that its leader's successors have cut it off: then
//    whoever can lead has a log of a later term than N's, and gets the votes. When the node is
//    repaired (2, 4) nothing of N remains to be waited for.
//
// 6. elected by conditional votes, first gathers what the damaged logs still hold (Salvage.swift). All
//    logs may be damaged, each at another entry, so that no log is whole although every entry is, on
//    most of the disks. So the store gives out what it finds behind damage, beside what its log has
//    (`RaftRecovery.salvage`), and holds on to it until the repair is over. The candidate asks every
//    voter that granted on condition. An entry (index, term) is one place in the tree of all that any
//    leader ever wrote: it has one content and one predecessor, wherever it is found. The candidate
//    joins found entries to its log only where the predecessor is proved:
//    - an entry that does not begin its term follows an entry of the same term, for its leader wrote
//      both and cut nothing from its own log in between: (i, t) follows (i - 1, t);
//    - the entry that begins a term says what term the one before it has (`Entry.termBefore`).
//    Of all places that can be reached so from a place in its log at or above what it knows to be
//    committed, it takes the last one, by term, then by index, and makes the way to that place its
//    log, in the place of what goes elsewhere. When that is durable it leads.
//    Why nothing committed is cut off, and nothing committed is missing that is there: let m be the
//    place chosen, and e any committed entry that can be reached. m is not before e. Is it of a later
//    term, then its leader had e (leader completeness); is it of the same, then one leader wrote both,
//    e first. Either way e is on the way to m. The end of the candidate's own log can be reached, so
//    this holds for every entry in it; and the new end is at least as up to date as what the votes
//    were given for.
//    Which e can be reached? Let each entry on the way to e be whole on a majority of the voters, and
//    f be the first that the candidate lacks. Votes without condition would have elected it (1), so
//    the voters with undamaged logs are no majority: one that holds f is damaged, and was asked. It
//    gave f out, unless f is in its log and applied. But then f is committed, and the candidate's log,
//    at least as up to date as that one, has it. So f is found; its predecessor is in the candidate's
//    log or was found by the same reasoning; e can be reached. (In truth it takes one damaged voter
//    for each entry, not a majority.)
//    Entries may come to life that were never committed. They are what a voter may have acknowledged:
//    a leader with an undamaged log would have brought them as well.
//    Nothing may be forgotten half-way: a candidate that stops after its write has another log, made of
//    entries that it might have been sent; its tail is as little trusted as before, and everybody's
//    salvage is still there. A node drops its own only with its repair (2, 4), when it has in its log,
//    durably, all that it may have acknowledged and that is left. What the new leader needs of the
//    others is in its log before it promises anything.
//    A membership that comes with the way, or into force again by it, must be one whose voters have
//    all granted; a place of a term as late as the candidate's, whose leader's voters have forgotten
//    it, sends the candidate into a later one. Else it does not lead.
//
// Where every voter has lost N, or one has that is needed and another is gone, nobody guesses: the
// cluster waits for a person. A voter without others elects itself: nobody else could have
// acknowledged anything. What it has lost is lost, and the shell says so.
//
// A program from before rule 6 does not understand the candidate's question, closes the stream and
// gives no answer: the cluster waits until every voter runs this one. As a candidate it asks nobody,
// and goes by rule 3 alone; the first entries of its terms do not say what they follow, so the way to
// what is behind them ends there.
//
// Left out: a voter that is gone for good while a quorum of the others is damaged: an administrator
// must decide then.

/// What a node with a damaged log asks of the leader.
struct RepairRequest {
    let nonce: UInt64
    let from: LogIndex
    let isAgreed: Bool
    let below: LogIndex
}

extension RaftCore {
    // MARK: A membership that was lost

    /// The newest membership that this node ever had, while its log does not reach it.
    package var lostMembership: Membership? {
        guard let newest = newestMembership, untrustedBelow != nil,
            !log.end.isAtLeastAsUpToDate(as: Position(newest.index, newest.term))
        else { return nil }
        return newest.membership
    }

    /// Whom to talk to: the members in force, or those of a newer membership that was lost, for the
    /// leader that can repair this node may be among them.
    package var reachableMembership: Membership? {
        guard let membership, let lost = lostMembership, lost.member(node) != nil else {
            return self.membership
        }
        var all = lost
        for member in membership.members where all.member(member.node) == nil {
            all.members.append(member)
        }
        all.members.sort { $0.node < $1.node }
        return all
    }

    /// Of a candidate's log: see rule 5.
    func reachesNewestMembership(_ end: Position) -> Bool {
        guard let newest = newestMembership, untrustedBelow != nil else { return true }
        return end.isAtLeastAsUpToDate(as: Position(newest.index, newest.term))
    }

    // MARK: At the leader

    mutating func receiveRepairing(
        _ peer: Int, _ request: RepairRequest, _ turn: inout Turn
    ) {
        // Beyond our end it cannot agree with us.
        guard request.from > .zero, request.from <= log.lastIndex.next else { return }
        peers[peer].isRepairing = true
        guard peers[peer].state != .snapshot || request.isAgreed else { return }
        if request.isAgreed, request.from > min(request.below, log.lastIndex) {
            send(.repaired(nonce: request.nonce), to: peers[peer].node, &turn)
        }
        // `match` stays: what it once acknowledged and lost, no election can go without, for the
        // node does not vote until it has it again.
        if !request.isAgreed {
            peers[peer].probe(from: request.from)
        } else if peers[peer].state == .replicate {
            peers[peer].landed(upTo: request.from.previous)
        } else {
            peers[peer].probe(from: request.from)
            peers[peer].state = .replicate
        }
        peers[peer].movedAt = turn.now
        sendAppends(to: peer, &turn)
    }

    // MARK: At the damaged node

    mutating func receiveRepaired(_ from: NodeID, nonce: UInt64, _ turn: inout Turn) {
        guard from == leader, nonce == repairNonce else { return }
        // A second answer: an old question was overtaken by the acknowledgement that came of the first.
        // The leader takes this node for damaged again until it hears that again.
        if !isTailTrusted { endRepair(&turn) }
        // What has been withheld may now be said, after the write that says so.
        send(
            .appendAccepted(match: agreedIndex), to: from, after: ledger.newest, &turn)
    }

    mutating func finishRepairAsLeader(_ turn: inout Turn) { endRepair(&turn) }

    private mutating func endRepair(_ turn: inout Turn) {
        untrustedBelow = nil
        newestMembership = nil
        salvage = Salvage([])
        write(endsRepair: true, &turn)
    }
}
