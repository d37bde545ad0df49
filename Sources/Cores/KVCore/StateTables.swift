// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// The rows under the state machine. `KVMachine` is the only one who knows what they mean; a store
/// in memory and one in SQLite differ only in where the rows lie.
///
/// There are seven tables:
/// - **changes**, by change number: what each write did, with its value. Values are only ever
///   appended here, so history costs no copying and a watch resumes by reading on from a number.
/// - **versions**, by (key, change number descending): which changes touched a key. The newest
///   version at a revision is the first row at or below it, so that reading now and reading the
///   past are the same look-up. They say nothing that changes do not: a store may keep what serves it.
/// - **sessions**, by id, with the answers that are small.
/// - **answers**, by (session, request number): the answers that are not.
/// - **leases**, by id; found by deadline as well.
/// - **attachments**, by (lease, key): the keys that go with a lease.
/// - **meta**: one row.
package protocol StateTables {
    associatedtype Failure: Error

    /// The newest version of `key` that is not above `limit`; it may be a tombstone.
    func version(of key: [UInt8], upTo limit: ChangeNumber) throws(Failure) -> VersionRow?
    /// The newest version, not above `limit`, of each key in `from..<to`, without tombstones, in
    /// the order of keys (bytewise) or against it; at most `count`. `to` nil: to the end.
    func versions(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, count: Int, descending: Bool
    ) throws(Failure) -> [KeyVersion]
    /// The same ones, handed out where they lie. `want` is told of each, and how long its key is, before
    /// `take` gets it, and says whether it does.
    func visit(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, count: Int, descending: Bool,
        want: (Int, VersionRow) -> VisitWish, take: (EntryView) -> Void
    ) throws(Failure)
    /// How many `versions` there are, looking at about `rowsMax` rows; `next`: the key from which to
    /// go on, nil if that was all.
    func countVersions(
        from: [UInt8], to: [UInt8]?, upTo limit: ChangeNumber, rowsMax: Int
    ) throws(Failure) -> (count: Int, next: [UInt8]?)
    /// Versions of one key not above `limit`, tombstones included, the newest first.
    func history(
        of key: [UInt8], upTo limit: ChangeNumber, count: Int
    ) throws(Failure) -> [VersionRow]
    /// The version that `change` made; nil if it is gone. Not for what history has lost.
    func row(of change: ChangeNumber) throws(Failure) -> VersionRow?
    /// The value that `change` wrote; empty for a tombstone. The change must exist.
    func value(of change: ChangeNumber) throws(Failure) -> [UInt8]
    /// Changes above `after` and not above `upTo`, ascending, at most `count`; values left out.
    func changes(
        after: ChangeNumber, upTo: ChangeNumber, count: Int
    ) throws(Failure) -> [ChangeHeader]
    /// The same changes, as sweeping needs them.
    func sweepable(
        after: ChangeNumber, upTo: ChangeNumber, count: Int
    ) throws(Failure) -> [SweptChange]
    /// Adds a row to changes and one to versions.
    /// - Parameter hash: the sum of the hashes of both.
    mutating func insert(_ change: Change, hash: UInt64) throws(Failure)
    /// Removes both rows; nil when there are none.
    mutating func remove(_ number: ChangeNumber) throws(Failure) -> Change?
    /// Removes both rows of a change that is there and no tombstone, without a look at it.
    mutating func remove(
        _ number: ChangeNumber, keyBytes: Int, valueBytes: Int
    ) throws(Failure)

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

    func lease(_ id: LeaseID) throws(Failure) -> LeaseRow?
    /// Leases above `after`, ascending, at most `count`.
    func leases(after: LeaseID, count: Int) throws(Failure) -> [LeaseRow]
    /// Leases whose deadline is not after `time`, by deadline and then id, at most `count`.
    func leases(dueBy time: ClusterTime, count: Int) throws(Failure) -> [LeaseRow]
    /// The earliest deadline; nil without leases.
    func earliestDeadline() throws(Failure) -> ClusterTime?
    /// Adds or replaces.
    mutating func store(_ lease: LeaseRow) throws(Failure)
    mutating func removeLease(_ id: LeaseID) throws(Failure)

    /// Keys of a lease above `after` (nil: from the first), ascending, at most `count`.
    func keys(of lease: LeaseID, after: [UInt8]?, count: Int) throws(Failure) -> [[UInt8]]
    mutating func insert(_ attachment: AttachmentRow) throws(Failure)
    mutating func remove(_ attachment: AttachmentRow) throws(Failure)

    mutating func store(_ meta: StateMeta) throws(Failure)

    /// Rows and meta contradict each other. Where a disk may have forgotten some of them that is an error of
    /// the disk; in memory it is a fault of ours, and traps.
    static func contradiction(_ what: String) -> Failure
}
