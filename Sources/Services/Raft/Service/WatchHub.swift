// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import DequeModule
import KVCore
import NIOCore
import RaftCore
import RaftStorage

/// One watch: how far it has been told, and where it waits.
final class Watch {
    enum Standing {
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

    let id: UInt64
    let connection: ClientConnection
    let group: WatchGroup
    let wantsProgress: Bool
    /// Changes up to and with this revision have been told; of a live one, see `WatchHub.dispatched`.
    var told: Revision
    var standing = Standing.starting
    var lastSent = NIODeadline.now()
    /// Place in `WatchGroup.live`.
    var place = 0

    init(
        id: UInt64, _ connection: ClientConnection, _ group: WatchGroup, wantsProgress: Bool,
        told: Revision
    ) {
        self.id = id
        self.connection = connection
        self.group = group
        self.wantsProgress = wantsProgress
        self.told = told
    }
}

/// Watches of one shape.
final class WatchGroup {
    let shape: WatchShape
    fileprivate(set) var live: [Watch] = []
    fileprivate(set) var count = 0
    /// Changes of the dispatch under way that concern it: places in the ring.
    fileprivate var matches: [Int] = []

    init(_ shape: WatchShape) { self.shape = shape }

    fileprivate func join(_ watch: Watch) {
        watch.place = live.count
        live.append(watch)
    }

    fileprivate func leave(_ watch: Watch) {
        precondition(live[watch.place] === watch, "a live watch knows its place")
        let last = live.removeLast()
        guard last !== watch else { return }
        live[watch.place] = last
        last.place = watch.place
    }
}

/// Feeds all watches of this node from what is applied here. Confined to the event loop.
///
/// Each watch is a cursor over a range of keys. Those that are up to date are fed together: what is
/// applied is collected once, encoded once for each shape, and copied to each connection. A watch
/// whose connection takes no more, or that begins in the past, goes its own way until it has caught
/// up: out of the ring of newest changes, or with pages of the state. What waits for a client is
/// never more than its connection's buffer; the rest is where it always was, in the state.
final class WatchHub {
    /// Watches of one connection, and of all connections to this node.
    static let connectionWatchesMax = Limits.watchesPerConnectionMax
    static let watchesMax = Limits.watchesMax
    /// Under load changes are gathered for so long before they are told.
    static let dispatchInterval = TimeAmount.milliseconds(2)
    /// Silence after which a watch that wants it is told how far it is.
    static let progressInterval = TimeAmount.seconds(5)
    static let tick = TimeAmount.seconds(1)
    /// A node that knows no leader for so long sends its watchers elsewhere.
    static let leaderlessMax = TimeAmount.seconds(10)

    private enum Recording { case off, starting, on }

    /// Held: timers of the hub may outlive the node otherwise.
    let node: RaftNode
    private(set) var ring = ChangeRing()
    /// Live watches have been told everything up to here.
    private(set) var dispatched = Revision.zero
    private var recording = Recording.off
    /// Distinguishes answers to `setRecording` of one start from those of another.
    private var generation = 0
    private var groups: [WatchShape: WatchGroup] = [:]
    private var keyGroups: [[UInt8]: [WatchGroup]] = [:]
    /// In the order of their making.
    private var rangeGroups: [WatchGroup] = []
    private(set) var count = 0
    private var starting: [Watch] = []
    private var future: [Watch] = []
    private var isDispatchScheduled = false
    private var lastDispatch = NIODeadline.uptimeNanoseconds(0)
    private var isTicking = false
    private var leaderlessSince: NIODeadline?
    // See WatchHub+Behind.
    var behind: Deque<Watch> = []
    var isReadingPage = false

    init(node: RaftNode) { self.node = node }

    var isOn: Bool { recording == .on }

    // MARK: - Beginning and end of a watch

    func watch(_ body: Aspen_Client_V1_WatchRequest, _ origin: RequestOrigin) {
        guard let connection = origin.sink as? ClientConnection else {
            return origin.fail(AspenError(.invalidArgument, "only clients watch"))
        }
        let shape: WatchShape
        do { shape = try WatchShape(body) } catch { return origin.fail(error) }
        guard connection.watches[origin.id] == nil else {
            return origin.fail(
                AspenError(.invalidArgument, "request id \(origin.id) is another watch's"))
        }
        guard connection.watches.count < Self.connectionWatchesMax else {
            return origin.fail(
                AspenError(
                    .resourceExhausted,
                    "a connection has at most \(Self.connectionWatchesMax) watches: watch a range, "
                        + "or use several connections"))
        }
        guard count < Self.watchesMax else {
            return origin.fail(
                AspenError(
                    .resourceExhausted,
                    "this node serves \(Self.watchesMax) watches, as many as are allowed: watch on "
                        + "another"))
        }
        let told =
            body.startRevision == 0 ? node.applied.revision : Revision(body.startRevision - 1)
        let watch = Watch(
            id: origin.id, connection, group(shape), wantsProgress: body.progress, told: told)
        watch.group.count += 1
        connection.watches[watch.id] = watch
        connection.streamBegan()
        count += 1
        connection.push(UpdateEncoder.beginning(told), to: watch.id)
        scheduleTick()
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

    func cancel(_ id: UInt64, of connection: ClientConnection) {
        if let watch = connection.watches[id] { end(watch) }
    }

    func closed(_ connection: ClientConnection) {
        for watch in Array(connection.watches.values) { end(watch) }
    }

    /// Ends it with an error, the last thing that is said under its id.
    func fail(_ watch: Watch, _ error: AspenError) {
        guard watch.standing != .ended else { return }
        end(watch)
        watch.connection.push(WireResponse(error), to: watch.id)
    }

    private func end(_ watch: Watch) {
        guard watch.standing != .ended else { return }
        if watch.standing == .live { watch.group.leave(watch) }
        watch.standing = .ended
        watch.connection.watches[watch.id] = nil
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
        let began = generation
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.state.perform { store in
            store.setRecording(true)
            let revision = store.revision
            return { box.value.recordingBegan(began, at: revision) }
        }
    }

    private func recordingBegan(_ began: Int, at revision: Revision) {
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
        node.state.perform { store in
            store.setRecording(false)
            return {}
        }
    }

    /// A snapshot has taken the place of entries: what it brought is in the state only.
    func skipped() {
        guard recording != .off else { return }
        recording = .off
        demoteLive(toldUpTo: dispatched, standing: .starting)
        for watch in future where watch.standing == .future {
            watch.standing = .starting
            starting.append(watch)
        }
        future = []
        startRecording()
    }

    private func demoteLive(toldUpTo told: Revision, standing: Watch.Standing) {
        for group in keyGroups.keys.sorted(by: bytesPrecede).flatMap({ keyGroups[$0] ?? [] })
            + rangeGroups
        {
            for watch in group.live {
                watch.told = told
                watch.standing = standing
                starting.append(watch)
            }
            group.live = []
        }
    }

    // MARK: - What is applied

    func applied(_ batch: AppliedBatch) {
        guard recording == .on, let recorded = batch.changes else { return }
        if recorded.isIncomplete {
            dispatch()
            ring.restart(at: batch.revision)
            demoteLive(toldUpTo: dispatched, standing: .starting)
            dispatched = batch.revision
            let waiting = starting
            starting = []
            for watch in waiting { advance(watch) }
            return
        }
        ring.append(recorded.changes, upTo: batch.revision)
        guard ring.end > dispatched, !isDispatchScheduled else { return }
        let next = lastDispatch + Self.dispatchInterval
        guard next > .now() else { return dispatch() }
        isDispatchScheduled = true
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.loop.scheduleTask(deadline: next) {
            box.value.isDispatchScheduled = false
            box.value.dispatch()
        }
    }

    /// Tells live watches what has happened since the last time.
    private func dispatch() {
        guard recording == .on, ring.end > dispatched else { return }
        lastDispatch = .now()
        let before = dispatched
        dispatched = ring.end
        if ring.start > before {
            // More came within one interval than the ring holds.
            demoteLive(toldUpTo: before, standing: .starting)
            let waiting = starting
            starting = []
            for watch in waiting { advance(watch) }
        } else {
            for group in concerned(after: before) { tell(group, from: before) }
        }
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
        var encoder = UpdateEncoder()
        for place in places { encoder.add(ring[place]) }
        let updates = encoder.finish(upTo: dispatched)
        for watch in group.live {
            let told = send(updates, to: watch, from: before)
            guard told < dispatched, watch.standing == .live else { continue }
            group.leave(watch)
            watch.told = told
            watch.standing = .blocked
        }
    }

    /// - Returns: up to where it has been told now: less than the last when the connection takes no
    ///   more.
    func send(_ updates: [EncodedUpdate], to watch: Watch, from told: Revision) -> Revision {
        var told = told
        for update in updates {
            guard watch.connection.stream(update.bytes, to: watch.id) else { return told }
            told = update.revision
        }
        if !updates.isEmpty { watch.lastSent = .now() }
        return told
    }

    // MARK: - On its own

    /// The connection takes bytes again.
    func writable(_ connection: ClientConnection) {
        guard !connection.watches.isEmpty else { return }
        for id in connection.watches.keys.sorted() {
            guard connection.canStream else { return }
            if let watch = connection.watches[id], watch.standing == .blocked { advance(watch) }
        }
    }

    /// Tells a watch that is not live what it lacks, as far as that goes.
    func advance(_ watch: Watch) {
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
            guard watch.connection.canStream else {
                watch.standing = .blocked
                return
            }
            if watch.told < ring.start || watch.group.shape.previousValues {
                return waitForPage(watch)
            }
            tellFromRing(watch)
        }
    }

    private func tellFromRing(_ watch: Watch) {
        var encoder = UpdateEncoder()
        let shape = watch.group.shape
        var place = ring.place(after: watch.told)
        var upTo = dispatched
        while place < ring.count {
            let change = ring[place]
            let revision = change.header.number.revision
            if revision > dispatched { break }
            // One message at a time: the connection may not take more.
            if !encoder.updates.isEmpty {
                upTo = encoder.updates[0].revision
                break
            }
            if shape.wants(change.header.key, isRemoval: change.header.isTombstone) {
                encoder.add(change)
            }
            place += 1
        }
        let updates =
            upTo == dispatched ? encoder.finish(upTo: dispatched) : [encoder.updates[0]]
        let told = send(updates, to: watch, from: watch.told)
        watch.told = updates.isEmpty ? upTo : told
    }

    // MARK: - Time

    private func scheduleTick() {
        guard !isTicking else { return }
        isTicking = true
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.loop.scheduleTask(in: Self.tick) {
            box.value.isTicking = false
            box.value.ticked()
        }
    }

    private func ticked() {
        guard count > 0, !node.isStopped else { return }
        scheduleTick()
        let now = NIODeadline.now()
        if node.standing.leader != nil {
            leaderlessSince = nil
        } else {
            leaderlessSince = leaderlessSince ?? now
        }
        if let since = leaderlessSince, now - since >= Self.leaderlessMax {
            leaderlessSince = nil
            return sendElsewhere()
        }
        let progress = UpdateEncoder.progress(dispatched)
        for group in groups.values {
            for watch in group.live where watch.wantsProgress {
                guard now - watch.lastSent >= Self.progressInterval else { continue }
                _ = send([progress], to: watch, from: dispatched)
            }
        }
    }

    private func sendElsewhere() {
        let error = AspenError(
            .unavailable,
            "this node has known no leader for \(Self.leaderlessMax.nanoseconds / 1_000_000_000) s "
                + "and may be behind: go on with this watch on another", retry: .safe)
        // The others have something to be told first.
        for group in Array(groups.values) {
            for watch in group.live { fail(watch, error) }
        }
        let waiting = future
        for watch in waiting where watch.standing == .future { fail(watch, error) }
    }
}
