// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import RaftCore
import RaftStorage
import WatchCore

/// A promise that was not kept.
package struct Violation: Error, Equatable, Sendable, CustomStringConvertible {
    package enum Kind: String, Sendable { case safety, liveness }

    package var kind: Kind
    /// Which promise: "election safety".
    package var name: String
    package var detail: String

    package init(_ kind: Kind, _ name: String, _ detail: String) {
        self.kind = kind
        self.name = name
        self.detail = detail
    }

    package var description: String { "\(kind.rawValue): \(name): \(detail)" }
}

/// Watches a world from outside time and says when a promise is broken. `node` is a position in the
/// world, not an id.
package protocol WorldObserver: AnyObject {
    /// A raft daemon has read its disk.
    /// - Parameter entries: everything in its log.
    func recovered(_ node: Int, _ recovery: RaftRecovery, entries: [Entry]) throws(Violation)
    /// The state as a raft daemon finds it when it starts, or an empty one in the place of one that a
    /// flipped bit has damaged.
    func opened(_ node: Int, _ state: MemoryState, isMadeAnew: Bool) throws(Violation)
    /// The process has ended: what was written and not synced may be there or not.
    func ended(_ node: Int)
    /// The disk of `node`, which was this replica, is gone.
    func wiped(_ node: Int, _ replica: ReplicaID)
    func wrote(_ node: Int, _ write: LogWrite) throws(Violation)
    func synced(_ node: Int, _ writes: [LogWrite]) throws(Violation)
    /// The membership in force on `node` has changed.
    func membership(_ node: Int, _ membership: Membership)
    func standing(_ node: Int, _ standing: RaftStanding) throws(Violation)
    /// The core holds entries up to `index` for committed.
    /// - Parameter leading: the term that it leads, or led when the step began.
    func committed(_ node: Int, upTo index: LogIndex, leading: Term?) throws(Violation)
    func applied(_ node: Int, _ entries: [Entry], contentHash: UInt64) throws(Violation)
    /// The same, told with what came of it and the state that it led to.
    func applied(
        _ node: Int, _ entries: [Entry], _ results: [CommandResult], _ state: MemoryState
    ) throws(Violation)
    /// The log of `node` is about to start anew behind a snapshot. Should that fail, either may be found.
    func installs(_ node: Int, _ meta: SnapshotMeta)
    /// The log of `node` now starts behind a snapshot.
    func installed(_ node: Int, _ meta: SnapshotMeta, contentHash: UInt64) throws(Violation)
    /// The state was ahead of the log, which starts anew behind it.
    func restartedLog(_ node: Int, after index: LogIndex, term: Term) throws(Violation)
    func discarded(_ node: Int, upTo index: LogIndex)
    /// A client is told that its proposal is entry `index`.
    func answered(_ node: Int, _ entry: Entry) throws(Violation)
    /// A node has a write of a client to follow, which it may propose again though the first may be
    /// carried out yet, or must not; and it proposes it.
    func writeBegan(_ serial: UInt64, mayRepeat: Bool)
    func proposed(_ serial: UInt64, as id: ProposalID)
    /// A client is told that nothing of this write is carried out.
    func refused(_ serial: UInt64) throws(Violation)
    /// A client's linearizable read has come to a node, and later may be answered from `index`.
    func readBegan(_ node: Int, number: UInt64)
    func readReady(_ node: Int, number: UInt64, index: LogIndex) throws(Violation)
    /// The answer to that read, or that its revision is compacted away.
    func looked(
        _ node: Int, number: UInt64, _ read: SimRead, _ answer: SimReadAnswer
    ) throws(Violation)
    /// An answer to a read that may be stale, without asking anybody.
    func lookedStale(
        _ node: Int, _ read: SimRead, _ answer: SimReadAnswer, now: MonotonicInstant
    ) throws(Violation)
    /// A backup of `node` was put into an empty store, which then is `state`.
    func restored(
        _ node: Int, _ header: BackupHeader, _ state: MemoryState, from source: MemoryState
    ) throws(Violation)
    func lookCompacted(_ node: Int, number: UInt64, _ at: Revision) throws(Violation)
    /// - Parameter start: the first revision that it wants to hear of; nil: whatever comes.
    func watchOpened(_ watcher: Int, _ shape: WatchShape, from start: Revision?)
    /// A message has arrived at a watcher; the first one says where it begins.
    func watchTold(
        _ watcher: Int, _ events: [ChangeEvent], upTo revision: Revision
    ) throws(Violation)
    func watchEnded(_ watcher: Int, _ end: WatchEnd) throws(Violation)
    func isFullyTold(_ watcher: Int) -> Bool
    func sent(_ node: Int, _ message: Message) throws(Violation)
    func regressed(_ node: Int, peer: NodeID, acknowledged: LogIndex, found: LogIndex)
        throws(Violation)
    func contradicted(
        _ node: Int, by leader: NodeID, at index: LogIndex, _ committed: Term, found: Term
    ) throws(Violation)
    /// After each event.
    func afterEvent(_ world: World) throws(Violation)
}
