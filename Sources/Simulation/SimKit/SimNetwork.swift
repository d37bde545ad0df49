// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine

/// The bytes between nodes. Each ordered pair has a few lanes; a lane is an ordered, reliable stream
/// (as QUIC's are) that a reset cuts, losing what is on its way. In datagram mode frames are lost,
/// duplicated and overtake each other, for the machines' robustness: production has no such thing.
///
/// A stream belongs to an epoch. What was sent in one epoch is never delivered in another.
package struct SimNetwork {
    package struct Conditions: Sendable {
        package var delayMin = Duration.microseconds(50)
        package var delayMax = Duration.microseconds(500)
        /// How often, in a thousand, a piece takes up to `spikeMax` longer.
        package var spikePerMille: UInt64 = 0
        package var spikeMax = Duration.milliseconds(50)
        /// How often, in a thousand, a stream write is cut in two on its way.
        package var splitPerMille: UInt64 = 0
        package var nanosecondsPerByte: UInt64 = 1
        /// Lanes below this number lose, double and reorder their frames.
        package var datagramLanes = 0
        /// Datagram mode only.
        package var lossPerMille: UInt64 = 0
        package var duplicatePerMille: UInt64 = 0

        package init() {}
    }

    package struct Segment: Sendable {
        package var from: Int
        package var to: Int
        package var lane: Int
        package var epoch: UInt64
        package var bytes: [UInt8]
        /// Its place in its stream.
        var sequence: UInt64 = 0
    }

    private struct Stream {
        /// Zero: closed.
        var senderEpoch: UInt64 = 0
        var receiverEpoch: UInt64 = 0
        /// Nothing arrives before this: order.
        var clear = MonotonicInstant.zero
        var sent: UInt64 = 0
        var received: UInt64 = 0
        var assembler = FrameAssembler()

        mutating func restart(_ epoch: UInt64) {
            senderEpoch = epoch
            receiverEpoch = epoch
            sent = 0
            received = 0
            assembler = FrameAssembler()
        }
    }

    package var conditions: Conditions
    /// Where segments wait that have to be scheduled by whoever owns the event heap.
    package var departures: [(at: MonotonicInstant, segment: Segment)] = []

    private let nodes: Int
    private let lanes: Int
    private var streams: [Stream]
    /// Directions that nothing passes, by `from * nodes + to`.
    private var isBlocked: [Bool]
    /// What arrived at a blocked direction, in order: QUIC sends it again.
    private var stalled: [[Segment]]
    /// How much longer each direction takes.
    private var clogs: [Duration]
    private var random: RandomSource

    package init(nodes: Int, lanes: Int, conditions: Conditions, random: RandomSource) {
        self.nodes = nodes
        self.lanes = lanes
        self.conditions = conditions
        self.random = random
        streams = Array(repeating: Stream(), count: nodes * nodes * lanes)
        isBlocked = Array(repeating: false, count: nodes * nodes)
        stalled = Array(repeating: [], count: nodes * nodes)
        clogs = Array(repeating: .zero, count: nodes * nodes)
    }

    // MARK: - Streams

    /// Opens one lane in one direction; what was on its way in an earlier epoch is lost.
    package mutating func open(from: Int, to: Int, lane: Int, epoch: UInt64) {
        precondition(epoch > 0, "epoch zero means closed")
        streams[slot(from, to, lane)].restart(epoch)
    }

    package mutating func close(from: Int, to: Int, lane: Int) {
        streams[slot(from, to, lane)].restart(0)
        stalled[from * nodes + to].removeAll { $0.lane == lane }
    }

    /// As `close`, unless the lane has been opened anew since.
    package mutating func close(from: Int, to: Int, lane: Int, epoch: UInt64) {
        guard streams[slot(from, to, lane)].senderEpoch == epoch else { return }
        close(from: from, to: to, lane: lane)
    }

    package func isOpen(from: Int, to: Int, lane: Int) -> Bool {
        streams[slot(from, to, lane)].senderEpoch != 0
    }

    /// Sends one frame. Without an open stream it is lost.
    package mutating func send(
        from: Int, to: Int, lane: Int, payload: [UInt8], now: MonotonicInstant
    ) {
        let epoch = streams[slot(from, to, lane)].senderEpoch
        guard epoch != 0 else { return }
        var segment = Segment(
            from: from, to: to, lane: lane, epoch: epoch, bytes: FrameAssembler.frame(payload))
        if lane < conditions.datagramLanes {
            sendDatagram(segment, now: now)
            return
        }
        if conditions.splitPerMille > 0, random.chance(conditions.splitPerMille, in: 1000) {
            let cut = random.uniform(0..<segment.bytes.count)
            var head = segment
            head.bytes = Array(segment.bytes[..<cut])
            segment.bytes.removeFirst(cut)
            number(&head)
            depart(head, now: now)
        }
        number(&segment)
        depart(segment, now: now)
    }

    private mutating func number(_ segment: inout Segment) {
        let slot = slot(segment.from, segment.to, segment.lane)
        segment.sequence = streams[slot].sent
        streams[slot].sent += 1
    }

    /// A segment's time has come.
    /// - Returns: the frames that are now complete at the receiver.
    package mutating func arrive(_ segment: Segment, now: MonotonicInstant) -> [[UInt8]] {
        let slot = slot(segment.from, segment.to, segment.lane)
        guard streams[slot].receiverEpoch == segment.epoch else { return [] }
        let direction = segment.from * nodes + segment.to
        if isBlocked[direction] {
            if segment.lane >= conditions.datagramLanes { stalled[direction].append(segment) }
            return []
        }
        if segment.lane < conditions.datagramLanes {
            var whole = FrameAssembler()
            return whole.take(segment.bytes)
        }
        guard segment.sequence == streams[slot].received else {
            // What went before it was held up by a partition and is on its way again.
            depart(segment, now: now)
            return []
        }
        streams[slot].received += 1
        return streams[slot].assembler.take(segment.bytes)
    }

    // MARK: - Partitions

    package func isBlocked(from: Int, to: Int) -> Bool { isBlocked[from * nodes + to] }

    package mutating func block(from: Int, to: Int) { isBlocked[from * nodes + to] = true }

    package mutating func unblock(from: Int, to: Int, now: MonotonicInstant) {
        let direction = from * nodes + to
        isBlocked[direction] = false
        let waiting = stalled[direction]
        stalled[direction].removeAll()
        for segment in waiting { depart(segment, now: now) }
    }

    package mutating func clog(from: Int, to: Int, by delay: Duration) {
        clogs[from * nodes + to] = delay
    }

    package mutating func unclog() { for slot in clogs.indices { clogs[slot] = .zero } }

    // MARK: - Delays

    private func slot(_ from: Int, _ to: Int, _ lane: Int) -> Int {
        (from * nodes + to) * lanes + lane
    }

    private mutating func delay() -> Duration {
        var delay = random.uniform(conditions.delayMin, conditions.delayMax)
        if conditions.spikePerMille > 0, random.chance(conditions.spikePerMille, in: 1000) {
            delay += random.uniform(.zero, conditions.spikeMax)
        }
        return delay
    }

    private mutating func depart(_ segment: Segment, now: MonotonicInstant) {
        let slot = slot(segment.from, segment.to, segment.lane)
        let late = delay() + clogs[segment.from * nodes + segment.to]
        let earliest = max(now + late, streams[slot].clear)
        let cost = UInt64(segment.bytes.count) * conditions.nanosecondsPerByte
        let at = MonotonicInstant(nanoseconds: earliest.nanoseconds + cost)
        streams[slot].clear = at
        departures.append((at, segment))
    }

    private mutating func sendDatagram(_ segment: Segment, now: MonotonicInstant) {
        if random.chance(conditions.lossPerMille, in: 1000) { return }
        departures.append((now + delay(), segment))
        if random.chance(conditions.duplicatePerMille, in: 1000) {
            departures.append((now + delay(), segment))
        }
    }
}
