// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import NIOCore

/// What `aspend-net` bounds besides the `Limits` that all daemons share.
package enum NetLimits {
    /// Connections of clients; the rest of `Limits.connectionsMax` is kept free for members.
    package static let clientConnectionsMax = Limits.connectionsMax - 200
    /// The same of one client, by its key, and of all clients at one address (of IPv6: in one /64).
    package static let clientConnectionsPerIdentityMax = 100
    package static let clientConnectionsPerAddressMax = 200
    /// Streams joined to local services at a time, over all connections.
    package static let streamsMax = 2000
    /// Streams of clients among them; the rest is kept free for members.
    package static let clientStreamsMax = 1600
    /// Memory for what waits on behalf of clients, over all their streams. From there on, the
    /// streams that hold most are reset: their clients, or their service, do not read.
    package static let clientBytesMax = 64 << 20
    /// Connections of strangers that have not proved the cookie yet.
    package static let unprovedMax = 64
    /// The same from one address (of IPv6: from one /64).
    package static let unprovedPerAddressMax = 16
    /// Connections for gossip, in both directions: a few times what an overlay of its kind keeps.
    package static let gossipConnectionsMax = 64
    /// Those among them that have not proved the cookie yet.
    package static let gossipUnprovedMax = 16
    /// The same from one address (of IPv6: from one /64).
    package static let gossipUnprovedPerAddressMax = 8
    /// Streams that one connection for gossip may bring: two daemons need one. Further ones wait unread,
    /// in QUIC's own number of them.
    package static let gossipStreams = Rate(every: .seconds(1), burst: 16)
    /// What a peer's net says besides its proof; further words wait in the window of their stream.
    package static let notices = Rate(perSecond: 10, burst: 100)
    /// How long a connection for gossip without streams is kept.
    package static let gossipLinger = Duration.seconds(10)
    /// How long peers have to answer once an address of this machine is gone.
    package static let answerAfterMove = Duration.seconds(1)
    /// Connections of clients that have not shown a token yet, where one is required.
    package static let clientsWithoutTokenMax = 64
    /// The same from one address (of IPv6: from one /64).
    package static let clientsWithoutTokenPerAddressMax = 32
    /// Streams that such a client may have opened.
    package static let streamsBeforeTokenMax = 4
    /// Streams of clients whose header, with up to 64 KiB of token, is being read.
    package static let clientHeadersMax = 512
    /// Connections of local people and daemons to `net.sock`.
    package static let localConnectionsMax = Limits.connectionsMax
    /// Streams that a peer may have opened before its cookie is proved to us.
    static let streamsBeforeProofMax = 16
    /// Bytes on their way to a local socket from which on the peer is not read, and at which it is
    /// read again.
    static let localWriteWaterMark = ChannelOptions.Types.WriteBufferWaterMark(
        low: 64 << 10, high: 256 << 10)
    /// Bytes that a peer may still send to a service that has closed its side with a last word on the way.
    static let unheardBytesMax = 1 << 20
    /// Bytes of a local socket that wait for the network before the socket is no longer read: see
    /// `QUICConfiguration.streamSendHighWater`.
    static let localReadsPerTurn: UInt = 4

    /// Time for both sides to prove the cookie.
    package static let proofTimeout = Duration.seconds(2)
    /// Time for a client to show its token, and for any stream of a client to say what it is for.
    package static let tokenTimeout = Duration.seconds(2)
    /// What clients hold is added up whenever this part of the budget has come in since the last
    /// time, so that it is overdrawn by no more than that…
    static let clientLooksPerBudget = 8
    /// …and this often, while there are any.
    static let clientSweepInterval = Duration.milliseconds(250)
    /// How long an outbound client connection without streams is kept.
    package static let clientLinger = Duration.seconds(30)
}

extension TimeAmount {
    init(_ duration: Duration) {
        let (seconds, attoseconds) = duration.components
        self = .nanoseconds(seconds * 1_000_000_000 + attoseconds / 1_000_000_000)
    }
}

extension MonotonicInstant {
    /// By the clock of the event loops.
    static var now: MonotonicInstant {
        MonotonicInstant(nanoseconds: NIODeadline.now().uptimeNanoseconds)
    }
}
