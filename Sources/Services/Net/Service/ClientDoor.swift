// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import Glibc
import Logging
import NIOCore
import QUIC
import ServiceKit
import TokenCore

/// One client's connection, from the handshake on. The handshake has proved its key and nothing
/// else: what it may do stands in the token at the beginning of each of its streams. Confined to the
/// event loop.
final class ClientGuest {
    let connection: QUICConnection
    /// Where it came from; it may move, and counts where it was.
    let origin: Origin
    /// It has shown what was asked for.
    var isAdmitted: Bool
    var streamsOpened = 0
    var timer: Scheduled<Void>?
    /// The last token that was found good, so that its signatures are not checked for each stream.
    var accepted: (chain: [UInt8], expires: UInt64)?

    init(_ connection: QUICConnection, isAdmitted: Bool) {
        self.connection = connection
        origin = Origin(connection.remoteAddress)
        self.isAdmitted = isAdmitted
    }
}

extension NetService {
    func acceptClient(_ connection: QUICConnection) {
        inboundClients += 1
        let guest = ClientGuest(connection, isAdmitted: !configuration.areTokensRequired)
        let client = connection.remoteEndpoint
        clientCounts.add(client, from: guest.origin, needsToken: !guest.isAdmitted)
        if !guest.isAdmitted {
            clientsWithoutToken += 1
            guest.timer = eventLoop.assumeIsolated().scheduleTask(
                in: TimeAmount(NetLimits.tokenTimeout)
            ) { [self] in
                guest.timer = nil
                turnAway(guest, "no token was shown in time")
            }
        }
        connection.onClosed = { [self] _ in
            inboundClients -= 1
            admit(guest)
            clientCounts.remove(client, from: guest.origin)
        }
        connection.onStream = { [self] in accepted($0, of: guest) }
    }

    /// From here on it counts as a client like any other (or is gone).
    private func admit(_ guest: ClientGuest) {
        guest.timer?.cancel()
        guest.timer = nil
        guard !guest.isAdmitted else { return }
        guest.isAdmitted = true
        clientsWithoutToken -= 1
        clientCounts.hasShownToken(from: guest.origin)
    }

    private func accepted(_ stream: QUICStream, of guest: ClientGuest) {
        guest.streamsOpened += 1
        guard guest.isAdmitted || guest.streamsOpened <= NetLimits.streamsBeforeTokenMax else {
            return turnAway(guest, "too many streams before a token")
        }
        guard clientHeaders < NetLimits.clientHeadersMax else {
            return stream.reset(code: StreamErrorCode.resourceExhausted.rawValue)
        }
        clientHeaders += 1
        var isRead = false
        let finish = { [self] in
            if isRead { return false }
            isRead = true
            clientHeaders -= 1
            return true
        }
        // Also where the stream is reset meanwhile, of which nobody tells.
        let timer = eventLoop.assumeIsolated().scheduleTask(in: TimeAmount(NetLimits.tokenTimeout))
        {
            if finish() { stream.reset(code: StreamErrorCode.malformed.rawValue) }
        }
        InboundHeader.read(stream) { [self] result in
            timer.cancel()
            guard finish() else { return }
            switch result {
            case .success((let header, let rest)): opened(stream, header, rest, of: guest)
            case .failure: stream.reset(code: StreamErrorCode.malformed.rawValue)
            }
        }
    }

    private func opened(
        _ stream: QUICStream, _ header: StreamHeader, _ rest: ByteBuffer, of guest: ClientGuest
    ) {
        let chain = header.tokenChain ?? []
        if let reason = refusal(ofToken: chain, of: guest) {
            // Others of its streams may be at work with a token that is good.
            guard guest.isAdmitted, guest.accepted != nil else { return turnAway(guest, reason) }
            complain(of: guest, reason)
            return stream.reset(code: StreamErrorCode.unauthenticated.rawValue)
        }
        admit(guest)
        join(
            stream, to: header.service, rest: rest, for: .client(guest.connection, token: chain),
            carried: {})
    }

    /// What can be said of a token without knowing the cluster: its form, whose it is, its time, its
    /// signatures. Whether the cluster trusts its root, and what it allows, is the service's to say.
    /// - Returns: nil when nothing is wrong with it.
    private func refusal(ofToken chain: [UInt8], of guest: ClientGuest) -> String? {
        if chain.isEmpty {
            return configuration.areTokensRequired ? "no token was shown" : nil
        }
        let now = Self.wallClock()
        if let accepted = guest.accepted, accepted.chain == chain, now < accepted.expires {
            return nil
        }
        guard let token = try? TokenChain(decoding: chain) else { return "the token is damaged" }
        do {
            let grant = try token.check(client: guest.connection.remoteEndpoint, now: now) {
                NodeKey.verify($0, of: $1, by: $2)
            }
            guest.accepted = (chain, grant.expires)
            return nil
        } catch {
            return error.message
        }
    }

    /// The text reaches the client: it is what its user reads.
    private func turnAway(_ guest: ClientGuest, _ reason: String) {
        complain(of: guest, reason)
        guest.connection.close(code: StreamErrorCode.unauthenticated.rawValue, reason: reason)
    }

    private func complain(of guest: ClientGuest, _ reason: String) {
        let address = guest.connection.remoteAddress
        edgeLog.warning(
            "refused a client: \(reason)", culprit: "client \(address.ipAddress ?? "")",
            [
                "peer": "\(guest.connection.remoteEndpoint)",
                "address": "\(NetAddress.text(address))",
                "event": "\(JournalEvent.peerRefused)",
            ])
    }

    /// Seconds since 1970.
    private static func wallClock() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return UInt64(max(0, time.tv_sec))
    }
}
