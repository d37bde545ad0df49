// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import DequeModule
import NIOCore
import RaftCore
import ServiceKit

/// Our stream to one peer for one kind of message: dialled, greeted, and dialled again after a loss.
/// What is sent while it is not up is dropped: Raft sends again what matters.
final class OutgoingLane {
    /// Unsent bytes above which messages are dropped.
    static let controlBytesMax = 4_000_000
    static let bulkBytesMax = 64_000_000
    /// Messages that wait for a write to become durable.
    static let heldMax = 100_000
    static let backOffMin = TimeAmount.milliseconds(10)
    static let backOffMax = TimeAmount.seconds(1)
    /// Time for the peer to answer our hello.
    static let greetingTimeout = TimeAmount.seconds(5)

    enum State {
        case idle
        case dialling
        case greeting(FrameChannel)
        case up(FrameChannel)
    }

    let node: NodeID
    let lane: Lane
    private(set) var state = State.idle
    /// Who answered the last hello.
    private(set) var remote: ReplicaID?
    /// Messages dropped because the lane was down or full.
    private(set) var dropped: UInt64 = 0
    /// Until its stream is closed, which may be after its node has ended.
    private let links: PeerLinks
    private var held: Deque<(message: Message, after: DurabilityTicket?)> = []
    private var backOff = OutgoingLane.backOffMin
    private var retry: Scheduled<Void>?
    private var greetingTimer: Scheduled<Void>?
    private var isEnded = false

    init(node: NodeID, lane: Lane, links: PeerLinks) {
        self.node = node
        self.lane = lane
        self.links = links
    }

    var channel: FrameChannel? {
        if case .up(let frames) = state { return frames }
        return nil
    }

    // MARK: - Sending

    /// Sends when `after` is durable; nothing overtakes on this lane.
    func send(_ message: Message, after: DurabilityTicket?, durable: DurabilityTicket) {
        guard let channel else {
            dropped += 1
            return
        }
        if held.isEmpty, after.map({ $0 <= durable }) ?? true {
            write(message, on: channel)
        } else if held.count < Self.heldMax {
            held.append((message, after))
        } else {
            dropped += 1
        }
    }

    func release(durable: DurabilityTicket) {
        while let first = held.first, first.after.map({ $0 <= durable }) ?? true {
            held.removeFirst()
            if let channel { write(first.message, on: channel) } else { dropped += 1 }
        }
    }

    private func write(_ message: Message, on channel: FrameChannel) {
        guard channel.isWritable else {
            dropped += 1
            return
        }
        channel.send { PeerFrame.message(message).write(to: &$0) }
    }

    // MARK: - The stream

    /// Dials unless the stream is up or on its way; at once even if a retry is scheduled.
    func dial() {
        guard case .idle = state, !isEnded, let endpoint = links.dialable(node) else { return }
        retry?.cancel()
        retry = nil
        state = .dialling
        let box = NIOLoopBound(self, eventLoop: links.loop)
        let bytesMax = lane == .bulk ? Self.bulkBytesMax : Self.controlBytesMax
        links.transport.open(endpoint) { channel in
            let frames = FrameChannel()
            frames.onFrame = { box.value.received($1, on: $0) }
            frames.onClosed = { frames, _ in box.value.closed(frames) }
            try channel.syncOptions?.setOption(
                .writeBufferWaterMark,
                value: ChannelOptions.Types.WriteBufferWaterMark(low: bytesMax / 2, high: bytesMax))
            try channel.pipeline.syncOperations.addHandler(frames)
            box.value.greet(frames)
        }.whenFailure { error in
            box.value.failed((error as? AspenError)?.message ?? "\(error)")
        }
    }

    private func greet(_ frames: FrameChannel) {
        guard !isEnded, case .dialling = state else { return frames.close() }
        state = .greeting(frames)
        let hello = links.hello(lane)
        frames.send { PeerFrame.hello(hello).write(to: &$0) }
        let box = NIOLoopBound(self, eventLoop: links.loop)
        greetingTimer = links.loop.scheduleTask(in: Self.greetingTimeout) {
            if case .greeting(let frames) = box.value.state { frames.close() }
        }
    }

    private func failed(_ reason: String) {
        guard !isEnded, case .dialling = state else { return }
        state = .idle
        links.dialFailed(node, reason)
        scheduleRetry()
    }

    private func scheduleRetry() {
        guard !isEnded, retry == nil else { return }
        let box = NIOLoopBound(self, eventLoop: links.loop)
        retry = links.loop.scheduleTask(in: backOff) {
            box.value.retry = nil
            box.value.dial()
        }
        backOff = min(.nanoseconds(backOff.nanoseconds * 2), Self.backOffMax)
    }

    private func received(_ frame: ByteBuffer, on frames: FrameChannel) {
        guard !isEnded else { return }
        let decoded: PeerFrame
        do {
            decoded = try PeerFrame(decoding: frame)
        } catch {
            links.peerIsWrong(node, "sent what we cannot read: \(error)")
            return frames.close()
        }
        switch (state, decoded) {
        case (.greeting(let greeted), .hello(let hello)) where greeted === frames:
            greetingTimer?.cancel()
            if let wrong = links.objection(to: hello, from: node) {
                links.peerIsWrong(node, wrong)
                backOff = Self.backOffMax
                return frames.close()
            }
            state = .up(frames)
            remote = hello.replica
            backOff = Self.backOffMin
            links.laneUp(node, lane)
        case (.greeting, .refused(let code, let text)):
            links.peerIsWrong(node, "refuses us: \(code.name): \(text)")
            frames.close()
        case (.up, .response(let id, let bytes)): links.answered(id, bytes)
        default:
            links.peerIsWrong(node, "answered out of turn")
            frames.close()
        }
    }

    private func closed(_ frames: FrameChannel) {
        greetingTimer?.cancel()
        switch state {
        case .greeting(let own) where own === frames:
            state = .idle
            scheduleRetry()
        case .up(let own) where own === frames:
            state = .idle
            held.removeAll()
            if !isEnded { links.laneDown(node, lane) }
            scheduleRetry()
        default: break
        }
    }

    /// Forgets earlier failures: there is news that the peer can be reached.
    func resetBackOff() { backOff = Self.backOffMin }

    func end() {
        isEnded = true
        retry?.cancel()
        greetingTimer?.cancel()
        held.removeAll()
        switch state {
        case .greeting(let frames), .up(let frames): frames.close()
        case .idle, .dialling: break
        }
        state = .idle
    }
}
