// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// How much each link peer has sent; kept beyond its links, so that a new link is no new allowance.
struct PeerMeters: Sendable {
    struct Meter: Sendable {
        var usedAt: MonotonicInstant
        var quarantineEnds: MonotonicInstant?
        var frames = TokenBucket()
        var verifications = TokenBucket()
        var digests = TokenBucket()
        var joins = TokenBucket()
        var refusals = TokenBucket()
    }

    private var meters: [EndpointID: Meter] = [:]
    var known = TokenBucket()
    var unknown = TokenBucket()

    var count: Int { meters.count }

    func isQuarantined(_ endpoint: EndpointID, _ now: MonotonicInstant) -> Bool {
        meters[endpoint]?.quarantineEnds.map { now < $0 } ?? false
    }

    mutating func quarantine(
        _ endpoint: EndpointID, until: MonotonicInstant, _ now: MonotonicInstant
    ) {
        use(endpoint, now)
        meters[endpoint]?.quarantineEnds = until
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
