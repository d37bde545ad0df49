// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import SwiftProtobuf

/// Promotion, leaving, leadership, figures and explanations, with fixed times.
enum FakeLife {
    static func answer(_ request: FakeRequest, _ store: inout FakeStore) -> FakeResponse {
        switch request.request {
        case .promoteLearner(let body): promote(body, &store)
        case .leaveCluster(let body): leave(body, &store)
        case .transferLeadership(let body):
            body.nodeID == 0 || store.voters.contains(body.nodeID)
                ? .with {
                    $0.transferLeadership.leaderID = body.nodeID == 0 ? 2 : body.nodeID
                    $0.transferLeadership.term = 2
                }
                : .failed(
                    .preconditionFailed,
                    "leadership stays where it is: node \(body.nodeID) is no voter: promote it first"
                )
        case .getMetrics: metrics
        case .getRaftMetrics:
            .with {
                $0.getRaftMetrics.role = "leader"
                $0.getRaftMetrics.term = 1
                $0.getRaftMetrics.leaderID = 1
                $0.getRaftMetrics.lastLogTerm = 1
                $0.getRaftMetrics.lastLogIndex = 12
                $0.getRaftMetrics.commit = 12
                $0.getRaftMetrics.applied = 11
            }
        case .why(let body): why(body)
        default: .failed(.invalidArgument, "the request is empty or unknown")
        }
    }

    private static func promote(
        _ body: Aspen_Client_V1_PromoteLearnerRequest, _ store: inout FakeStore
    ) -> FakeResponse {
        guard store.learners.contains(body.nodeID) || store.voters.contains(body.nodeID) else {
            return .failed(
                .preconditionFailed,
                "node \(body.nodeID) is no member: `aspen-cli cluster add-learner --node-id "
                    + "\(body.nodeID)` first")
        }
        // Node 9 is always behind.
        guard body.nodeID != 9 || body.force else {
            return .failed(
                .preconditionFailed,
                "the learner has not caught up: node 9 is 5000 entries behind, 100 at most are "
                    + "allowed")
        }
        store.learners.removeAll { $0 == body.nodeID }
        store.voters.removeAll { $0 == body.replace || $0 == body.nodeID }
        store.voters = (store.voters + [body.nodeID]).sorted()
        let logID = store.entered(2)
        return .with {
            $0.promoteLearner.logID = logID
            $0.promoteLearner.voters = store.voters
            $0.promoteLearner.learners = store.learners
        }
    }

    private static func leave(
        _ body: Aspen_Client_V1_LeaveClusterRequest, _ store: inout FakeStore
    ) -> FakeResponse {
        let node = body.nodeID == 0 ? 1 : body.nodeID
        guard store.voters != [node] else {
            return .failed(
                .preconditionFailed,
                "node \(node) is the only voter: a cluster cannot lose its last one")
        }
        store.voters.removeAll { $0 == node }
        store.learners.removeAll { $0 == node }
        let logID = store.entered(2)
        return .with {
            $0.leaveCluster.logID = logID
            $0.leaveCluster.voters = store.voters
            $0.leaveCluster.learners = store.learners
        }
    }

    private static var metrics: FakeResponse {
        func metric(_ name: String, _ kind: String, _ value: Double, _ help: String)
            -> Aspen_Client_V1_Metric
        {
            .with {
                $0.name = name
                $0.kind = kind
                $0.value = value
                $0.help = help
            }
        }
        let help = "Seconds of a commit."
        return .with {
            $0.getMetrics.metrics = [
                metric("aspen_raft_term", "gauge", 1, "The present term."),
                metric(
                    "aspen_requests_total{request=\"ReadKey\"}", "counter", 12, "Requests."),
                metric(
                    "aspen_requests_total{request=\"WriteKey\"}", "counter", 3, "Requests."),
                metric("aspen_commit_seconds_bucket{le=\"0.001\"}", "histogram", 2, help),
                metric("aspen_commit_seconds_bucket{le=\"+Inf\"}", "histogram", 3, help),
                metric("aspen_commit_seconds_sum", "histogram", 0.0125, help),
                metric("aspen_commit_seconds_count", "histogram", 3, help),
            ]
        }
    }

    private static func stage(_ name: String, part: UInt64) -> Aspen_Client_V1_StageTimes {
        .with {
            $0.nodeID = 1
            $0.stage = name
            $0.count = 40
            $0.sumNs = part * 4_000_000
            $0.p50Ns = part * 80_000
            $0.p99Ns = part * 1_200_000
            $0.longestNs = part * 2_500_000
        }
    }

    private static func why(_ body: Aspen_Client_V1_WhyRequest) -> FakeResponse {
        .with {
            switch body.subject {
            case .slow:
                $0.why.answer =
                    "no commit of more than 100 ms is recorded; of the time of 40 batches of writes in "
                    + "the last two minutes, 75 % went into: fdatasync"
                $0.why.stages = [stage("queue", part: 1), stage("fdatasync", part: 3)]
            case .member:
                $0.why.answer = "node \(body.nodeID) is a voter in good standing"
            default:
                let text =
                    "became the leader in term 1: no leader was known since this daemon started"
                $0.why.answer = "node 1 " + text
                $0.why.events = [
                    .with {
                        $0.wallTimeMs = 1_764_000_000_123
                        $0.nodeID = 1
                        $0.kind = "leader-elected"
                        $0.text = text
                    }
                ]
            }
        }
    }
}
