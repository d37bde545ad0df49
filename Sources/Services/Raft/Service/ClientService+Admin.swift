// SPDX-License-Identifier: GPL-2.0-or-later

import AspenBytes
import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import NIOCore
import NetClient
import RaftCore
import RaftStorage
import ServiceKit
import SwiftProtobuf

// Questions about the cluster, and changes of it.

extension ClientService {
    /// How long `GetClusterStatus` waits for each member.
    static let statusTimeout = TimeAmount.milliseconds(500)
    /// How often an administrative change that has to wait looks again.
    static let changeRetryInterval = TimeAmount.milliseconds(5)
    /// How long a change waits for nodes that have only to catch up.
    static let changePatience = Duration.seconds(5)
    /// How often a node that is to be added and cannot be reached is tried again: it may be starting.
    static let probeInterval = TimeAmount.milliseconds(250)
    /// What is left of a request's time when that is given up, so that its reason still arrives.
    static let probeAnswerTime = Duration.milliseconds(250)

    // MARK: - How it goes

    func getLeader(_ origin: RequestOrigin) {
        var body = Aspen_Client_V1_GetLeaderResponse()
        body.leaderID = node.standing.leader?.rawValue ?? 0
        body.term = node.standing.term.rawValue
        origin.reply(WireResponse(.getLeader(body)))
    }

    private func ownStatus(dataBytes: UInt64) -> WireNodeStatus {
        var status = WireNodeStatus()
        let own = options.raft.node
        let membership = node.membership
        status.nodeID = own.rawValue
        status.role = roleText
        status.term = node.standing.term.rawValue
        status.applied = node.applied.index.rawValue
        let commit = node.core.commitIndex.rawValue
        status.lag = commit > status.applied ? commit - status.applied : 0
        if let identity = links.netIdentity {
            status.endpointID = identity.endpoint.description
            status.addresses = identity.addresses
        } else if let member = membership?.member(own) {
            status.endpointID = member.endpoint.description
            status.addresses = member.addresses
        }
        status.version = ProtocolVersion.program
        status.dataBytes = dataBytes
        status.isVoter = membership?.isVoter(own) ?? false
        status.reachable = true
        return status
    }

    var roleText: String {
        switch node.standing.role {
        case .leader: "leader"
        case .follower: "follower"
        case .preCandidate, .candidate: "candidate"
        case .learner: "learner"
        }
    }

    func getNodeInfo(_ origin: RequestOrigin) {
        ownInfo { origin.reply(WireResponse(.getNodeInfo($0))) }
    }

    private func ownInfo(_ then: @escaping (Aspen_Client_V1_GetNodeInfoResponse) -> Void) {
        let box = NIOLoopBound((self, then), eventLoop: node.loop)
        node.state.perform { store in
            let (hash, byteCount) = (try store.contentHash(), store.byteCount)
            return {
                let (service, then) = box.value
                let node = service.node
                var body = Aspen_Client_V1_GetNodeInfoResponse()
                body.node = service.ownStatus(dataBytes: byteCount)
                body.clusterID = node.membership?.cluster.text ?? ""
                body.replicaID = service.links.identity.replica.rawValue
                body.commit = node.core.commitIndex.rawValue
                body.lastLogIndex = node.core.lastIndex.rawValue
                body.firstLogIndex = node.firstLogIndex.rawValue
                body.stateHash = hash
                body.stateVersion = UInt32(KVVersion.supported)
                then(body)
            }
        }
    }

    func getClusterStatus(_ origin: RequestOrigin) {
        guard let membership = node.membership else { return origin.fail(outsideCluster) }
        let gathering = StatusGathering(membership, service: self, origin: origin)
        var request = WireRequest()
        request.timeoutMs = UInt32(clamping: Self.statusTimeout.nanoseconds / 1_000_000)
        request.getNodeInfo = Aspen_Client_V1_GetNodeInfoRequest()
        let bytes: [UInt8] = (try? request.serializedBytes()) ?? []
        for member in membership.members {
            if member.node == options.raft.node {
                ownInfo { gathering.add($0.node, commit: $0.commit) }
                continue
            }
            links.request(bytes, to: member.node, timeout: Self.statusTimeout) { answer in
                let response = answer.flatMap { try? WireResponse(serializedBytes: $0) }
                if case .getNodeInfo(let info)? = response?.response {
                    gathering.add(info.node, commit: info.commit)
                } else {
                    gathering.addUnreachable(member)
                }
            }
        }
    }

    func getClusterTicket(_ origin: RequestOrigin) {
        guard let membership = node.membership else { return origin.fail(outsideCluster) }
        // The nodes that vote first: they are the least likely to be gone when it is used.
        let members = membership.members.sorted { left, right in
            let (isLeft, isRight) = (membership.isVoter(left.node), membership.isVoter(right.node))
            return isLeft == isRight ? left.node < right.node : isLeft
        }
        let ticket = Ticket(
            cluster: membership.cluster,
            endpoints: members.prefix(Limits.ticketEndpointsMax).map {
                Ticket.Endpoint(endpoint: $0.endpoint, addresses: $0.addresses)
            })
        var body = Aspen_Client_V1_GetClusterTicketResponse()
        body.ticket = ticket.encoded()
        origin.reply(WireResponse(.getClusterTicket(body)))
    }

    func triggerSnapshot(_ origin: RequestOrigin) {
        let box = NIOLoopBound((self, origin), eventLoop: node.loop)
        node.state.perform { store in
            let durable = try store.checkpoint()
            return {
                let (service, origin) = box.value
                service.node.discardLog(durable: durable)
                var body = Aspen_Client_V1_TriggerSnapshotResponse()
                body.index = durable.rawValue
                origin.reply(WireResponse(.triggerSnapshot(body)))
            }
        }
    }

    // MARK: - Changes

    func initCluster(_ origin: RequestOrigin) {
        guard node.membership == nil else {
            return origin.fail(
                AspenError(.alreadyInitialized, "this node belongs to a cluster already"))
        }
        guard !node.isRebuilt else { return origin.fail(Self.isRebuilt) }
        guard let identity = links.netIdentity else {
            return origin.fail(
                AspenError(
                    .unavailable,
                    "aspend-net cannot be reached, and without it this node has no address: is it "
                        + "running?", retry: .safe))
        }
        guard !identity.addresses.isEmpty else {
            return origin.fail(
                AspenError(
                    .preconditionFailed,
                    "nobody has said where this node can be dialled, and the members would not find "
                        + "it: start it with --advertise ADDRESS:PORT, or let aspend-gossip find out "
                        + "(it needs this machine's interfaces to have addresses)", retry: .safe))
        }
        let own = options.raft.node
        let cluster = ClusterID(UInt128.random(in: 1...UInt128.max))
        let member = Membership.Member(
            node: own, endpoint: identity.endpoint, replica: links.identity.replica,
            addresses: Array(identity.addresses.prefix(Limits.addressesMax)))
        let membership = Membership(cluster: cluster, voters: [own], members: [member])
        let id = register(origin, .initCluster(cluster))
        node.step(.initialize(membership, wallTime: wallTime(), id: id))
    }

    func addLearner(_ body: Aspen_Client_V1_AddLearnerRequest, _ origin: RequestOrigin) {
        guard body.nodeID != 0 else {
            return origin.fail(AspenError(.invalidArgument, "a node id is 1 or more"))
        }
        let id = NodeID(body.nodeID)
        do {
            if let peer = try candidate(id, body) { return probe(id, peer, origin) }
        } catch {
            return origin.fail(error)
        }
        links.findPeers { [self] found in
            do throws(AspenError) {
                probe(id, try Self.candidate(id, among: found), origin)
            } catch {
                origin.fail(error)
            }
        }
    }

    /// The only one that calls itself by that number. Whether it has the cookie, and the number, is seen when
    /// it is asked.
    private static func candidate(
        _ id: NodeID, among found: [ConfiguredPeer]
    ) throws(AspenError) -> NetPeer {
        let named = found.filter { $0.node == id }.map(\.peer)
        guard let peer = named.first else {
            throw AspenError(
                .notFound,
                "node \(id) is neither among the peers that this node was started with nor was it "
                    + "found: `aspen-cli peers list` shows who was; name its endpoint id and addresses"
            )
        }
        guard named.count == 1 else {
            let names = named.map { "\($0.endpoint)" }.sorted().joined(separator: ", ")
            throw AspenError(
                .preconditionFailed,
                "\(named.count) nodes call themselves \(id) (\(names)): say which one by its endpoint id"
            )
        }
        return peer
    }

    private func probe(_ id: NodeID, _ peer: NetPeer, _ origin: RequestOrigin) {
        let cluster = node.membership?.cluster
        let end = origin.deadline + (.zero - Self.probeAnswerTime)
        links.probe(peer, id, until: end) { [self] result in
            switch result {
            case .failure(let error):
                guard error.retry == .safe else { return origin.fail(error) }
                let box = NIOLoopBound((self, origin), eventLoop: node.loop)
                let next = RaftNode.now + .nanoseconds(Self.probeInterval.nanoseconds)
                guard next < end, isLeader else {
                    // Whoever asked again would wait as long once more.
                    return origin.fail(
                        AspenError(error.code, error.message, retry: isLeader ? .never : .safe))
                }
                node.loop.scheduleTask(in: Self.probeInterval) {
                    box.value.0.probe(id, peer, box.value.1)
                }
            case .success(let hello):
                if hello.node != id {
                    return origin.fail(
                        AspenError(
                            .invalidArgument,
                            "the node at that endpoint has the id \(hello.node), not \(id)"))
                }
                if let theirs = hello.cluster, theirs != cluster {
                    return origin.fail(
                        AspenError(
                            .preconditionFailed,
                            "node \(id) belongs to another cluster (\(theirs.text)): empty its "
                                + "data directory first, if that cluster is no more"))
                }
                add(
                    Membership.Member(
                        node: id, endpoint: peer.endpoint, replica: hello.replica,
                        addresses: Array(peer.addresses.prefix(Limits.addressesMax))), origin)
            }
        }
    }

    /// Where the node is that is to be added: as the request says, else as `--peers` says; nil where
    /// neither does.
    private func candidate(
        _ id: NodeID, _ body: Aspen_Client_V1_AddLearnerRequest
    ) throws(AspenError) -> NetPeer? {
        if !body.endpointID.isEmpty {
            guard let endpoint = EndpointID(body.endpointID) else {
                throw AspenError(
                    .invalidArgument,
                    "that is no endpoint id: 52 characters, as `aspend-net` prints at its start")
            }
            guard body.addresses.count <= Limits.addressesMax,
                body.addresses.allSatisfy({ $0.utf8.count <= 256 })
            else { throw AspenError(.invalidArgument, "too many or too long addresses") }
            return NetPeer(endpoint: endpoint, addresses: body.addresses)
        }
        return links.netIdentity?.configuredPeers.first { $0.node == id }?.peer
    }

    private func add(_ member: Membership.Member, _ origin: RequestOrigin) {
        change(.addLearner, origin) { (membership) throws(AspenError) in
            if let known = membership.member(member.node), membership.isVoter(member.node) {
                guard known.replica == member.replica else {
                    throw AspenError(
                        .preconditionFailed,
                        "node \(member.node) is a voter with another data directory: remove it "
                            + "from the voters first")
                }
                return nil
            }
            var learners = membership.learners
            if learners.contains(member.node) {
                if membership.member(member.node) == member { return nil }
            } else {
                learners.append(member.node)
            }
            return (membership.voters, learners.sorted(), [member])
        }
    }

    /// The voters become exactly those named. A voter not named leaves the cluster; learners that
    /// are not named stay learners (as openraft's change_membership does without `retain`).
    func changeMembership(
        _ body: Aspen_Client_V1_ChangeMembershipRequest, _ origin: RequestOrigin
    ) {
        let voters = Set(body.voters).sorted().map { NodeID($0) }
        guard !voters.isEmpty, voters.count <= Limits.votersMax, voters.count == body.voters.count
        else {
            return origin.fail(
                AspenError(
                    .invalidArgument, "name 1 to \(Limits.votersMax) voters, each of them once"))
        }
        change(.changeMembership, origin) { [self] (membership) throws(AspenError) in
            for voter in voters where membership.member(voter) == nil {
                throw AspenError(
                    .preconditionFailed,
                    "node \(voter) is no member: `aspen-cli cluster add-learner --node-id "
                        + "\(voter)` first")
            }
            if voters == membership.voters { return nil }
            if !body.force {
                try refuseLossOfQuorum(from: membership, to: voters)
            }
            return (voters, membership.learners.filter { !voters.contains($0) }, [])
        }
    }

    typealias Wish = (
        voters: [NodeID], learners: [NodeID], members: [Membership.Member]
    )

    /// Makes a change as soon as the one before it is through. `wish` gets the membership in force
    /// and says what to make of it; nil: it is so already.
    func change(
        _ kind: WriteKind, _ origin: RequestOrigin,
        patience: MonotonicInstant = RaftNode.now + ClientService.changePatience,
        recordsMax: Int = 3, _ wish: @escaping (Membership) throws(AspenError) -> Wish?
    ) {
        guard let membership = node.membership else { return origin.fail(outsideCluster) }
        guard isLeader else {
            return origin.fail(AspenError(.unavailable, "this node leads no more", retry: .safe))
        }
        guard RaftNode.now < origin.deadline else { return origin.fail(Self.changeTooSlow) }
        let core = node.core
        guard core.isReady, !membership.isJoint, core.membershipIndex <= core.commitIndex else {
            return changeLater(kind, origin, patience, wish)
        }
        do {
            guard let wanted = try wish(membership) else {
                let answer = AppliedAnswer(
                    number: 0, index: core.membershipIndex,
                    term: core.term(at: core.membershipIndex) ?? .zero, result: .done)
                return origin.reply(
                    kind.response(answer, node: options.raft.node, membership: membership))
            }
            let removed = unrecordedRemovals(membership, wanted)
            guard removed.isEmpty else {
                guard recordsMax > 0 else { return origin.fail(Self.changeTooSlow) }
                return record(removalOf: removed, origin) { [self] in
                    change(kind, origin, patience: patience, recordsMax: recordsMax - 1, wish)
                }
            }
            let id = register(origin, kind)
            node.step(
                .changeMembership(
                    voters: wanted.voters, learners: wanted.learners, members: wanted.members,
                    id: id))
        } catch {
            if error.retry == .safe, RaftNode.now < patience {
                return changeLater(kind, origin, patience, wish)
            }
            origin.fail(AspenError(error.code, error.message))
        }
    }

    private func changeLater(
        _ kind: WriteKind, _ origin: RequestOrigin, _ patience: MonotonicInstant,
        _ wish: @escaping (Membership) throws(AspenError) -> Wish?
    ) {
        let box = NIOLoopBound((self, origin, wish), eventLoop: node.loop)
        node.loop.scheduleTask(in: Self.changeRetryInterval) {
            let (service, origin, wish) = box.value
            service.change(kind, origin, patience: patience, wish)
        }
    }

    private static let changeTooSlow = AspenError(
        .deadlineExceeded,
        "another membership change is not through yet: are a majority of the old and of the new "
            + "voters up? (`aspen-cli cluster status`)", retry: .safe)
}

/// Collects what the members say of themselves.
private final class StatusGathering {
    private let membership: Membership
    private let service: ClientService
    private let origin: RequestOrigin
    private var nodes: [WireNodeStatus] = []
    private var commit: UInt64 = 0

    init(_ membership: Membership, service: ClientService, origin: RequestOrigin) {
        self.membership = membership
        self.service = service
        self.origin = origin
    }

    func add(_ status: WireNodeStatus, commit: UInt64) {
        self.commit = max(self.commit, commit)
        nodes.append(status)
        finishIfComplete()
    }

    func addUnreachable(_ member: Membership.Member) {
        var status = WireNodeStatus()
        status.nodeID = member.node.rawValue
        status.role = "unreachable"
        status.endpointID = member.endpoint.description
        status.addresses = member.addresses
        status.isVoter = membership.isVoter(member.node)
        nodes.append(status)
        finishIfComplete()
    }

    private func finishIfComplete() {
        guard nodes.count == membership.members.count else { return }
        var body = Aspen_Client_V1_GetClusterStatusResponse()
        body.clusterID = membership.cluster.text
        body.term = service.node.standing.term.rawValue
        body.leaderID = service.node.standing.leader?.rawValue ?? 0
        body.revision = service.node.applied.revision.rawValue
        body.nodes = nodes.sorted { $0.nodeID < $1.nodeID }.map { node in
            var node = node
            if node.reachable { node.lag = commit > node.applied ? commit - node.applied : 0 }
            return node
        }
        origin.reply(WireResponse(.getClusterStatus(body)))
    }
}
