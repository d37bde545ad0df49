// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import NIOCore
import RaftCore
import RaftStorage

// Figures: of consensus, for people and tools; of the whole daemon, for a monitoring system.

extension ClientService {
    func getRaftMetrics(_ origin: RequestOrigin) {
        let core = node.core
        var body = Aspen_Client_V1_GetRaftMetricsResponse()
        body.role = roleText
        body.term = node.standing.term.rawValue
        body.leaderID = node.standing.leader?.rawValue ?? 0
        body.lastLogIndex = core.lastIndex.rawValue
        body.lastLogTerm = core.lastTerm.rawValue
        body.commit = core.commitIndex.rawValue
        body.applied = node.applied.index.rawValue
        body.snapshotIndex = max(1, node.firstLogIndex.rawValue) - 1
        for peer in core.peerStatus(now: RaftNode.now) {
            var progress = Aspen_Client_V1_GetRaftMetricsResponse.Progress()
            progress.nodeID = peer.node.rawValue
            progress.matched = peer.match.rawValue
            progress.isVoter = peer.isVoter
            progress.isLinked = links.isReachable(peer.node)
            let end = core.lastIndex.rawValue
            progress.lag = end - min(end, peer.match.rawValue)
            body.progress.append(progress)
        }
        origin.reply(WireResponse(.getRaftMetrics(body)))
    }

    func getMetrics(_ origin: RequestOrigin) {
        let box = NIOLoopBound((self, origin), eventLoop: node.loop)
        node.state.perform { store in
            let byteCount = store.byteCount
            return {
                let (service, origin) = box.value
                var body = Aspen_Client_V1_GetMetricsResponse()
                body.metrics = service.gauges(stateBytes: byteCount)
                service.node.metrics.list(into: &body.metrics)
                body.metrics += service.stageMetrics()
                origin.reply(WireResponse(.getMetrics(body)))
            }
        }
    }

    private func stageMetrics() -> [Aspen_Client_V1_Metric] {
        let help =
            "Seconds by stage of this leader's writes, of the batches that were followed; quantiles: of "
            + "the last one to two minutes."
        let recent = node.stages.counted(RaftNode.now)
        let family = "aspen_commit_stage_seconds"
        return CommitStage.allCases.flatMap { stage -> [Aspen_Client_V1_Metric] in
            let total = node.stages.totals[stage.rawValue]
            guard total.count > 0 else { return [] }
            let label = "stage=\"\(stage.name)\""
            func seconds(_ name: String, _ nanoseconds: Double) -> Aspen_Client_V1_Metric {
                .make("\(family)\(name)", "summary", nanoseconds / 1e9, help)
            }
            let times = recent[stage.rawValue]
            return [0.5, 0.99].map {
                seconds("{\(label),quantile=\"\($0)\"}", Double(times.quantile($0).nanoseconds))
            } + [
                seconds("_sum{\(label)}", Double(total.nanoseconds)),
                .make("\(family)_count{\(label)}", "summary", Double(total.count), help),
            ]
        }
    }

    private func gauges(stateBytes: UInt64) -> [Aspen_Client_V1_Metric] {
        let core = node.core
        let standing = node.standing
        var metrics: [Aspen_Client_V1_Metric] = [
            .gauge("aspen_raft_term", standing.term.rawValue, "The present term."),
            .gauge(
                "aspen_raft_is_leader", standing.role == .leader ? 1 : 0, "1: this node leads."),
            .gauge(
                "aspen_raft_leader_id", standing.leader?.rawValue ?? 0,
                "The leader known here; 0: none."),
            .gauge("aspen_raft_commit_index", core.commitIndex.rawValue, "Committed entries."),
            .gauge("aspen_raft_applied_index", node.applied.index.rawValue, "Applied entries."),
            .gauge("aspen_raft_last_log_index", core.lastIndex.rawValue, "The end of the log."),
            .gauge(
                "aspen_raft_durable_index", core.durableIndex.rawValue,
                "Up to where the log is on the disk."),
            .gauge(
                "aspen_raft_first_log_index", node.firstLogIndex.rawValue,
                "The first entry that the log still has."),
            .gauge(
                "aspen_raft_voters", UInt64(node.membership?.voters.count ?? 0),
                "Voters of the cluster."),
            .gauge(
                "aspen_raft_learners", UInt64(node.membership?.learners.count ?? 0),
                "Learners of the cluster."),
            .gauge(
                "aspen_raft_peers_reachable",
                UInt64(
                    node.membership?.members.filter {
                        $0.node != options.raft.node && links.isReachable($0.node)
                    }.count ?? 0), "Other members that can be talked to."),
            .gauge("aspen_kv_revision", node.applied.revision.rawValue, "The store's revision."),
            .gauge("aspen_state_bytes", stateBytes, "Bytes of the state database on the disk."),
            .gauge("aspen_writes_waiting", UInt64(writeCount), "Writes that wait for an answer."),
            .gauge("aspen_reads_waiting", UInt64(readCount), "Reads that wait for an answer."),
            .gauge("aspen_connections", UInt64(connectionCount), "Connections of clients."),
            .gauge("aspen_events_recorded", UInt64(node.events.count), "Events kept for `why`."),
        ]
        for peer in core.peerStatus(now: RaftNode.now) {
            let end = core.lastIndex.rawValue
            metrics.append(
                .gauge(
                    "aspen_raft_peer_lag{node=\"\(peer.node)\"}",
                    end - min(end, peer.match.rawValue), "Entries a peer is behind this leader."))
        }
        return metrics
    }
}
