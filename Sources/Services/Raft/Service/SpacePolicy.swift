// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import Logging
import NIOCore
import RaftCore
import RaftStorage

/// What a node that is short of space does about it: each gives back what it can of its own disk,
/// the leader has history compacted, so that a delete frees what it deletes, and hands over to
/// somebody who has room. Part of `SpaceWatch`.
final class SpacePolicy {
    /// There is more to give back: the next look should not take long.
    private(set) var isBusy = false
    private var isTrimming = false
    /// The state as it was last given back from.
    private var trimmedAt: LogIndex?
    private var hasMore = false
    private var compacted = Revision.zero
    private var isCompacting = false
    private var handedOverAt: MonotonicInstant?

    func act(_ node: RaftNode) {
        isBusy = false
        trim(node)
        compact(node)
        if let successor = node.space.successor,
            handedOverAt.map({ RaftNode.now - $0 >= SpaceWatch.handOverInterval }) ?? true
        {
            handedOverAt = RaftNode.now
            node.logger.notice(
                "hands over to a node that has space", metadata: ["peer": "\(successor)"])
            node.step(.transferLeadership(to: successor))
        }
    }

    private func trim(_ node: RaftNode) {
        guard node.space.level > .ample else {
            trimmedAt = nil
            return
        }
        isBusy = isBusy || hasMore
        guard !isTrimming, hasMore || trimmedAt != node.applied.index else { return }
        isTrimming = true
        trimmedAt = node.applied.index
        let box = NIOLoopBound(node, eventLoop: node.loop)
        node.state.perform { store in
            let (durable, hasMore) = try store.trim()
            return { box.value.space.trimmed(durable, hasMore) }
        }
    }

    func trimmed(hasMore: Bool) {
        isTrimming = false
        self.hasMore = hasMore
    }

    /// Repeated as long as there is something to sweep: each entry takes a bounded part of it.
    private func compact(_ node: RaftNode) {
        guard node.core.isLeader, node.space.wantsCompaction, !isCompacting else {
            isBusy = isBusy || isCompacting
            return
        }
        isCompacting = true
        let (revision, known) = (node.applied.revision, compacted)
        compacted = revision
        let box = NIOLoopBound(node, eventLoop: node.loop)
        node.state.perform { store in
            let isNeeded = revision > known || store.isSweeping
            return { box.value.space.mayCompact(to: isNeeded ? revision : nil) }
        }
    }

    func compactionEnded() { isCompacting = false }
}
