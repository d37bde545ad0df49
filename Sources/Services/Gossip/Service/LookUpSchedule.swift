// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DNSWire
import ResolverCore

/// What DNS says of an endpoint.
package enum DNSNews: Equatable, Sendable {
    case found(EndpointID, addresses: [String])
    /// It has said something, and says nothing any more.
    case lost(EndpointID)
}

/// Who is to be looked up in DNS, and when. An answer is good for as long as its records are; when
/// there is none, the next attempt waits, longer each time. Has no clock and no sockets.
package struct LookUpSchedule {
    private struct Entry {
        var nextAt: MonotonicInstant
        var isWanted = true
        var isUnderWay = false
        /// Looks in a row that found nothing.
        var misses = 0
        var isFound = false

        var isReady: Bool { isWanted && !isUnderWay }
    }

    /// Endpoints that are remembered; further ones have to wait until one goes.
    package static let endpointsMax = 512
    /// Look-ups under way.
    package static let underWayMax = 8
    /// Nobody is looked up again sooner, however short a time his records are good for.
    package static let intervalMin = Duration.seconds(5)
    /// After an attempt that found nothing: this, twice as long, … up to the other, each time up to a tenth
    /// more, lest all nodes of a cluster ask together.
    package static let backOffMin = Duration.seconds(5)
    package static let backOffMax = Duration.seconds(120)

    private var entries: [EndpointID: Entry] = [:]
    private var underWay = 0

    package init() {}

    /// Replaces the list of those who are to be looked up. Who is wanted again comes no sooner for it.
    package mutating func want(_ endpoints: some Sequence<EndpointID>, now: MonotonicInstant) {
        for endpoint in entries.keys { entries[endpoint]?.isWanted = false }
        for endpoint in endpoints {
            if entries[endpoint] != nil {
                entries[endpoint]?.isWanted = true
            } else if entries.count < Self.endpointsMax {
                entries[endpoint] = Entry(nextAt: now)
            }
        }
        entries = entries.filter {
            $0.value.isWanted || $0.value.isUnderWay || $0.value.nextAt > now
        }
    }

    /// Whose turn it is; each is under way from here on.
    package mutating func due(now: MonotonicInstant) -> [EndpointID] {
        let ready = entries.filter { $0.value.isReady && $0.value.nextAt <= now }
            .sorted { ($0.value.nextAt, $0.key) < ($1.value.nextAt, $1.key) }
        let chosen = ready.prefix(Self.underWayMax - underWay).map(\.key)
        for endpoint in chosen { entries[endpoint]?.isUnderWay = true }
        underWay += chosen.count
        return chosen
    }

    /// When `due` has something next, unless an answer or `want` comes before; nil: not by itself.
    package var nextAt: MonotonicInstant? {
        underWay < Self.underWayMax
            ? entries.values.filter(\.isReady).map(\.nextAt).min() : nil
    }

    /// The end of a look-up that was `due`.
    package mutating func answered(
        _ endpoint: EndpointID, _ result: LookUpResult, now: MonotonicInstant,
        random: inout RandomSource
    ) -> DNSNews? {
        guard var entry = entries[endpoint], entry.isUnderWay else { return nil }
        entry.isUnderWay = false
        underWay -= 1
        defer { entries[endpoint] = entry }
        if case .records(let records) = result,
            let found = DiscoveryRecord(endpoint, records: records)
        {
            let ttl = Duration.seconds(Int64(records.map(\.ttl).min() ?? 0))
            entry.nextAt = now + max(Self.intervalMin, min(ttl, ResolverLimits.keptMax))
            entry.misses = 0
            entry.isFound = true
            return .found(endpoint, addresses: found.addresses)
        }
        let wait = min(Self.backOffMin * (1 << min(entry.misses, 10)), Self.backOffMax)
        entry.nextAt = now + wait + wait * Int(random.next() >> 32 & 0xff) / 2560
        entry.misses += 1
        // Where a server cannot be asked, what it has said before is still the best that is known.
        if case .failed = result { return nil }
        defer { entry.isFound = false }
        return entry.isFound ? .lost(endpoint) : nil
    }

    /// Whoever heard of what was found has forgotten it: all are due once more.
    package mutating func forget(now: MonotonicInstant) {
        for endpoint in entries.keys where entries[endpoint]?.isFound == true {
            entries[endpoint]?.nextAt = now
        }
    }

    package func checkInvariants() {
        precondition(entries.count <= Self.endpointsMax, "endpoints are bounded")
        precondition(
            underWay == entries.values.count(where: \.isUnderWay) && underWay <= Self.underWayMax,
            "look-ups under way are counted and bounded")
    }
}
