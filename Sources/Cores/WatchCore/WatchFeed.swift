// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import DequeModule
import KVCore

/// What a `WatchFeed` has done for it. Each is a request: nothing of the feed is called from within.
package protocol WatchShell: AnyObject {
    /// From the next batch on the state records what it changes, or no longer. If on, it answers
    /// with `WatchFeed.recordingBegan`, in order with the batches.
    func setRecording(_ isOn: Bool, generation: Int)
    /// Answers with `WatchFeed.pageRead`.
    func readPage(_ request: ChangesRequest)
    /// Calls `WatchFeed.dispatchDue` then.
    func dispatchLater(at time: MonotonicInstant)
}

/// Feeds all watches of one node from what is applied there.
///
/// Each watch is a cursor over a range of keys. Those that are up to date are fed together: what is
/// applied is collected once, put into messages once for each shape, and handed to each connection.
/// A watch whose connection takes no more, or that begins in the past, goes its own way until it has
/// caught up: out of the ring of newest changes, or with pages of the state. What waits for a client
/// is never more than its connection's buffer; the rest is where it always was, in the state.
///
/// A machine as the others, but for one thing: whether a connection takes a message is known only in
/// the sending, so that it asks (`WatchOutlet.stream`) instead of leaving an effect behind. Rejected:
/// effects with an answer to each, a round trip through the shell for every message to every watch.
package final class WatchFeed {
    private enum Recording { case off, starting, on }

    let configuration: WatchConfiguration
    /// It owns this.
    unowned let shell: any WatchShell
    private(set) var ring: ChangeRing
    private var pieces = RecentPieces()
    /// Live watches have been told everything up to here.
    package private(set) var dispatched = Revision.zero
    /// Watches that have not ended.
    package private(set) var count = 0
    private var recording = Recording.off
    /// Distinguishes answers to `setRecording` of one start from those of another.
    private var generation = 0
    private var groups: [WatchShape: WatchGroup] = [:]
    private var keyGroups: [[UInt8]: [WatchGroup]] = [:]
    /// In the order of their making.
    private var rangeGroups: [WatchGroup] = []
    private var starting: [Watch] = []
    private var future: [Watch] = []
    private var isDispatchScheduled = false
    private var nextDispatch = MonotonicInstant.zero
    private var leaderlessSince: MonotonicInstant?
    /// Of the last call.
    var now = MonotonicInstant.zero

    // See WatchFeed+Behind.
    var behind: Deque<Watch> = []
    var pageUnderWay: ChangesRequest?

    package init(configuration: WatchConfiguration, shell: any WatchShell) {
        self.configuration = configuration
        self.shell = shell
        ring = ChangeRing(bytesMax: configuration.ringBytesMax)
    }

    var isOn: Bool { recording == .on }

    // MARK: - Beginning and end of a watch

    /// - Parameters:
    ///   - id: none of the watches on `outlet` has it.
    ///   - start: the first revision to be told; nil: whatever comes after `current`.
    ///   - current: the revision of the state now.
    package func open(
        _ id: UInt64, _ outlet: any WatchOutlet, _ shape: WatchShape, from start: Revision?,
        current: Revision, wantsProgress: Bool, now: MonotonicInstant
    ) {
        precondition(outlet.watches[id] == nil, "a watch has an id of its own")
        self.now = now
        var told = start.map { Revision($0.rawValue - min($0.rawValue, 1)) } ?? current
        if configuration.has(.repeatAtResume), start != nil, told > .zero {
            told = Revision(told.rawValue - 1)
        }
        let watch = Watch(id: id, outlet, group(shape), wantsProgress: wantsProgress, told: told)
        watch.lastSent = now
        watch.group.count += 1
        outlet.watches[id] = watch
        count += 1
        outlet.push(WatchUpdate(revision: told), to: id)
        guard recording == .on else {
            starting.append(watch)
            return startRecording()
        }
        // What is applied and not dispatched yet goes to those who were here before.
        dispatch()
        advance(watch)
    }

    private func group(_ shape: WatchShape) -> WatchGroup {
        if let group = groups[shape] { return group }
        let group = WatchGroup(shape)
        groups[shape] = group
        if let key = shape.singleKey {
            keyGroups[key, default: []].append(group)
        } else {
            rangeGroups.append(group)
        }
        return group
    }

    /// The client has given it up.
    package func cancel(_ id: UInt64, of outlet: any WatchOutlet) {
        if let watch = outlet.watches[id] { end(watch) }
    }

    /// Its connection is gone.
    package func closed(_ outlet: any WatchOutlet) {
        for id in outlet.watches.keys.sorted() { cancel(id, of: outlet) }
    }

    func fail(_ watch: Watch, _ reason: WatchEnd) {
        guard watch.standing != .ended else { return }
        end(watch)
        watch.outlet.push(reason, to: watch.id)
    }

    private func end(_ watch: Watch) {
        guard watch.standing != .ended else { return }
        if watch.standing == .live { watch.group.leave(watch) }
        watch.standing = .ended
        watch.outlet.watches[watch.id] = nil
        count -= 1
        let group = watch.group
        group.count -= 1
        if group.count == 0 { remove(group) }
        if count == 0 { stopRecording() }
    }

    private func remove(_ group: WatchGroup) {
        groups[group.shape] = nil
        if let key = group.shape.singleKey {
            keyGroups[key]?.removeAll { $0 === group }
            if keyGroups[key]?.isEmpty == true { keyGroups[key] = nil }
        } else {
            rangeGroups.removeAll { $0 === group }
        }
    }

    // MARK: - Recording

    private func startRecording() {
        guard recording != .starting else { return }
        recording = .starting
        generation += 1
        shell.setRecording(true, generation: generation)
    }

    /// - Parameter revision: of the state when it began.
    package func recordingBegan(
        _ began: Int, at revision: Revision, now: MonotonicInstant
    ) {
        self.now = now
        guard began == generation, recording == .starting else { return }
        recording = .on
        ring.restart(at: revision)
        dispatched = revision
        let waiting = starting
        starting = []
        for watch in waiting where watch.standing == .starting { advance(watch) }
        readPage()
    }

    private func stopRecording() {
        recording = .off
        generation += 1
        starting = []
        future = []
        behind = []
        ring.restart(at: .zero)
        pieces = RecentPieces()
        shell.setRecording(false, generation: generation)
    }

    /// A snapshot has taken the place of entries: what it brought is in the state only.
    package func skipped() {
        guard recording != .off, !configuration.has(.ignoreSnapshot) else { return }
        recording = .off
        demoteLive(toldUpTo: dispatched)
        for watch in future where watch.standing == .future {
            watch.standing = .starting
            starting.append(watch)
        }
        future = []
        startRecording()
    }

    /// No order of hashes: equal inputs give equal outputs.
    private var orderedGroups: [WatchGroup] {
        keyGroups.keys.sorted(by: bytesPrecede).flatMap { keyGroups[$0] ?? [] } + rangeGroups
    }

    private func demoteLive(toldUpTo told: Revision) {
        for group in orderedGroups {
            for watch in group.live {
                watch.told = told
                watch.standing = .starting
                starting.append(watch)
            }
            group.live = []
        }
    }

    // MARK: - What is applied

    /// - Parameter revision: of the state after the batch.
    package func applied(
        _ changes: ChangeRecording?, upTo revision: Revision, now: MonotonicInstant
    ) {
        self.now = now
        guard recording == .on, let recorded = changes else { return }
        if recorded.isIncomplete {
            dispatch()
            ring.restart(at: revision)
            demoteLive(toldUpTo: dispatched)
            dispatched = revision
            let waiting = starting
            starting = []
            for watch in waiting { advance(watch) }
            return advanceFuture()
        }
        ring.append(recorded.changes, upTo: revision)
        guard ring.end > dispatched, !isDispatchScheduled else { return }
        guard nextDispatch > now else { return dispatch() }
        isDispatchScheduled = true
        shell.dispatchLater(at: nextDispatch)
    }

    package func dispatchDue(now: MonotonicInstant) {
        self.now = now
        isDispatchScheduled = false
        dispatch()
    }

    /// Tells live watches what has happened since the last time.
    private func dispatch() {
        guard recording == .on, ring.end > dispatched else { return }
        nextDispatch = now + configuration.dispatchInterval
        let before = dispatched
        dispatched = ring.end
        if ring.start > before {
            // More came within one interval than the ring holds.
            demoteLive(toldUpTo: before)
            let waiting = starting
            starting = []
            for watch in waiting { advance(watch) }
        } else {
            for group in concerned(after: before) { tell(group, from: before) }
        }
        advanceFuture()
    }

    /// The state may have reached what these were told elsewhere.
    private func advanceFuture() {
        guard !future.isEmpty else { return }
        let waiting = future
        future = []
        for watch in waiting where watch.standing == .future { advance(watch) }
    }

    /// Groups with changes after `revision`, which stand in `matches`.
    private func concerned(after revision: Revision) -> [WatchGroup] {
        var concerned: [WatchGroup] = []
        let places = ring.place(after: revision)..<ring.count
        for place in places where !keyGroups.isEmpty {
            let header = ring[place].header
            for group in keyGroups[header.key] ?? [] where !group.live.isEmpty {
                guard group.shape.wants(header.key, isRemoval: header.isTombstone) else { continue }
                if group.matches.isEmpty { concerned.append(group) }
                group.matches.append(place)
            }
        }
        for group in rangeGroups where !group.live.isEmpty {
            for place in places {
                let header = ring[place].header
                guard group.shape.wants(header.key, isRemoval: header.isTombstone) else { continue }
                if group.matches.isEmpty { concerned.append(group) }
                group.matches.append(place)
            }
        }
        return concerned
    }

    private func tell(_ group: WatchGroup, from before: Revision) {
        let places = group.matches
        group.matches = []
        if group.shape.previousValues {
            // The ring has no previous values: all of the group read one page of the state.
            let watches = group.live
            group.live = []
            for watch in watches {
                watch.told = before
                waitForPage(watch)
            }
            return
        }
        var batching = UpdateBatching(configuration)
        for place in places { batching.add(ring[place]) }
        let updates = batching.finish(upTo: dispatched)
        for watch in group.live {
            let told = send(updates, to: watch, from: before)
            guard told < dispatched, watch.standing == .live else { continue }
            group.leave(watch)
            watch.told = configuration.has(.dropWhenBlocked) ? dispatched : told
            watch.standing = .blocked
        }
    }

    /// - Returns: up to where it has been told now: less than the last when the connection takes no
    ///   more.
    func send(_ updates: [WatchUpdate], to watch: Watch, from told: Revision) -> Revision {
        var told = told
        for update in updates {
            guard watch.outlet.stream(update, to: watch.id) else { return told }
            told = update.revision
        }
        if !updates.isEmpty { watch.lastSent = now }
        return told
    }

    // MARK: - On its own

    /// The connection takes updates again.
    package func writable(_ outlet: any WatchOutlet, now: MonotonicInstant) {
        self.now = now
        guard !outlet.watches.isEmpty else { return }
        let ids = outlet.watches.keys.sorted()
        // Each in its turn: the first ones could take all that the connection carries, for ever.
        let next = ids.firstIndex { $0 > outlet.servedLast } ?? 0
        let turns = Array(ids[next...] + ids[..<next])
        var isAnyBlocked = true
        while isAnyBlocked {
            isAnyBlocked = false
            for id in turns {
                guard outlet.canStream else { return }
                guard let watch = outlet.watches[id], watch.standing == .blocked else { continue }
                outlet.servedLast = id
                advance(watch, pieces: 1)
                isAnyBlocked = isAnyBlocked || watch.standing == .blocked
            }
        }
    }

    /// Tells a watch that is not live what it lacks, as far as that goes.
    /// - Parameter pieces: after so many out of the ring it is left as `blocked`, to go on later.
    func advance(_ watch: Watch, pieces: Int = .max) {
        var left = pieces
        guard recording == .on else {
            watch.standing = .starting
            return starting.append(watch)
        }
        while watch.standing != .ended {
            if watch.told >= dispatched {
                if watch.told == dispatched {
                    watch.standing = .live
                    watch.group.join(watch)
                } else {
                    watch.standing = .future
                    future.append(watch)
                }
                return
            }
            guard left > 0, watch.outlet.canStream else {
                watch.standing = .blocked
                return
            }
            left -= 1
            if watch.told < ring.start || watch.group.shape.previousValues {
                if configuration.has(.ringBeforePage) {
                    let told = watch.told
                    tellFromRing(watch)
                    watch.told = told
                }
                return waitForPage(watch)
            }
            tellFromRing(watch)
        }
    }

    private func tellFromRing(_ watch: Watch) {
        let piece = pieces.find(watch.group, after: watch.told) ?? makePiece(watch)
        let told = send(piece.updates, to: watch, from: watch.told)
        watch.told = piece.updates.isEmpty ? piece.upTo : told
    }

    private func makePiece(_ watch: Watch) -> RecentPieces.Piece {
        var batching = UpdateBatching(configuration)
        let shape = watch.group.shape
        var place = ring.place(after: watch.told)
        var upTo = dispatched
        while place < ring.count {
            let change = ring[place]
            let revision = change.header.number.revision
            if revision > dispatched { break }
            // One message at a time: the connection may not take more.
            if let first = batching.updates.first {
                upTo = first.revision
                break
            }
            if shape.wants(change.header.key, isRemoval: change.header.isTombstone) {
                batching.add(change)
            }
            place += 1
        }
        let updates =
            upTo == dispatched
            ? batching.finish(upTo: dispatched) : Array(batching.updates.prefix(1))
        let piece = RecentPieces.Piece(
            group: watch.group, after: watch.told, upTo: upTo, updates: updates)
        if watch.group.count > 1 { pieces.keep(piece) }
        return piece
    }

    // MARK: - Time

    /// Call it about once a second while there are watches.
    package func tick(knowsLeader: Bool, now: MonotonicInstant) {
        self.now = now
        pieces = RecentPieces()
        leaderlessSince = knowsLeader ? nil : leaderlessSince ?? now
        if let since = leaderlessSince, now - since >= configuration.leaderlessMax {
            leaderlessSince = nil
            return sendElsewhere()
        }
        let progress = WatchUpdate(revision: dispatched)
        for group in orderedGroups {
            for watch in group.live where watch.wantsProgress {
                guard now - watch.lastSent >= configuration.progressInterval else { continue }
                _ = send([progress], to: watch, from: dispatched)
            }
        }
    }

    private func sendElsewhere() {
        // The others have something to be told first.
        for group in orderedGroups {
            for watch in group.live { fail(watch, .leaderless) }
        }
        let waiting = future
        for watch in waiting where watch.standing == .future { fail(watch, .leaderless) }
    }
}
