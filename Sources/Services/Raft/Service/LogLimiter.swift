// SPDX-License-Identifier: GPL-2.0-or-later

import Logging
import NIOCore
import RaftCore

/// Lets a few records of one kind through in a period, so that whoever sends rubbish cannot fill the
/// journal; the next record afterwards says how many were left out.
struct LogLimiter {
    /// Records in one period.
    let burst: Int
    let period: TimeAmount
    private var began = NIODeadline.uptimeNanoseconds(0)
    private var count = 0
    private var suppressed = 0

    init(burst: Int = 1, period: TimeAmount = .seconds(10)) {
        self.burst = burst
        self.period = period
    }

    /// Runs `log` if this record may be written.
    mutating func record(_ log: (Logger.Metadata) -> Void) {
        let now = NIODeadline.now()
        if now - began > period {
            began = now
            count = 0
        }
        guard count < burst else {
            suppressed += 1
            return
        }
        count += 1
        log(suppressed == 0 ? [:] : ["suppressed": "\(suppressed)"])
        suppressed = 0
    }
}

extension Message {
    /// Who asks whom for a vote, for those who look why an election took long.
    func tellElection(to logger: Logger) {
        switch body {
        case .preVote, .preVoteReply, .vote, .voteReply, .timeoutNow:
            logger.debug(
                "election",
                metadata: [
                    "from": "\(from)", "to": "\(to)", "term": "\(term)", "message": "\(body)",
                ])
        default: break
        }
    }
}
