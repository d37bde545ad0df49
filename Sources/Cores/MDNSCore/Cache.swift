// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import DNSWire

/// How long something heard is believed, and when it is asked for again: at 80, 85, 90 and 95 % of its
/// time and up to 2 % later (RFC 6762 section 5.2).
struct Lease: Equatable, Sendable {
    private(set) var heardAt: MonotonicInstant
    private(set) var expires: MonotonicInstant
    private var ttl: Duration
    private var refreshes = 0
    private(set) var nextRefresh: MonotonicInstant?

    static let refreshesMax = 4

    init(ttl seconds: UInt32, _ now: MonotonicInstant, _ random: inout RandomSource) {
        ttl = .seconds(Int64(min(seconds, MDNSLimits.ttlMax)))
        heardAt = now
        expires = now + ttl
        planRefresh(&random)
    }

    private mutating func planRefresh(_ random: inout RandomSource) {
        guard refreshes < Self.refreshesMax else {
            nextRefresh = nil
            return
        }
        let percent = ttl / 100
        let from = percent * (80 + 5 * refreshes)
        nextRefresh = heardAt + random.uniform(from, from + percent * 2)
    }

    /// Has been asked for.
    mutating func refreshed(_ random: inout RandomSource) {
        refreshes += 1
        planRefresh(&random)
    }

    func isRefreshDue(_ now: MonotonicInstant) -> Bool { nextRefresh.map { $0 <= now } ?? false }

    /// Will be forgotten then, unless it is heard again.
    mutating func end(at instant: MonotonicInstant) {
        expires = min(expires, instant)
        nextRefresh = nil
    }

    /// A record may be named as known while at least half of its time is left (RFC 6762 section 7.1).
    func isNamedAsKnown(_ now: MonotonicInstant) -> Bool { expires - now > ttl / 2 }

    func secondsLeft(_ now: MonotonicInstant) -> UInt32 {
        UInt32(clamping: (expires - now).nanoseconds / 1_000_000_000)
    }

    var deadline: MonotonicInstant { min(expires, nextRefresh ?? expires) }
}

/// What a node's TXT record says.
struct NodeText: Equatable, Sendable {
    let endpoint: EndpointID
    let node: NodeID
    let version: UInt32

    /// - Returns: nil if it does not say who it is. Of a key given twice the first counts, and case
    ///   does not (RFC 6763 section 6.4).
    init?(_ strings: [[UInt8]]) {
        var values: [String: String] = [:]
        for string in strings.prefix(32) {
            guard let equals = string.firstIndex(of: UInt8(ascii: "=")) else { continue }
            let key = String(decoding: string[..<equals], as: UTF8.self).lowercased()
            if values[key] == nil {
                values[key] = String(decoding: string[(equals + 1)...], as: UTF8.self)
            }
        }
        guard let endpoint = values["id"].flatMap({ EndpointID($0) }),
            let node = values["node"].flatMap({ UInt64($0) }), node > 0,
            let version = values["v"].flatMap({ UInt32($0) }), version > 0
        else { return nil }
        self.endpoint = endpoint
        self.node = NodeID(node)
        self.version = version
    }
}

/// One instance of the service, as far as it is known.
struct Instance: Sendable {
    let name: DNSName
    /// Who brought it first.
    let source: IPAddress
    var pointer: Lease
    var service: (port: UInt16, host: DNSName, lease: Lease)?
    var text: (text: NodeText, lease: Lease)?
    /// Somebody could not reach it, and it has not answered since.
    var isDoubted = false
    /// When what is missing is asked for next.
    var nextResolve: MonotonicInstant?
    private var resolveWait = Duration.seconds(1)

    private static let resolveWaitMax = Duration.seconds(60)

    init(name: DNSName, source: IPAddress, pointer: Lease) {
        self.name = name
        self.source = source
        self.pointer = pointer
    }

    /// Asks again after 1, 2, 4 … 60 s.
    mutating func asked(_ now: MonotonicInstant) {
        nextResolve = now + resolveWait
        resolveWait = min(resolveWait * 2, Self.resolveWaitMax)
    }

    /// Nothing is missing.
    mutating func resolved() {
        nextResolve = nil
        resolveWait = .seconds(1)
    }

    var deadline: MonotonicInstant {
        var earliest = pointer.deadline
        if let service { earliest = min(earliest, service.lease.deadline) }
        if let text { earliest = min(earliest, text.lease.deadline) }
        if let nextResolve { earliest = min(earliest, nextResolve) }
        return earliest
    }
}

/// The addresses of one host that instances are on.
struct Host: Sendable {
    var addresses: [(address: IPAddress, lease: Lease)] = []

    var deadline: MonotonicInstant? { addresses.map(\.lease.deadline).min() }
}
