// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// How much each link peer has sent; kept beyond its links, so that a new link is no new allowance.
struct PeerMeters: Sendable {
    struct Meter: Sendable {
        var usedAt: MonotonicInstant
        var quarantine: (ends: MonotonicInstant, why: GossipRefusal)?
        var frames = TokenBucket()
        var bytes = TokenBucket()
        /// Since when it sends as fast as it is read.
        var floodsSince: MonotonicInstant?
        var verifications = TokenBucket()
        var digests = TokenBucket()
        var joins = TokenBucket()
        var refusals = TokenBucket()
    }

    private var meters: [EndpointID: Meter] = [:]
    var known = TokenBucket()
    var unknown = TokenBucket()

    var count: Int { meters.count }

    /// Why it is not listened to now; nil: it is.
    func quarantine(of endpoint: EndpointID, _ now: MonotonicInstant) -> GossipRefusal? {
        guard let quarantine = meters[endpoint]?.quarantine, now < quarantine.ends else {
            return nil
        }
        return quarantine.why
    }

    func isQuarantined(_ endpoint: EndpointID, _ now: MonotonicInstant) -> Bool {
        quarantine(of: endpoint, now) != nil
    }

    mutating func quarantine(
        _ endpoint: EndpointID, until: MonotonicInstant, _ why: GossipRefusal,
        _ now: MonotonicInstant
    ) {
        use(endpoint, now)
        meters[endpoint]?.quarantine = (until, why)
        meters[endpoint]?.floodsSince = nil
    }

    // MARK: - What is read

    /// Counts a frame of `byteCount` that has come.
    mutating func read(_ byteCount: Int, of endpoint: EndpointID, _ now: MonotonicInstant) {
        use(endpoint, now)
        guard var meter = meters[endpoint] else { return }
        let (frames, bytes) = (GossipLimits.frames, GossipLimits.bytes)
        if meter.floodsSince != nil,
            meter.frames.has(frames, count: frames.burst / 2, now: now),
            meter.bytes.has(bytes, count: bytes.burst / 2, now: now)
        {
            meter.floodsSince = nil
        }
        meter.frames.spend(frames, now: now)
        meter.bytes.spend(bytes, count: byteCount, now: now)
        meters[endpoint] = meter
    }

    /// When more is to be read of it; nil: now. For who is being read, room for one frame more, of
    /// whatever length, is enough; who is not is held up until it is worth it.
    func readableAt(
        _ endpoint: EndpointID, isRead: Bool, _ now: MonotonicInstant
    ) -> MonotonicInstant? {
        guard let meter = meters[endpoint] else { return nil }
        let (frames, bytes) = (GossipLimits.frames, GossipLimits.bytes)
        if isRead, meter.frames.has(frames, now: now),
            meter.bytes.has(bytes, count: GossipLimits.messageBytesMax, now: now)
        {
            return nil
        }
        let instant = max(
            meter.frames.availableAt(frames, count: GossipLimits.framesPerTurn, now: now),
            meter.bytes.availableAt(bytes, count: GossipLimits.bytesPerTurn, now: now))
        return instant == now ? nil : instant
    }

    /// It has to wait: for how long that has been so.
    mutating func holdUp(_ endpoint: EndpointID, _ now: MonotonicInstant) -> Duration {
        use(endpoint, now)
        let since = meters[endpoint]?.floodsSince ?? now
        meters[endpoint]?.floodsSince = since
        return now - since
    }

    mutating func take(
        _ bucket: WritableKeyPath<Meter, TokenBucket>, _ rate: Rate, of endpoint: EndpointID,
        count: Int = 1, _ now: MonotonicInstant
    ) -> Bool {
        use(endpoint, now)
        return meters[endpoint]?[keyPath: bucket].take(rate, count: count, now: now) ?? false
    }

    func has(
        _ bucket: WritableKeyPath<Meter, TokenBucket>, _ rate: Rate, of endpoint: EndpointID,
        _ now: MonotonicInstant
    ) -> Bool {
        meters[endpoint].map { $0[keyPath: bucket].has(rate, now: now) } ?? true
    }

    /// The one that was used least recently makes room for another.
    private mutating func use(_ endpoint: EndpointID, _ now: MonotonicInstant) {
        if meters[endpoint] == nil {
            if meters.count >= GossipLimits.metersMax,
                let oldest = meters.min(by: {
                    ($0.value.usedAt, $0.key) < ($1.value.usedAt, $1.key)
                })
            {
                meters[oldest.key] = nil
            }
            meters[endpoint] = Meter(usedAt: now)
        } else {
            meters[endpoint]?.usedAt = now
        }
    }
}
