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
//    part of every voter's. If any intact copy of a committed e is left anywhere, that copy's log,
//    and so the candidate's, has e (log matching). This is how a cluster comes back that lost power
//    as a whole and finds a torn tail on every node: the longest intact log leads, the others are
//    repaired from it. The price: it waits for all voters, because it cannot know which one holds
//    the only copy left;
// 4. elected so, is trusted at once: its log is now the truth.
//
// Left out: repairing a damaged entry in the middle of a log while all nodes are damaged in
// different places (the store cuts at the first damage, so only the longest intact prefix counts),
// and a voter that is gone for good while a quorum of the others is damaged: an administrator must
// decide then.

/// What a node with a damaged log asks of the leader.
struct RepairRequest {
    let nonce: UInt64
    let from: LogIndex
    let isAgreed: Bool
    let below: LogIndex
}

extension RaftCore {
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
        guard from == leader, nonce == repairNonce, !isTailTrusted else { return }
        endRepair(&turn)
        // What has been withheld may now be said, after the write that says so.
        send(
            .appendAccepted(match: agreedIndex), to: from, after: ledger.newest, &turn)
    }

    mutating func finishRepairAsLeader(_ turn: inout Turn) { endRepair(&turn) }

    private mutating func endRepair(_ turn: inout Turn) {
        untrustedBelow = nil
        write(endsRepair: true, &turn)
    }
}
