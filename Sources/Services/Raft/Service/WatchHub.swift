// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import NIOCore
import RaftCore
import RaftStorage
import WatchCore

/// The shell around `WatchFeed`: requests, the state thread, timers. Confined to the event loop.
final class WatchHub: WatchShell {
    /// Watches of one connection, and of all connections to this node.
    static let connectionWatchesMax = Limits.watchesPerConnectionMax
    static let watchesMax = Limits.watchesMax
    static let tick = TimeAmount.seconds(1)

    /// Held: timers of the hub may outlive the node otherwise.
    let node: RaftNode
    private var isTicking = false
    private lazy var feed = WatchFeed(configuration: WatchConfiguration(), shell: self)

    init(node: RaftNode) { self.node = node }

    var count: Int { feed.count }

    // MARK: - Requests

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
        connection.streamBegan()
        feed.open(
            origin.id, connection, shape,
            from: body.startRevision == 0 ? nil : Revision(body.startRevision),
            current: node.applied.revision, wantsProgress: body.progress, now: RaftNode.now)
        scheduleTick()
    }

    func cancel(_ id: UInt64, of connection: ClientConnection) { feed.cancel(id, of: connection) }
    func closed(_ connection: ClientConnection) { feed.closed(connection) }
    func writable(_ connection: ClientConnection) { feed.writable(connection, now: RaftNode.now) }

    // MARK: - The state

    func applied(_ batch: AppliedBatch) {
        feed.applied(batch.changes, upTo: batch.revision, now: RaftNode.now)
    }

    func skipped() { feed.skipped() }

    func setRecording(_ isOn: Bool, generation: Int) {
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.state.perform { store in
            store.setRecording(isOn)
            let revision = store.revision
            return {
                guard isOn else { return }
                box.value.feed.recordingBegan(generation, at: revision, now: RaftNode.now)
            }
        }
    }

    func readPage(_ request: ChangesRequest) {
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.state.perform { store in
            let outcome = try store.changes(request)
            return { box.value.feed.pageRead(outcome, now: RaftNode.now) }
        }
    }

    // MARK: - Time

    func dispatchLater(at time: MonotonicInstant) {
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.loop.scheduleTask(deadline: .uptimeNanoseconds(time.nanoseconds)) {
            box.value.feed.dispatchDue(now: RaftNode.now)
        }
    }

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
        feed.tick(knowsLeader: node.standing.leader != nil, now: RaftNode.now)
    }
}

extension WatchEnd {
    /// What the client is told.
    var error: AspenError {
        switch self {
        case .compacted(let oldest, let told):
            AspenError.compacted(
                "changes before revision \(oldest) are compacted away, and this watch had been told "
                    + "those up to \(told): read the keys, then watch from the revision after "
                    + "the one that the answer shows", oldest: oldest)
        case .leaderless:
            AspenError(
                .unavailable,
                "this node has known no leader for "
                    + "\(WatchConfiguration().leaderlessMax.components.seconds) s "
                    + "and may be behind: go on with this watch on another", retry: .safe)
        }
    }
}
