// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// The protocols that `aspend-net` carries; the names are ALPN identifiers (RFC 7301).
package enum ALPN: String, Sendable, CaseIterable {
    case raft = "aspen-raft"
    case client = "aspen-client"
    case gossip = "aspen-gossip"
    case blob = "aspen-blob"
    case forge = "aspen-forge"
}

/// Which service a stream is for: its first byte after the stream's version byte.
package enum ServiceName: UInt8, Sendable, CaseIterable {
    case raft = 1
    case gossip = 2
    case blob = 3
    case forge = 4
    case sql = 5
    case jobs = 6
    case dns = 7
    /// Answered by `aspend-net` itself: the proof of the cookie.
    case cookie = 255

    /// The base name of its sockets.
    package var name: String {
        switch self {
        case .raft: "raft"
        case .gossip: "gossip"
        case .blob: "blob"
        case .forge: "forge"
        case .sql: "sql"
        case .jobs: "jobs"
        case .dns: "dns"
        case .cookie: "cookie"
        }
    }
}

/// The version table: what this program speaks, and the oldest it still understands.
package enum ProtocolVersion {
    package static let stream: UInt8 = 1
    /// A stream whose header carries a token; over `aspen-client` only.
    package static let streamWithToken: UInt8 = 2
    package static let netSocket: UInt8 = 1
    package static let egressSocket: UInt8 = 1
    package static let raftPeer: UInt16 = 1
    package static let ticket: UInt8 = 1
    /// The program itself, as `cluster status` shows it.
    package static let program = ProgramVersion.text
}

/// Application error codes in RESET_STREAM, STOP_SENDING and CONNECTION_CLOSE (RFC 9000 §20.2).
package enum StreamErrorCode: UInt64, Sendable {
    case none = 0
    /// The service behind the stream is gone; its node's net is alive.
    case serviceGone = 1
    /// The service does not exist here, or may not be used with this ALPN.
    case noSuchService = 2
    /// The caller may not open this.
    case refused = 3
    /// The cookie was not proved.
    case cookie = 4
    case malformed = 5
    case resourceExhausted = 6
    case shuttingDown = 7
    /// No token was shown, or one that does not hold; CONNECTION_CLOSE says why in words.
    case unauthenticated = 8
}
