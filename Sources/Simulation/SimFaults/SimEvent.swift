// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore
import RaftCore
import SimKit

/// Something that happens in a world at one moment. `node`s are positions; `life` says for which
/// incarnation of a raft daemon it is meant: for a later one it never happens.
enum SimEvent {
    case segment(SimNetwork.Segment)
    // One raft daemon.
    case wake(node: Int, life: UInt64)
    case synced(node: Int, life: UInt64)
    case apply(node: Int, life: UInt64)
    case fetch(node: Int, life: UInt64, peer: NodeID, from: LogIndex, upTo: LogIndex, bytesMax: Int)
    case discarded(node: Int, life: UInt64, upTo: LogIndex, term: Term)
    case connectNet(node: Int, life: UInt64)
    /// The socket of a net that ended is closed.
    case netLost(node: Int, life: UInt64, net: UInt64)
    /// A frame of `net.sock`, for one of the connections that the daemon has there.
    case fromNet(
        node: Int, life: UInt64, net: UInt64, request: UInt64, stream: UInt64, [UInt8])
    case streamGone(node: Int, life: UInt64, stream: UInt64, peer: Int)
    case dialLane(node: Int, life: UInt64, peer: Int, lane: Lane)
    case graceOver(node: Int, life: UInt64, peer: Int, grace: UInt64)
    /// The membership names another replica of that peer than before.
    case replicaLearned(node: Int, life: UInt64, peer: Int)
    case snapshotTimeout(node: Int, life: UInt64, transfer: UInt64)
    /// What clients ask for has been gathered.
    case turn(node: Int, life: UInt64)
    /// A write may be overdue.
    case sweep(node: Int, life: UInt64)
    /// A lease may be due.
    case keepHouse(node: Int, life: UInt64)
    /// A session may be due.
    case lookForSessions(node: Int, life: UInt64)
    /// An answer of the state to the watches.
    case watchAnswers(node: Int, life: UInt64)
    case watchDispatch(node: Int, life: UInt64)
    case watchWritable(node: Int, life: UInt64, watcher: Int, session: UInt64)
    case watchOpens(node: Int, watcher: Int, session: UInt64)
    case request(ClientRequest)
    case startRaft(node: Int)
    // Net daemons.
    case startNet(node: Int)
    case netWake(node: Int, net: UInt64)
    case fromRaft(
        node: Int, net: UInt64, life: UInt64, request: UInt64, lane: Lane, [UInt8])
    case raftLost(node: Int, net: UInt64, life: UInt64)
    case waitedLong(node: Int, net: UInt64, request: UInt64)
    case handshake(connection: UInt64)
    /// One side learns that its connection is gone, by itself or from the other side.
    case connectionLost(node: Int, connection: UInt64)
    case connectionClosed(node: Int, connection: UInt64)
    case streamReset(node: Int, stream: UInt64)
    case idle(Int, Int, blockade: UInt64)
    // Clients.
    case act(client: Int)
    case answer(client: Int, attempt: UInt64, ClientAnswer)
    case requestTimeout(client: Int, attempt: UInt64)
    case watchHears(watcher: Int, session: UInt64, SimWatcher.Message)
    case watchLeaves(watcher: Int, session: UInt64)
    /// Its connection is closed.
    case watchLost(watcher: Int, session: UInt64)
    case watchTick(node: Int)
    // Fate.
    case trouble(Int)
    case heal(blocks: [(from: Int, to: Int)])
    case block(blocks: [(from: Int, to: Int)])
    case unclog(from: Int, to: Int)
    case loosePower(node: Int)
    case quickDisk(node: Int)
    case spaciousDisk(node: Int)
    /// It gets the newest program.
    case upgrade(node: Int)
    case operate
    case replace
    case recoverQuorum(node: Int)
    /// A part that still lasts now lasts too long.
    case endOfPatience(World.Part)
}

/// What a client asks of a node.
struct ClientRequest {
    enum Body {
        case propose([UInt8])
        case read(SimRead)
    }

    var client: Int
    var attempt: UInt64
    var node: Int
    var body: Body
}

enum ClientAnswer {
    case result(CommandResult)
    case read(SimReadAnswer)
    /// The revision that was to be read is gone.
    case compacted
    /// Not carried out, and never will be.
    case unavailable
    /// The connection broke after the request was sent.
    case lost
}

extension SimEvent {
    /// For the trace: what kind of event, and whom it concerns.
    var label: (kind: UInt8, subject: Int) {
        switch self {
        case .segment(let segment): (1, segment.to)
        case .wake(let node, _): (2, node)
        case .synced(let node, _): (3, node)
        case .apply(let node, _): (4, node)
        case .fetch(let node, _, _, _, _, _): (5, node)
        case .connectNet(let node, _): (6, node)
        case .netLost(let node, _, _): (11, node)
        case .fromNet(let node, _, _, _, _, _): (25, node)
        case .streamGone(let node, _, _, let peer): (26, node << 8 | peer)
        case .dialLane(let node, _, let peer, let lane):
            (27, node << 16 | peer << 8 | Int(lane.rawValue))
        case .snapshotTimeout(let node, _, _): (7, node)
        case .request(let request): (8, request.node << 8 | request.client)
        case .startRaft(let node): (9, node)
        case .startNet(let node): (10, node)
        case .netWake(let node, _): (28, node)
        case .fromRaft(let node, _, _, _, _, _): (29, node)
        case .raftLost(let node, _, _): (30, node)
        case .waitedLong(let node, _, _): (31, node)
        case .handshake(let connection): (32, Int(truncatingIfNeeded: connection))
        case .connectionLost(let node, _): (12, node)
        case .connectionClosed(let node, _): (33, node)
        case .streamReset(let node, _): (34, node)
        case .graceOver(let node, _, let peer, _): (13, node << 8 | peer)
        case .idle(let one, let other, _): (14, one << 8 | other)
        case .act(let client): (15, client)
        case .answer(let client, _, _): (16, client)
        case .requestTimeout(let client, _): (17, client)
        case .trouble(let number): (18, number)
        case .heal(let blocks): (19, blocks.count)
        case .loosePower(let node): (20, node)
        case .quickDisk(let node): (21, node)
        case .spaciousDisk(let node): (22, node)
        case .operate: (23, 0)
        case .endOfPatience(let part): (24, Int(part.rawValue))
        case .replace: (35, 0)
        case .recoverQuorum(let node): (49, node)
        case .turn(let node, _): (50, node)
        case .sweep(let node, _): (51, node)
        case .replicaLearned(let node, _, let peer): (36, node << 8 | peer)
        case .keepHouse(let node, _): (37, node)
        case .watchAnswers(let node, _): (38, node)
        case .watchDispatch(let node, _): (39, node)
        case .watchWritable(let node, _, let watcher, _): (40, node << 8 | watcher)
        case .watchOpens(let node, let watcher, _): (41, node << 8 | watcher)
        case .watchHears(let watcher, _, _): (42, watcher)
        case .watchLeaves(let watcher, _): (43, watcher)
        case .watchTick(let node): (44, node)
        case .lookForSessions(let node, _): (45, node)
        case .block(let blocks): (46, blocks.count)
        case .unclog(let from, let to): (47, from << 8 | to)
        case .watchLost(let watcher, _): (48, watcher)
        case .discarded(let node, _, _, _): (52, node)
        case .upgrade(let node): (53, node)
        }
    }

    /// The node whose raft daemon sees this happen, if any does.
    var seenBy: Int? {
        if let daemon { return daemon.node }
        guard case .segment(let segment) = self, segment.lane < World.noticeLane else { return nil }
        return segment.to
    }

    /// The raft daemon that has to be running (and not standing still) for this to happen.
    var daemon: (node: Int, life: UInt64?)? {
        switch self {
        case .wake(let node, let life), .synced(let node, let life), .apply(let node, let life),
            .fetch(let node, let life, _, _, _, _), .snapshotTimeout(let node, let life, _),
            .discarded(let node, let life, _, _),
            .connectNet(let node, let life), .netLost(let node, let life, _),
            .fromNet(let node, let life, _, _, _, _), .streamGone(let node, let life, _, _),
            .dialLane(let node, let life, _, _), .graceOver(let node, let life, _, _),
            .replicaLearned(let node, let life, _), .keepHouse(let node, let life),
            .lookForSessions(let node, let life), .watchAnswers(let node, let life),
            .watchDispatch(let node, let life), .turn(let node, let life),
            .sweep(let node, let life),
            .watchWritable(let node, let life, _, _):
            (node, life)
        case .request(let request): (request.node, nil)
        case .watchOpens(let node, _, _): (node, nil)
        default: nil
        }
    }
}
