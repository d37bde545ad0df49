// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import NIOCore
import NIOPosix
import ServiceKit

/// Who this node is on the network, as its `aspend-net` says.
package struct NetIdentity: Equatable, Sendable {
    package var endpoint: EndpointID
    /// What others may dial: "192.0.2.1:7001", "[2001:db8::1]:7001".
    package var addresses: [String]
    /// From `--peers` and the ticket that net was started with.
    package var configuredPeers: [ConfiguredPeer]

    package init(endpoint: EndpointID, addresses: [String], configuredPeers: [ConfiguredPeer]) {
        self.endpoint = endpoint
        self.addresses = addresses
        self.configuredPeers = configuredPeers
    }
}

/// The control connection of a daemon to `net.sock`: made again by itself whenever it is lost,
/// after 20 ms, then twice as long each time up to 1 s. Confined to its event loop: create, call
/// and release it there.
///
/// For the raft daemon this connection is also its sign of life. From the first `setPeers` on,
/// streams from other machines are joined to it, and the end of the connection is what makes net
/// tell every peer `SERVICE_GONE`. So it calls `setPeers` at start, with an empty open list as long
/// as it belongs to no cluster.
package final class NetControl {
    /// Identified and subscribed; called each time the connection has been made (again).
    package var onConnected: (NetIdentity) -> Void = { _ in }
    /// The connection that `onConnected` announced is gone: all streams through net are, too.
    package var onLost: () -> Void = {}
    /// What net says of peers, beginning with the present state of each. `peerUp` for a peer that
    /// is up already means that its service is back after `serviceGone`.
    package var onEvent: (NetEvent) -> Void = { _ in }
    /// Net refuses a request of ours, or does not speak our language; it is tried again later.
    package var onRefused: (AspenError) -> Void = { _ in }

    private static let backOffMin = TimeAmount.milliseconds(20)
    private static let backOffMax = TimeAmount.seconds(1)

    private enum Awaited {
        case done, identity, subscribed
        case answer((NetReply?) -> Void)
    }

    private let eventLoop: any EventLoop
    private let socketPath: String
    private var peers: (list: [NetPeer], isClosed: Bool)?
    private var members: [NetMember]?
    private var learned: [ConfiguredPeer]?
    private var located: [String]?
    private var isStarted = false
    private var isConnecting = false
    private var frames: FrameChannel?
    private var awaited: [Awaited] = []
    private var identity: NetIdentity?
    private var isAnnounced = false
    private var backOff = NetControl.backOffMin
    private var retry: Scheduled<Void>?

    package init(eventLoop: any EventLoop, socketPath: String) {
        self.eventLoop = eventLoop
        self.socketPath = socketPath
    }

    /// True between `onConnected` and `onLost`.
    package var isConnected: Bool { isAnnounced }

    /// Replaces the list of members (see `NetRequest.setPeers`). Remembered, and sent again after
    /// each reconnection, before `onConnected`.
    package func setPeers(_ peers: [NetPeer], isClosed: Bool) {
        eventLoop.preconditionInEventLoop()
        self.peers = (peers, isClosed)
        if let frames { sendPeers(on: frames) }
    }

    /// Replaces the list of who belongs to the cluster (see `NetRequest.members`). Remembered likewise.
    package func setMembers(_ members: [NetMember]) {
        eventLoop.preconditionInEventLoop()
        guard members != self.members else { return }
        self.members = members
        if let frames { sendMembers(on: frames) }
    }

    /// Replaces the list of where peers are said to be (see `NetRequest.learned`). Remembered, and sent
    /// again after each reconnection, before `onConnected`.
    package func setLearned(_ peers: [ConfiguredPeer]) {
        eventLoop.preconditionInEventLoop()
        learned = peers
        if let frames { sendLearned(on: frames) }
    }

    /// Where this node's interfaces are (see `NetRequest.located`). Remembered like the others.
    package func setLocated(_ addresses: [String]) {
        eventLoop.preconditionInEventLoop()
        located = addresses
        if let frames { sendLocated(on: frames) }
    }

    /// Asks something that is answered once.
    /// - Parameter done: with nil when there is no connection, or it is lost before the answer.
    package func ask(_ request: NetRequest, done: @escaping (NetReply?) -> Void) {
        eventLoop.preconditionInEventLoop()
        guard let frames, isAnnounced else { return done(nil) }
        send(request, expecting: .answer(done), on: frames)
    }

    package func start() {
        eventLoop.preconditionInEventLoop()
        guard !isStarted else { return }
        isStarted = true
        connect()
    }

    /// Closes the connection without calling `onLost`; `start` may be called again.
    package func stop() {
        eventLoop.preconditionInEventLoop()
        isStarted = false
        retry?.cancel()
        retry = nil
        isAnnounced = false
        let former = frames
        frames = nil
        former?.close()
        giveUpQuestions()
    }

    // MARK: - The connection

    private func connect() {
        guard isStarted, !isConnecting, frames == nil else { return }
        isConnecting = true
        let box = NIOLoopBound(self, eventLoop: eventLoop)
        ClientBootstrap(group: eventLoop)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let frames = FrameChannel(frameBytesMax: NetRequest.frameBytesMax)
                    frames.onFrame = { box.value.received($1, on: $0) }
                    frames.onClosed = { frames, _ in box.value.closed(frames) }
                    try channel.pipeline.syncOperations.addHandler(frames)
                }
            }
            .connect(unixDomainSocketPath: socketPath)
            .whenComplete { result in
                switch result {
                case .success(let channel): box.value.connected(channel)
                case .failure: box.value.failed()
                }
            }
    }

    private func connected(_ channel: any Channel) {
        isConnecting = false
        guard isStarted,
            let frames = try? channel.pipeline.syncOperations.handler(type: FrameChannel.self),
            channel.isActive
        else {
            channel.close(promise: nil)
            return failed()
        }
        self.frames = frames
        identity = nil
        sendPeers(on: frames)
        sendMembers(on: frames)
        sendLearned(on: frames)
        sendLocated(on: frames)
        send(.identify, expecting: .identity, on: frames)
        send(.subscribe, expecting: .subscribed, on: frames)
    }

    private func sendPeers(on frames: FrameChannel) {
        guard let peers else { return }
        send(
            .setPeers(peers: peers.list, isClosed: peers.isClosed), expecting: .done,
            on: frames)
    }

    private func sendMembers(on frames: FrameChannel) {
        guard let members else { return }
        send(.members(members), expecting: .done, on: frames)
    }

    private func sendLearned(on frames: FrameChannel) {
        guard let learned else { return }
        send(.learned(peers: learned), expecting: .done, on: frames)
    }

    private func sendLocated(on frames: FrameChannel) {
        guard let located else { return }
        send(.located(addresses: located), expecting: .done, on: frames)
    }

    private func send(_ request: NetRequest, expecting: Awaited, on frames: FrameChannel) {
        awaited.append(expecting)
        frames.send { $0.writeBytes(request.encoded()) }
    }

    private func failed() {
        isConnecting = false
        scheduleRetry()
    }

    private func closed(_ frames: FrameChannel) {
        guard self.frames === frames else { return }
        self.frames = nil
        let wasAnnounced = isAnnounced
        isAnnounced = false
        scheduleRetry()
        giveUpQuestions()
        if wasAnnounced { onLost() }
    }

    private func giveUpQuestions() {
        let former = awaited
        awaited.removeAll()
        for case .answer(let done) in former { done(nil) }
    }

    private func scheduleRetry() {
        guard isStarted, retry == nil else { return }
        let box = NIOLoopBound(self, eventLoop: eventLoop)
        retry = eventLoop.scheduleTask(in: backOff) {
            box.value.retry = nil
            box.value.connect()
        }
        backOff = min(
            .nanoseconds(backOff.nanoseconds * 2), NetControl.backOffMax)
    }

    // MARK: - Answers

    private func received(_ frame: ByteBuffer, on frames: FrameChannel) {
        guard self.frames === frames else { return }
        let reply: NetReply
        do {
            reply = try NetReply(decoding: Array(buffer: frame))
        } catch {
            return refuse(
                AspenError(.unsupportedVersion, "net.sock sent what we cannot read: \(error)"),
                frames)
        }
        if case .event(let event) = reply { return onEvent(event) }
        guard !awaited.isEmpty else {
            return refuse(AspenError(.internal, "net.sock answered without a question"), frames)
        }
        switch (awaited.removeFirst(), reply) {
        case (.identity, .identity(let endpoint, let addresses, let configuredPeers)):
            identity = NetIdentity(
                endpoint: endpoint, addresses: addresses, configuredPeers: configuredPeers)
        case (.done, .done): break
        case (.answer(let done), let reply): done(reply)
        case (.subscribed, .done): announce()
        case (_, .failed(let code, let message)): refuse(AspenError(code, message), frames)
        default: refuse(AspenError(.internal, "net.sock answered another question"), frames)
        }
    }

    private func announce() {
        guard let identity else { return }
        backOff = NetControl.backOffMin
        isAnnounced = true
        onConnected(identity)
    }

    private func refuse(_ error: AspenError, _ frames: FrameChannel) {
        // What net refuses now it will refuse in a moment: no hurry.
        backOff = NetControl.backOffMax
        onRefused(error)
        frames.close()
    }
}
