// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import ProposalCore
import RaftCore
import Testing

@testable import RaftService

/// What the answers to writes may take: told in advance, and how much of it may be under way.
@Suite struct AnswerBoundTests {
    private static let gets = (1...5).map { Operation.get(key: Array("k\($0)".utf8)) }

    private static func entry(_ payload: [UInt8], kind: Entry.Kind = .command) -> Entry {
        Entry(
            index: LogIndex(1), term: Term(1), kind: kind, origin: nil, time: .zero,
            payload: payload)
    }

    private static let transactions: [Transaction] = [
        Transaction(success: [.put(key: [4], value: [4, 4, 4, 4])]),
        Transaction(success: [.put(key: [1], value: [], lease: LeaseID(4))]),
        Transaction(success: [gets[0]]),
        Transaction(success: [.delete(key: [1])], failure: Array(gets.prefix(2))),
        Transaction(success: gets, failure: [gets[0]]),
        Transaction(
            compares: [
                Compare(key: [1], target: .value([4, 4])),
                Compare(key: [2], target: .version(4)),
                Compare(key: [3], target: .createRevision(Revision(4)), relation: .less),
                Compare(key: [4], target: .modRevision(Revision(4))),
                Compare(key: [5], target: .exists(true)),
            ],
            success: [
                .deleteRange(from: [4], to: nil), .deleteRange(from: [4], to: [5]), gets[0],
            ], failure: [.put(key: [4], value: [0, 0, 0, 0])]),
    ]

    @Test func theEncodingSaysTheSameAsTheCommand() {
        let request = SessionRequest(session: SessionID(4), number: 4, acknowledgedBelow: 4)
        var commands: [Command] = [
            .openSession, .keepSessionAlive(SessionID(1)), .closeSession(SessionID(1)),
            .expireSessions, .grantLease(id: LeaseID(1), ttlMilliseconds: 1000, request),
            .revokeLease(LeaseID(1), nil), .keepLeaseAlive(LeaseID(1)), .expireLeases,
            .compact(Revision(1)), .activateVersion(2),
        ]
        for transaction in Self.transactions {
            commands += [.transaction(transaction, nil), .transaction(transaction, request)]
        }
        for command in commands {
            var bound = AnswerBound()
            let bytes = bound.bytes(of: Self.entry(CommandCodec.encode(command)))
            #expect(bytes == AnswerBound.bytes(of: command), "\(command)")
        }
        let each = Limits.keyBytesMax + Limits.valueBytesMax
        #expect(
            Self.transactions.map { AnswerBound.bytes(of: .transaction($0, nil)) } == [
                0, 0, each, 2 * each, KVLimits.answerBytesMax, each,
            ])
    }

    @Test func whatIsNotUnderstoodCountsAsTheMost() {
        for transaction in [Self.transactions[5], Self.transactions[0]] {
            let whole = CommandCodec.encode(.transaction(transaction, nil))
            for part in (0..<whole.count).map({ Array(whole.prefix($0)) }) + [whole + [0]] {
                var bound = AnswerBound()
                let bytes = bound.bytes(of: Self.entry(part))
                #expect(bytes == KVLimits.answerBytesMax, "\(part.count) of \(whole.count) bytes")
            }
        }
        var bound = AnswerBound()
        #expect(bound.bytes(of: Self.entry([1, 99])) == KVLimits.answerBytesMax)
        #expect(bound.bytes(of: Self.entry([1, 99], kind: .membership)) == 0)
    }

    /// Its answer is the one that was kept, whatever it asks for now.
    @Test func aRepeatedRequestCountsAsTheMost() {
        let request = SessionRequest(session: SessionID(4), number: 4, acknowledgedBelow: 4)
        let payload = CommandCodec.encode(.transaction(Self.transactions[0], request))
        var bound = AnswerBound()
        #expect(bound.bytes(of: Self.entry(payload)) == 0)
        #expect(bound.bytes(of: Self.entry(payload)) == KVLimits.answerBytesMax)
    }

    // MARK: - Admission

    private final class Sink: ReplySink {
        var isOpen = true
        var isWritable = true
        func reply(_ response: WireResponse, to id: UInt64, bytes: Int) {}
        func part(_ response: WireResponse, to id: UInt64) {}
    }

    private static func write(_ sink: Sink, _ id: UInt64, bytes: Int) -> PendingWrite {
        var write = PendingWrite(
            RequestOrigin(
                sink: sink, id: id, deadline: MonotonicInstant(nanoseconds: id),
                isFromPeer: false), .transaction)
        write.answerBytes = bytes
        return write
    }

    private static func held(_ write: PendingWrite) -> AnswerAdmission.Held {
        AnswerAdmission.Held(write: write, kind: .once, payload: [])
    }

    @Test func writesWaitForRoomInTheirOrder() {
        let most = AnswerAdmission.awaitedBytesMax
        let (one, other) = (Sink(), Sink())
        var admission = AnswerAdmission()
        let first = Self.write(one, 1, bytes: most)
        #expect(admission.admits(first, unread: 0))
        admission.began(first)
        let second = Self.write(one, 2, bytes: 1)
        let third = Self.write(one, 3, bytes: 0)
        // Small ones do not overtake a large one that waits; other clients do.
        #expect(admission.admits(third, unread: 0))
        #expect(!admission.admits(second, unread: 0))
        admission.hold(Self.held(second))
        #expect(!admission.admits(third, unread: 0))
        admission.hold(Self.held(third))
        #expect(admission.admits(Self.write(other, 4, bytes: most), unread: 0))
        let sink = ObjectIdentifier(one)
        #expect(admission.next(of: sink, unread: 0) == nil)

        admission.ended(first)
        one.isWritable = false
        #expect(admission.next(of: sink, unread: 0) == nil)
        one.isWritable = true
        #expect(admission.next(of: sink, unread: 0)?.write.origin?.id == 2)
        admission.began(second)
        #expect(admission.next(of: sink, unread: 0)?.write.origin?.id == 3)
        #expect(admission.next(of: sink, unread: 0) == nil)
        #expect(admission.heldCount == 0)
        #expect(admission.sinks.isEmpty)
    }

    /// However much others leave unread, each client has one answer on its way.
    @Test func whileMuchIsUnreadThereIsOneAtATime() {
        let sink = Sink()
        var admission = AnswerAdmission()
        let (first, second) = (Self.write(sink, 1, bytes: 1), Self.write(sink, 2, bytes: 1))
        let unread = AnswerAdmission.awaitedBytesHigh
        #expect(admission.admits(first, unread: unread))
        admission.began(first)
        #expect(!admission.admits(second, unread: unread))
        #expect(admission.admits(second, unread: 0))
        admission.ended(first)
        #expect(admission.admits(second, unread: unread))
    }

    @Test func whatWaitsEndsWithItsTimeOrItsClient() {
        let sink = Sink()
        sink.isWritable = false
        var admission = AnswerAdmission()
        for id: UInt64 in 1...3 { admission.hold(Self.held(Self.write(sink, id, bytes: 1))) }
        let expired = admission.expired(MonotonicInstant(nanoseconds: 2))
        #expect(expired.map(\.origin?.id) == [1, 2])
        #expect(admission.heldCount == 1)
        sink.isOpen = false
        #expect(admission.next(of: ObjectIdentifier(sink), unread: 0)?.write.origin?.id == 3)
        #expect(admission.heldCount == 0)
    }
}
