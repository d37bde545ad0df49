// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// The rows under the state machine. `KVMachine` is the only one who knows what they mean; a store
/// in memory and one in SQLite differ only in where the rows lie.
///
/// There are five tables:
/// - **changes**, by change number: what each write did, with its value. Values are only ever
///   appended here, so history costs no copying and a watch resumes by reading on from a number.
/// - **versions**, by (key, change number descending): which changes touched a key. The newest
///   version at a revision is the first row at or below it, so that reading now and reading the
///   past are the same look-up.
/// - **sessions**, by id, with the answers that are small.
/// - **answers**, by (session, request number): the answers that are not.
/// - **meta**: one row.
package protocol StateTables {
    associatedtype Failure: Error

    /// The newest version of `key` that is not above `limit`; it may be a tombstone.
    func version(of key: [UInt8], upTo limit: ChangeNumber) throws(Failure) -> VersionRow?
    /// The newest version, not above `limit`, of each key in `from..<to`, without tombstones, in
    /// the order of keys (bytewise); at most `count`. `to` nil: to the end.
    func versions(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, count: Int
    ) throws(Failure) -> [KeyVersion]
    /// The value that `change` wrote; empty for a tombstone. The change must exist.
    func value(of change: ChangeNumber) throws(Failure) -> [UInt8]
    /// Changes above `after` and not above `upTo`, ascending, at most `count`; values left out.
    func changes(
        after: ChangeNumber, upTo: ChangeNumber, count: Int
    ) throws(Failure) -> [ChangeHeader]
    /// Adds a row to changes and one to versions.
    mutating func insert(_ change: Change) throws(Failure)
    /// Removes both rows; nil when there are none.
    mutating func remove(_ number: ChangeNumber) throws(Failure) -> Change?

    func session(_ id: SessionID) throws(Failure) -> SessionRow?
    /// Ids of sessions last active before `time`, ascending.
    func sessions(lastActiveBefore time: ClusterTime) throws(Failure) -> [SessionID]
    /// When the longest silent session was last active; nil without sessions.
    func oldestSessionActivity() throws(Failure) -> ClusterTime?
    /// Adds or replaces.
    mutating func store(_ session: SessionRow) throws(Failure)
    mutating func removeSession(_ id: SessionID) throws(Failure)

    func answer(of session: SessionID, number: UInt64) throws(Failure) -> [UInt8]?
    mutating func store(_ answer: AnswerRow) throws(Failure)
    mutating func removeAnswer(of session: SessionID, number: UInt64) throws(Failure)

    mutating func store(_ meta: StateMeta) throws(Failure)
}

/// Names one change: the revision in the upper bits, the place within its transaction in the lower
/// twelve. A transaction makes at most `KVLimits.transactionChangesMax` changes.
package struct ChangeNumber: Hashable, Comparable, Sendable {
    package static let placeBits: UInt64 = 12
    package let rawValue: UInt64
    package init(_ rawValue: UInt64) { self.rawValue = rawValue }

    package init(_ revision: Revision, place: Int) {
        precondition(place >= 0 && place < 1 << Self.placeBits, "place in transaction too large")
        precondition(revision.rawValue < 1 << (63 - Self.placeBits), "revision too large")
        rawValue = revision.rawValue << Self.placeBits | UInt64(place)
    }

    /// Greater or equal to every change of `revision`, less than any of the next.
    package static func last(of revision: Revision) -> ChangeNumber {
        ChangeNumber(revision, place: (1 << placeBits) - 1)
    }

    package static let zero = ChangeNumber(0)
    /// Above every change there can be; fits a signed 64-bit integer.
    package static let max = ChangeNumber(UInt64(Int64.max))
    package var revision: Revision { Revision(rawValue >> Self.placeBits) }
    package static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

/// One version of a key.
package struct VersionRow: Equatable, Sendable {
    package var change: ChangeNumber
    /// Zero in a tombstone.
    package var createRevision: Revision
    /// Puts since the key was created; zero in a tombstone.
    package var version: UInt64

    package init(change: ChangeNumber, createRevision: Revision, version: UInt64) {
        self.change = change
        self.createRevision = createRevision
        self.version = version
    }

    package var isTombstone: Bool { version == 0 }
}

package struct KeyVersion: Equatable, Sendable {
    package var key: [UInt8]
    package var row: VersionRow

    package init(key: [UInt8], row: VersionRow) {
        self.key = key
        self.row = row
    }
}

/// What a write did, without the value.
package struct ChangeHeader: Equatable, Sendable {
    package var number: ChangeNumber
    package var key: [UInt8]
    package var createRevision: Revision
    /// Zero: the key was removed.
    package var version: UInt64
    /// The change of the same key before this one, if there was one when this was written; it is of
    /// no use to any reader at or above this change.
    package var previous: ChangeNumber

    package init(
        number: ChangeNumber, key: [UInt8], createRevision: Revision, version: UInt64,
        previous: ChangeNumber
    ) {
        self.number = number
        self.key = key
        self.createRevision = createRevision
        self.version = version
        self.previous = previous
    }

    package var isTombstone: Bool { version == 0 }

    package var versionRow: VersionRow {
        VersionRow(change: number, createRevision: createRevision, version: version)
    }
}

package struct Change: Equatable, Sendable {
    package var header: ChangeHeader
    package var value: [UInt8]

    package init(header: ChangeHeader, value: [UInt8]) {
        self.header = header
        self.value = value
    }
}

/// A client session as it is stored.
package struct SessionRow: Equatable, Sendable {
    /// One answer kept for a retry.
    package struct Answer: Equatable, Sendable {
        package var number: UInt64
        /// Length of the encoded `CommandResult`.
        package var byteCount: Int
        /// Nil when it is too large for this row: then it is in the table of answers.
        package var bytes: [UInt8]?

        package init(number: UInt64, byteCount: Int, bytes: [UInt8]?) {
            self.number = number
            self.byteCount = byteCount
            self.bytes = bytes
        }
    }

    package var id: SessionID
    package var lastActive: ClusterTime
    /// Answers below this number have reached the client and are forgotten.
    package var acknowledgedBelow: UInt64
    /// Ascending by number.
    package var answers: [Answer]

    package init(
        id: SessionID, lastActive: ClusterTime, acknowledgedBelow: UInt64 = 0,
        answers: [Answer] = []
    ) {
        self.id = id
        self.lastActive = lastActive
        self.acknowledgedBelow = acknowledgedBelow
        self.answers = answers
    }
}

package struct AnswerRow: Equatable, Sendable {
    package var session: SessionID
    package var number: UInt64
    package var bytes: [UInt8]

    package init(session: SessionID, number: UInt64, bytes: [UInt8]) {
        self.session = session
        self.number = number
        self.bytes = bytes
    }
}

/// Any row but meta: what a snapshot carries and the content hash is taken over.
package enum StateRow: Equatable, Sendable {
    case version(KeyVersion)
    case change(Change)
    case session(SessionRow)
    case answer(AnswerRow)
}

/// Every row of every table but meta, each once, in any order that is the same for the same rows.
package protocol RowSource {
    associatedtype Failure: Error
    mutating func next() throws(Failure) -> StateRow?
}
