// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftStorage
import SimKit
import WatchCore

/// A client that follows a range of keys through one node after the other, and the connection by
/// which it does so: messages arrive in order, and no more than a few are on their way.
final class SimWatcher: WatchOutlet {
    enum Message {
        case update([ChangeEvent], Revision)
        case end(WatchEnd)
    }

    let index: Int
    let shape: WatchShape
    /// Messages that may be on their way.
    let window: Int
    /// How long it takes over one, at most.
    let paceMax: Duration
    unowned let world: World
    /// Watches of the node that it is connected with: one at most.
    var watches: [UInt64: Watch] = [:]
    var servedLast: UInt64 = 0
    var node = 0
    /// Names the watch: what is on its way for an earlier one never arrives.
    var session: UInt64 = 0
    /// The life of the daemon that serves it.
    var life: UInt64?
    /// All changes up to here are known; nil: it has not begun anywhere.
    var told: Revision?
    var isWaiting: Bool = false
    private var underWay = 0
    private var clear = MonotonicInstant.zero

    init(index: Int, shape: WatchShape, window: Int, paceMax: Duration, world: World) {
        self.index = index
        self.shape = shape
        self.window = window
        self.paceMax = paceMax
        self.world = world
    }

    var canStream: Bool { underWay < window }

    func stream(_ update: WatchUpdate, to id: UInt64) -> Bool {
        guard canStream else { return false }
        push(update, to: id)
        return true
    }

    func push(_ update: WatchUpdate, to id: UInt64) {
        send(.update(update.events, update.revision), id)
    }

    func push(_ end: WatchEnd, to id: UInt64) { send(.end(end), id) }

    private func send(_ message: Message, _ id: UInt64) {
        underWay += 1
        clear = max(clear, world.now) + world.drawPace(paceMax)
        world.heap.schedule(.watchHears(watcher: index, session: id, message), at: clear)
    }

    /// A message has arrived, or will not any more.
    /// - Returns: whether its connection takes messages again.
    func took() -> Bool {
        underWay -= 1
        return underWay == window - 1
    }

    func reconnect() {
        session += 1
        underWay = 0
        life = nil
        watches = [:]
        clear = world.now
    }
}

/// The watches that a raft daemon serves.
final class SimWatchShell: WatchShell {
    /// What the state has said, not yet delivered: before anything more is applied it must be.
    enum Answer {
        case recording(generation: Int, Revision)
        case page(ReadOutcome<ChangesPage>)
    }

    unowned let world: World
    unowned let shell: RaftShell
    var answers: [Answer] = []
    private(set) lazy var feed = WatchFeed(configuration: world.scenario.watches, shell: self)

    init(world: World, shell: RaftShell) {
        self.world = world
        self.shell = shell
    }

    func setRecording(_ isOn: Bool, generation: Int) {
        shell.state.setRecording(isOn)
        guard isOn else { return }
        answers.append(.recording(generation: generation, shell.state.revision))
        deliverSoon()
    }

    func readPage(_ request: ChangesRequest) {
        answers.append(.page(shell.state.changes(request)))
        deliverSoon()
    }

    func dispatchLater(at time: MonotonicInstant) {
        world.heap.schedule(
            .watchDispatch(node: shell.index, life: shell.life),
            at: shell.clock.time(showing: time, from: world.now))
    }

    private func deliverSoon() {
        world.schedule(
            .watchAnswers(node: shell.index, life: shell.life),
            after: world.drawPace(.milliseconds(2)))
    }

    /// Before the next batch is applied, at the latest.
    func deliver() {
        while !answers.isEmpty {
            let now = shell.clock.reading(at: world.now)
            switch answers.removeFirst() {
            case .recording(let generation, let revision):
                feed.recordingBegan(generation, at: revision, now: now)
            case .page(let outcome): feed.pageRead(outcome, now: now)
            }
        }
    }
}
