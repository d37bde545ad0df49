// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore

/// What a watch wants to hear. Watches of one shape share the encoding of what happens.
package struct WatchShape: Hashable, Sendable {
    package var from: [UInt8]
    /// Exclusive; nil: to the end.
    package var to: [UInt8]?
    package var previousValues: Bool
    package var noPuts: Bool
    package var noDeletes: Bool

    package init(
        from: [UInt8], to: [UInt8]?, previousValues: Bool = false, noPuts: Bool = false,
        noDeletes: Bool = false
    ) {
        self.from = from
        self.to = to
        self.previousValues = previousValues
        self.noPuts = noPuts
        self.noDeletes = noDeletes
    }

    /// Nil unless it is about one key.
    package var singleKey: [UInt8]? {
        guard let to, to.count == from.count + 1, to.last == 0, to.starts(with: from) else {
            return nil
        }
        return from
    }

    package func wants(_ key: [UInt8], isRemoval: Bool) -> Bool {
        if isRemoval ? noDeletes : noPuts { return false }
        return KeyRange(from: from, to: to).contains(key) && !ReservedNamespace.contains(key)
    }
}

/// Whoever reads what a watch says: a connection.
package protocol WatchOutlet: AnyObject {
    /// The watches on it that have not ended, by their ids there.
    var watches: [UInt64: Watch] { get set }
    /// Kept for `WatchFeed`: whose turn it was last; zero to begin with.
    var servedLast: UInt64 { get set }
    /// Whether it takes updates now; when it does again, `WatchFeed.writable` is to be called.
    var canStream: Bool { get }
    /// - Returns: false if it was not taken, because the client does not read fast enough.
    func stream(_ update: WatchUpdate, to id: UInt64) -> Bool
    /// As `stream`, whatever waits already: the first that a watch hears.
    func push(_ update: WatchUpdate, to id: UInt64)
    /// The last that is said under that id.
    func push(_ end: WatchEnd, to id: UInt64)
}

/// Why a watch ends that nobody has cancelled.
package enum WatchEnd: Equatable, Sendable {
    /// Changes before `oldest` are gone, and the watch has been told those up to `told` only.
    case compacted(oldest: Revision, told: Revision)
    /// This node may be behind for good.
    case leaderless
}

/// One message to a watch, without the id, which differs from watch to watch. Whole revisions.
package final class WatchUpdate {
    package let events: [ChangeEvent]
    /// All changes up to and with this one have been told when it arrives.
    package let revision: Revision
    /// The shell's: what it made of this, to be sent to each watch of one shape.
    package var encoding: AnyObject?

    package init(events: [ChangeEvent] = [], revision: Revision) {
        self.events = events
        self.revision = revision
    }
}

/// One watch: how far it has been told, and where it waits.
package final class Watch {
    package enum Standing: Sendable {
        /// Knows everything that has been dispatched.
        case live
        /// Its connection takes no more bytes now.
        case blocked
        /// Waits for a page of the state.
        case behind
        /// Wants only what is not there yet.
        case future
        /// Waits until changes are recorded.
        case starting
        case ended
    }

    package let id: UInt64
    package let outlet: any WatchOutlet
    package let group: WatchGroup
    let wantsProgress: Bool
    /// Changes up to and with this revision have been told; of a live one, see
    /// `WatchFeed.dispatched`.
    package internal(set) var told: Revision
    package internal(set) var standing = Standing.starting
    var lastSent = MonotonicInstant.zero
    /// Place in `WatchGroup.live`.
    var place = 0

    init(
        id: UInt64, _ outlet: any WatchOutlet, _ group: WatchGroup, wantsProgress: Bool,
        told: Revision
    ) {
        self.id = id
        self.outlet = outlet
        self.group = group
        self.wantsProgress = wantsProgress
        self.told = told
    }
}

/// Watches of one shape.
package final class WatchGroup {
    package let shape: WatchShape
    var live: [Watch] = []
    var count = 0
    /// Changes of the dispatch under way that concern it: places in the ring.
    var matches: [Int] = []

    init(_ shape: WatchShape) { self.shape = shape }

    func join(_ watch: Watch) {
        watch.place = live.count
        live.append(watch)
    }

    func leave(_ watch: Watch) {
        precondition(live[watch.place] === watch, "a live watch knows its place")
        let last = live.removeLast()
        guard last !== watch else { return }
        live[watch.place] = last
        last.place = watch.place
    }
}
