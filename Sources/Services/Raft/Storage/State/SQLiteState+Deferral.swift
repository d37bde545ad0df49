// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore
import SQLiteKit

// What a transaction or a checkpoint writes may get to the disk later: see `Database.deferWriting`. What
// of it is durable is asked here.

extension SQLiteState {
    /// Asks how far the disk has come with what was put off.
    func noteDurable() throws(StorageError) {
        guard let awaited else { return }
        let isReached = try storing { machine throws(SQLiteError) in
            try machine.tables.database.hasReached(awaited.mark)
        }
        guard isReached else { return }
        durableIndex = awaited.index
        self.awaited = nil
    }

    /// Until all of it is on the disk, or finds no room there.
    func awaitDeferred() throws(StorageError) {
        guard isDeferring else { return }
        _ = try storing { machine throws(SQLiteError) in
            try machine.tables.database.awaitDeferred()
        }
        try noteDurable()
    }

    /// Where space is tight, whoever writes has to hear at once that there is none. It stays as it is
    /// where there is none for what waits already.
    func setDeferring(_ isOn: Bool) throws(StorageError) {
        guard isOn != isDeferring, options.deferral != .nothing else { return }
        let isDone = try storing { machine throws(SQLiteError) in
            try machine.tables.database.deferWriting(isOn ? options.deferral : .nothing)
        }
        if isDone { isDeferring = isOn }
        try noteDurable()
    }

    /// Carries out what was put off, for whoever has `Database.Deferral.byHand`.
    package func carryOut(_ count: Int) throws(StorageError) {
        guard isDeferring else { return }
        try storing { machine throws(SQLiteError) in
            try machine.tables.database.carryOut(count)
        }
    }
}
