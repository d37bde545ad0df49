// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire

/// What a node counts while it serves, from its start on. Confined to the event loop.
final class NodeMetrics {
    /// Upper ends of the buckets of commit latencies, in milliseconds.
    static let commitBuckets: [UInt64] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]

    private var requests = [UInt64](repeating: 0, count: ClientService.requestTable.count)
    private var errors: [UInt16: UInt64] = [:]
    private var commits = [UInt64](repeating: 0, count: NodeMetrics.commitBuckets.count + 1)
    private var commitNanoseconds: UInt64 = 0
    var elections: UInt64 = 0
    var leaderChanges: UInt64 = 0
    var slowSyncs: UInt64 = 0
    var checkpoints: UInt64 = 0
    var snapshotsSent: UInt64 = 0
    var snapshotsReceived: UInt64 = 0
    var snapshotBytesSent: UInt64 = 0
    var snapshotBytesReceived: UInt64 = 0

    func asked(row: Int) { requests[row] += 1 }

    func answered(_ response: WireResponse) {
        guard response.hasError else { return }
        errors[UInt16(clamping: response.error.code), default: 0] += 1
    }

    /// A write of a client of this node, from its arrival until it was applied here.
    func committed(after duration: Duration) {
        let nanoseconds = duration.nanoseconds
        commitNanoseconds += UInt64(max(0, nanoseconds))
        let milliseconds = UInt64(max(0, nanoseconds)) / 1_000_000
        let place = Self.commitBuckets.firstIndex { milliseconds < $0 }
        commits[place ?? Self.commitBuckets.count] += 1
    }

    /// Ascending by name; requests and errors that never came are left out.
    func list(into metrics: inout [Aspen_Client_V1_Metric]) {
        for (row, count) in requests.enumerated() where count > 0 {
            metrics.append(
                .counter(
                    "aspen_requests_total{request=\"\(ClientService.requestTable[row].name)\"}",
                    count, "Requests received from clients."))
        }
        for code in errors.keys.sorted() {
            let name = AspenErrorCode(rawValue: code)?.name ?? "\(code)"
            metrics.append(
                .counter(
                    "aspen_errors_total{code=\"\(name)\"}", errors[code] ?? 0,
                    "Requests answered by an error."))
        }
        var total: UInt64 = 0
        let help = "Seconds from a write's arrival at this node until it was applied here."
        for (place, count) in commits.enumerated() {
            total += count
            let end =
                place < Self.commitBuckets.count
                ? "\(Double(Self.commitBuckets[place]) / 1000)" : "+Inf"
            metrics.append(
                .make(
                    "aspen_commit_seconds_bucket{le=\"\(end)\"}", "histogram", Double(total), help))
        }
        metrics.append(
            .make(
                "aspen_commit_seconds_sum", "histogram", Double(commitNanoseconds) / 1e9, help))
        metrics.append(.make("aspen_commit_seconds_count", "histogram", Double(total), help))
        metrics += [
            .counter("aspen_elections_total", elections, "Campaigns of this node."),
            .counter(
                "aspen_leader_changes_total", leaderChanges, "Leaders seen, one after another."),
            .counter("aspen_slow_syncs_total", slowSyncs, "Syncs of the log of 250 ms and more."),
            .counter("aspen_checkpoints_total", checkpoints, "Checkpoints of the state."),
            .counter("aspen_snapshots_sent_total", snapshotsSent, "Snapshots taken by peers."),
            .counter(
                "aspen_snapshots_received_total", snapshotsReceived, "Snapshots put in force here."),
            .counter(
                "aspen_snapshot_bytes_sent_total", snapshotBytesSent,
                "Bytes of snapshots sent to peers, those sent again included."),
            .counter(
                "aspen_snapshot_bytes_received_total", snapshotBytesReceived,
                "Bytes of snapshots taken from peers."),
        ]
    }
}

extension Aspen_Client_V1_Metric {
    static func make(
        _ name: String, _ kind: String, _ value: Double, _ help: String
    ) -> Aspen_Client_V1_Metric {
        var metric = Aspen_Client_V1_Metric()
        metric.name = name
        metric.kind = kind
        metric.value = value
        metric.help = help
        return metric
    }

    static func counter(_ name: String, _ value: UInt64, _ help: String) -> Self {
        make(name, "counter", Double(value), help)
    }

    static func gauge(_ name: String, _ value: UInt64, _ help: String) -> Self {
        make(name, "gauge", Double(value), help)
    }
}
