// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// A key with its value and where both stand in the store's history.
public struct KeyValue: Sendable, Equatable {
    /// At most `Limits.keyBytesMax` bytes, any bytes.
    public var key: [UInt8]
    /// At most `Limits.valueBytesMax` bytes, any bytes; empty in a scan of keys only.
    public var value: [UInt8]
    /// The revision that created the key.
    public var createRevision: Revision
    /// The revision of the last write to it.
    public var modRevision: Revision
    /// 1 for a key just created; grows by one with every write to it.
    public var version: UInt64
    /// The key goes with this lease; `none`: it stays until it is deleted.
    public var lease: LeaseID

    public init(
        key: [UInt8], value: [UInt8], createRevision: Revision, modRevision: Revision,
        version: UInt64, lease: LeaseID = .none
    ) {
        self.key = key
        self.value = value
        self.createRevision = createRevision
        self.modRevision = modRevision
        self.version = version
        self.lease = lease
    }
}

/// Where a write stands in the replicated log.
public struct LogID: Sendable, Hashable, CustomStringConvertible {
    public var term: Term
    public var index: LogIndex

    public init(term: Term, index: LogIndex) {
        self.term = term
        self.index = index
    }

    public var description: String { "\(term):\(index)" }
}

/// How fresh an answer has to be.
public enum Consistency: Sendable, Equatable {
    /// Shows every write that was acknowledged before the read began.
    case linearizable
    /// Whatever the node asked has applied: faster, works without a quorum, may be behind.
    case stale
    /// Shows at least every write that was acknowledged this long ago. A node that cannot promise it
    /// is not asked twice: the client goes to another.
    case staleAtMost(Duration)
}

/// The answer to `get`.
public struct GetResult: Sendable, Equatable {
    /// Nil when there is no such key.
    public var entry: KeyValue?
    /// The store's revision that the answer shows.
    public var revision: Revision
}

/// The answer to `set`.
public struct WriteResult: Sendable, Equatable {
    /// The store's revision after the write.
    public var revision: Revision
    public var logID: LogID
    /// The key's version after the write.
    public var version: UInt64
}

/// The answer to `delete`.
public struct DeleteResult: Sendable, Equatable {
    /// False when there was no such key.
    public var deleted: Bool
    public var revision: Revision
    public var logID: LogID
}

/// Some of the keys of a scan, in the order of their bytes.
public struct ScanPage: Sendable, Equatable {
    public var entries: [KeyValue]
    /// Where the next page begins; empty after the last one. It pins the revision of the first
    /// page, so that pages fit together however long one takes to read them.
    public var continuation: [UInt8]
    public var revision: Revision
}

/// A condition of a transaction.
public struct Compare: Sendable, Equatable {
    public enum Relation: Sendable { case equal, notEqual, less, greater }

    public enum Target: Sendable, Equatable {
        case value([UInt8])
        /// 0: the key is absent.
        case version(UInt64)
        case createRevision(Revision)
        case modRevision(Revision)
        case exists(Bool)
    }

    public var key: [UInt8]
    public var target: Target
    public var relation: Relation

    /// Holds when the key's property stands in `relation` to the one that `target` names.
    public init(_ key: some Collection<UInt8>, _ relation: Relation = .equal, _ target: Target) {
        self.key = Array(key)
        self.target = target
        self.relation = relation
    }
}

/// One step of a transaction.
public enum Operation: Sendable, Equatable {
    /// The key goes when `lease` goes.
    case put(key: [UInt8], value: [UInt8], lease: LeaseID = .none)
    case delete(key: [UInt8])
    /// Removes every key of the range, at most `Limits.batchCountMax`.
    case deleteRange(KeyRange)
    case get(key: [UInt8])
}

/// What one step of a transaction gave.
public struct OperationResult: Sendable, Equatable {
    /// Put and delete: whether the key was there before.
    public var existed: Bool
    /// Get: nil when there is no such key.
    public var entry: KeyValue?
    /// Delete and deleteRange: keys removed.
    public var deletedCount: Int
}

/// The answer to `transaction`.
public struct TransactionResult: Sendable, Equatable {
    /// Whether all compares held, so that `success` was carried out and not `failure`.
    public var succeeded: Bool
    public var revision: Revision
    public var logID: LogID
    /// In the order of the operations carried out.
    public var results: [OperationResult]
}

/// One node as its cluster sees it.
public struct NodeStatus: Sendable, Equatable {
    public var node: NodeID
    /// "leader", "follower", "candidate", "learner" or "unreachable".
    public var role: String
    public var term: Term
    public var applied: LogIndex
    /// Entries that it is behind the leader's commit index.
    public var lag: UInt64
    /// The endpoint id in base 32; empty where the node has none.
    public var endpointID: String
    public var addresses: [String]
    /// Of the program it runs.
    public var version: String
    public var dataBytes: UInt64
    public var isVoter: Bool
    public var isReachable: Bool
}

/// The answer to `clusterStatus`.
public struct ClusterStatus: Sendable, Equatable {
    public var clusterID: String
    public var term: Term
    /// Nil when no leader is known.
    public var leader: NodeID?
    public var revision: Revision
    /// In the order of their numbers.
    public var nodes: [NodeStatus]
}

/// The answer to `health`.
public struct Health: Sendable, Equatable {
    public enum Status: String, Sendable {
        case healthy
        /// Serving, but a quorum is one failure away.
        case degraded
        case unavailable
    }
    public var status: Status
    public var detail: String
    /// The node that answered.
    public var node: NodeID
}

/// The answer to `leader`.
public struct Leader: Sendable, Equatable {
    /// Nil when none is known to the node asked.
    public var node: NodeID?
    public var term: Term
}

/// The answer to `nodeInfo`: the node asked, from the inside.
public struct NodeInfo: Sendable, Equatable {
    public var status: NodeStatus
    public var clusterID: String
    public var replica: ReplicaID
    public var commit: LogIndex
    public var firstLogIndex: LogIndex
    public var lastLogIndex: LogIndex
    /// Equal on every replica at an equal applied index.
    public var stateHash: UInt64
}

/// The answer to `initCluster`.
public struct ClusterInit: Sendable, Equatable {
    public var clusterID: String
    /// The node that is now the only member.
    public var node: NodeID
}

/// The answer to `changeMembership`, `promoteLearner` and `leaveCluster`.
public struct MembershipChange: Sendable, Equatable {
    public var logID: LogID
    public var voters: [NodeID]
    public var learners: [NodeID]
}

/// One figure of a node, in Prometheus' style.
public struct Metric: Sendable, Equatable {
    /// "aspen_raft_term", "aspen_requests_total{request=\"ReadKey\"}".
    public var name: String
    /// "counter", "gauge", "histogram" or "summary".
    public var kind: String
    public var value: Double
    public var help: String
}

/// The answer to `raftMetrics`: consensus as the node asked sees it.
public struct RaftMetrics: Sendable, Equatable {
    /// How far another node is; only a leader knows.
    public struct Progress: Sendable, Equatable {
        public var node: NodeID
        public var matched: LogIndex
        public var isVoter: Bool
        /// Can be talked to at this moment.
        public var isLinked: Bool
        /// Entries behind the end of the leader's log.
        public var lag: UInt64
    }

    public var role: String
    public var term: Term
    public var leader: NodeID?
    /// Of the last entry of the log: of several logs the one that is further has the higher one.
    public var lastLogTerm: Term
    public var lastLogIndex: LogIndex
    public var commit: LogIndex
    public var applied: LogIndex
    /// The log begins after it.
    public var snapshotIndex: LogIndex
    public var progress: [Progress]
}

/// What `why` is asked about.
public enum WhySubject: Sendable, Equatable {
    /// Why the present leader leads.
    case leader
    /// What made a commit slow.
    case slow
    /// Why a node is, or is not, a voter in good standing.
    case member(NodeID)
}

/// The answer to `why`.
public struct Explanation: Sendable, Equatable {
    public struct Event: Sendable, Equatable {
        /// Milliseconds since 1970, by the clock of the node that recorded it.
        public var wallMilliseconds: UInt64
        public var node: NodeID
        public var kind: String
        public var text: String
    }

    /// How long one stage of a write took, in the batches that a leader has followed in the last one
    /// to two minutes.
    public struct StageTimes: Sendable, Equatable {
        public var node: NodeID
        public var stage: String
        public var count: UInt64
        /// Of all together.
        public var sum: Duration
        /// Of a half, and of 99 in a hundred: an eighth too long at most.
        public var median: Duration
        public var p99: Duration
        public var longest: Duration
    }

    /// In one sentence.
    public var answer: String
    /// What it rests on, oldest first.
    public var events: [Event]
    /// `why(.slow)` only: by node, in the order of a write.
    public var stages: [StageTimes]
}
