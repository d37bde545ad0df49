// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import Glibc
import KVCore
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

// What a node says of itself: its status line.

extension ClientService {
    /// The status line changes at most this often.
    static let statusInterval = TimeAmount.seconds(1)

    /// "leader of 3, term 5, applied 1234"
    func updateStatus() {
        guard !isStatusScheduled else { return }
        isStatusScheduled = true
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.loop.scheduleTask(in: Self.statusInterval) {
            box.value.isStatusScheduled = false
            box.value.sayStatus()
        }
    }

    func sayStatus() {
        let text = statusLine
        guard text != statusText else { return }
        statusText = text
        Notifier.status(text)
    }

    var statusLine: String {
        guard let membership = node.membership else {
            return node.isRebuilt
                ? "has lost its state, waits for a leader to fill it"
                : "waits to be made part of a cluster"
        }
        let standing = node.standing
        let count = membership.voters.count
        let role: String
        switch standing.role {
        case .leader: role = "leader of \(count)"
        case .learner: role = "learner beside \(count)"
        case .follower where standing.leader != nil:
            role = "follower of node \(standing.leader?.description ?? "?")"
        case .follower, .preCandidate, .candidate: role = "without a leader\(damageText)"
        }
        return
            "\(role), term \(standing.term), applied \(node.applied.index)\(node.space.statusText)"
    }

    /// Why this node may not help to find a leader.
    private var damageText: String {
        if node.core.isTailTrusted { return "" }
        return node.core.lostMembership == nil
            ? ", its log damaged" : ", its log damaged and the newest membership lost"
    }

    /// Milliseconds since 1970, for the first stamp of a new cluster.
    func wallTime() -> ClusterTime {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return ClusterTime(
            milliseconds: UInt64(max(0, time.tv_sec)) * 1000 + UInt64(time.tv_nsec) / 1_000_000)
    }
}
