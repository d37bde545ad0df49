// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimKit
import WatchCore

/// Clients that watch: they go from node to node, go on from where they were, read slowly, and are
/// held against what really happened.
extension World {
    func makeWatchers() -> [SimWatcher] {
        (0..<scenario.watchers).map { index in
            let prefixes = ["", "key-", "txn-", "lease-"]
            let prefix = prefixes[watchRandom.uniform(0..<prefixes.count)]
            let range = KeyRange(prefix: Array(prefix.utf8))
            let single = SimValue.key(watchRandom.uniform(0..<scenario.keys))
            let isSingle = watchRandom.chance(1, in: 3)
            let shape = WatchShape(
                from: isSingle ? single : range.from, to: isSingle ? single + [0] : range.to,
                previousValues: watchRandom.chance(1, in: 4),
                noDeletes: watchRandom.chance(1, in: 6))
            let isSlow = watchRandom.chance(1, in: 3)
            return SimWatcher(
                index: index, shape: shape, window: watchRandom.uniform(1..<6),
                paceMax: isSlow ? .milliseconds(watchRandom.uniform(5..<120)) : .milliseconds(2),
                world: self)
        }
    }

    func drawPace(_ longest: Duration) -> Duration {
        watchRandom.uniform(.microseconds(20), longest)
    }

    func beginWatching() {
        for watcher in watchers { findNode(watcher) }
        guard !watchers.isEmpty else { return }
        for node in nodes { schedule(.watchTick(node: node.index), after: watchTick) }
    }

    var watchTick: Duration { scenario.electionTimeoutMin }

    /// Goes to some node, after a while.
    private func findNode(_ watcher: SimWatcher) {
        watcher.reconnect()
        watcher.node = watchRandom.uniform(0..<nodes.count)
        if part == .healing, let members = finalMembers {
            watcher.node = members[watchRandom.uniform(0..<members.count)]
        }
        schedule(
            .watchOpens(node: watcher.node, watcher: watcher.index, session: watcher.session),
            after: watchRandom.uniform(.milliseconds(1), scenario.heartbeatInterval))
    }

    /// Nobody is there, or no longer.
    func watchRefused(_ watcher: SimWatcher, _ session: UInt64) {
        if session == watcher.session { findNode(watcher) }
    }

    func open(_ watcher: SimWatcher, _ session: UInt64, _ shell: RaftShell) {
        guard session == watcher.session, watcher.life == nil else { return }
        // A node that is in no cluster has nothing to tell.
        guard shell.membership != nil else { return watchRefused(watcher, session) }
        watcher.life = shell.life
        let start = watcher.told?.next
        note(
            "w\(watcher.index) watches at n\(shell.node.id) from \(start.map { "\($0)" } ?? "now")")
        observer.watchOpened(watcher.index, watcher.shape, from: start)
        shell.watches(in: self).feed.open(
            session, watcher, watcher.shape, from: start, current: shell.state.revision,
            wantsProgress: watcher.index % 2 == 0, now: shell.clock.reading(at: now))
        // Now and then it goes elsewhere by itself.
        schedule(
            .watchLeaves(watcher: watcher.index, session: session),
            after: watchRandom.uniform(
                scenario.electionTimeoutMin, scenario.electionTimeoutMax * 20))
    }

    private func serving(_ watcher: SimWatcher) -> RaftShell? {
        guard let shell = nodes[watcher.node].shell, shell.life == watcher.life else { return nil }
        return shell
    }

    func leave(_ watcher: SimWatcher, _ session: UInt64) {
        guard session == watcher.session, part == .trouble else { return }
        serving(watcher)?.watching?.feed.closed(watcher)
        findNode(watcher)
    }

    func hear(
        _ watcher: SimWatcher, _ session: UInt64, _ message: SimWatcher.Message
    ) throws(Violation) {
        guard session == watcher.session else { return }
        switch message {
        case .update(let events, let revision):
            try observer.watchTold(watcher.index, events, upTo: revision)
            watcher.told = max(watcher.told ?? .zero, revision)
            trace.fold(revision.rawValue)
            statistics.watchEvents += events.count
            if watcher.took(), let shell = serving(watcher) {
                schedule(
                    .watchWritable(
                        node: watcher.node, life: shell.life, watcher: watcher.index,
                        session: session),
                    after: .microseconds(30))
            }
        case .end(let end):
            note("w\(watcher.index) ends: \(end)")
            try observer.watchEnded(watcher.index, end)
            if case .compacted(let oldest, _) = end {
                statistics.watchesCompacted += 1
                watcher.told = Revision(oldest.rawValue - 1)
            }
            findNode(watcher)
        }
    }

    func watchWritable(_ watcher: SimWatcher, _ session: UInt64, _ shell: RaftShell) {
        guard session == watcher.session, watcher.life == shell.life else { return }
        shell.watching?.feed.writable(watcher, now: shell.clock.reading(at: now))
    }

    /// The daemon has ended: its connections close, at once or after what was on its way.
    func endWatches(of shell: RaftShell) {
        for watcher in watchers where watcher.node == shell.index && watcher.life == shell.life {
            watcher.watches = [:]
            schedule(
                .watchLost(watcher: watcher.index, session: watcher.session),
                after: drawPace(.milliseconds(5)))
        }
    }

    func watchTick(_ node: SimNode) {
        schedule(.watchTick(node: node.index), after: watchTick)
        guard let shell = node.shell, let watching = shell.watching, watching.feed.count > 0,
            node.pausedUntil <= now
        else { return }
        watching.feed.tick(
            knowsLeader: shell.standing.leader != nil, now: node.clock.reading(at: now))
    }

    /// Whoever watches elsewhere when the members are settled goes to one of them.
    func gatherWatchers() {
        for watcher in watchers where finalMembers?.contains(watcher.node) != true {
            serving(watcher)?.watching?.feed.closed(watcher)
            findNode(watcher)
        }
    }
}

extension RaftShell {
    func watches(in world: World) -> SimWatchShell {
        if let watching { return watching }
        let new = SimWatchShell(world: world, shell: self)
        watching = new
        return new
    }
}
