// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// One proved connection.
struct Link: Equatable, Sendable {
    let id: LinkID
    let name: LinkName
    let isInbound: Bool
    let incarnation: UInt64
    let provedAt: MonotonicInstant
    var service: ServiceState
    /// Since when it carries no streams; nil while it does.
    var idleSince: MonotonicInstant?
}

extension Link {
    /// Whether the peer has no use for `old` any more, now that this one is proved. A net dials only
    /// while it has no connection: one that dials us long after `old` was proved has lost that
    /// one, though we may not know (a process that was stopped wakes with connections that its peers
    /// have given up in silence). Soon after, the two dials may have crossed, and both live.
    func supersedes(_ old: Link, _ configuration: LinkConfiguration) -> Bool {
        old.incarnation != incarnation
            || (isInbound && provedAt - old.provedAt > configuration.crossingMax)
    }
}

/// What is known of one peer.
struct PeerLink: Sendable {
    var memberAddresses: [String]?
    var configuredAddresses: [String]?
    var learnedAddresses: [String] = []
    /// Proved connections of one incarnation, the one to use first.
    var links: [Link] = []
    var announcedPrimary: LinkID?
    /// That have ended here, the latest last.
    var over: [LinkName] = []
    /// That are running: more than one when new addresses were learned meanwhile.
    var dials = 0
    /// When a dial was last begun beside another.
    var lastExtraDial: MonotonicInstant?
    var nextDial: MonotonicInstant?
    var lastDial: MonotonicInstant?
    var failures = 0
    /// The last dial was answered with a no.
    var isRefused = false
    var lastFailure: String?
    var standing = LinkStanding.pending
    var graceEnds: MonotonicInstant?

    init(graceEnds: MonotonicInstant) { self.graceEnds = graceEnds }

    mutating func isOver(_ name: LinkName) {
        over.removeAll { $0 == name }
        over.append(name)
        if over.count > LinkName.overMax { over.removeFirst() }
    }

    var isDialling: Bool { dials > 0 }
    var isMember: Bool { memberAddresses != nil }
    var isNamed: Bool { memberAddresses != nil || configuredAddresses != nil }

    /// A membership is newer than a setting: its addresses come first. What was learned comes after both, for
    /// anybody on the link may have said it: it takes the place of none of them, but for a few that it
    /// has for itself.
    var addresses: [String] {
        var all = memberAddresses ?? []
        all += (configuredAddresses ?? []).filter { !all.contains($0) }
        let learned = learnedAddresses.filter { !all.contains($0) }
        let room = Limits.addressesMax - min(learned.count, Self.learnedPlaces)
        return Array((all.prefix(room) + learned).prefix(Limits.addressesMax))
    }

    private static let learnedPlaces = 4

    /// Whether this node dials it.
    func isWanted(isClosed: Bool) -> Bool {
        (isMember || (isNamed && !isClosed)) && hasAddresses
    }

    private var hasAddresses: Bool {
        memberAddresses?.isEmpty == false || configuredAddresses?.isEmpty == false
            || !learnedAddresses.isEmpty
    }

    /// Named, or named anew: an old back-off says nothing about new addresses.
    mutating func named(
        _ now: MonotonicInstant, delay: Duration, _ configuration: LinkConfiguration
    ) {
        if case .down = standing, links.isEmpty {
            standing = .pending
            graceEnds = now + configuration.redialGrace
        }
        guard links.isEmpty, !isDialling else { return }
        failures = 0
        isRefused = false
        nextDial = now + delay
    }

    /// The next wait: exponential, drawn between half and whole.
    mutating func nextDelay(
        from least: Duration, to most: Duration, _ random: inout RandomSource
    ) -> Duration {
        let doublings = min(failures, 10)
        failures += 1
        let whole = min(least * (1 << doublings), most)
        return random.uniform(whole / 2, whole)
    }

    /// Superfluous connections that this side dialled and that have been idle for long enough.
    func retired(_ now: MonotonicInstant, _ configuration: LinkConfiguration) -> [LinkID] {
        links.dropFirst().compactMap { link in
            guard !link.isInbound, let since = link.idleSince,
                since + configuration.retireAfter <= now
            else { return nil }
            return link.id
        }
    }

    func deadline(_ configuration: LinkConfiguration) -> MonotonicInstant? {
        var earliest = graceEnds
        func consider(_ instant: MonotonicInstant?) {
            guard let instant else { return }
            earliest = min(earliest ?? instant, instant)
        }
        if links.isEmpty, !isDialling { consider(nextDial) }
        for link in links.dropFirst() where !link.isInbound {
            consider(link.idleSince.map { $0 + configuration.retireAfter })
        }
        return earliest
    }
}

extension LinkConfiguration {
    func backOff(after failure: DialFailure) -> (least: Duration, most: Duration) {
        switch failure {
        case .unreachable: (backOffMin, backOffMax)
        case .refused: (refusedBackOffMin, refusedBackOffMax)
        case .cookie: (cookieBackOffMin, cookieBackOffMax)
        }
    }
}
