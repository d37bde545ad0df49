// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes
import KVCore
import RaftCore

/// The part of receiving a snapshot that does not depend on where the rows go.
struct SnapshotIntake<Tables: StateTables> {
    private var reader = StateStreamReader()
    private var loader: StateLoader<Tables>

    init(tables: Tables) { loader = StateLoader(tables: tables) }

    /// Takes in a piece of any size. `storage` says what an error of the tables means.
    mutating func append(
        _ bytes: [UInt8], storage: (Tables.Failure) -> StorageError
    ) throws(StorageError) {
        reader.append(bytes)
        do {
            while let item = try reader.next() { try loader.take(item) }
        } catch let error as DecodeError {
            throw .corrupt("the snapshot received cannot be read: \(error)")
        } catch let failure as StateLoader<Tables>.Failure {
            throw Self.explain(failure, storage)
        } catch {
            preconditionFailure("nothing else is thrown")
        }
    }

    /// Checks that everything came, that it is sound and that it is what was announced.
    mutating func finish(
        expecting announced: SnapshotMeta, storage: (Tables.Failure) -> StorageError
    ) throws(StorageError) -> (Tables, StateMeta) {
        guard reader.isComplete else { throw .corrupt("the snapshot received is not complete") }
        let meta: StateMeta
        do { meta = try loader.finish() } catch { throw Self.explain(error, storage) }
        let membership = try meta.decodedMembership()
        guard meta.appliedIndex == announced.index, meta.appliedTerm == announced.term,
            meta.time == announced.time, membership?.membership == announced.membership
        else { throw .corrupt("the snapshot received is not the one announced") }
        return (loader.tables, meta)
    }

    private static func explain(
        _ failure: StateLoader<Tables>.Failure, _ storage: (Tables.Failure) -> StorageError
    ) -> StorageError {
        switch failure {
        case .tables(let failure): storage(failure)
        case .unusable(let text): .corrupt("the snapshot received cannot be used: \(text)")
        }
    }
}
