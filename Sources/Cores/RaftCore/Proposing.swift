// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

// From proposal to entry: at the leader at once, elsewhere by way of the leader.

extension Proposal {
    /// Largest payload of one entry; larger ones are refused. An append, a forward or a log record
    /// with one such entry stays below `Limits.rpcMessageBytesMax`.
    package static let payloadBytesMax = 9_500_000
}

extension RaftCore {
    mutating func propose(_ proposals: [Proposal], _ turn: inout Turn) {
        let proposals = refuseTooLarge(proposals, &turn)
        guard !proposals.isEmpty else { return }
        if role == .leader {
            if let failure = obstacle(to: proposals) {
                for proposal in proposals { turn.emit(.proposalFailed(proposal.id, failure)) }
            } else {
                appendProposals(proposals, &turn)
            }
        } else if let leader {
            forward(proposals, to: leader, &turn)
        } else {
            for proposal in proposals { turn.emit(.proposalFailed(proposal.id, .noLeader)) }
        }
    }

    private func refuseTooLarge(_ proposals: [Proposal], _ turn: inout Turn) -> [Proposal] {
        func fits(_ proposal: Proposal) -> Bool {
            proposal.payload.count <= Proposal.payloadBytesMax
        }
        if proposals.allSatisfy(fits) { return proposals }
        for proposal in proposals where !fits(proposal) {
            turn.emit(
                .proposalFailed(
                    proposal.id,
                    .refused("a command may have \(Proposal.payloadBytesMax) bytes at most")))
        }
        return proposals.filter(fits)
    }

    /// Why a leader does not take these now.
    private func obstacle(to proposals: [Proposal]) -> ProposalFailure? {
        // Leadership is about to go elsewhere: asking again finds the new leader.
        if transfer != nil { return .noLeader }
        let waiting = log.lastIndex.rawValue - appliedIndex.rawValue
        let bytes = proposals.reduce(0) { $0 + $1.payload.count }
        let isFull =
            waiting + UInt64(proposals.count) > UInt64(Limits.proposalsInFlightMax)
            || (uncommittedBytes > 0
                && uncommittedBytes + bytes > configuration.uncommittedBytesMax)
        return isFull ? .tooMany : nil
    }

    private mutating func appendProposals(_ proposals: [Proposal], _ turn: inout Turn) {
        let time = stamp(turn.now)
        var index = log.lastIndex
        appendAsLeader(
            proposals.map { proposal in
                index = index.next
                return Entry(
                    index: index, term: term, kind: .command, origin: proposal.id, time: time,
                    payload: proposal.payload)
            }, &turn)
    }

    /// One write for all of them; to the peers in parallel with it.
    mutating func appendAsLeader(_ entries: [Entry], _ turn: inout Turn) {
        require(role == .leader, "only a leader appends of its own accord")
        for entry in entries {
            log.append(entry, settled: handedIndex)
            lastTime = max(lastTime, entry.time)
            uncommittedBytes += entry.payload.count
        }
        write(entries: entries, &turn)
        for entry in entries where entry.kind == .membership {
            guard let membership = Membership(payload: entry.payload) else {
                preconditionFailure("a membership of our own making")
            }
            adopt(membership, at: entry.index, &turn)
        }
        for peer in peers.indices { sendAppends(to: peer, &turn) }
        handOut(&turn)
    }

    // MARK: By way of the leader

    private func forward(_ proposals: [Proposal], to leader: NodeID, _ turn: inout Turn) {
        var batch: [Proposal] = []
        var bytes = 0
        for proposal in proposals {
            let size = proposal.payload.count + RaftLog.entryOverheadBytes
            if !batch.isEmpty, bytes + size > configuration.appendBytesMax {
                send(.forward(proposals: batch), to: leader, &turn)
                batch.removeAll()
                bytes = 0
            }
            batch.append(proposal)
            bytes += size
        }
        send(.forward(proposals: batch), to: leader, &turn)
    }

    mutating func receiveForward(
        _ from: NodeID, _ proposals: [Proposal], _ turn: inout Turn
    ) {
        // A duplicate gets no answer at all: the first one may have been appended, and then "not
        // appended" would be a lie.
        let fresh = proposals.filter { $0.id.node == from && !forwards.hasSeen($0.id) }
        guard !fresh.isEmpty else { return }
        if role == .leader, obstacle(to: fresh) == nil,
            fresh.allSatisfy({ $0.payload.count <= Proposal.payloadBytesMax })
        {
            for proposal in fresh { forwards.record(proposal.id) }
            appendProposals(fresh, &turn)
        } else {
            refuse(fresh, from: from, &turn)
        }
    }

    mutating func refuse(_ proposals: [Proposal], from: NodeID, _ turn: inout Turn) {
        let fresh = proposals.filter { $0.id.node == from && !forwards.hasSeen($0.id) }
        guard !fresh.isEmpty else { return }
        send(.forwardRejected(numbers: fresh.map(\.id)), to: from, &turn)
    }

    // MARK: Cluster time

    /// The last stamp a leader took over, plus the time it has been in office.
    func stamp(_ now: MonotonicInstant) -> ClusterTime {
        let elapsed = UInt64(max(0, (now - timeAnchor).milliseconds))
        return max(lastTime, ClusterTime(milliseconds: timeBase.milliseconds &+ elapsed))
    }

    /// Cluster time as far as this node knows it: a leader's own clock, elsewhere the newest stamp.
    package func clusterTime(now: MonotonicInstant) -> ClusterTime {
        role == .leader ? stamp(now) : lastTime
    }
}

/// Which forwarded proposals have been appended here, so that none is appended twice: a window
/// below the greatest number seen of each proposer, as IPsec does against replay (RFC 4303 §3.4.3).
/// Kept for the life of the process, across leaderships.
package struct ForwardLedger {
    private struct Window {
        let node: NodeID
        var incarnation: UInt64
        var greatest: UInt64
        /// Bit `number % bits` is set if `number` was seen; valid for the newest `bits` numbers.
        var seen: [UInt64]
    }

    package static let bits: UInt64 = 4096
    static let windowsMax = Limits.votersMax + Limits.learnersMax + Limits.peersMax

    private let bits: UInt64
    private var windows: [Window] = []

    /// - Parameter bits: a multiple of 64.
    init(bits: UInt64 = Self.bits) { self.bits = bits }

    /// True also for numbers too old to tell.
    func hasSeen(_ id: ProposalID) -> Bool {
        guard let window = windows.first(where: { $0.node == id.node }),
            window.incarnation == id.incarnation, id.number <= window.greatest
        else { return false }
        guard window.greatest - id.number < bits else { return true }
        let bit = id.number % bits
        return window.seen[Int(bit / 64)] & (1 << (bit % 64)) != 0
    }

    mutating func record(_ id: ProposalID) {
        let position = place(for: id)
        let greatest = windows[position].greatest
        if id.number > greatest {
            // Numbers skipped over have not been seen, whatever an older one left in their bits.
            var number =
                id.number - greatest >= bits ? id.number - bits + 1 : greatest + 1
            while number < id.number {
                clear(number, in: position)
                number += 1
            }
            windows[position].greatest = id.number
        }
        let bit = id.number % bits
        windows[position].seen[Int(bit / 64)] |= 1 << (bit % 64)
    }

    private mutating func clear(_ number: UInt64, in position: Int) {
        let bit = number % bits
        windows[position].seen[Int(bit / 64)] &= ~(1 << (bit % 64))
    }

    private mutating func place(for id: ProposalID) -> Int {
        let empty = [UInt64](repeating: 0, count: Int(bits / 64))
        if let position = windows.firstIndex(where: { $0.node == id.node }) {
            if windows[position].incarnation != id.incarnation {
                windows[position] = Window(
                    node: id.node, incarnation: id.incarnation, greatest: id.number, seen: empty)
            }
            return position
        }
        if windows.count == Self.windowsMax { windows.removeFirst() }
        windows.append(
            Window(node: id.node, incarnation: id.incarnation, greatest: id.number, seen: empty))
        return windows.count - 1
    }
}
