// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire

// Promotion, leaving, leadership; figures and explanations.
extension AspenClient {
    /// Makes a learner a voter; returns when the change is committed.
    ///
    /// - Parameters:
    ///   - replaced: a voter whose place it takes, and which leaves the cluster, in the same change.
    ///   - force: even if the learner has not caught up, or the cluster may lose its quorum.
    /// - Throws: `preconditionFailed`, saying how far behind it is or what would go wrong.
    public func promoteLearner(
        _ learner: NodeID, replacing replaced: NodeID? = nil, force: Bool = false,
        timeout: Duration? = nil
    ) async throws(AspenError) -> MembershipChange {
        var request = WireRequest()
        request.promoteLearner.nodeID = learner.rawValue
        request.promoteLearner.replace = replaced?.rawValue ?? 0
        request.promoteLearner.force = force
        return try await perform(request, .unnumbered, timeout: timeout) { response in
            guard case .promoteLearner(let answer) = response else { return nil }
            return MembershipChange(
                logID: LogID(wire: answer.logID), voters: answer.voters.map(NodeID.init),
                learners: answer.learners.map(NodeID.init))
        }
    }

    /// Takes a node out of the cluster, voter or learner; that it is none already is no error.
    ///
    /// - Parameters:
    ///   - node: nil: the node asked.
    ///   - force: even if the cluster may lose its quorum.
    /// - Throws: `preconditionFailed`, saying what would go wrong.
    public func leaveCluster(
        _ node: NodeID? = nil, force: Bool = false, timeout: Duration? = nil
    ) async throws(AspenError) -> MembershipChange {
        var request = WireRequest()
        request.leaveCluster.nodeID = node?.rawValue ?? 0
        request.leaveCluster.force = force
        return try await perform(request, .unnumbered, timeout: timeout) { response in
            guard case .leaveCluster(let answer) = response else { return nil }
            return MembershipChange(
                logID: LogID(wire: answer.logID), voters: answer.voters.map(NodeID.init),
                learners: answer.learners.map(NodeID.init))
        }
    }

    /// Hands leadership over; returns when the new leader is known. It may be another than the one
    /// asked for, when an election came in between.
    ///
    /// - Parameter target: a voter; nil: whichever is furthest.
    /// - Throws: `preconditionFailed` when the target is no voter, cannot be reached or is behind;
    ///   `unavailable` when it did not take over in time.
    public func transferLeadership(
        to target: NodeID? = nil, timeout: Duration? = nil
    ) async throws(AspenError) -> Leader {
        var request = WireRequest()
        request.transferLeadership.nodeID = target?.rawValue ?? 0
        return try await perform(request, .unnumbered, timeout: timeout) { response in
            guard case .transferLeadership(let answer) = response else { return nil }
            return Leader(node: NodeID(answer.leaderID), term: Term(answer.term))
        }
    }

    /// Consensus in figures, as the node asked sees it.
    public func raftMetrics(timeout: Duration? = nil) async throws(AspenError) -> RaftMetrics {
        var request = WireRequest()
        request.getRaftMetrics = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .getRaftMetrics(let answer) = response else { return nil }
            return RaftMetrics(
                role: answer.role, term: Term(answer.term),
                leader: answer.leaderID == 0 ? nil : NodeID(answer.leaderID),
                lastLogTerm: Term(answer.lastLogTerm),
                lastLogIndex: LogIndex(answer.lastLogIndex), commit: LogIndex(answer.commit),
                applied: LogIndex(answer.applied), snapshotIndex: LogIndex(answer.snapshotIndex),
                progress: answer.progress.map { peer in
                    RaftMetrics.Progress(
                        node: NodeID(peer.nodeID), matched: LogIndex(peer.matched),
                        isVoter: peer.isVoter, isLinked: peer.isLinked, lag: peer.lag)
                })
        }
    }

    /// All figures of the node asked.
    public func metrics(timeout: Duration? = nil) async throws(AspenError) -> [Metric] {
        var request = WireRequest()
        request.getMetrics = .init()
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .getMetrics(let answer) = response else { return nil }
            return answer.metrics.map {
                Metric(name: $0.name, kind: $0.kind, value: $0.value, help: $0.help)
            }
        }
    }

    /// Explains from what the members have recorded.
    public func why(
        _ subject: WhySubject, timeout: Duration? = nil
    ) async throws(AspenError) -> Explanation {
        var request = WireRequest()
        switch subject {
        case .leader: request.why.subject = .leader
        case .slow: request.why.subject = .slow
        case .member(let node):
            request.why.subject = .member
            request.why.nodeID = node.rawValue
        }
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .why(let answer) = response else { return nil }
            return Explanation(
                answer: answer.answer,
                events: answer.events.map {
                    Explanation.Event(
                        wallMilliseconds: $0.wallTimeMs, node: NodeID($0.nodeID), kind: $0.kind,
                        text: $0.text)
                },
                stages: answer.stages.map {
                    Explanation.StageTimes(
                        node: NodeID($0.nodeID), stage: $0.stage, count: $0.count,
                        sum: .nanoseconds(Int64(clamping: $0.sumNs)),
                        median: .nanoseconds(Int64(clamping: $0.p50Ns)),
                        p99: .nanoseconds(Int64(clamping: $0.p99Ns)),
                        longest: .nanoseconds(Int64(clamping: $0.longestNs)))
                })
        }
    }
}
