// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import NIOCore
import ProposalCore
import RaftCore
import Testing

@testable import RaftService

/// What a leader, or one that was, says of a proposal that it got a second time tells nothing of the first.
@Suite(.serialized) struct ForwardAgainTests {
    private final class Answers: ReplySink, Sendable {
        private let promise: EventLoopPromise<WireResponse>

        init(_ loop: any EventLoop) { promise = loop.makePromise() }

        var future: EventLoopFuture<WireResponse> { promise.futureResult }
        var isOpen: Bool { true }
        var isWritable: Bool { true }

        func reply(_ response: WireResponse, to id: UInt64, bytes: Int) {
            promise.succeed(response)
        }
        func part(_ response: WireResponse, to id: UInt64) {}
    }

    /// A leader takes a write, is killed, and is back before anybody has missed it: it knows nothing of
    /// the write that its log holds, and refuses the copy.
    @Test(.timeLimit(.minutes(1))) func aRefusedCopyIsNoRefusal() async throws {
        let cluster = TestCluster(3)
        try await cluster.form()
        let leader = try await cluster.leader()
        let follower = try #require(cluster.ids.first { $0 != leader })
        let running = try cluster.running(follower)
        let answers = Answers(running.loop)
        let isForgotten = try await running.loop.submit { [server = running.server] in
            let service = server.service
            let transaction = Transaction(success: [.put(key: [1], value: [2], lease: LeaseID(0))])
            let origin = RequestOrigin(
                sink: answers, id: 1, deadline: RaftNode.now + .seconds(30), isFromPeer: false)
            service.begin(
                PendingWrite(origin, .writeKey), .once,
                CommandCodec.encode(.transaction(transaction, nil)))
            // As if it had been on its way for a turn: only the copy is given to the core here.
            let number = service.proposals.newestNumber
            service.willPropose(in: server.node.core.term)
            service.forwardAgain(in: server.node.core.term)
            service.proposalFailed(number, .noLeader)
            return service.writeCount == 0 || service.proposals.newestNumber != number
        }.get()
        #expect(!isForgotten, "it would be proposed twice, or answered 'nothing was carried out'")
        let response = try await answers.future.get()
        #expect(response.failure == nil && response.writeKey.version == 1, "\(response)")
        try await cluster.stop()
    }
}
