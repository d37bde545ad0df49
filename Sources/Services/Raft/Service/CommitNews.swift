// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import RaftCore

/// Which news of a commit can wait. The core tells every peer of every commit at once; that is what
/// the clients of that peer wait for, but a peer whose clients have nothing in the batch may as well
/// hear it with the next append, or a little later. Under load this halves the messages.
struct CommitNews {
    private struct Waiting {
        /// Proposals that the peer forwarded and that are not committed yet.
        var forwarded = 0
        /// Some of them are in what was committed last.
        var isAwaited = false
        var message: Message?
    }

    private var peers: [NodeID: Waiting] = [:]

    /// True while something has been kept back.
    var isWaiting: Bool { peers.values.contains { $0.message != nil } }

    mutating func forwarded(_ count: Int, by node: NodeID) {
        peers[node, default: Waiting()].forwarded += count
    }

    mutating func committed(_ entries: [Entry], own: NodeID) {
        guard !peers.isEmpty else { return }
        for entry in entries {
            guard let origin = entry.origin, origin.node != own else { continue }
            guard var peer = peers[origin.node] else { continue }
            peer.forwarded = max(0, peer.forwarded - 1)
            peer.isAwaited = true
            peers[origin.node] = peer
        }
    }

    /// - Parameter isAppendDue: this turn of the loop ends with appends, then `releaseAwaited`: even
    ///   what a client waits for is as soon there with them.
    /// - Returns: false if the message was kept back, to be taken by `release` or `releaseAwaited`.
    mutating func maySend(_ message: Message, isAppendDue: Bool = false) -> Bool {
        switch message.body {
        case .heartbeat(_, 0, _, _):
            var peer = peers[message.to] ?? Waiting()
            defer { peers[message.to] = peer }
            let isAwaited = peer.isAwaited || peer.forwarded > 0
            if isAwaited, isAppendDue {
                peer.isAwaited = true
            } else if isAwaited {
                peer.isAwaited = false
                peer.message = nil
                return true
            }
            peer.message = message
            return false
        case .append, .heartbeat:
            // It says the same and more.
            peers[message.to]?.message = nil
            peers[message.to]?.isAwaited = false
            return true
        default: return true
        }
    }

    /// What a client waits for and no append has carried.
    mutating func releaseAwaited() -> [Message] {
        take { $0.isAwaited }
    }

    mutating func release() -> [Message] {
        take { _ in true }
    }

    private mutating func take(where isDue: (Waiting) -> Bool) -> [Message] {
        var messages: [Message] = []
        for node in peers.keys.sorted() {
            guard let peer = peers[node], let message = peer.message, isDue(peer) else { continue }
            messages.append(message)
            peers[node]?.message = nil
            peers[node]?.isAwaited = false
        }
        return messages
    }

    /// Another leader, or another term: what was counted counts no more.
    mutating func reset() { peers.removeAll() }
}
