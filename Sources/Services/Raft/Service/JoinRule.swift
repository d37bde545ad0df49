// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import RaftCore

/// Whom a leader with `auto-join` takes into the cluster, and whom it makes a voter. Only decides;
/// nothing that anybody says of himself is believed here but his number, and that only to ask him.
struct JoinRule {
    var membership: Membership
    var roster: JoinRoster

    /// Why a node that was found is not admitted by itself.
    enum Objection: Hashable, Sendable {
        case removed
        case numberIsTaken(by: EndpointID)
        case numberIsClaimedTwice
        case learnersAreFull
        case rosterIsFull

        func text(_ node: NodeID) -> String {
            switch self {
            case .removed:
                "it was removed from the cluster, and does not come back by itself: `aspen-cli cluster "
                    + "add-learner --node-id \(node)` takes it back"
            case .numberIsTaken(let member):
                "the number \(node) is the member's with the key \(member): a number belongs to one key. "
                    + "Give it another (--node-id), or remove that member first"
            case .numberIsClaimedTwice:
                "another node that was found calls itself \(node) as well: each needs a number of its own "
                    + "(--node-id)"
            case .learnersAreFull:
                "the cluster has \(Limits.learnersMax) learners, as many as it may have"
            case .rosterIsFull:
                "\(Limits.removedEndpointsMax) nodes have been removed, as many as are remembered: from "
                    + "now on an administrator adds nodes (`aspen-cli cluster add-learner`)"
            }
        }
    }

    struct Candidate: Equatable, Sendable {
        var node: NodeID
        var peer: NetPeer
    }

    /// Each of `found` that has a number and is no member, with what speaks against it. In order of the
    /// numbers.
    func judge(_ found: [ConfiguredPeer]) -> [(candidate: Candidate, objection: Objection?)] {
        var claims: [NodeID: Set<EndpointID>] = [:]
        var candidates: [EndpointID: Candidate] = [:]
        let members = Set(membership.members.map(\.endpoint))
        for peer in found where !members.contains(peer.peer.endpoint) {
            guard let node = peer.node else { continue }
            claims[node, default: []].insert(peer.peer.endpoint)
            candidates[peer.peer.endpoint] = Candidate(node: node, peer: peer.peer)
        }
        return candidates.values
            .sorted { ($0.node, $0.peer.endpoint) < ($1.node, $1.peer.endpoint) }
            .map { ($0, objection(to: $0, claims[$0.node]?.count ?? 1)) }
    }

    private func objection(to candidate: Candidate, _ claimants: Int) -> Objection? {
        if roster.removed[candidate.peer.endpoint] != nil { return .removed }
        if let member = membership.member(candidate.node) {
            return .numberIsTaken(by: member.endpoint)
        }
        if claimants > 1 { return .numberIsClaimedTwice }
        if membership.learners.count >= Limits.learnersMax { return .learnersAreFull }
        if roster.removed.count >= Limits.removedEndpointsMax { return .rosterIsFull }
        return nil
    }

    /// The voters with the learners that were admitted by themselves, as far as their number is odd: an
    /// even one bears no more failures than the odd one below it, and asks one more to agree. Nil: as
    /// it is.
    /// - Parameter caughtUp: learners that can be reached and have all entries, nearly.
    func promotion(caughtUp: Set<NodeID>) -> [NodeID]? {
        let ready = membership.learners.filter { learner in
            guard caughtUp.contains(learner), let member = membership.member(learner) else {
                return false
            }
            return roster.admitted[member.endpoint] == learner
        }
        var count = min(membership.voters.count + ready.count, Limits.autoVotersMax)
        if count.isMultiple(of: 2) { count -= 1 }
        guard count > membership.voters.count else { return nil }
        return (membership.voters + ready.prefix(count - membership.voters.count)).sorted()
    }
}
