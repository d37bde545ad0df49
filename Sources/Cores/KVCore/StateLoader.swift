// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Fills empty tables from the items of a snapshot and checks that the result is what was sent.
package struct StateLoader<Tables: StateTables> {
    package enum Failure: Error {
        case tables(Tables.Failure)
        /// The text says what is wrong with the snapshot.
        case unusable(String)
    }

    package private(set) var tables: Tables
    package private(set) var meta: StateMeta?
    private var rowHash: UInt64 = 0
    private var sessionCount: UInt64 = 0
    private var answerBytes: UInt64 = 0
    private var leaseCount: UInt64 = 0
    private var attachmentCount: UInt64 = 0
    private var leasedKeyCount: UInt64 = 0
    private var figures = StateFigures()
    private var lastChange = ChangeNumber.zero
    private var lastSession = SessionID(0)
    private var lastLease = LeaseID.none

    package init(tables: Tables) { self.tables = tables }

    /// Rows must come in the order in which `StateStreamWriter`'s sources give them: changes,
    /// sessions and leases ascending.
    package mutating func take(_ item: StateStream.Item) throws(Failure) {
        do {
            switch item {
            case .meta(let meta): self.meta = meta
            case .row(let row): try take(row)
            case .end: break
            }
        } catch let failure as Failure {
            throw failure
        } catch let failure as Tables.Failure {
            throw .tables(failure)
        } catch {
            preconditionFailure("nothing else is thrown")
        }
    }

    private mutating func take(_ row: StateRow) throws {
        switch row {
        case .version: return
        case .change(let change):
            try take(change)
            return
        case .session(let session):
            guard session.id > lastSession else {
                throw Failure.unusable("sessions are not in order")
            }
            lastSession = session.id
            try tables.store(session)
            sessionCount += 1
        case .answer(let answer):
            try tables.store(answer)
            answerBytes += UInt64(answer.bytes.count)
        case .lease(let lease):
            guard lease.id > lastLease else { throw Failure.unusable("leases are not in order") }
            lastLease = lease.id
            try tables.store(lease)
            leaseCount += 1
            leasedKeyCount += lease.keyCount
        case .attachment(let attachment):
            try tables.insert(attachment)
            attachmentCount += 1
        }
        rowHash &+= RowHash.of(row)
    }

    private mutating func take(_ change: Change) throws {
        let header = change.header
        guard header.number > lastChange else { throw Failure.unusable("changes are not in order") }
        guard header.previous < header.number else {
            throw Failure.unusable("a change names a later one as the one before it")
        }
        lastChange = header.number
        // Only a state from before there were figures is counted: it costs a look-up a row.
        if meta?.needsCounting == true {
            let before = try tables.version(of: header.key, upTo: .max)
            _ = figures.inserted(
                change, replaced: before.flatMap { $0.isTombstone ? nil : $0.valueBytes })
        } else {
            _ = figures.inserted(change, replaced: nil)
        }
        let hash = RowHash.ofRows(change)
        try tables.insert(change, hash: hash)
        rowHash &+= hash
    }

    /// Stores meta. Call after `.end`.
    package mutating func finish() throws(Failure) -> StateMeta {
        guard var meta else { throw .unusable("there is no meta") }
        guard meta.activeVersion <= KVVersion.supported else {
            throw .unusable(
                "it needs state-machine version \(meta.activeVersion), this program knows versions"
                    + " up to \(KVVersion.supported)")
        }
        if meta.needsCounting {
            meta.figures = figures
            meta.needsCounting = false
        }
        guard meta.rowHash == rowHash, meta.sessionCount == sessionCount,
            meta.storedAnswerBytes == answerBytes, meta.leaseCount == leaseCount,
            attachmentCount == leasedKeyCount, meta.figures.changeCount == figures.changeCount,
            meta.figures.changeBytes == figures.changeBytes,
            lastChange <= ChangeNumber.last(of: meta.revision)
        else { throw .unusable("its rows are not those that its meta describes") }
        do { try tables.store(meta) } catch { throw .tables(error) }
        return meta
    }
}
