// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore
import RaftStorage
import SQLiteKit
import Synchronization
import Testing

/// What a state is opened with, and what becomes of it before the first checkpoint.
@Suite struct StateRestartTests {
    private func open(_ directory: StateDirectory) throws(StorageError) -> SQLiteState {
        try SQLiteState(directory: directory.path, options: smallOptions())
    }

    /// Killed after the `count`th page that a checkpoint has written, or at its end.
    /// - Returns: what is left, and up to where an earlier checkpoint had got.
    private func killed(
        inACheckpoint count: Int, _ reference: inout Reference
    ) throws -> (directory: StateDirectory, durable: LogIndex) {
        let directory = StateDirectory()
        let state = try open(directory)
        defer { state.close() }
        _ = try state.apply(try reference.batch(120))
        let durable = try state.checkpoint()
        for _ in 0..<4 { _ = try state.apply(try reference.batch(30)) }
        let copies = Mutex<(countdown: Int, taken: StateDirectory?)>((count, nil))
        let observer = VFSObserver(
            prefix: directory.path + "/state.db",
            after: { event in
                guard event.kind == .write, event.path.hasSuffix(".db") else { return }
                copies.withLock {
                    $0.countdown -= 1
                    if $0.countdown == 0 { $0.taken = directory.copy() }
                }
            })
        _ = try state.checkpoint()
        withExtendedLifetime(observer) {}
        return (copies.withLock { $0.taken } ?? directory.copy(), durable)
    }

    /// Who waits for a killed node waits for this: nothing is written and nothing synced. What was
    /// found is made durable with the first checkpoint.
    @Test func openingWritesAndSyncsNothing() throws {
        var reference = Reference(seed: 11)
        let (directory, _) = try killed(inACheckpoint: 5, &reference)
        let changes = Mutex<[String]>([])
        let observer = VFSObserver(
            prefix: directory.path,
            after: { event in
                guard event.kind != .read else { return }
                changes.withLock { $0.append("\(event.kind) \(event.path)") }
            })
        let state = try open(directory)
        defer { state.close() }
        #expect(changes.withLock { $0 } == [])
        #expect(state.appliedIndex == index(240))
        #expect(!StateDirectory.read(directory.path + "/state.db-wal").isEmpty)
        #expect(try state.checkpoint() == index(240))
        let made = changes.withLock { $0 }
        #expect(made.contains("write \(directory.path)/state.db-wal"), "see SQLiteState.settle")
        #expect(made.contains("sync \(directory.path)/state.db-wal"))
        #expect(made.contains("syncDirectory \(directory.path)"))
        #expect(made.contains("sync \(directory.path)/state.db"))
        withExtendedLifetime(observer) {}
    }

    /// Before a snapshot takes a state's place the WAL goes. Killed just then, the node must find a
    /// state that was, and not the pages of several moments that half a checkpoint has left.
    @Test(arguments: ["killed", "reader"])
    func whatASnapshotReplacesIsWholeWithoutItsWAL(_ cause: String) throws {
        var origin = Reference(seed: 21)
        _ = try origin.batch(400)
        for round in 1...8 {
            var reference = Reference(seed: UInt64(30 + round))
            let directory: StateDirectory
            let durable: LogIndex
            let state: SQLiteState
            if cause == "killed" {
                (directory, durable) = try killed(inACheckpoint: round * 2, &reference)
                state = try open(directory)
            } else {
                directory = StateDirectory()
                state = try open(directory)
                _ = try state.apply(try reference.batch(120))
                durable = try state.checkpoint()
                _ = try state.apply(try reference.batch(48))
                var options = Database.Options()
                options.isReadOnly = true
                let reader = try Database(path: directory.path + "/state.db", options: options)
                try reader.execute("BEGIN; SELECT * FROM meta")
                _ = try state.apply(try reference.batch(30))
                #expect(try state.checkpoint() == durable, "held up by the reader")
                try reader.execute("COMMIT")
            }
            let copies = Mutex<StateDirectory?>(nil)
            let observer = VFSObserver(
                prefix: directory.path,
                before: { event in
                    if event.kind == .rename { copies.withLock { $0 = directory.copy() } }
                    return 0
                })
            try transfer(from: origin.memory, to: state)
            withExtendedLifetime(observer) {}
            #expect(state.appliedIndex == origin.memory.appliedIndex)
            state.close()
            let found = try #require(copies.withLock { $0 })
            #expect(!StateDirectory.names(in: found.path).contains("state.db-wal"))
            try reference.check(found, durable: durable, "\(cause), round \(round)")
        }
    }

    /// The same when a state that is given up is set aside, WAL first: the database that is left for
    /// a moment is none.
    @Test func givingUpAStateIsBegunAgain() throws {
        var reference = Reference(seed: 51)
        let (directory, _) = try killed(inACheckpoint: 5, &reference)
        let copies = Mutex<[StateDirectory]>([])
        let observer = VFSObserver(
            prefix: directory.path,
            after: { event in
                if event.kind == .rename { copies.withLock { $0.append(directory.copy()) } }
            })
        try SQLiteState.rebuildEmpty(directory: directory.path).close()
        withExtendedLifetime(observer) {}
        let found = copies.withLock { $0 }
        #expect(found.count == 2)
        for copy in found {
            do throws(StorageError) {
                try SQLiteState(directory: copy.path).close()
                Issue.record("what is left of a state was taken for one")
            } catch {
                guard case .corrupt = error else { throw error }
                let fresh = try SQLiteState.rebuildEmpty(directory: copy.path)
                #expect(fresh.appliedIndex == .zero)
                fresh.close()
                try SQLiteState(directory: copy.path).close()
            }
        }
    }
}
