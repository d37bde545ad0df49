// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import Glibc
import KVCore
import RaftCore
import RaftStorage
import SQLiteKit
import Synchronization
import Testing

/// Writes, checkpoints and snapshots as fast as they go: no row may be lost. Debian's SQLite 3.40.1
/// loses committed rows when a writer runs beside a checkpoint that starts the WAL over; `SQLiteState`
/// is fenced against that by doing both on one thread.
///
/// ASPEN_STRESS_SECONDS: how long. ASPEN_STRESS_UNFENCED=1: a second connection checkpoints beside
/// the writer, as if there were no fence; then the stress has to find something.
@Suite(.serialized) struct WALStressTests {
    private static let seconds = Int(environment("ASPEN_STRESS_SECONDS") ?? "3") ?? 3
    private static let isUnfenced = environment("ASPEN_STRESS_UNFENCED") == "1"

    @Test(
        .timeLimit(.minutes(2 + seconds / 30)),
        // With a stranger beside it nothing is put off: it would be left behind.
        arguments: isUnfenced ? [Database.Deferral.nothing] : [.nothing, .toThread])
    func noRowIsLost(_ deferral: Database.Deferral) throws {
        let found = try Stress(isFenced: !Self.isUnfenced, deferral).run(seconds: Self.seconds)
        print(found.summary)
        if Self.isUnfenced {
            #expect(found.complaint != nil, "without the fence nothing went wrong")
        } else {
            #expect(found.complaint == nil)
            #expect(found.checkpoints > 0 && found.snapshots > 0)
        }
    }
}

private func environment(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }

private struct StressReport {
    var commits = 0
    var checkpoints = 0
    var snapshots = 0
    var checks = 0
    var complaint: String?

    var summary: String {
        "\(commits) commits, \(checkpoints) checkpoints, \(snapshots) snapshots, \(checks) times "
            + "everything compared: \(complaint ?? "nothing is missing")"
    }
}

private struct Stress {
    let isFenced: Bool
    private let deferral: Database.Deferral
    private let directory = StateDirectory()

    init(isFenced: Bool, _ deferral: Database.Deferral) {
        self.isFenced = isFenced
        self.deferral = deferral
    }

    private var options: SQLiteState.Options {
        var options = SQLiteState.Options()
        // Every batch is a commit, and a few of them are a checkpoint.
        options.commitEntries = 1
        options.checkpointPages = 30
        options.cacheKiB = 256
        options.deferral = deferral
        return options
    }

    func run(seconds: Int) throws -> StressReport {
        var report = StressReport()
        let end = ContinuousClock.now + .seconds(seconds)
        var state = try SQLiteState(directory: directory.path, options: options)
        let stranger = isFenced ? nil : try Stranger(directory.path + "/state.db")
        defer { stranger?.stop() }
        var source = EntrySource(seed: 1)
        source.keyCount = 250
        var spool: (any SnapshotReader)?
        do {
            _ = try state.apply([source.membership()])
            while ContinuousClock.now < end {
                try burst(state, &source, &report, &spool)
                spool?.close()
                spool = nil
                try compare(state, &report)
                state.close()
                let applied = source.next.previous
                state = try SQLiteState(directory: directory.path, options: options)
                guard state.appliedIndex == applied else {
                    report.complaint = "\(applied) was committed, \(state.appliedIndex) is there"
                    break
                }
                try compare(state, &report)
            }
        } catch StorageError.corrupt(let reason) {
            // The fence's absence must be seen in what the state holds, not in a lock.
            report.complaint = report.complaint ?? reason
        }
        state.close()
        return report
    }

    /// Some thousand commits.
    private func burst(
        _ state: SQLiteState, _ source: inout EntrySource, _ report: inout StressReport,
        _ spool: inout (any SnapshotReader)?
    ) throws {
        for _ in 0..<2000 {
            _ = try state.apply(
                source.batch(source.random.uniform(1..<4), revision: state.revision))
            report.commits += 1
            if source.random.chance(1, in: 3), try state.checkpointIfDue() != nil {
                report.checkpoints += 1
            }
            if source.random.chance(1, in: 40) {
                _ = try state.checkpoint()
                report.checkpoints += 1
            }
            // A reader beside all that keeps the WAL from being started over for a while.
            if spool == nil, source.random.chance(1, in: 100) {
                spool = try state.makeSnapshot()
                report.snapshots += 1
            } else if let reader = spool, try reader.next() == nil {
                reader.close()
                spool = nil
            }
        }
    }

    private func compare(_ state: SQLiteState, _ report: inout StressReport) throws {
        report.checks += 1
        guard try state.recomputeContentHash() == state.contentHash() else {
            report.complaint = "after \(report.commits) commits the rows are not those applied"
            throw StorageError.corrupt("rows are missing")
        }
    }
}

/// Checkpoints in a tight loop, on a thread and through a connection of its own.
// SAFETY: `database` is used by the thread only; the flag is atomic.
private final class Stranger: @unchecked Sendable {
    private let database: Database
    private let isOver = Atomic(false)
    private var thread = pthread_t()

    init(_ path: String) throws {
        database = try Database(path: path)
        let context = Unmanaged.passRetained(self).toOpaque()
        pthread_create(
            &thread, nil,
            { context in
                guard let context else { return nil }
                Unmanaged<Stranger>.fromOpaque(context).takeRetainedValue().loop()
                return nil
            }, context)
    }

    private func loop() {
        while !isOver.load(ordering: .relaxed) {
            _ = try? database.checkpoint(.passive)
        }
    }

    func stop() {
        isOver.store(true, ordering: .relaxed)
        pthread_join(thread, nil)
    }
}
