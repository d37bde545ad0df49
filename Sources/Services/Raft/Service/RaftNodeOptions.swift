// SPDX-License-Identifier: GPL-2.0-or-later

import AspenDisk
import AspenTypes
import AspenWire
import KVCore
import Logging
import NIOCore
import RaftCore
import RaftStorage
import SQLiteKit
import ServiceKit

/// What a node is told at its start.
package struct RaftNodeOptions: Sendable {
    package var raft: RaftConfiguration
    /// Entries kept in the log behind the last checkpoint, for peers that were away for a while.
    package var logTailEntries = 10_000
    /// When history goes by itself.
    package var compaction = CompactionPolicy()
    /// Whether clients from other machines have to show a token.
    package var areTokensRequired = true
    /// Whether nodes that have the cookie are taken in without an administrator, while this one leads.
    package var joinsByItself = false
    /// Where events are kept for `why`; nil: in memory only.
    package var eventFile: String?
    /// Where backups that come in are spooled.
    package var spoolDirectory = "/tmp"
    package var snapshots = SnapshotTimes()

    package init(raft: RaftConfiguration) { self.raft = raft }
}

/// How long is waited for a snapshot on its way. Less in tests.
package struct SnapshotTimes: Sendable {
    /// A transfer without any progress ends after this time.
    package var stallTimeout = TimeAmount.seconds(30)
    /// How long after its start a process keeps what an earlier one has received of a snapshot.
    package var partialKept = TimeAmount.seconds(120)
}

/// What a node is made of.
package struct RaftNodeParts {
    package var loop: any EventLoop
    package var logger: Logger
    package var log: any LogStore
    package var state: any StateStore
    package var recovery: RaftRecovery
    /// Random: the beginning of everything random in this process but for keys.
    package var seed: UInt64
    /// Nil in memory: that is never full.
    package var space: StorageSpace?

    package init(
        loop: any EventLoop, logger: Logger, log: any LogStore, state: any StateStore,
        recovery: RaftRecovery, seed: UInt64, space: StorageSpace? = nil
    ) {
        self.space = space
        self.loop = loop
        self.logger = logger
        self.log = log
        self.state = state
        self.recovery = recovery
        self.seed = seed
    }
}

/// The settings of `aspend-raft`: see `ServiceSettings`.
package struct RaftSettings: Sendable {
    package enum Backend: Sendable { case persistent, inMemory }

    package var node: NodeID
    package var stateDirectory: String
    package var runtimeDirectory: String
    package var backend: Backend
    package var options: RaftNodeOptions
    /// How the stores lay themselves out. Without flags: what is there fits all but tests.
    package var log = LogConfiguration()
    package var state = SQLiteState.Options(deferral: .toThread)
    /// Asked in place of the file system how full it is; for tests.
    package var diskSpace: (@Sendable () -> DiskSpace?)?

    static let known: Set<String> = [
        "node-id", "state-dir", "runtime-dir", "storage-backend", "heartbeat-interval-ms",
        "election-timeout-min-ms", "election-timeout-max-ms", "tokens-required",
        "log-tail-entries", "history-revisions", "history-bytes-max", "auto-join",
    ]

    package init(arguments: [String]) throws(AspenError) {
        let settings = try ServiceSettings(arguments: arguments, known: Self.known)
        guard let id = try settings.integer("node-id", in: 1...Int.max) else {
            throw AspenError(
                .invalidArgument,
                "the node has no number: set node.id, a number of 1 or more that no other node of "
                    + "the cluster has. `aspen-cli setup --node-id N` writes it to the configuration "
                    + "(else --node-id, ASPEN_NODE_ID)")
        }
        node = NodeID(UInt64(id))
        stateDirectory = settings.stateDirectory ?? "/var/lib/aspen/raft"
        runtimeDirectory = settings.string("runtime-dir") ?? "/run/aspen"
        switch settings.string("storage-backend") ?? "persistent" {
        case "persistent", "redb": backend = .persistent
        case "inmemory": backend = .inMemory
        case let other:
            throw AspenError(
                .invalidArgument,
                "--storage-backend must be persistent or inmemory, not '\(other)'")
        }
        options = RaftNodeOptions(raft: try Self.raft(settings, node))
        options.areTokensRequired = try settings.flag("tokens-required") ?? true
        options.joinsByItself = try settings.flag("auto-join") ?? false
        if let tail = try settings.integer("log-tail-entries", in: 0...10_000_000) {
            options.logTailEntries = tail
        }
        if let kept = try settings.integer("history-revisions", in: 1000...1_000_000_000) {
            options.compaction.revisionsKept = UInt64(kept)
        }
        if let bytes = try settings.integer("history-bytes-max", in: 1_000_000...1_000_000_000_000)
        {
            options.compaction.historyBytesMax = UInt64(bytes)
        }
    }

    private static func raft(
        _ settings: ServiceSettings, _ node: NodeID
    ) throws(AspenError) -> RaftConfiguration {
        var raft = RaftConfiguration(node: node)
        func duration(_ name: String, _ value: inout Duration) throws(AspenError) {
            if let milliseconds = try settings.integer(name, in: 1...3_600_000) {
                value = .milliseconds(milliseconds)
            }
        }
        try duration("heartbeat-interval-ms", &raft.heartbeatInterval)
        try duration("election-timeout-min-ms", &raft.electionTimeoutMin)
        try duration("election-timeout-max-ms", &raft.electionTimeoutMax)
        guard raft.heartbeatInterval * 2 <= raft.electionTimeoutMin,
            raft.electionTimeoutMin < raft.electionTimeoutMax
        else {
            throw AspenError(
                .invalidArgument,
                "the election timeout must be at least twice the heartbeat interval, and its "
                    + "minimum below its maximum")
        }
        return raft
    }
}
