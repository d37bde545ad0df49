// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import NIOCore
import RaftCore
import RaftStorage
import ServiceKit

// What peers say, and the news of commits that may wait for them.

extension RaftNode {
    /// How long news of a commit may wait for an append to carry it, when no client waits for it.
    static let newsDelay = TimeAmount.milliseconds(2)

    func scheduleNews() {
        guard !isNewsScheduled else { return }
        isNewsScheduled = true
        loop.scheduleTask(in: Self.newsDelay) { [self] in
            isNewsScheduled = false
            for message in news.release() { links.send(message, after: nil) }
        }
    }
}

extension RaftNode: PeerLinksDelegate {
    func received(_ message: Message) {
        switch message.body {
        case .snapshotChunk(let chunk): snapshots.received(chunk, from: message)
        case .snapshotReply(let id, let received, let installed, let refused):
            snapshots.answered(
                id: id, by: message.from, received: received, installed: installed,
                refused: refused)
        // While a snapshot takes the place of the log, messages are lost, as messages may be.
        default: if !isPaused { take(message) }
        }
    }

    private func take(_ message: Message) {
        message.tellElection(to: logger)
        events.received(message)
        if case .append(_, _, _, let entries) = message.body, !entries.isEmpty, !space.takesEntries
        {
            // As if it had been lost: the leader sends it again, and its heartbeats still count.
            return
        }
        guard case .forward(let proposals) = message.body, core.isLeader, message.term == core.term
        else {
            return step(.received(message))
        }
        let (taken, refused) = space.divide(proposals)
        if !refused.isEmpty {
            let answer = Message(
                from: message.to, to: message.from, term: core.term,
                body: .forwardRejected(numbers: refused.map(\.id)))
            links.send(answer, after: nil)
            if taken.isEmpty { return }
        }
        var message = message
        message.body = .forward(proposals: taken)
        gather(message, bytes: taken.reduce(0) { $0 + $1.payload.count })
    }

    func linkLost(_ node: NodeID) {
        events.record("peer-lost", "the link to node \(node) is lost")
        step(.linkLost(node))
    }

    func linkRestored(_ node: NodeID) {
        step(.linkRestored(node))
        snapshots.linkRestored(node)
        if standing.leader == node { client?.forwardAgain(in: core.term) }
    }

    func spaceChanged(_ level: SpaceLevel, of node: NodeID) { space.heard(level, of: node) }
    func serviceGone(_ node: NodeID) {
        events.record("peer-gone", "aspend-raft of node \(node) is gone")
        events.serviceGone(node)
        step(.serviceGone(node))
    }

    func ownNet(isConnected: Bool) { step(isConnected ? .ownNetRestored : .ownNetLost) }

    func asked(_ request: [UInt8], id: UInt64, by node: NodeID, on channel: FrameChannel) {
        guard let service = client as? ClientService else { return }
        service.peerAsked(request, id: id, on: channel)
    }
}
