// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import NIOCore
import QUIC

/// Outbound `aspen-client` connections: made when a local caller wants a stream, shared by all, and
/// closed some time after the last one. Confined to the event loop.
final class ClientConnections {
    typealias Opened = Result<(QUICStream, release: () -> Void), AspenError>

    private final class Entry {
        var connection: QUICConnection?
        var waiting: [(Opened) -> Void] = []
        var streams = 0
        var linger: Scheduled<Void>?
    }

    private let endpoint: QUICEndpoint
    private var entries: [EndpointID: Entry] = [:]

    init(endpoint: QUICEndpoint) { self.endpoint = endpoint }

    func openStream(
        to peer: EndpointID, addresses: [SocketAddress], done: @escaping (Opened) -> Void
    ) {
        if let entry = entries[peer] {
            if entry.connection == nil {
                entry.waiting.append(done)
            } else {
                open(entry, peer, done)
            }
            return
        }
        guard entries.count < Limits.peersMax else {
            return done(
                .failure(AspenError(.resourceExhausted, "too many connections as a client")))
        }
        let entry = Entry()
        entry.waiting.append(done)
        entries[peer] = entry
        endpoint.connect(to: peer, addresses: addresses, alpn: ALPN.client.rawValue)
            .assumeIsolated().whenComplete { [self] result in
                let waiting = entry.waiting
                entry.waiting = []
                switch result {
                case .success(let connection):
                    entry.connection = connection
                    connection.onClosed = { [self] _ in remove(entry, peer) }
                    for done in waiting { open(entry, peer, done) }
                case .failure(let error):
                    remove(entry, peer)
                    let refusal = AspenError(
                        .unavailable, "no connection to \(peer): \(error)", retry: .safe)
                    for done in waiting { done(.failure(refusal)) }
                }
            }
    }

    private func remove(_ entry: Entry, _ peer: EndpointID) {
        entry.linger?.cancel()
        if entries[peer] === entry { entries[peer] = nil }
    }

    private func open(_ entry: Entry, _ peer: EndpointID, _ done: (Opened) -> Void) {
        guard let connection = entry.connection else { return }
        do {
            let stream = try connection.openStream()
            entry.linger?.cancel()
            entry.linger = nil
            entry.streams += 1
            done(.success((stream, { [self] in release(entry) })))
        } catch .tooManyStreams {
            done(
                .failure(
                    AspenError(
                        .resourceExhausted,
                        "more than \(Limits.streamsPerConnectionMax) streams to \(peer)")))
        } catch {
            done(.failure(AspenError(.unavailable, "no connection to \(peer): \(error)")))
        }
    }

    private func release(_ entry: Entry) {
        entry.streams -= 1
        guard entry.streams == 0 else { return }
        entry.linger = endpoint.eventLoop.assumeIsolated().scheduleTask(
            in: TimeAmount(NetLimits.clientLinger)
        ) {
            entry.connection?.close(code: StreamErrorCode.none.rawValue, reason: "idle")
        }
    }
}
