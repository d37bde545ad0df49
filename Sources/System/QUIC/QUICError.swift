// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Why there is no connection, or none any more.
package enum QUICError: Error, Sendable, Equatable {
    /// The other side judged us during the handshake and said no; the text names its reason.
    case handshakeRefused(String)
    /// The other side proved a key, but not the one that was asked for.
    case identityMismatch(expected: EndpointID, found: EndpointID)
    /// No answer in time: to the handshake, or for the idle timeout.
    case timedOut
    /// The network refuses to carry packets there, or there is no address to try.
    case unreachable(String)
    /// Broken off without a word: a stateless reset (the peer has restarted), a socket that
    /// failed, a peer that breaks the protocol.
    case connectionLost(String)
    /// The peer closed it, with a code of the application or of QUIC (see `text`).
    case closedByPeer(code: UInt64, reason: String)
    /// This side closed it.
    case closedLocally
    /// The peer allows no more streams at a time: RESOURCE_EXHAUSTED.
    case tooManyStreams
    /// `QUICConfiguration.maxConnections` is reached: RESOURCE_EXHAUSTED.
    case tooManyConnections
    /// The endpoint is closed or not yet bound.
    case endpointClosed
    /// A socket could not be opened; the text is the system's.
    case socket(String)
    /// TLS or QUIC refused what we asked of it (a bug, or memory ran out).
    case library(String)
}

extension QUICError {
    /// The other side does not accept our key: TLS has no other words for it than bad_certificate.
    package var isKeyRefused: Bool { self == .handshakeRefused(QUICConnection.alertText(42)) }
}

extension QUICError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .handshakeRefused(let reason): "the peer refused the handshake: \(reason)"
        case .identityMismatch(let expected, let found):
            "expected endpoint \(expected), but \(found) answered"
        case .timedOut: "no answer in time"
        case .unreachable(let reason): "unreachable: \(reason)"
        case .connectionLost(let reason): "connection lost: \(reason)"
        case .closedByPeer(let code, let reason):
            reason.isEmpty ? "closed by the peer (code \(code))" : "closed by the peer: \(reason)"
        case .closedLocally: "closed on this side"
        case .tooManyStreams: "the peer allows no more streams on this connection"
        case .tooManyConnections: "too many connections"
        case .endpointClosed: "the endpoint is closed"
        case .socket(let reason): "cannot open the UDP socket: \(reason)"
        case .library(let reason): "QUIC failed: \(reason)"
        }
    }
}
