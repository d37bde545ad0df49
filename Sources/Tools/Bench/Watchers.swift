// SPDX-License-Identifier: GPL-2.0-or-later

import ArgumentParser
import AspenCLI
import AspenClient
import AspenTypes

/// `aspen-bench watch`: many watches of one prefix on few connections, each of which is checked event
/// by event. Somebody else writes, and may kill nodes; the watches go on at another of the sockets.
struct Watchers: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "watch",
        abstract: "Follow a prefix many times over, and check that nothing is missed or repeated.",
        discussion: """
            Ends when every watch has seen the key --end written. All writes to the cluster are taken \
            to go to the prefix: then the revisions that a watch sees follow each other without a gap.
            """)

    @Option(help: "Sockets of nodes: a watch goes to the next one when it loses its own.")
    var socket: [String] = []
    @Option(help: "Watches.") var watchers = 1
    @Option(help: "Connections that share them.") var connections = 1
    @Option(help: "Begins the names of the keys.") var prefix = "bench/"
    @Option(help: "The first revision wanted.") var fromRevision: UInt64 = 1
    @Option(help: "The key whose writing ends it all. (default: the prefix and '~end')")
    var end: String?
    @Option(help: "When to give up.") var timeout = TimeLimit(.seconds(300))

    /// - Returns: the exit status: 0 when every watch saw everything once, in order.
    func follow() async throws -> Int32 {
        guard !socket.isEmpty, (1...10_000).contains(watchers),
            (1...min(watchers, Limits.connectionsMax)).contains(connections), fromRevision > 0
        else {
            throw CommandFailure.usage(
                "name a --socket; --watchers is 1 to 10000, --connections at most as many, "
                    + "--from-revision 1 or more")
        }
        let started = ContinuousClock.now
        let tallies = try await followAll()
        let seconds = (ContinuousClock.now - started) / .seconds(1)
        let events = tallies.map(\.events)
        let violations = tallies.flatMap(\.violations)
        let unfinished = tallies.filter { !$0.isDone }.count
        print(
            JSON.object([
                ("watchers", .number(UInt64(watchers))), ("seconds", .decimal(seconds)),
                ("events", .number(events.reduce(0, +))),
                ("events_least", .number(events.min() ?? 0)),
                ("events_most", .number(events.max() ?? 0)),
                ("updates", .number(tallies.map(\.updates).reduce(0, +))),
                ("last_revision", .number(tallies.map(\.last).max() ?? 0)),
                ("unfinished", .number(UInt64(unfinished))),
                ("violations", .number(UInt64(violations.count))),
            ]).text)
        for violation in violations.prefix(20) { print("VIOLATION \(violation)") }
        return violations.isEmpty && unfinished == 0 ? 0 : 1
    }

    private func followAll() async throws -> [WatchTally] {
        try await withThrowingTaskGroup(of: [WatchTally].self) { group in
            for number in 0..<connections {
                let share = watchers / connections + (number < watchers % connections ? 1 : 0)
                let first = number % socket.count
                let sockets = Array(socket[first...] + socket[..<first])
                group.addTask { try await follow(share, at: sockets) }
            }
            return try await group.reduce(into: []) { $0 += $1 }
        }
    }

    /// The watches of one connection.
    private func follow(_ count: Int, at sockets: [String]) async throws -> [WatchTally] {
        let client = try await AspenClient.connect(.sockets(sockets))
        let endKey = Array((end ?? prefix + "~end").utf8)
        let limit = timeout.duration
        let tallies = await withTaskGroup(of: WatchTally.self) { group in
            for _ in 0..<count {
                group.addTask { await follow(client, until: endKey, within: limit) }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
        await client.close()
        return tallies
    }

    private func follow(
        _ client: AspenClient, until endKey: [UInt8], within limit: Duration
    ) async -> WatchTally {
        var options = WatchOptions()
        // Progress comes every few seconds at least: so the time limit is noticed.
        options.progress = true
        let end = ContinuousClock.now + limit
        var tally = WatchTally(from: fromRevision)
        let updates = client.watch(
            KeyRange(prefix: Array(prefix.utf8)), from: Revision(fromRevision), options)
        var iterator = updates.makeAsyncIterator()
        do {
            while !tally.isDone, ContinuousClock.now < end, let update = try await iterator.next() {
                tally.take(update, endKey)
            }
        } catch {
            tally.violations.append("the watch ended: \(error)")
        }
        return tally
    }
}

/// What one watch saw.
struct WatchTally: Sendable {
    var events: UInt64 = 0
    var updates: UInt64 = 0
    /// The revision of the last event.
    var last: UInt64
    /// The end has been seen.
    var isDone = false
    var violations: [String] = []

    init(from: UInt64) { last = from - 1 }

    mutating func take(_ update: WatchUpdate, _ endKey: [UInt8]) {
        guard !update.events.isEmpty else { return }
        updates += 1
        let before = last
        for event in update.events {
            events += 1
            let revision = event.entry.modRevision.rawValue
            // Several changes of one transaction share a revision, and are told together.
            if revision != last + 1, revision != last || revision == before {
                note("revision \(revision) came after \(last)")
            }
            last = revision
            if event.entry.key == endKey { isDone = true }
        }
        if update.revision.rawValue < last {
            note("events up to \(last) were told as being up to \(update.revision)")
        }
    }

    private mutating func note(_ text: String) {
        if violations.count < 20 { violations.append(text) }
    }
}
