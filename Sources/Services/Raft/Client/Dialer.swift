// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import NIOCore

/// Finds an endpoint that answers: one after the other, each with a head start over the next, the
/// first connection wins (RFC 8305's idea, applied to nodes). Confined to its event loop.
final class Dialer {
    /// Head start of an endpoint over the next one.
    static let stagger = TimeAmount.milliseconds(150)

    typealias Outcome = Result<(connection: ClientConnection, index: Int), ConnectFailure>

    let endpoints: [Endpoint]
    private let loop: any EventLoop

    init(endpoints: [Endpoint], loop: any EventLoop) {
        precondition(!endpoints.isEmpty, "a cluster has an endpoint")
        self.endpoints = endpoints
        self.loop = loop
    }

    /// Tries every endpoint once, beginning with `index`. `completion` is called once.
    func dial(from index: Int, completion: @escaping (Outcome) -> Void) {
        Race(endpoints, first: index, loop: loop, completion: completion).startNext()
    }

    private final class Race {
        let endpoints: [Endpoint]
        let first: Int
        let loop: any EventLoop
        var completion: ((Outcome) -> Void)?
        var started = 0
        var failures: [ConnectFailure] = []
        var timer: Scheduled<Void>?

        init(
            _ endpoints: [Endpoint], first: Int, loop: any EventLoop,
            completion: @escaping (Outcome) -> Void
        ) {
            self.endpoints = endpoints
            self.first = first
            self.loop = loop
            self.completion = completion
        }

        func startNext() {
            guard completion != nil, started < endpoints.count else { return }
            let index = (first + started) % endpoints.count
            started += 1
            ClientConnection.connect(to: endpoints[index], on: loop)
                .assumeIsolated()
                .whenComplete { result in
                    switch result {
                    case .success(let connection): self.succeeded(connection.value, index)
                    case .failure(let error): self.failed(error)
                    }
                }
            timer?.cancel()
            timer = loop.assumeIsolated().scheduleTask(in: Dialer.stagger) { self.startNext() }
        }

        private func succeeded(_ connection: ClientConnection, _ index: Int) {
            guard let completion else { return connection.close() }
            self.completion = nil
            timer?.cancel()
            completion(.success((connection, index)))
        }

        private func failed(_ error: any Error) {
            failures.append(
                error as? ConnectFailure
                    ?? ConnectFailure(
                        error: AspenError(.unavailable, "cannot connect: \(error)", retry: .safe),
                        isLasting: false))
            if started < endpoints.count { return startNext() }
            guard failures.count == endpoints.count, let completion else { return }
            self.completion = nil
            timer?.cancel()
            completion(.failure(summary))
        }

        /// One failure for all: its text names each endpoint's.
        private var summary: ConnectFailure {
            guard failures.count > 1 else { return failures[0] }
            let texts = failures.map(\.error.message).joined(separator: "; ")
            return ConnectFailure(
                error: AspenError(
                    failures[0].error.code, "no endpoint can be reached: \(texts)",
                    retry: failures[0].error.retry),
                isLasting: failures.allSatisfy(\.isLasting))
        }
    }
}
