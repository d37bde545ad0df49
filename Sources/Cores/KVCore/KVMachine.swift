// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenTypes

/// A committed entry, understood.
package struct CommittedEntry: Sendable {
    package enum Body: Sendable {
        case noop
        case command(Command)
        /// In the encoding of the entry's payload.
        case membership([UInt8])
        /// Bytes of a known version that no program writes. All replicas refuse them alike, so that
        /// a corrupt proposal never becomes a crash loop.
        case malformed
    }

    package var index: LogIndex
    package var term: Term
    package var time: ClusterTime
    package var body: Body

    package init(index: LogIndex, term: Term, time: ClusterTime, body: Body) {
        self.index = index
        self.term = term
        self.time = time
        self.body = body
    }
}

/// The key-value state machine: etcd's model (revisions, versions, tombstones, transactions with
/// compares, compaction) and client sessions (Raft thesis §6.3) over rows that lie anywhere.
///
/// Applying is deterministic: equal entries give equal results, rows and hash on every replica,
/// however the entries are grouped into batches. What a user does wrong is a result, never an
/// error; an error means that the rows are out of reach, and that this value must not be used again.
package struct KVMachine<Tables: StateTables> {
    package internal(set) var meta: StateMeta
    package internal(set) var tables: Tables
    /// Sessions as they are after the last entry applied. Within a batch the tables lag behind.
    var sessions: [SessionID: CachedSession] = [:]
    /// Those of `sessions` that must be written back, in the order in which they changed.
    var dirtySessions: [SessionID] = []
    /// No lease is due before this; nil: there is none. Not later than the earliest deadline, and
    /// exactly that after `nextLeaseExpiry`.
    package internal(set) var leaseExpiryHint: ClusterTime?
    /// Honoured in test builds only.
    package var plantedBug: KVPlantedBug?
    /// What a planted bug takes for the time.
    package var localTime = ClusterTime.zero
    /// Silence after which a session may be ended. The same on all replicas, always: it decides
    /// results. Only the simulator, where a minute is long, has another one.
    package var sessionTimeoutMilliseconds = UInt64(Limits.sessionTimeout / .milliseconds(1))
    /// Nil: nobody follows what is applied.
    package var recording: ChangeRecording?
    /// Those of the moment when it was made, and the same on all replicas.
    let bounds = KVBounds.current

    struct CachedSession {
        var row: SessionRow
        /// Of the row as the tables have it; zero if they have none.
        var storedHash: UInt64
        var isDirty: Bool
    }

    package init(tables: Tables, meta: StateMeta) {
        self.tables = tables
        self.meta = meta
        leaseExpiryHint = meta.leaseCount > 0 ? .zero : nil
    }

    /// Applies entries in order and writes sessions and meta back once. To the tables this is one
    /// transaction, begun and ended by the caller.
    package mutating func apply(
        _ entries: [CommittedEntry]
    ) throws(Tables.Failure) -> [CommandResult] {
        var results: [CommandResult] = []
        results.reserveCapacity(entries.count)
        for entry in entries { results.append(try apply(entry)) }
        try writeBackSessions()
        if sessions.count > bounds.sessionCacheMax { sessions.removeAll() }
        try tables.store(meta)
        return results
    }

    private mutating func apply(
        _ entry: CommittedEntry
    ) throws(Tables.Failure) -> CommandResult {
        precondition(entry.index == meta.appliedIndex.next, "entries are applied in order")
        precondition(entry.term >= meta.appliedTerm, "terms never decrease in a log")
        meta.appliedIndex = entry.index
        meta.appliedTerm = entry.term
        meta.time = max(meta.time, entry.time)
        let changesBefore = changesMade
        let result: CommandResult
        var sweepBudget = bounds.sweptPerEntry
        switch entry.body {
        case .noop: result = .done
        case .malformed: result = .failed(code: .invalidArgument, message: "malformed command")
        case .membership(let bytes):
            meta.membership = bytes
            meta.membershipIndex = entry.index
            result = .done
        case .command(let command):
            if case .compact = command { sweepBudget = bounds.sweptPerCompact }
            result = try apply(command)
        }
        // Twice what this entry added: sweeping overtakes writing.
        try sweep(atMost: sweepBudget + 2 * (changesMade - changesBefore))
        return result
    }

    /// Changes made since this value was created.
    var changesMade = 0
    /// Some changes behind `meta.swept`, the first one last. Read ahead: to ask for a few at a time costs
    /// as much as reading them. Nothing but sweeping touches them.
    private var sweptNext: [SweptChange] = []

    private mutating func apply(_ command: Command) throws(Tables.Failure) -> CommandResult {
        guard command.version <= meta.activeVersion else {
            return .failed(
                code: .unsupportedVersion,
                message: "the command needs state-machine version \(command.version), the cluster"
                    + " is at \(meta.activeVersion) until all its members support more")
        }
        if let request = command.sessionRequest { return try apply(command, under: request) }
        return try carryOut(command, within: .max)
    }

    /// - Parameter room: bytes that the answer may have.
    mutating func carryOut(
        _ command: Command, within room: Int
    ) throws(Tables.Failure) -> CommandResult {
        switch command {
        case .openSession: return try openSession()
        case .keepSessionAlive(let id): return try keepSessionAlive(id)
        case .closeSession(let id): return try closeSession(id)
        case .expireSessions: return try expireSessions()
        case .transaction(let transaction, _): return try carryOut(transaction, within: room)
        case .grantLease(let id, let ttlMilliseconds, _):
            return try grantLease(id, ttlMilliseconds: ttlMilliseconds)
        case .revokeLease(let id, _): return try revokeLease(id)
        case .keepLeaseAlive(let id): return try keepLeaseAlive(id)
        case .expireLeases: return try expireLeases()
        case .compact(let revision): return compact(revision)
        case .activateVersion(let version): return activate(version)
        }
    }

    private mutating func compact(_ revision: Revision) -> CommandResult {
        guard revision <= meta.revision else {
            return .failed(
                code: .invalidArgument,
                message: "cannot compact to revision \(revision): the store is at \(meta.revision)")
        }
        // Repeating it, or asking for less, is how a policy keeps sweeping going: no error.
        meta.compacted = max(meta.compacted, revision)
        return .done
    }

    /// Versions that this program does not know never get here: see `entryVersionUnknown`.
    private mutating func activate(_ version: UInt16) -> CommandResult {
        guard let version = UInt8(exactly: version), version >= meta.activeVersion else {
            return .done
        }
        meta.activeVersion = version
        return .done
    }

    /// Removes up to `budget` rows of history that no readable revision can see.
    ///
    /// Every change names the one before it of the same key: once a change is at or below the
    /// compacted revision, its predecessor is dead, and so is the change itself if it is a
    /// tombstone. So sweeping reads each change once, in order, and little else.
    private mutating func sweep(atMost budget: Int) throws(Tables.Failure) {
        var limit = ChangeNumber.last(of: meta.compacted)
        if has(.sweepTooFar), meta.compacted < meta.revision {
            limit = .last(of: meta.compacted.next)
        }
        guard meta.compacted > .zero, limit > meta.swept else { return }
        for _ in 0..<budget {
            if sweptNext.isEmpty {
                sweptNext = try tables.sweepable(
                    after: meta.swept, upTo: limit, count: max(budget, bounds.sweptReadAhead))
                sweptNext.reverse()
            }
            guard let change = sweptNext.popLast() else {
                meta.swept = limit
                return
            }
            if let replaced = change.replaced {
                try tables.remove(
                    change.previous, keyBytes: change.keyBytes, valueBytes: replaced.valueBytes)
                try sweep(change.keyBytes, replaced.valueBytes, hash: replaced.hash)
            } else if change.previous != .zero {
                try remove(change.previous)
            }
            if change.isTombstone { try remove(change.number) }
            meta.swept = change.number
        }
    }

    /// A tombstone may have been swept before its successor gets here: then there is nothing to do.
    private mutating func remove(_ number: ChangeNumber) throws(Tables.Failure) {
        guard let change = try tables.remove(number) else { return }
        try sweep(change.header.key.count, change.value.count, hash: RowHash.ofRows(change))
    }

    /// Takes a change that is gone out of what is reckoned.
    private mutating func sweep(
        _ keyBytes: Int, _ valueBytes: Int, hash: UInt64
    ) throws(Tables.Failure) {
        guard meta.figures.swept(keyBytes: keyBytes, valueBytes: valueBytes) else {
            throw Tables.contradiction("more history is swept than there is")
        }
        meta.rowHash &-= hash
    }

    /// - Parameter replaced: size of the value that the key had until now; nil: it did not exist.
    mutating func insert(_ change: Change, replaced: Int?) throws(Tables.Failure) {
        guard change.header.previous < change.header.number else {
            throw Tables.contradiction("a key has a version of the future")
        }
        guard meta.figures.inserted(change, replaced: replaced) else {
            throw Tables.contradiction("more keys are there than are counted")
        }
        let hash = RowHash.ofRows(change)
        try tables.insert(change, hash: hash)
        changesMade += 1
        recording?.append(change)
        meta.rowHash &+= hash
    }
}

extension CommittedEntry {
    /// Why this program must not go on past the entry.
    package struct UnknownVersion: Error, Equatable, Sendable, CustomStringConvertible {
        package var index: LogIndex
        package var version: UInt16

        package init(index: LogIndex, version: UInt16) {
            self.index = index
            self.version = version
        }

        package var description: String {
            "log entry \(index) needs state-machine version \(version), this program knows versions"
                + " up to \(KVVersion.supported): install a newer aspend-raft and start it again"
        }
    }

    /// Decodes a command payload. Do this for a whole batch before applying any of it.
    package static func body(
        ofCommand payload: [UInt8], at index: LogIndex
    ) throws(UnknownVersion) -> Body {
        do {
            let command = try CommandCodec.decode(payload)
            if case .activateVersion(let version) = command, version > KVVersion.supported {
                throw UnknownVersion(index: index, version: version)
            }
            return .command(command)
        } catch let failure as CommandCodec.Failure {
            switch failure {
            case .unknownVersion(let version):
                throw UnknownVersion(index: index, version: UInt16(version))
            case .malformed: return .malformed
            }
        } catch let unknown as UnknownVersion {
            throw unknown
        } catch {
            preconditionFailure("nothing else is thrown")
        }
    }
}

// MARK: - Hash

extension KVMachine {
    /// The row hash from the rows themselves; equal to `meta.rowHash` unless rows or sum are wrong.
    package static func rowHash<Source: RowSource>(
        of rows: inout Source
    ) throws(Source.Failure) -> UInt64 {
        var sum: UInt64 = 0
        while let row = try rows.next() { sum &+= RowHash.of(row) }
        return sum
    }
}
