// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import RaftCore
import RaftStorage
import SimFaults
import WatchCore

/// Watches the second run of a seed whose first one kept every promise. Equal runs show an oracle equal
/// things, so nothing is judged again: the traces are compared. The only thing that a world asks of its
/// observer is answered as in the first run; where there is no such answer, the run is another one, and
/// its trace says so.
final class Echo: WorldObserver {
    private var answers: ArraySlice<Bool>

    /// - Parameter answers: what the first run's oracle has said of `isFullyTold`, in order.
    init(_ answers: [Bool]) { self.answers = answers[...] }

    func isFullyTold(_ watcher: Int) -> Bool { answers.popFirst() ?? false }

    func recovered(_ node: Int, _ recovery: RaftRecovery, entries: [Entry]) {}
    func opened(_ node: Int, _ state: MemoryState, isMadeAnew: Bool) {}
    func ended(_ node: Int) {}
    func wiped(_ node: Int, _ replica: ReplicaID) {}
    func wrote(_ node: Int, _ write: LogWrite) {}
    func synced(_ node: Int, _ writes: [LogWrite]) {}
    func membership(_ node: Int, _ membership: Membership) {}
    func standing(_ node: Int, _ standing: RaftStanding) {}
    func committed(_ node: Int, upTo index: LogIndex, leading: Term?) {}
    func applied(_ node: Int, _ entries: [Entry], contentHash: UInt64) {}
    func applied(
        _ node: Int, _ entries: [Entry], _ results: [CommandResult], _ state: MemoryState
    ) {}
    func installs(_ node: Int, _ meta: SnapshotMeta) {}
    func installed(_ node: Int, _ meta: SnapshotMeta, contentHash: UInt64) {}
    func restartedLog(_ node: Int, after index: LogIndex, term: Term) {}
    func discarded(_ node: Int, upTo index: LogIndex) {}
    func answered(_ node: Int, _ entry: Entry) {}
    func writeBegan(_ serial: UInt64, mayRepeat: Bool) {}
    func proposed(_ serial: UInt64, as id: ProposalID) {}
    func refused(_ serial: UInt64) {}
    func readBegan(_ node: Int, number: UInt64) {}
    func readReady(_ node: Int, number: UInt64, index: LogIndex) {}
    func looked(_ node: Int, number: UInt64, _ read: SimRead, _ answer: SimReadAnswer) {}
    func lookedStale(
        _ node: Int, _ read: SimRead, _ answer: SimReadAnswer, now: MonotonicInstant
    ) {}
    func restored(
        _ node: Int, _ header: BackupHeader, _ state: MemoryState, from source: MemoryState
    ) {}
    func lookCompacted(_ node: Int, number: UInt64, _ at: Revision) {}
    func watchOpened(_ watcher: Int, _ shape: WatchShape, from start: Revision?) {}
    func watchTold(_ watcher: Int, _ events: [ChangeEvent], upTo revision: Revision) {}
    func watchEnded(_ watcher: Int, _ end: WatchEnd) {}
    func sent(_ node: Int, _ message: Message) {}
    func regressed(_ node: Int, peer: NodeID, acknowledged: LogIndex, found: LogIndex) {}
    func contradicted(
        _ node: Int, by leader: NodeID, at index: LogIndex, _ committed: Term, found: Term
    ) {}
    func afterEvent(_ world: World) {}
}
