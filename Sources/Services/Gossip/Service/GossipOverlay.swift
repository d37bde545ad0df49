// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import CSodium
import Glibc
import GossipCore
import Logging
import NIOCore
import NetClient
import ServiceKit

/// Runs `GossipMachine`: carries out what it wants by way of aspend-net, which holds the key, the
/// cookie and the connections, keeps its time, and keeps the book of peers. Confined to its event
/// loop.
///
/// A link is one stream to the gossip daemon of a peer, whoever opened it, on which each message is
/// a frame. Two that were opened at once are one too many: the one that the smaller endpoint opened
/// stays.
final class GossipOverlay {
    /// Something about a peer has changed.
    var onChange: () -> Void = {}

    private let loop: any EventLoop
    private let logger: Logger
    private let net: NetControl
    private let netSocketPath: String
    /// Else this is a book of peers and no more: no link is made, none is accepted, nothing is announced.
    private let isGossiping: Bool
    private let epochs: EpochFile
    private let own: EndpointID
    /// What this node says is for the first of them.
    let topics: [GossipTopic]
    private var machine: GossipMachine
    private var random: RandomSource
    private(set) var book = PeerBook()
    private var standings: [EndpointID: PeerStanding] = [:]
    private var links: [EndpointID: Link] = [:]
    private var dialling: Set<EndpointID> = []
    private var inputs: [GossipInput] = []
    private var isStepping = false
    private var isStopped = false
    private var timer: (at: MonotonicInstant, task: Scheduled<Void>)?
    private var clock: RepeatedTask?
    private var telling: Scheduled<Void>?
    private var complaints = TokenBucket()
    /// At those who were found and have not answered.
    private var looks = 0

    private struct Link {
        var frames: FrameChannel
        var isOurs: Bool
    }

    /// The wall clock is looked at this often.
    private static let clockInterval = TimeAmount.seconds(10)
    private static let looksPerWrongCookie = 30
    /// How long changes of addresses are gathered before aspend-net is told.
    private static let tellingDelay = TimeAmount.milliseconds(20)
    /// Bytes on their way to one peer that do not read, from which on its link is cut.
    private static let pendingBytesMax = 256 * 1024
    /// How often the journal is told of peers that are not listened to.
    private static let complaintRate = Rate(every: .seconds(60), burst: 4)
    /// Bytes of a link that are read at a time.
    private static let readBytes = 32 * 1024

    init(
        own: EndpointID, topics: [GossipTopic], loop: any EventLoop, logger: Logger,
        net: NetControl, netSocketPath: String, epochs: EpochFile, isGossiping: Bool = true
    ) {
        self.epochs = epochs
        self.own = own
        self.topics = topics
        self.loop = loop
        self.logger = logger
        self.net = net
        self.netSocketPath = netSocketPath
        self.isGossiping = isGossiping
        random = RandomSource(seed: .random(in: .min ... .max))
        var configuration = GossipConfiguration(
            own: own, topic: topics[0], epoch: epochs.begin(wall: Self.wallMilliseconds()))
        configuration.acceptedTopics = Array(topics.dropFirst())
        machine = GossipMachine(configuration: configuration) { signature, text, key in
            Self.isSignature(signature, of: text, by: key)
        }
    }

    func start() {
        guard isGossiping else { return }
        let box = NIOLoopBound(self, eventLoop: loop)
        clock = loop.scheduleRepeatedTask(initialDelay: .zero, delay: Self.clockInterval) { _ in
            box.value.step(.wallClock(milliseconds: Self.wallMilliseconds()))
            box.value.tryAgain()
            box.value.measure()
        }
    }

    /// Whom others have named and nothing was heard of yet may have become reachable. One whose cookie is
    /// another is asked less often: somebody has to change it first.
    private func tryAgain() {
        looks += 1
        for entry in book.all where !entry.isConnected && standings[entry.endpoint] == nil {
            guard !entry.addresses.isEmpty, entry.reason != .gone,
                entry.reason != .wrongCookie || looks % Self.looksPerWrongCookie == 0
            else { continue }
            step(.contact(entry.endpoint))
        }
    }

    func stop() {
        isStopped = true
        clock?.cancel()
        timer?.task.cancel()
        telling?.cancel()
        for link in links.values { link.frames.close() }
        links = [:]
    }

    // MARK: - What it is told

    func describe(_ description: NodeDescription) { step(.described(description)) }

    /// Somebody says that there is a node; nothing of it is proved.
    func found(
        _ endpoint: EndpointID, node: NodeID?, addresses: [String], by source: PeerSources
    ) {
        guard endpoint != own else { return }
        book.found(endpoint, addresses: addresses, by: source, node: node, now: now())
        tellNet()
        if !addresses.isEmpty { step(.contact(endpoint)) }
        onChange()
    }

    /// Who named it before does so no more.
    func lost(_ endpoint: EndpointID, by source: PeerSources) {
        guard book[endpoint] != nil else { return }
        book.found(endpoint, addresses: [], by: source, now: now())
        tellNet()
        onChange()
    }

    /// Without gossip it is net's connections that show whom this node reaches.
    func reached(_ endpoint: EndpointID, is up: Bool) {
        guard !isGossiping, book[endpoint] != nil else { return }
        if up {
            book.connected(endpoint, address: nil, roundTrip: nil, now: now())
        } else {
            let address = book[endpoint]?.addresses.first?.text
            book.disconnected(
                endpoint, address: address,
                reason: address.map { .unreachable(address: $0) } ?? .noAddress, now: now())
        }
    }

    /// Those whom somebody has named who is believed that far, and who are not heard of. (What anybody on
    /// the link can claim makes this node ask nobody else.)
    var missing: [EndpointID] {
        book.all.filter {
            guard !$0.isConnected, standings[$0.endpoint] != .alive else { return false }
            let isNamed = !$0.sources.isDisjoint(with: [.manual, .ticket])
            return isNamed || $0.sources.contains(.gossip) && $0.reason != .gone
        }.map(\.endpoint)
    }

    /// Replaces the list of members; this node may be among them.
    func setMembers(_ members: [NetMember]) {
        for member in members where member.endpoint != own {
            book.found(member.endpoint, addresses: [], by: [], node: member.node, now: now())
        }
        step(.members(members.map { GossipMember(endpoint: $0.endpoint, node: $0.node) }))
        onChange()
    }

    /// A stream that a peer has opened; its first frame says whose it is.
    func accept(_ channel: any Channel) throws {
        guard isGossiping else {
            throw AspenError(.unavailable, "gossip is switched off on this node")
        }
        let frames = FrameChannel(frameBytesMax: GossipLimits.messageBytesMax)
        frames.onFrame = { [weak self] frames, frame in
            guard let self, !isStopped,
                let principal = try? Principal(decoding: Array(buffer: frame)),
                principal.alpn == .gossip, principal.hasProvedCookie, principal.endpoint != own
            else { return frames.close() }
            adopt(
                frames, of: principal.endpoint, isOurs: false, address: principal.remoteAddress)
        }
        try channel.pipeline.syncOperations.addHandler(frames)
    }

    // MARK: - The machine

    private func step(_ input: GossipInput) {
        guard isGossiping else { return }
        inputs.append(input)
        guard !isStepping, !isStopped else { return }
        isStepping = true
        var effects: [GossipEffect] = []
        while !inputs.isEmpty {
            let next = inputs.removeFirst()
            effects.removeAll(keepingCapacity: true)
            machine.step(next, now: now(), random: &random, into: &effects)
            for effect in effects { carryOut(effect) }
        }
        isStepping = false
        setTimer()
    }

    private func carryOut(_ effect: GossipEffect) {
        switch effect {
        case .send(let bytes, let peer): send(bytes, to: peer)
        case .connect(let peer): dial(peer)
        case .pause(let peer): links[peer]?.frames.pause()
        case .resume(let peer): resume(peer)
        case .shunned(let peer, let refusal): shun(peer, refusal)
        case .disconnect(let peer):
            let link = links.removeValue(forKey: peer)
            link?.frames.close()
            book.released(peer)
            onChange()
        case .sign(let bytes, let ticket):
            net.ask(.sign(context: ServiceName.gossip.name, bytes: bytes)) { [weak self] reply in
                guard case .signature(let signature) = reply else {
                    self?.step(.signed(ticket, signature: nil))
                    return
                }
                self?.step(.signed(ticket, signature: signature))
            }
        case .epochRaised(let epoch):
            epochs.keep(epoch)
            logger.notice(
                "peers have known a later start of this node than is on its disk",
                metadata: ["epoch": "\(epoch)"])
        case .learned(let announcement, _):
            // What it calls itself may be another's number.
            let node = machine.record(of: announcement.endpoint)?.node
            book.announced(announcement, node: node, now: now())
            tellNet()
            onChange()
        case .standing(let peer, let standing): stands(peer, standing)
        case .conflict(let node, let holder, let claimant):
            logger.warning(
                "two nodes call themselves \(node): the second one is not believed",
                metadata: ["holder": "\(holder)", "claimant": "\(claimant)"])
        case .refused(let refusal, let about, let from):
            logger.debug(
                "refused an announcement: \(refusal)",
                metadata: ["about": "\(about.map { "\($0)" } ?? "")", "peer": "\(from)"])
        }
    }

    /// Also when it comes again and again, which does not fill a log.
    private func shun(_ peer: EndpointID, _ refusal: GossipRefusal) {
        let reason = DisconnectionReason.shunned(refusal)
        book.disconnected(peer, address: nil, reason: reason, now: now())
        logger.log(
            level: complaints.take(Self.complaintRate, now: now()) ? .notice : .debug,
            "no gossip with a peer: \(reason.text)", metadata: ["peer": "\(peer)"])
    }

    /// Not from within a step: what was read already comes at once, and has to find the machine at rest.
    private func resume(_ peer: EndpointID) {
        guard let frames = links[peer]?.frames else { return }
        let box = NIOLoopBound(frames, eventLoop: loop)
        loop.execute { box.value.resume() }
    }

    private func stands(_ peer: EndpointID, _ standing: PeerStanding) {
        standings[peer] = standing == .gone ? nil : standing
        if standing == .gone { book.isGone(peer) }
        logger.debug("a peer is \(standing)", metadata: ["peer": "\(peer)"])
        onChange()
    }

    private func setTimer() {
        let deadline = machine.deadline
        guard deadline != timer?.at, !isStopped else { return }
        timer?.task.cancel()
        let box = NIOLoopBound(self, eventLoop: loop)
        timer = deadline.map { at in
            let task = loop.scheduleTask(deadline: .uptimeNanoseconds(at.nanoseconds)) {
                box.value.timer = nil
                box.value.step(.timeout)
            }
            return (at, task)
        }
    }

    // MARK: - Links

    private func dial(_ peer: EndpointID) {
        dialling.insert(peer)
        telling?.cancel()
        tellNetNow()
        let frames = FrameChannel(frameBytesMax: GossipLimits.messageBytesMax)
        let box = NIOLoopBound((self, frames), eventLoop: loop)
        // Net knows the addresses before it is asked for the stream, on another connection.
        net.ask(.identify) { [netSocketPath, loop] _ in
            NetStream.open(
                eventLoop: loop, socketPath: netSocketPath, endpoint: peer, alpn: .gossip,
                service: .gossip
            ) { try $0.pipeline.syncOperations.addHandler(box.value.1) }
            .whenComplete { result in
                let (overlay, frames) = box.value
                switch result {
                case .success: overlay.opened(frames, to: peer)
                case .failure(let error): overlay.dialFailed(peer, error)
                }
            }
        }
    }

    private func opened(_ frames: FrameChannel, to peer: EndpointID) {
        guard !isStopped, frames.channel?.isActive == true else {
            frames.close()
            return dialFailed(peer, AspenError(.unavailable, "the stream was closed at once"))
        }
        adopt(frames, of: peer, isOurs: true, address: nil)
    }

    private func dialFailed(_ peer: EndpointID, _ error: any Error) {
        let error = (error as? AspenError) ?? AspenError(.unavailable, "\(error)")
        logger.debug("cannot reach a peer: \(error.message)", metadata: ["peer": "\(peer)"])
        // Answered, if the peer came instead.
        guard dialling.remove(peer) != nil, !isStopped else { return }
        let address = book[peer]?.addresses.first?.text
        let reason: DisconnectionReason =
            switch (error.code, address) {
            case (.unauthenticated, _): .wrongCookie
            case (_, nil): .noAddress
            case (.permissionDenied, let address?): .refusedKey(address: address)
            case (_, let address?): .unreachable(address: address)
            }
        book.disconnected(peer, address: address, reason: reason, now: now())
        step(.connectFailed(peer))
        onChange()
    }

    private func adopt(
        _ frames: FrameChannel, of peer: EndpointID, isOurs: Bool, address: String?
    ) {
        if let existing = links[peer] {
            if existing.isOurs == (own < peer), existing.isOurs != isOurs {
                dialling.remove(peer)
                return frames.close()
            }
            links[peer] = nil
            existing.frames.close()
        }
        links[peer] = Link(frames: frames, isOurs: isOurs)
        dialling.remove(peer)
        try? frames.channel?.syncOptions?.setOption(
            .writeBufferWaterMark,
            value: ChannelOptions.Types.WriteBufferWaterMark(
                low: Self.pendingBytesMax / 2, high: Self.pendingBytesMax))
        // What is read before it can be paused waits in memory here.
        try? frames.channel?.syncOptions?.setOption(.maxMessagesPerRead, value: 1)
        try? frames.channel?.syncOptions?.setOption(
            .recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: Self.readBytes))
        frames.onFrame = { [weak self] frames, frame in
            guard let self, links[peer]?.frames === frames else { return }
            step(.received(Array(buffer: frame), from: peer))
        }
        frames.onClosed = { [weak self] frames, _ in
            guard let self, links[peer]?.frames === frames else { return }
            links[peer] = nil
            book.released(peer)
            step(.linkDown(peer))
            onChange()
        }
        book.found(peer, addresses: [], by: [], now: now())
        book.connected(peer, address: address, roundTrip: nil, now: now())
        step(.linkUp(peer))
        measure()
        onChange()
    }

    /// Where those are with whom there are links, and how far away.
    private func measure() {
        guard !links.isEmpty else { return }
        net.ask(.listConnections) { [weak self] reply in
            guard let self, case .connections(let connections) = reply else { return }
            for connection in connections where links[connection.endpoint] != nil {
                book.inUse(
                    connection.endpoint, address: connection.address,
                    roundTrip: .microseconds(Int64(connection.roundTripMicroseconds)), now: now())
            }
        }
    }

    private func send(_ bytes: [UInt8], to peer: EndpointID) {
        guard let link = links[peer] else { return }
        link.frames.send { $0.writeBytes(bytes) }
        // Who does not read for so long is no neighbour.
        if !link.frames.isWritable { link.frames.close() }
    }

    // MARK: - What others hear of it

    /// Everybody with the addresses where they may be, the best first. Those who have proved themselves
    /// come before those of whom somebody on the link has told: net keeps a bounded number.
    private var known: [ConfiguredPeer] {
        let all = book.all.filter { !$0.addresses.isEmpty && $0.reason != .gone }
        let isProved = { [self] (entry: PeerBook.Entry) in
            entry.isConnected || standings[entry.endpoint] != nil
        }
        return (all.filter(isProved) + all.filter { !isProved($0) }).map {
            ConfiguredPeer(
                node: $0.node,
                peer: NetPeer(endpoint: $0.endpoint, addresses: $0.addresses.map(\.text)))
        }
    }

    private func tellNet() {
        guard telling == nil, !isStopped else { return }
        let box = NIOLoopBound(self, eventLoop: loop)
        telling = loop.scheduleTask(in: Self.tellingDelay) { box.value.tellNetNow() }
    }

    private func tellNetNow() {
        telling = nil
        net.setLearned(known)
    }

    var linkCount: Int { links.count }
    var counters: GossipCounters { machine.counters }

    /// What `aspen-cli peers list` shows, ascending by endpoint.
    var lines: [PeerLine] {
        let now = now()
        return book.all.map { entry in
            let standing =
                switch standings[entry.endpoint] {
                case .alive: "alive"
                case .suspected: "suspected"
                case .gone, nil: "unknown"
                }
            let roundTrip = entry.isConnected ? entry.addresses.first?.roundTrip ?? .zero : .zero
            // Each announcement counts, not only those that say something new.
            let heard = [entry.lastSeen, machine.record(of: entry.endpoint)?.heardAt]
            let lastSeen = heard.compactMap { $0 }.max()
            return PeerLine(
                endpoint: entry.endpoint, node: entry.node, sources: entry.sources.names,
                addresses: entry.addresses.map(\.text), isConnected: entry.isConnected,
                standing: standing,
                roundTripMicroseconds: UInt64(roundTrip / .microseconds(1)),
                lastSeenMilliseconds: lastSeen.map {
                    UInt64(max(.zero, now - $0) / .milliseconds(1))
                }, version: entry.version ?? "", reason: entry.reason?.text ?? "")
        }
    }

    // MARK: - Outside

    private func now() -> MonotonicInstant {
        MonotonicInstant(nanoseconds: NIODeadline.now().uptimeNanoseconds)
    }

    private static func wallMilliseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return UInt64(max(0, time.tv_sec)) * 1000 + UInt64(time.tv_nsec / 1_000_000)
    }

    /// What aspend-net signs for this daemon (see Protocols.md); strict, as RFC 8032 allows.
    private static func isSignature(
        _ signature: [UInt8], of text: [UInt8], by key: EndpointID
    ) -> Bool {
        guard signature.count == 64, sodium_init() >= 0 else { return false }
        let signed = Array("aspen signature v1\n\(ServiceName.gossip.name)\n".utf8) + text
        return crypto_sign_verify_detached(
            signature, signed, UInt64(signed.count), key.bytes) == 0
    }
}
