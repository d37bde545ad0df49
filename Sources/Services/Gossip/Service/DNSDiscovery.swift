// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DNSWire
import EgressClient
import Glibc
import Logging
import NIOCore
import ResolverCore

/// Asks DNS where endpoints are: runs `LookUpSchedule` and `ResolverMachine`. Confined to its event loop.
///
/// The daemon cannot open a socket to a name server: aspend-egress does, a fresh one for each question, so
/// that each has a port of its own, drawn by the kernel.
package final class DNSDiscovery {
    /// What is found and lost.
    package var onNews: (DNSNews) -> Void = { _ in }

    private let origin: DNSName
    private let egress: EgressClient
    private let loop: any EventLoop
    private let logger: Logger
    private var schedule = LookUpSchedule()
    private var machine = ResolverMachine()
    private var random: RandomSource
    private var effects: [ResolverEffect] = []
    /// As aspend-egress lists them, and when it did; nil: not, or it is not believed any more.
    private var servers: [ResolverServer] = []
    private var listedAt: MonotonicInstant?
    private var isListing = false
    private var hasComplained = false
    private var exchanges: [ExchangeID: (any Channel)?] = [:]
    private var lookUps: [LookUpID: EndpointID] = [:]
    private var nextLookUp: UInt64 = 1
    private var timer: (at: MonotonicInstant, task: Scheduled<Void>)?
    private var isStopped = false

    /// How long the list of name servers is believed.
    private static let listKept = Duration.seconds(60)

    package init(origin: DNSName, egressSocketPath: String, loop: any EventLoop, logger: Logger) {
        self.origin = origin
        egress = EgressClient(socketPath: egressSocketPath)
        self.loop = loop
        self.logger = logger
        var generator = SystemRandomNumberGenerator()
        random = RandomSource(seed: generator.next())
    }

    /// Replaces the list of those who are to be looked up.
    package func want(_ endpoints: some Sequence<EndpointID>) {
        schedule.want(endpoints, now: now())
        setTimer()
    }

    /// Whoever heard the news has forgotten them.
    package func forget() {
        schedule.forget(now: now())
        setTimer()
    }

    package func stop() {
        isStopped = true
        timer?.task.cancel()
        for channel in exchanges.values { channel?.close(promise: nil) }
        exchanges = [:]
        egress.stop()
    }

    // MARK: - The machines

    private func now() -> MonotonicInstant {
        MonotonicInstant(nanoseconds: NIODeadline.now().uptimeNanoseconds)
    }

    private func setTimer() {
        let next = [machine.deadline, isListing ? nil : schedule.nextAt].compactMap { $0 }.min()
        guard next != timer?.at, !isStopped else { return }
        timer?.task.cancel()
        let box = NIOLoopBound(self, eventLoop: loop)
        timer = next.map { at in
            let task = loop.scheduleTask(deadline: .uptimeNanoseconds(at.nanoseconds)) {
                box.value.timer = nil
                box.value.step(.timeout)
                box.value.lookUp()
            }
            return (at, task)
        }
    }

    private func step(_ input: ResolverInput) {
        guard !isStopped else { return }
        machine.step(input, now: now(), random: &random, into: &effects)
        let done = effects
        effects.removeAll(keepingCapacity: true)
        for effect in done {
            switch effect {
            case .ask(let exchange, let bytes, let server, let isStream):
                ask(exchange, bytes, server, isStream)
            case .close(let exchange):
                exchanges.removeValue(forKey: exchange)??.close(promise: nil)
            case .answer(let id, let result): answered(id, result)
            }
        }
        setTimer()
    }

    /// Those whose turn it is, once it is known which servers there are.
    private func lookUp() {
        guard let next = schedule.nextAt, next <= now(), !isListing else { return }
        guard let listedAt, now() - listedAt < Self.listKept else { return list() }
        for endpoint in schedule.due(now: now()) {
            let id = LookUpID(nextLookUp)
            nextLookUp += 1
            lookUps[id] = endpoint
            guard let name = DiscoveryRecord.name(of: endpoint, origin: origin) else {
                answered(id, .absent)
                continue
            }
            step(.lookUp(id, name, type: DNSType.txt))
        }
        setTimer()
    }

    private func answered(_ id: LookUpID, _ result: LookUpResult) {
        guard let endpoint = lookUps.removeValue(forKey: id) else { return }
        logger.debug(
            "DNS has answered", metadata: ["peer": "\(endpoint)", "answer": "\(result)"])
        let news = schedule.answered(endpoint, result, now: now(), random: &random)
        if let news { onNews(news) }
    }

    // MARK: - aspend-egress

    private func list() {
        isListing = true
        let box = NIOLoopBound(self, eventLoop: loop)
        egress.nameServers(on: loop).whenComplete { result in
            box.value.listed(result)
        }
    }

    private func listed(_ result: Result<[String], any Error>) {
        isListing = false
        guard !isStopped else { return }
        switch result {
        case .success(let texts):
            hasComplained = false
            let former = servers
            servers = texts.compactMap { IPAddress.parse($0) }.map {
                ResolverServer($0.address, port: $0.port)
            }
            if servers != former {
                logger.info(
                    "DNS discovery",
                    metadata: ["origin": "\(origin)", "servers": "\(texts.joined(separator: " "))"])
            }
        case .failure(let error):
            // Without servers each look-up fails at once and waits for its next turn.
            servers = []
            complain(error)
        }
        listedAt = now()
        step(.servers(servers))
        lookUp()
    }

    private func complain(_ error: any Error) {
        let text = (error as? AspenError)?.message ?? "\(error)"
        if !hasComplained { logger.warning("DNS cannot be asked: \(text)") }
        hasComplained = true
    }

    private func ask(
        _ exchange: ExchangeID, _ bytes: [UInt8], _ server: ResolverServer, _ isStream: Bool
    ) {
        exchanges[exchange] = .some(nil)
        let box = NIOLoopBound(self, eventLoop: loop)
        let place = UInt8(clamping: servers.firstIndex(of: server) ?? 0)
        egress.nameServer(place, isStream: isStream, on: loop).whenComplete { result in
            box.value.opened(exchange, result, bytes, server, isStream)
        }
    }

    private func opened(
        _ exchange: ExchangeID, _ result: Result<EgressClient.Connected, any Error>,
        _ bytes: [UInt8], _ server: ResolverServer, _ isStream: Bool
    ) {
        let socket: CInt
        switch result {
        case .failure(let error):
            if exchanges[exchange] != nil {
                logger.debug("a name server cannot be asked: \(error)")
                exchanges[exchange] = nil
                step(.failed(exchange))
            }
            return
        case .success(let connected):
            guard exchanges[exchange] != nil else {
                close(connected.descriptor)
                return
            }
            guard connected.address == server.address.text(port: server.port) else {
                // The machine has other servers by now.
                close(connected.descriptor)
                listedAt = nil
                return fail(exchange)
            }
            socket = connected.descriptor
        }
        let message =
            isStream ? [UInt8(bytes.count >> 8), UInt8(bytes.count & 0xff)] + bytes : bytes
        // A new socket has room for a question: what it does not take at once it will not take later.
        guard send(socket, message, message.count, CInt(MSG_NOSIGNAL)) == message.count
        else {
            close(socket)
            return fail(exchange)
        }
        listen(exchange, socket, server, isStream)
    }

    private func listen(
        _ exchange: ExchangeID, _ socket: CInt, _ server: ResolverServer, _ isStream: Bool
    ) {
        let box = NIOLoopBound(self, eventLoop: loop)
        NameServerSocket.start(socket, isStream: isStream, on: loop) { answer in
            switch answer {
            // The kernel lets nobody else send by a connected socket.
            case .message(let bytes): box.value.step(.received(exchange, bytes, from: server))
            case .failed: box.value.fail(exchange)
            }
        }.whenComplete { result in
            let discovery = box.value
            switch result {
            case .success(let channel):
                if discovery.exchanges[exchange] == nil {
                    channel.close(promise: nil)
                } else {
                    discovery.exchanges[exchange] = channel
                }
            case .failure: discovery.fail(exchange)
            }
        }
    }

    private func fail(_ exchange: ExchangeID) {
        guard let channel = exchanges.removeValue(forKey: exchange) else { return }
        channel?.close(promise: nil)
        step(.failed(exchange))
    }
}
