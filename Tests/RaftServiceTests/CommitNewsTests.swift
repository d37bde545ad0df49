// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore
import Testing

@testable import RaftService

/// Which news of a commit leave at once, which wait for an append, and that none is lost.
@Suite struct CommitNewsTests {
    private let leader = NodeID(1)
    private let follower = NodeID(2)

    private func message(_ body: Message.Body) -> Message {
        Message(from: leader, to: follower, term: Term(3), body: body)
    }

    private func news(of commit: UInt64) -> Message {
        message(
            .heartbeat(
                commit: LogIndex(commit), round: 0, time: ClusterTime(milliseconds: 1),
                successor: nil))
    }

    private var append: Message {
        message(
            .append(
                previousIndex: LogIndex(6), previousTerm: Term(3), commit: LogIndex(6), entries: [])
        )
    }

    private func entry(of node: NodeID) -> Entry {
        Entry(
            index: LogIndex(6), term: Term(3), kind: .command,
            origin: ProposalID(node: node, incarnation: 9, number: 1),
            time: ClusterTime(milliseconds: 1), payload: [1])
    }

    /// `#expect` takes no call that changes something.
    private func expect<Value: Equatable>(
        _ wanted: Value, _ found: Value, at place: SourceLocation = #_sourceLocation
    ) {
        #expect(found == wanted, sourceLocation: place)
    }

    /// The follower's one proposal has been committed.
    private func awaited() -> CommitNews {
        var news = CommitNews()
        news.forwarded(1, by: follower)
        news.committed([entry(of: follower)], own: leader)
        return news
    }

    @Test func whatAClientWaitsForLeavesAtOnce() {
        var waited = awaited()
        expect(true, waited.maySend(news(of: 6)))
        expect([], waited.releaseAwaited())
        #expect(!waited.isWaiting)
    }

    @Test func whatNobodyWaitsForIsKeptBack() {
        var quiet = CommitNews()
        expect(false, quiet.maySend(news(of: 6)))
        expect([], quiet.releaseAwaited())
        expect([news(of: 6)], quiet.release())
        #expect(!quiet.isWaiting)
    }

    @Test func anAppendThatIsDueCarriesIt() {
        var waited = awaited()
        expect(false, waited.maySend(news(of: 6), isAppendDue: true))
        expect(true, waited.maySend(append))
        expect([], waited.releaseAwaited())
        #expect(!waited.isWaiting)
        // That client has what it waited for.
        expect(false, waited.maySend(news(of: 7)))
    }

    @Test func itLeavesByItselfIfNoAppendCameAfterAll() {
        var waited = awaited()
        expect(false, waited.maySend(news(of: 6), isAppendDue: true))
        expect([news(of: 6)], waited.releaseAwaited())
        expect([], waited.releaseAwaited())
        #expect(!waited.isWaiting)
    }

    @Test func aQuestionIsNeverKeptBack() {
        var waited = awaited()
        let question = message(
            .heartbeat(
                commit: LogIndex(6), round: 4, time: ClusterTime(milliseconds: 1), successor: nil))
        expect(true, waited.maySend(question, isAppendDue: true))
    }
}
