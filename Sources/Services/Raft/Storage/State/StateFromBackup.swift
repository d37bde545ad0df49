// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore

/// What a backup holds of a state, on its way into a new cluster: everything but sessions, which
/// belong to clients of the old one, under a membership of its own.
package struct StateFromBackup {
    package typealias Pieces = () throws(StorageError) -> [UInt8]?

    private let pieces: () -> Pieces
    #if ASPEN_TEST_BUILD
        package var plantedBug: KVPlantedBug?
    #endif

    /// - Parameter pieces: the state's stream from its beginning; it is read twice.
    package init(_ pieces: @escaping () -> Pieces) { self.pieces = pieces }

    /// Builds the state and puts it in the place of the one in `store`.
    ///
    /// - Returns: where the log begins.
    /// - Throws: `corrupt` when the stream is none; then `store` is as it was.
    package func put(
        into store: any StateStore, as membership: Membership
    ) throws(StorageError) -> SnapshotMeta {
        var (meta, left) = try survey()
        meta.rowHash &-= left.hash
        if left.sessions {
            meta.sessionCount = 0
            meta.storedAnswerBytes = 0
        }
        if left.leases { meta.leaseCount = 0 }
        meta.membership = membership.payload
        meta.membershipIndex = meta.appliedIndex
        let snapshot = SnapshotMeta(
            index: meta.appliedIndex, term: meta.appliedTerm, membership: membership,
            time: meta.time)
        let writer = try store.receiveSnapshot(snapshot)
        do {
            var stream = StateStreamWriter(
                meta: meta, rows: BackupRows(pieces(), leavingOut: left))
            while let piece = try stream.next(bytesMax: 262_144) { try writer.append(piece) }
            try writer.finish()
        } catch {
            writer.abandon()
            throw error
        }
        return snapshot
    }

    /// What is left out, and the hash of its rows.
    struct LeftOut {
        var sessions = true
        var leases = false
        var hash: UInt64 = 0

        func covers(_ row: StateRow) -> Bool {
            switch row {
            case .session, .answer: sessions
            case .lease, .attachment: leases
            case .change, .version: false
            }
        }
    }

    private func survey() throws(StorageError) -> (meta: StateMeta, left: LeftOut) {
        var left = LeftOut()
        #if ASPEN_TEST_BUILD
            left.sessions = plantedBug != .restoreKeepsSessions
            left.leases = plantedBug == .restoreWithoutLeases
        #endif
        var rows = BackupRows(pieces(), leavingOut: nil)
        while let row = try rows.next() {
            if left.covers(row) { left.hash &+= RowHash.of(row) }
        }
        guard let meta = rows.meta, rows.isComplete else {
            throw .corrupt("its state is cut short")
        }
        guard meta.appliedIndex > .zero else { throw .corrupt("it shows no state") }
        return (meta, left)
    }
}

/// The rows of a state's stream, or most of them.
private struct BackupRows: RowSource {
    private(set) var meta: StateMeta?
    private var reader = StateStreamReader()
    private let pieces: StateFromBackup.Pieces
    private let left: StateFromBackup.LeftOut?

    init(_ pieces: @escaping StateFromBackup.Pieces, leavingOut left: StateFromBackup.LeftOut?) {
        self.pieces = pieces
        self.left = left
    }

    var isComplete: Bool { reader.isComplete }

    mutating func next() throws(StorageError) -> StateRow? {
        while true {
            let item: StateStream.Item?
            do { item = try reader.next() } catch {
                throw .corrupt("its state cannot be read: \(error)")
            }
            switch item {
            case .meta(let found): meta = found
            case .row(let row) where left?.covers(row) == true: continue
            case .row(let row): return row
            case .end: return nil
            case nil:
                guard let piece = try pieces() else { return nil }
                reader.append(piece)
            }
        }
    }
}
