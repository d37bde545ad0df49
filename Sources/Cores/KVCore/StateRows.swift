// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

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

/// A change as sweeping sees it: it lets go of the one before it, and, if it is a tombstone, of itself.
package struct SweptChange: Sendable {
    package var number: ChangeNumber
    package var previous: ChangeNumber
    package var isTombstone: Bool
    package var keyBytes: Int
    /// What is known of `previous` without a look at it; nil: it is to be looked at, and may be gone.
    package var replaced: Replaced?

    /// Of a change that is no tombstone.
    package struct Replaced: Equatable, Sendable {
        /// The sum of the hashes of its two rows.
        package var hash: UInt64
        package var valueBytes: Int

        package init(hash: UInt64, valueBytes: Int) {
            self.hash = hash
            self.valueBytes = valueBytes
        }
    }

    package init(
        number: ChangeNumber, previous: ChangeNumber, isTombstone: Bool, keyBytes: Int,
        replaced: Replaced?
    ) {
        self.number = number
        self.previous = previous
        self.isTombstone = isTombstone
        self.keyBytes = keyBytes
        self.replaced = replaced
    }
}

/// One version of a key.
package struct VersionRow: Equatable, Sendable {
    package var change: ChangeNumber
    /// Zero in a tombstone.
    package var createRevision: Revision
    /// Puts since the key was created; zero in a tombstone.
    package var version: UInt64
    /// Bytes in the value; zero in a tombstone.
    package var valueBytes: Int
    /// None in a tombstone.
    package var lease: LeaseID

    package init(
        change: ChangeNumber, createRevision: Revision, version: UInt64, valueBytes: Int,
        lease: LeaseID = .none
    ) {
        self.change = change
        self.createRevision = createRevision
        self.version = version
        self.valueBytes = valueBytes
        self.lease = lease
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

/// A key and its value where they lie: nothing of it may be kept.
package struct EntryView {
    package let key: UnsafeRawBufferPointer
    package let row: VersionRow
    /// Empty when nobody wanted it.
    package let value: UnsafeRawBufferPointer

    package init(key: UnsafeRawBufferPointer, row: VersionRow, value: UnsafeRawBufferPointer) {
        self.key = key
        self.row = row
        self.value = value
    }
}

/// What somebody wants of a key that was found.
package enum VisitWish: Sendable {
    /// Neither this one nor any other.
    case stop
    case nothing
    /// All but the value.
    case key
    case value
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
    /// That the key is attached to from here on.
    package var lease: LeaseID

    package init(
        number: ChangeNumber, key: [UInt8], createRevision: Revision, version: UInt64,
        previous: ChangeNumber, lease: LeaseID = .none
    ) {
        self.number = number
        self.key = key
        self.createRevision = createRevision
        self.version = version
        self.previous = previous
        self.lease = lease
    }

    package var isTombstone: Bool { version == 0 }
}

package struct Change: Equatable, Sendable {
    package var header: ChangeHeader
    package var value: [UInt8]

    package init(header: ChangeHeader, value: [UInt8]) {
        self.header = header
        self.value = value
    }

    package var versionRow: VersionRow {
        VersionRow(
            change: header.number, createRevision: header.createRevision, version: header.version,
            valueBytes: value.count, lease: header.lease)
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

package struct LeaseRow: Equatable, Sendable {
    package var id: LeaseID
    package var ttlMilliseconds: UInt64
    /// It is due for `Command.expireLeases` when cluster time has come this far, not before.
    package var deadline: ClusterTime
    /// Keys attached to it.
    package var keyCount: UInt64

    package init(
        id: LeaseID, ttlMilliseconds: UInt64, deadline: ClusterTime, keyCount: UInt64 = 0
    ) {
        self.id = id
        self.ttlMilliseconds = ttlMilliseconds
        self.deadline = deadline
        self.keyCount = keyCount
    }
}

package struct AttachmentRow: Equatable, Sendable {
    package var lease: LeaseID
    package var key: [UInt8]

    package init(lease: LeaseID, key: [UInt8]) {
        self.lease = lease
        self.key = key
    }
}

/// Any row but meta: what a snapshot carries and the content hash is taken over.
package enum StateRow: Equatable, Sendable {
    case version(KeyVersion)
    case change(Change)
    case session(SessionRow)
    case answer(AnswerRow)
    case lease(LeaseRow)
    case attachment(AttachmentRow)
}

/// Every row of every table but meta, each once, in any order that is the same for the same rows.
package protocol RowSource {
    associatedtype Failure: Error
    mutating func next() throws(Failure) -> StateRow?
}
