// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import Logging
import NIOCore
import NetClient
import RaftCore
import ServiceKit

// `auto-join`: a leader asks those whom gossip and discovery have found, and who call themselves by a
// number, over a connection on which both sides prove the cookie, and takes them in as learners; those
// who have caught up become voters. And the list of those who were removed.

/// What a leader remembers of whom it has found. Confined to the event loop.
struct Joining {
    /// How often a leader looks. Costs a question to the daemon next door.
    static let interval = Duration.seconds(1)
    /// How long it waits for a node's answer, and until it asks one again that gave none.
    static let probeTime = Duration.seconds(2)
    static let backOffMin = Duration.seconds(1)
    static let backOffMax = Duration.seconds(30)
    /// Nodes of which something is remembered: as many as net says were found.
    static let rememberedMax = Limits.votersMax + Limits.learnersMax + Limits.peersMax

    struct Memory {
        var node: NodeID
        /// Why it is none of us, as last told.
        var reason: String?
        var next: MonotonicInstant
        var backOff = Joining.backOffMin
    }

    var timer: Scheduled<Void>?
    /// Something is under way, and the next look waits for it.
    var isBusy = false
    var known: [EndpointID: Memory] = [:]

    mutating func cancel() {
        timer?.cancel()
        timer = nil
        known = [:]
    }
}

extension ClientService {
    private var isJoining: Bool {
        options.joinsByItself && node.standing.role == .leader && !node.isStopped
    }

    /// Call when this node begins or ceases to lead.
    func scheduleJoining() {
        guard isJoining else { return joining.cancel() }
        guard joining.timer == nil else { return }
        let box = NIOLoopBound(self, eventLoop: node.loop)
        joining.timer = node.loop.scheduleTask(in: .nanoseconds(Joining.interval.nanoseconds)) {
            box.value.joining.timer = nil
            box.value.lookForJoiners()
            box.value.scheduleJoining()
        }
    }

    private func rule(_ membership: Membership) -> JoinRule {
        JoinRule(membership: membership, roster: roster ?? JoinRoster())
    }

    /// Nil while nothing can be changed, or it is not known who was removed.
    private var joinRule: JoinRule? {
        guard isJoining, roster != nil, node.core.isReady, let membership = node.membership,
            !membership.isJoint, node.core.membershipIndex <= node.core.commitIndex
        else { return nil }
        return rule(membership)
    }

    private func lookForJoiners() {
        guard !joining.isBusy, let joinRule else { return }
        if joinRule.promotion(caughtUp: caughtUpLearners) != nil { return promoteJoined() }
        joining.isBusy = true
        links.findPeers { [self] found in
            joining.isBusy = false
            consider((links.netIdentity?.configuredPeers ?? []) + found)
        }
    }

    private var caughtUpLearners: Set<NodeID> {
        let peers = node.core.peerStatus(now: RaftNode.now)
        return Set(peers.filter { $0.isCaughtUp && links.isReachable($0.node) }.map(\.node))
    }

    // MARK: - Voters

    private func promoteJoined() {
        joining.isBusy = true
        change(.changeMembership, whenDone { _ in }) { [self] (membership) throws(AspenError) in
            guard let voters = rule(membership).promotion(caughtUp: caughtUpLearners) else {
                return nil
            }
            try refuseLossOfQuorum(from: membership, to: voters)
            node.events.record("join", "auto-join makes voters of \(node.names(voters))")
            return (voters, membership.learners.filter { !voters.contains($0) }, [])
        }
    }

    // MARK: - Learners

    private func consider(_ found: [ConfiguredPeer]) {
        guard let joinRule else { return }
        let judged = joinRule.judge(found)
        let now = RaftNode.now
        joining.known = joining.known.filter { endpoint, _ in
            judged.contains { $0.candidate.peer.endpoint == endpoint }
        }
        for (candidate, objection) in judged.prefix(Joining.rememberedMax) {
            let endpoint = candidate.peer.endpoint
            if joining.known[endpoint]?.node != candidate.node {
                joining.known[endpoint] = Joining.Memory(node: candidate.node, next: now)
            }
            if let objection {
                refuse(candidate, objection.text(candidate.node))
            } else if !joining.isBusy, let memory = joining.known[endpoint], memory.next <= now {
                ask(candidate)
            }
        }
    }

    /// Told once for each reason.
    private func refuse(_ candidate: JoinRule.Candidate, _ reason: String) {
        guard joining.known[candidate.peer.endpoint]?.reason != reason else { return }
        joining.known[candidate.peer.endpoint]?.reason = reason
        node.events.record("join", "auto-join leaves node \(candidate.node) out: \(reason)")
        logger.notice(
            "a node that was found is not admitted: \(reason)",
            metadata: [
                "peer": "\(candidate.node)", "endpoint": "\(candidate.peer.endpoint)",
                "event": "\(JournalEvent.peerRefused)",
            ])
    }

    /// Over a connection on which both have proved the cookie; the answer names the replica.
    private func ask(_ candidate: JoinRule.Candidate) {
        joining.isBusy = true
        let endpoint = candidate.peer.endpoint
        let now = RaftNode.now
        if let backOff = joining.known[endpoint]?.backOff {
            joining.known[endpoint]?.next = now + backOff
            joining.known[endpoint]?.backOff = min(backOff * 2, Joining.backOffMax)
        }
        links.probe(candidate.peer, candidate.node, until: now + Joining.probeTime) {
            [self] result in
            joining.isBusy = false
            switch result {
            case .failure(let error): refuse(candidate, error.message)
            case .success(let hello) where hello.node != candidate.node:
                refuse(candidate, "it answers as node \(hello.node)")
            case .success(let hello):
                if let theirs = hello.cluster {
                    return refuse(
                        candidate,
                        theirs == node.membership?.cluster
                            ? "it was a member of this cluster before: `aspen-cli cluster add-learner "
                                + "--node-id \(candidate.node)` takes it back"
                            : "it belongs to another cluster (\(theirs.text)): empty its data directory "
                                + "first, if that cluster is no more")
                }
                admit(candidate, hello.replica)
            }
        }
    }

    private func admit(_ candidate: JoinRule.Candidate, _ replica: ReplicaID) {
        guard isJoining else { return }
        joining.isBusy = true
        let (id, peer) = (candidate.node, candidate.peer)
        let admission = JoinRoster.admission(of: id, peer.endpoint)
        agree(
            on: admission, grows: true,
            whenDone { [self] failure in
                guard failure == nil, isJoining else { return }
                joining.isBusy = true
                let member = Membership.Member(
                    node: id, endpoint: peer.endpoint, replica: replica,
                    addresses: Array(peer.addresses.prefix(Limits.addressesMax)))
                change(.addLearner, whenDone { _ in }) { [self] (membership) throws(AspenError) in
                    // What was so when it was asked may have changed.
                    let found = ConfiguredPeer(node: id, peer: peer)
                    guard let judged = rule(membership).judge([found]).first,
                        judged.objection == nil
                    else {
                        return nil
                    }
                    node.events.record("join", "auto-join admits node \(id) as a learner")
                    return (membership.voters, (membership.learners + [id]).sorted(), [member])
                }
            })
    }

    /// An origin of the service's own: `body` gets the error, if there was one.
    private func whenDone(_ body: @escaping (AspenError?) -> Void) -> RequestOrigin {
        let sink = OwnSink { [self] failure in
            joining.isBusy = false
            if let failure {
                logger.debug(
                    "auto-join could not go on", metadata: ["reason": "\(failure.message)"])
            }
            body(failure)
        }
        return RequestOrigin(
            sink: sink, id: 0, deadline: RaftNode.now + Self.defaultTimeout, isFromPeer: false)
    }

    /// - Parameter grows: see `SpaceWatch.refusal`. A full disk does not keep anybody from removing a node.
    private func agree(on transaction: Transaction, grows: Bool, _ origin: RequestOrigin) {
        submit(.transaction(transaction, nil), .transaction, grows: grows, origin)
    }

    // MARK: - Who was removed

    /// Members that `wish` leaves without a place, by their keys, and that are not yet on the list.
    func unrecordedRemovals(_ membership: Membership, _ wish: Wish) -> [Membership.Member] {
        let staying = Set(
            (wish.voters + wish.learners).compactMap { id in
                (wish.members.first { $0.node == id } ?? membership.member(id))?.endpoint
            })
        return membership.members.filter {
            !staying.contains($0.endpoint) && roster?.removed[$0.endpoint] == nil
        }
    }

    /// Puts them on the list of those that do not come back by themselves; `then` follows when that is
    /// agreed upon, and `origin` fails if it is not to be had.
    func record(
        removalOf members: [Membership.Member], _ origin: RequestOrigin, then: @escaping () -> Void
    ) {
        let sink = OwnSink { failure in
            if let failure { origin.fail(failure) } else { then() }
        }
        agree(
            on: JoinRoster.removal(of: members), grows: false,
            RequestOrigin(
                sink: sink, id: 0, deadline: origin.deadline, isFromPeer: origin.isFromPeer))
    }

    /// For `why`: of a node that is no member.
    func whyOutside(_ id: NodeID) -> String? {
        if let found = joining.known.values.first(where: { $0.node == id && $0.reason != nil }) {
            return "node \(id) was found and is no member: \(found.reason ?? "")"
        }
        guard roster?.removed.values.contains(id) == true else { return nil }
        return
            "node \(id) is no member: it has been removed. `aspen-cli cluster add-learner --node-id "
            + "\(id)` takes it back"
    }
}

extension ClientService {
    func set(_ system: SystemTables) {
        roster = system.roster
        setTrust(system.trust)
    }

    /// After a start, or when a snapshot has taken the place of entries.
    func loadSystemTables() {
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.state.perform { store in
            let system = try SystemTables(reading: store)
            return { box.value.set(system) }
        }
    }
}

/// Takes the answer to something that the service asks of itself.
final class OwnSink: ReplySink {
    private let done: (AspenError?) -> Void
    init(_ done: @escaping (AspenError?) -> Void) { self.done = done }

    func part(_ response: WireResponse, to id: UInt64) {}
    var isOpen: Bool { true }
    var isWritable: Bool { true }
    func reply(_ response: WireResponse, to id: UInt64, bytes: Int) { done(response.failure) }
}
