// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import NIOCore
import RaftCore
import SwiftProtobuf

// `why`: explanations from recorded events, of all members that can be reached.

extension ClientService {
    /// Events in an answer.
    static let whyEventsMax = 100
    static let whyKinds: [Aspen_Client_V1_WhyRequest.Subject: Set<String>] = [
        .leader: [
            "started", "election", "leader-elected", "leader-seen", "leader-lost", "peer-gone",
        ],
        .slow: ["slow-commit", "slow-sync", "disk-full", "disk-failed"],
    ]

    func why(_ body: Aspen_Client_V1_WhyRequest, _ origin: RequestOrigin) {
        if case .UNRECOGNIZED = body.subject {
            return origin.fail(AspenError(.invalidArgument, "a subject unknown here"))
        }
        guard body.subject != .member || body.nodeID != 0 else {
            return origin.fail(AspenError(.invalidArgument, "name the node that is asked about"))
        }
        // A node outside of any cluster has no leader, and will have none by waiting for one.
        guard body.subject != .leader || node.membership != nil else {
            return origin.fail(outsideCluster)
        }
        let own = ownAnswer(body)
        let others = (node.membership?.members ?? []).filter { $0.node != options.raft.node }
        guard !origin.isFromPeer, !others.isEmpty else {
            return finishWhy(body, [own], isFromPeer: origin.isFromPeer, origin)
        }
        let gathering = WhyGathering(awaited: others.count, first: own) { [self] answers in
            finishWhy(body, answers, isFromPeer: false, origin)
        }
        var request = WireRequest()
        request.timeoutMs = UInt32(clamping: Self.statusTimeout.nanoseconds / 1_000_000)
        request.why = body
        let bytes: [UInt8] = (try? request.serializedBytes()) ?? []
        for member in others {
            links.request(bytes, to: member.node, timeout: Self.statusTimeout) { answer in
                let response = answer.flatMap { try? WireResponse(serializedBytes: $0) }
                if case .why(let answer)? = response?.response {
                    gathering.add(answer)
                } else {
                    gathering.add(nil)
                }
            }
        }
    }

    private func ownAnswer(_ body: Aspen_Client_V1_WhyRequest) -> Aspen_Client_V1_WhyResponse {
        var answer = Aspen_Client_V1_WhyResponse()
        if body.subject == .member, isLeader { answer.answer = standing(of: NodeID(body.nodeID)) }
        let isOwn = body.nodeID == options.raft.node.rawValue
        let mark = "node \(body.nodeID)"
        let fitting = node.events.all.filter { event in
            if let kinds = Self.whyKinds[body.subject] { return kinds.contains(event.kind) }
            return event.names(mark) || (isOwn && event.kind != "slow-commit")
        }
        answer.events = fitting.suffix(Self.whyEventsMax).map { event in
            var wire = Aspen_Client_V1_RecordedEvent()
            wire.wallTimeMs = event.wallMilliseconds
            wire.nodeID = options.raft.node.rawValue
            wire.kind = event.kind
            wire.text = event.text
            return wire
        }
        if body.subject == .slow { answer.stages = stageTimes() }
        return answer
    }

    /// Of this node's batches, empty where it has led none of late.
    private func stageTimes() -> [Aspen_Client_V1_StageTimes] {
        func nanoseconds(_ duration: Duration) -> UInt64 { UInt64(max(0, duration.nanoseconds)) }
        return zip(CommitStage.allCases, node.stages.counted(RaftNode.now)).compactMap {
            stage, times in
            guard times.count > 0 else { return nil }
            return .with {
                $0.nodeID = options.raft.node.rawValue
                $0.stage = stage.name
                $0.count = times.count
                $0.sumNs = times.sum
                $0.p50Ns = nanoseconds(times.quantile(0.5))
                $0.p99Ns = nanoseconds(times.quantile(0.99))
                $0.longestNs = nanoseconds(times.longest)
            }
        }
    }

    private func finishWhy(
        _ body: Aspen_Client_V1_WhyRequest, _ answers: [Aspen_Client_V1_WhyResponse],
        isFromPeer: Bool, _ origin: RequestOrigin
    ) {
        var merged = Aspen_Client_V1_WhyResponse()
        merged.events = answers.flatMap(\.events).sorted {
            ($0.wallTimeMs, $0.nodeID) < ($1.wallTimeMs, $1.nodeID)
        }.suffix(Self.whyEventsMax)
        switch body.subject {
        case .leader: merged.answer = leaderSentence(merged.events)
        case .slow:
            merged.stages = answers.flatMap(\.stages)
            merged.answer = slowSentence(merged.events) + "; " + stageSentence(merged.stages)
        default:
            merged.answer = answers.map(\.answer).first { !$0.isEmpty } ?? ""
            if merged.answer.isEmpty, !isFromPeer {
                merged.answer =
                    "no leader is known, and only a leader knows how far node \(body.nodeID) is"
            }
        }
        origin.reply(WireResponse(.why(merged)))
    }

    private func leaderSentence(_ events: [Aspen_Client_V1_RecordedEvent]) -> String {
        guard let leader = node.standing.leader else {
            return "no leader is known to node \(options.raft.node) in term "
                + "\(node.standing.term): a majority of the voters has to be up and linked"
        }
        let mark = "in term \(node.standing.term):"
        guard
            let last = events.last(where: {
                $0.kind == "leader-elected" && $0.nodeID == leader.rawValue
                    && $0.text.contains(mark)
            })
        else { return "node \(leader) leads in term \(node.standing.term); why is not recorded" }
        return "node \(leader) \(last.text)"
    }

    private func slowSentence(_ events: [Aspen_Client_V1_RecordedEvent]) -> String {
        func milliseconds(_ event: Aspen_Client_V1_RecordedEvent) -> UInt64 {
            let words = event.text.split(separator: " ")
            return words.count > 2 ? UInt64(words[2]) ?? 0 : 0
        }
        let slow = events.filter { $0.kind == "slow-commit" }
        guard let worst = slow.max(by: { milliseconds($0) < milliseconds($1) }) else {
            return "no commit of more than \(CommitStages.threshold.milliseconds) ms is recorded"
        }
        return "the slowest on record: node \(worst.nodeID) led, and the \(worst.text)"
    }

    private func stageSentence(_ stages: [Aspen_Client_V1_StageTimes]) -> String {
        let sums = Dictionary(stages.map { ($0.stage, $0.sumNs) }, uniquingKeysWith: &+)
        let all = sums.values.reduce(0, &+)
        guard let most = sums.max(by: { ($0.value, $0.key) < ($1.value, $1.key) }), all > 0 else {
            return "no write was followed in the last two minutes"
        }
        let followed = stages.filter { $0.stage == CommitStage.queue.name }.reduce(0) {
            $0 + $1.count
        }
        return
            "of the time of \(followed) \(followed == 1 ? "batch" : "batches") of writes in the last "
            + "two minutes, \(most.value * 100 / all) % went into: \(most.key)"
    }

    /// As the leader sees it.
    private func standing(of id: NodeID) -> String {
        guard let membership = node.membership, membership.member(id) != nil else {
            return whyOutside(id)
                ?? "node \(id) is no member: it was never added, or it has been removed"
        }
        let role = membership.isVoter(id) ? "a voter" : "a learner"
        if id == options.raft.node { return "node \(id) is \(role), and the leader" }
        guard
            let peer = node.core.peerStatus(now: RaftNode.now).first(where: { $0.node == id })
        else { return "node \(id) is \(role); the leader has not met it yet" }
        let end = node.core.lastIndex.rawValue
        let lag = end - min(end, peer.match.rawValue)
        if peer.isRegressed {
            return "node \(id) is \(role), but not believed: it has lost entries that it had "
                + "acknowledged; remove it, empty its data directory and add it again"
        }
        if !links.isReachable(id) || !peer.isAnswering {
            return "node \(id) is \(role), but the leader cannot reach it: is it running, and does "
                + "its machine answer?"
        }
        if peer.isRepairing {
            return "node \(id) is \(role); its log is damaged and being repaired from the leader's"
        }
        if peer.state == .snapshot {
            return "node \(id) is \(role), too far behind for the log: it is being sent a snapshot"
        }
        if !peer.isCaughtUp { return "node \(id) is \(role), \(lag) entries behind" }
        if membership.isVoter(id) { return "node \(id) is a voter in good standing" }
        return "node \(id) is a learner that has caught up: `aspen-cli cluster promote "
            + "--learner-id \(id)` makes it a voter"
    }
}

extension NodeEvent {
    /// "node 1" is not in "node 12".
    fileprivate func names(_ mark: String) -> Bool {
        var rest = text[...]
        while let found = rest.firstRange(of: mark) {
            if found.upperBound == rest.endIndex || !rest[found.upperBound].isNumber { return true }
            rest = rest[found.upperBound...]
        }
        return false
    }
}

/// Collects what the members have recorded.
private final class WhyGathering {
    private var awaited: Int
    private var answers: [Aspen_Client_V1_WhyResponse]
    private let finish: ([Aspen_Client_V1_WhyResponse]) -> Void

    init(
        awaited: Int, first: Aspen_Client_V1_WhyResponse,
        finish: @escaping ([Aspen_Client_V1_WhyResponse]) -> Void
    ) {
        self.awaited = awaited
        answers = [first]
        self.finish = finish
    }

    func add(_ answer: Aspen_Client_V1_WhyResponse?) {
        awaited -= 1
        if let answer { answers.append(answer) }
        if awaited == 0 { finish(answers) }
    }
}
