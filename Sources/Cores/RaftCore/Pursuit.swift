// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// How a peer comes after the leader's log, in rounds (thesis §4.2.1): a round is everything that
/// the log had when the round began. Under load a peer is always some entries behind, however well
/// it follows; what counts is how long it takes for what was there.
struct Pursuit {
    /// The end of the log when the present round began; zero before the first.
    private var goal = LogIndex.zero
    private var beganAt = MonotonicInstant(nanoseconds: 0)
    /// How long the last round that is over took.
    private(set) var lastRound: Duration?

    mutating func reached(_ match: LogIndex, end: LogIndex, now: MonotonicInstant) {
        guard match >= goal else { return }
        if goal != .zero { lastRound = now - beganAt }
        goal = end
        beganAt = now
    }

    /// The round under way counts too: a peer that was quick once may hang now.
    func isQuickerThan(_ limit: Duration, now: MonotonicInstant) -> Bool {
        guard let lastRound else { return false }
        return lastRound < limit && now - beganAt < limit
    }
}

extension RaftCore {
    func hasCaughtUp(_ peer: Peer, now: MonotonicInstant) -> Bool {
        guard !peer.isRegressed, !peer.isRepairing, peer.state != .snapshot,
            peer.match != .zero, now - peer.heardAt < configuration.electionTimeoutMin
        else { return false }
        let lag = log.lastIndex.rawValue - min(peer.match, log.lastIndex).rawValue
        return lag <= configuration.learnerLagMax
            || peer.pursuit.isQuickerThan(configuration.heartbeatInterval, now: now)
    }
}
