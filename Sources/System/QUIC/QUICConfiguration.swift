// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// What an endpoint promises its peers and allows itself. Every number is a limit with a name.
package struct QUICConfiguration: Sendable {
    /// Silence after which a connection is given up, whatever was sent and however long a round
    /// trip seems to be: so it must be well above `keepAlive`. A restarted peer is noticed after
    /// `keepAlive` at most (stateless reset).
    package var idleTimeout: Duration = .seconds(15)
    /// The side that dialled sends something at least this often.
    package var keepAlive: Duration = .seconds(5)
    /// From the first packet to a confirmed handshake.
    package var handshakeTimeout: Duration = Limits.connectTimeout
    /// Assumed before there is a measurement; the first retransmission comes after three times
    /// this. RFC 9002 says 333 ms, for the whole Internet; clusters are closer together, and a
    /// spurious retransmission of a first packet costs nothing.
    package var initialRoundTrip: Duration = .milliseconds(50)
    /// Streams that the peer may have open at a time.
    package var maxStreams: Int = Limits.streamsPerConnectionMax
    /// Bytes that a peer may send on a stream beyond what was read from it.
    package var streamWindow: Int = 1 << 20
    /// Bytes that a peer may send on a connection beyond what was read from it.
    package var connectionWindow: Int = 16 << 20
    /// The same for whoever dials, until `QUICConnection.trust`.
    package var inboundConnectionWindow: Int = 1 << 20
    /// Unsent bytes of a stream from which on it is not writable.
    package var streamSendHighWater: Int = 512 << 10
    /// Unsent bytes of a stream at which it becomes writable again.
    package var streamSendLowWater: Int = 128 << 10
    /// Connections with a finished handshake, in both directions together.
    package var maxConnections: Int = Limits.connectionsMax
    /// Inbound connections whose handshake is not finished; for one more the oldest is given up.
    package var maxHalfOpen: Int = 256
    /// From this many half-open connections on, clients must prove their address first (Retry).
    package var retryThreshold: Int = 64
    /// Answers per second to packets of connections that we do not know (stateless resets).
    package var maxStatelessResetsPerSecond: Int = 1000
    /// Delay between attempts at the addresses of one peer (RFC 8305 section 5).
    package var connectStagger: Duration = .milliseconds(250)
    /// One system call for many packets, where the kernel can.
    package var useSegmentationOffload: Bool = true
    /// Wanted size of the socket's buffers; the kernel may give less.
    package var socketBufferBytes: Int = 4 << 20

    package init() {}
}

extension Duration {
    /// Whole nanoseconds, clamped to what 64 bits hold.
    var nanosecondCount: UInt64 {
        let (seconds, attoseconds) = components
        guard seconds >= 0 else { return 0 }
        let (whole, overflow) = UInt64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
        if overflow { return UInt64(Int64.max) }
        return min(whole &+ UInt64(max(0, attoseconds) / 1_000_000_000), UInt64(Int64.max))
    }
}
