// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes

/// How an endpoint was found; it may have been in several ways.
package struct PeerSources: OptionSet, Hashable, Sendable {
    package let rawValue: UInt8
    package init(rawValue: UInt8) { self.rawValue = rawValue }
    package static let mdns = PeerSources(rawValue: 1)
    package static let gossip = PeerSources(rawValue: 2)
    package static let dns = PeerSources(rawValue: 4)
    package static let manual = PeerSources(rawValue: 8)
    package static let ticket = PeerSources(rawValue: 16)

    /// In the order of their numbers, as the command line shows them.
    package var names: [String] {
        let all: [(PeerSources, String)] = [
            (.mdns, "mdns"), (.gossip, "gossip"), (.dns, "dns"), (.manual, "manual"),
            (.ticket, "ticket"),
        ]
        return all.filter { contains($0.0) }.map(\.1)
    }
}

/// Where an endpoint may be, and what came of trying. A claim until a connection has proved it.
package struct CandidateAddress: Equatable, Sendable {
    package let text: String
    package fileprivate(set) var sources: PeerSources
    package fileprivate(set) var lastSuccess: MonotonicInstant?
    package fileprivate(set) var lastFailure: MonotonicInstant?
    /// Of the last success.
    package fileprivate(set) var roundTrip: Duration?

    /// The last attempt failed.
    package var isFailing: Bool {
        guard let lastFailure else { return false }
        return lastSuccess.map { $0 < lastFailure } ?? true
    }

    package var isIPv6: Bool { text.hasPrefix("[") }

    /// A person has named it, or the peer itself in what it has signed; not only somebody on the link.
    private var isVouchedFor: Bool { !sources.isDisjoint(with: [.gossip, .manual, .ticket]) }

    /// What worked comes first, the faster one before the slower one; then what was not tried: first what
    /// somebody vouches for, then IPv6 (RFC 8305); then what failed, the longest ago first.
    fileprivate func isBetter(than other: CandidateAddress) -> Bool {
        func rank(_ address: CandidateAddress) -> Int {
            address.isFailing ? 2 : address.lastSuccess == nil ? 1 : 0
        }
        let (mine, theirs) = (rank(self), rank(other))
        if mine != theirs { return mine < theirs }
        if mine == 0, roundTrip != other.roundTrip {
            return (roundTrip ?? .zero) < (other.roundTrip ?? .zero)
        }
        if mine == 2, lastFailure != other.lastFailure {
            return (lastFailure ?? .zero) < (other.lastFailure ?? .zero)
        }
        if isVouchedFor != other.isVouchedFor { return isVouchedFor }
        if isIPv6 != other.isIPv6 { return isIPv6 }
        return text < other.text
    }
}

/// Why there is no connection with a peer.
package enum DisconnectionReason: Equatable, Sendable {
    /// Named, and never seen.
    case neverSeen
    /// Nobody has said where it is.
    case noAddress
    /// One of the two does not have the other's cookie.
    case wrongCookie
    /// Another key answered at this address.
    case refusedKey(address: String)
    /// No answer at this address, which was tried last.
    case unreachable(address: String)
    /// It speaks a version that this program does not know.
    case version(String)
    /// Its clock differs too much: its announcements count as old, or as of the future.
    case clock
    /// It was there, and has been silent for long.
    case gone
    /// Gossip does not listen to it for a while, because of what it has sent.
    case shunned(GossipRefusal)

    /// In the words of `aspen-cli why peer`.
    package var text: String {
        switch self {
        case .neverSeen: "it has never been seen"
        case .noAddress: "no address of it is known"
        case .wrongCookie: "its cookie is another one"
        case .refusedKey(let address): "another key answers at \(address)"
        case .unreachable(let address): "nothing answers at \(address)"
        case .version(let version): "it runs version \(version), which this program does not know"
        case .clock: "its clock and this node's differ by more than is allowed"
        case .gone: "it has been silent for long and counts as gone"
        case .shunned(.flooding):
            "it has sent more than gossip reads, without a rest: no link with it for a minute"
        case .shunned(.forged):
            "it has sent an announcement with a wrong signature: no link with it for a minute"
        case .shunned: "it has sent what is no gossip: no link with it for a minute"
        }
    }
}

/// What a node remembers of its peers: how each was found, where it may be, what came of trying, and
/// why it is not connected. Answers `peers list` and `why peer`.
///
/// Bounded: the one seen least recently that is neither connected nor named by a person makes room.
package struct PeerBook: Sendable {
    package struct Entry: Equatable, Sendable {
        package let endpoint: EndpointID
        package fileprivate(set) var node: NodeID?
        package fileprivate(set) var sources: PeerSources
        /// Of its program, as it says itself.
        package fileprivate(set) var version: String?
        /// Nil: never.
        package fileprivate(set) var lastSeen: MonotonicInstant?
        package fileprivate(set) var isConnected = false
        /// Nil while it is connected.
        package fileprivate(set) var reason: DisconnectionReason? = .neverSeen
        fileprivate var candidates: [CandidateAddress] = []
        fileprivate var namedAt: MonotonicInstant
        /// Where the connection goes, while there is one.
        fileprivate var addressInUse: String?

        /// The one in use first, then the best; at most `Limits.addressesMax`.
        package var addresses: [CandidateAddress] {
            candidates.sorted { left, right in
                let (isLeft, isRight) = (left.text == addressInUse, right.text == addressInUse)
                return isLeft == isRight ? left.isBetter(than: right) : isLeft
            }
        }
    }

    /// Entries of one book.
    package static let entriesMax = 512

    private var entries: [EndpointID: Entry] = [:]

    package init() {}

    package subscript(_ endpoint: EndpointID) -> Entry? { entries[endpoint] }

    /// Ascending by endpoint.
    package var all: [Entry] { entries.values.sorted { $0.endpoint < $1.endpoint } }

    package func entry(of node: NodeID) -> Entry? { all.first { $0.node == node } }

    // MARK: - Finding

    /// Somebody has named an endpoint, with addresses or without. Of its addresses, those that this
    /// source named before and names no more go, unless they have worked last.
    ///
    /// - Returns: false when the book is full of peers that may not go.
    @discardableResult
    package mutating func found(
        _ endpoint: EndpointID, addresses: [String], by source: PeerSources, node: NodeID? = nil,
        now: MonotonicInstant
    ) -> Bool {
        if entries[endpoint] == nil {
            guard makeRoom() else { return false }
            entries[endpoint] = Entry(endpoint: endpoint, sources: source, namedAt: now)
        }
        guard var entry = entries[endpoint] else { return false }
        entry.sources.formUnion(source)
        entry.namedAt = now
        if let node { entry.node = node }
        for place in entry.candidates.indices
        where !addresses.contains(entry.candidates[place].text) {
            entry.candidates[place].sources.subtract(source)
        }
        entry.candidates.removeAll {
            $0.sources.isEmpty && ($0.isFailing || $0.lastSuccess == nil)
        }
        for text in addresses {
            if let place = entry.candidates.firstIndex(where: { $0.text == text }) {
                entry.candidates[place].sources.formUnion(source)
            } else {
                entry.candidates.append(CandidateAddress(text: text, sources: source))
            }
        }
        if entry.candidates.count > Limits.addressesMax {
            entry.candidates = entry.addresses
            // What is new has a try before what has failed.
            entry.candidates.removeLast(entry.candidates.count - Limits.addressesMax)
        }
        entries[endpoint] = entry
        return true
    }

    /// What an announcement says of its node; `node`: its number, unless that is another's.
    package mutating func announced(
        _ announcement: Announcement, node: NodeID?, now: MonotonicInstant
    ) {
        guard
            found(
                announcement.endpoint, addresses: announcement.addresses, by: .gossip, now: now)
        else { return }
        entries[announcement.endpoint]?.node = node
        let version = announcement.programVersion
        entries[announcement.endpoint]?.version = version.isEmpty ? nil : version
        seen(announcement.endpoint, now: now)
    }

    package mutating func seen(_ endpoint: EndpointID, now: MonotonicInstant) {
        guard entries[endpoint] != nil else { return }
        entries[endpoint]?.lastSeen = now
        if entries[endpoint]?.reason == .neverSeen || entries[endpoint]?.reason == .gone {
            let isWithout = entries[endpoint]?.candidates.isEmpty ?? true
            entries[endpoint]?.reason = isWithout ? .noAddress : nil
        }
    }

    // MARK: - Trying

    /// - Parameter roundTrip: of the handshake; nil for a connection that the peer made.
    package mutating func connected(
        _ endpoint: EndpointID, address: String?, roundTrip: Duration?, now: MonotonicInstant
    ) {
        entries[endpoint]?.isConnected = true
        entries[endpoint]?.reason = nil
        entries[endpoint]?.lastSeen = now
        guard let address, let place = place(of: address, endpoint) else { return }
        entries[endpoint]?.candidates[place].lastSuccess = now
        entries[endpoint]?.candidates[place].roundTrip = roundTrip
    }

    /// Where the connection with it goes now, and how long the way there and back takes.
    package mutating func inUse(
        _ endpoint: EndpointID, address: String, roundTrip: Duration, now: MonotonicInstant
    ) {
        guard var entry = entries[endpoint], entry.isConnected else { return }
        if !entry.candidates.contains(where: { $0.text == address }) {
            // Nobody has named it, and it has proved itself.
            if entry.candidates.count >= Limits.addressesMax {
                entry.candidates.sort { $0.isBetter(than: $1) }
                entry.candidates.removeLast()
            }
            entry.candidates.append(CandidateAddress(text: address, sources: []))
        }
        for place in entry.candidates.indices where entry.candidates[place].text == address {
            entry.candidates[place].lastSuccess = now
            entry.candidates[place].roundTrip = roundTrip
        }
        entry.addressInUse = address
        entries[endpoint] = entry
    }

    /// A connection has ended, or an attempt has failed; `address`: the one that was tried.
    package mutating func disconnected(
        _ endpoint: EndpointID, address: String?, reason: DisconnectionReason,
        now: MonotonicInstant
    ) {
        entries[endpoint]?.isConnected = false
        entries[endpoint]?.addressInUse = nil
        entries[endpoint]?.reason = reason
        guard let address, let place = place(of: address, endpoint) else { return }
        entries[endpoint]?.candidates[place].lastFailure = now
    }

    /// There is no use for a connection any more; nothing is wrong with the peer.
    package mutating func released(_ endpoint: EndpointID) {
        entries[endpoint]?.isConnected = false
        entries[endpoint]?.addressInUse = nil
    }

    package mutating func isGone(_ endpoint: EndpointID) {
        guard entries[endpoint]?.isConnected == false else { return }
        entries[endpoint]?.reason = .gone
    }

    private func place(of address: String, _ endpoint: EndpointID) -> Int? {
        entries[endpoint]?.candidates.firstIndex { $0.text == address }
    }

    private mutating func makeRoom() -> Bool {
        guard entries.count >= Self.entriesMax else { return true }
        let least = entries.values.filter {
            !$0.isConnected && $0.sources.isDisjoint(with: [.manual, .ticket])
        }.min {
            ($0.lastSeen ?? .zero, $0.namedAt, $0.endpoint)
                < ($1.lastSeen ?? .zero, $1.namedAt, $1.endpoint)
        }
        guard let least else { return false }
        entries[least.endpoint] = nil
        return true
    }

    package func checkInvariants() {
        precondition(entries.count <= Self.entriesMax, "the book is bounded")
        for entry in entries.values {
            precondition(
                entry.candidates.count <= Limits.addressesMax, "addresses are bounded")
            precondition(
                Set(entry.candidates.map(\.text)).count == entry.candidates.count,
                "an address is there once")
            precondition(!entry.isConnected || entry.reason == nil, "why not, only where not")
            precondition(
                entry.isConnected || entry.addressInUse == nil, "in use, only while connected")
        }
    }
}
