// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore

/// What was last told to watches that are on their own. Those of one shape that share a connection
/// have mostly fallen behind together: what one of them is told next, with its encoding, is what the
/// others are told next, too.
struct RecentPieces {
    struct Piece {
        let group: WatchGroup
        /// Whoever has been told that much knows everything up to `upTo` when `updates` have arrived.
        let after: Revision
        let upTo: Revision
        let updates: [WatchUpdate]
    }

    /// Each has about `WatchConfiguration.updateBytesMax` bytes at most, and as many encoded.
    private static let countMax = 8

    private var pieces: [Piece] = []
    private var oldest = 0

    func find(_ group: WatchGroup, after told: Revision) -> Piece? {
        pieces.first { $0.after == told && $0.group === group }
    }

    mutating func keep(_ piece: Piece) {
        guard pieces.count == Self.countMax else { return pieces.append(piece) }
        pieces[oldest] = piece
        oldest = (oldest + 1) % Self.countMax
    }
}

/// Puts changes into messages: as few as possible, each with whole revisions.
struct UpdateBatching {
    /// What an event costs besides keys and values, at most.
    private static let eventBytes = 96

    private let updateBytesMax: Int
    private let previousBytesMax: Int
    private(set) var updates: [WatchUpdate] = []
    private var events: [ChangeEvent] = []
    private var byteCount = 0
    /// The last revision in `events`.
    private var revision = Revision.zero
    /// Of a revision that may go on.
    private var open: [ChangeEvent] = []
    private var openBytes = 0

    init(_ configuration: WatchConfiguration) {
        updateBytesMax = configuration.updateBytesMax
        previousBytesMax = configuration.previousBytesMax
    }

    mutating func add(_ change: Change) {
        let header = change.header
        add(
            ChangeEvent(
                number: header.number,
                entry: KeyValue(
                    key: header.key, value: change.value, createRevision: header.createRevision,
                    modRevision: header.number.revision, version: header.version,
                    lease: header.lease), isRemoval: header.isTombstone))
    }

    mutating func add(_ event: ChangeEvent) {
        if let last = open.last, event.number.revision > last.number.revision { closeRevision() }
        openBytes += event.byteCount + Self.eventBytes
        open.append(event)
    }

    private mutating func closeRevision() {
        guard let last = open.last else { return }
        if byteCount > 0, byteCount + openBytes > updateBytesMax { end(revision) }
        let isTooLarge = openBytes > previousBytesMax
        for var event in open {
            if isTooLarge { event.previous = nil }
            events.append(event)
        }
        byteCount += openBytes
        revision = last.number.revision
        open.removeAll(keepingCapacity: true)
        openBytes = 0
    }

    private mutating func end(_ revision: Revision) {
        updates.append(WatchUpdate(events: events, revision: revision))
        events = []
        byteCount = 0
    }

    /// The last message says that everything up to `last` has been told. Empty without events.
    mutating func finish(upTo last: Revision) -> [WatchUpdate] {
        closeRevision()
        if !events.isEmpty { end(last) }
        return updates
    }
}
