// SPDX-License-Identifier: GPL-2.0-or-later

/// The named limits of DESIGN §8. They are part of the contract: documented in Limits.md, compiled
/// in, and beyond each of them the caller gets a typed `RESOURCE_EXHAUSTED` or `INVALID_ARGUMENT`.
public enum Limits {
    /// Largest frame on any RPC socket or stream, in bytes (MAX_RPC_MESSAGE_SIZE).
    public static let rpcMessageBytesMax = 10_000_000
    /// Largest key, in bytes (MAX_KEY_SIZE).
    public static let keyBytesMax = 1024
    /// Largest value, in bytes: 1 MiB (MAX_VALUE_SIZE).
    public static let valueBytesMax = 1_048_576
    /// Most entries in one batch or page (MAX_BATCH_SIZE).
    public static let batchCountMax = 1000
    /// Most bytes of keys and values in one page of a scan.
    public static let scanPageBytesMax = 4_194_304
    /// Largest chunk of a streamed snapshot, in bytes.
    public static let snapshotChunkBytesMax = 1_000_000
    /// Most bytes of entries that are looked for behind the damage of a log.
    public static let salvageBytesMax = 64_000_000
    /// Most voters in a membership (MAX_VOTERS).
    public static let votersMax = 100
    /// Most learners in a membership.
    public static let learnersMax = 100
    /// Most voters that `auto-join` makes: more of them agree more slowly, and bear no likely failure more.
    public static let autoVotersMax = 7
    /// Nodes removed from a cluster that it remembers, before `auto-join` admits nobody any more.
    public static let removedEndpointsMax = 10_000
    /// Most addresses of one endpoint in a ticket or a membership.
    public static let addressesMax = 16
    /// Most bootstrap endpoints in a ticket.
    public static let ticketEndpointsMax = 16
    /// A learner no further behind than this counts as caught up (LEARNER_LAG_THRESHOLD).
    public static let learnerLagThreshold = 100
    /// Peers known besides the members (MAX_PEERS).
    public static let peersMax = 64
    /// Connections a daemon accepts on one socket (MAX_CONCURRENT_CONNECTIONS).
    public static let connectionsMax = 500
    /// Concurrent streams on one QUIC connection (MAX_STREAMS_PER_CONNECTION).
    public static let streamsPerConnectionMax = 100
    /// Proposals waiting in a daemon for an answer.
    public static let proposalsInFlightMax = 10_000
    /// Reads waiting in a daemon for a round.
    public static let readsInFlightMax = 10_000
    /// Live client sessions in a cluster.
    public static let sessionsMax = 10_000
    /// Answers kept for one session.
    public static let sessionWindowMax = 256
    /// Watches on one connection, and on all connections to one node.
    public static let watchesPerConnectionMax = 1000
    public static let watchesMax = 10_000
    /// Leases in a cluster.
    public static let leasesMax = 100_000
    /// Shortest and longest life of a lease, in milliseconds of cluster time: 1 s and 24 h.
    public static let leaseTTLMillisecondsMin: UInt64 = 1000
    public static let leaseTTLMillisecondsMax: UInt64 = 86_400_000
    /// Keys in one transaction (MAX_SETMULTI_KEYS).
    public static let transactionOperationsMax = 100

    /// Time to set up a QUIC connection.
    public static let connectTimeout = Duration.seconds(5)
    /// Time to open a stream.
    public static let streamOpenTimeout = Duration.seconds(2)
    /// Time to wait for an answer on a stream.
    public static let readTimeout = Duration.seconds(10)
    /// How long a lost connection may be redialled before anyone calls a pre-vote.
    public static let redialGrace = Duration.milliseconds(300)
    /// How long a client session lives without a sign of life, in cluster time.
    public static let sessionTimeout = Duration.seconds(60)
}
