// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import Glibc
import RaftCore

/// One thing worth remembering, for `why`.
struct NodeEvent: Equatable, Sendable {
    var wallMilliseconds: UInt64
    /// As ASPEN_EVENT in the journal, or a word of the same kind.
    var kind: String
    var text: String
}

/// What happened to this node lately: a ring in memory, and a small file that lets it survive the
/// daemon. The file is a help, not a promise: it is never synced, and failing to write it is no
/// error. Confined to the event loop.
final class NodeEvents {
    static let eventsMax = 512
    /// Longest text of one event, in bytes.
    static let textBytesMax = 400
    /// When the file has grown to this, in bytes, it becomes `events.old` and a new one begins.
    static let fileBytesMax = 131_072

    private(set) var all: [NodeEvent] = []
    private let path: String?
    private var fileBytes = 0

    // What an election that begins now is owed to.
    private var goneLeader: (node: NodeID, at: UInt64)?
    private var handedOverBy: (node: NodeID, at: UInt64)?
    private var lastLeader: NodeID?
    private var reason = ""

    /// - Parameter path: of the file; nil: in memory only.
    init(path: String?) {
        self.path = path
        guard let path else { return }
        for name in [path + ".old", path] {
            let bytes = Self.read(name)
            fileBytes = bytes.count
            for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
                if let event = NodeEvent(line: line) { all.append(event) }
            }
        }
        all.removeFirst(max(0, all.count - Self.eventsMax))
    }

    var count: Int { all.count }

    func record(_ kind: String, _ text: String) {
        let line = String(text.prefix(Self.textBytesMax)).split(separator: "\n")
            .joined(separator: " ")
        let event = NodeEvent(wallMilliseconds: Self.wallMilliseconds(), kind: kind, text: line)
        if all.count >= Self.eventsMax { all.removeFirst(all.count - Self.eventsMax + 1) }
        all.append(event)
        append(event.line)
    }

    // MARK: Why there is an election

    func serviceGone(_ node: NodeID) {
        if node == lastLeader { goneLeader = (node, Self.wallMilliseconds()) }
    }

    func received(_ message: Message) {
        guard case .timeoutNow = message.body else { return }
        handedOverBy = (message.from, Self.wallMilliseconds())
    }

    /// - Returns: whether a campaign began, and whether there is a new leader.
    func changed(
        from before: RaftStanding, to now: RaftStanding, own: NodeID
    ) -> (isCampaign: Bool, isNewLeader: Bool) {
        let isCampaign =
            (now.role == .candidate || now.role == .leader) && before.role != .candidate
            && before.role != .leader && now.term > before.term
        if isCampaign {
            reason = electionReason
            record("election", "stands for election in term \(now.term): \(reason)")
        }
        guard let leader = now.leader, leader != before.leader || now.term != before.term else {
            if now.leader == nil, let lost = before.leader {
                record("leader-lost", "does not know a leader any more (it was node \(lost))")
            }
            return (isCampaign, false)
        }
        if leader == own {
            record("leader-elected", "became the leader in term \(now.term): \(reason)")
        } else {
            record("leader-seen", "follows node \(leader) in term \(now.term)")
        }
        lastLeader = leader
        goneLeader = nil
        handedOverBy = nil
        return (isCampaign, true)
    }

    private var electionReason: String {
        let now = Self.wallMilliseconds()
        func isRecent(_ at: UInt64) -> Bool { now < at + 10_000 }
        if let handedOverBy, isRecent(handedOverBy.at) {
            return "node \(handedOverBy.node) handed leadership over"
        }
        if let goneLeader, isRecent(goneLeader.at) {
            return "aspend-raft of node \(goneLeader.node), which led, was gone"
        }
        if let lastLeader { return "node \(lastLeader), which led, was not heard any more" }
        return "no leader was known since this daemon started"
    }

    // MARK: The file

    private func append(_ line: String) {
        guard let path else { return }
        let bytes = Array((line + "\n").utf8)
        if fileBytes + bytes.count > Self.fileBytesMax {
            rename(path, path + ".old")
            fileBytes = 0
        }
        let descriptor = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { return }
        defer { close(descriptor) }
        let written = write(descriptor, bytes, bytes.count)
        fileBytes += max(0, written)
    }

    private static func read(_ path: String) -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return [] }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: fileBytesMax)
        let count = Glibc.read(descriptor, &bytes, bytes.count)
        return Array(bytes.prefix(max(0, count)))
    }

    static func wallMilliseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return UInt64(max(0, time.tv_sec)) * 1000 + UInt64(time.tv_nsec) / 1_000_000
    }
}

extension NodeEvent {
    var line: String { "\(wallMilliseconds) \(kind) \(text)" }

    /// Nil for a line that a crash has torn, or somebody has written.
    init?(line: Substring) {
        let parts = line.split(separator: " ", maxSplits: 2)
        guard parts.count == 3, let wall = UInt64(parts[0]) else { return nil }
        self.init(wallMilliseconds: wall, kind: String(parts[1]), text: String(parts[2]))
    }
}
