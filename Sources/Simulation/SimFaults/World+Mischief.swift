// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage

/// Requests that are refused, by all replicas alike, or that hardly anybody makes.
extension World {
    /// Up to which request a client says that it has its answers: some keep a few for later.
    func acknowledgement(_ client: SimClient) -> UInt64 {
        let number = client.requestNumber
        guard scenario.hasMischief, client.index % 2 == 0 else { return number }
        return number - min(number - 1, mischiefRandom.uniform(0..<6))
    }

    /// Nil most of the time.
    func drawMischief(_ client: SimClient) -> Command? {
        guard mischiefRandom.chance(1, in: 6) else { return nil }
        // One that the cluster itself would choose soon.
        let index = nodes.compactMap { $0.shell?.state.appliedIndex.rawValue }.max() ?? 0
        let lease = LeaseID(index + mischiefRandom.uniform(1..<12))
        switch mischiefRandom.uniform(0..<12) {
        case 0...2: return .grantLease(id: lease, ttlMilliseconds: 1500, nextRequest(client))
        case 3: return .grantLease(id: .none, ttlMilliseconds: 1, nextRequest(client))
        case 4: return .compact(Revision(.max >> 20))
        case 5: return .transaction(leasedReads(), nextRequest(client))
        case 6:
            let put = Operation.put(key: drawKey(), value: [1], lease: LeaseID(1 << 40))
            return .transaction(Transaction(success: [put]), nextRequest(client))
        default: return drawWrongRequest(client)
        }
    }

    /// Reads of keys that belong to a lease, with values in between.
    private func leasedReads() -> Transaction {
        let keys = (0..<3).map { _ in Array("lease-\(mischiefRandom.uniform(0..<12))".utf8) }
        return Transaction(success: keys.map { .get(key: $0) } + [.put(key: drawKey(), value: [])])
    }

    /// Of a session: a request that acknowledges itself, one far ahead, one from long ago, one again.
    private func drawWrongRequest(_ client: SimClient) -> Command? {
        // A number that is not yet taken would answer the request that takes it.
        guard let session = client.session, client.requestNumber > 0 else { return nil }
        let number = client.requestNumber
        var (wanted, below) = (number, number)
        switch mischiefRandom.uniform(0..<5) {
        case 0: below = number + 1
        case 1: wanted = number + UInt64(Limits.sessionWindowMax) + mischiefRandom.uniform(0..<2)
        case 2: wanted = number - min(number - 1, 8)
        case 3:
            wanted = number - min(number - 1, mischiefRandom.uniform(0..<4))
            below = wanted
        default: return .keepSessionAlive(session)
        }
        return .transaction(
            Transaction(success: [.delete(key: drawKey())]),
            SessionRequest(
                session: session, number: wanted, acknowledgedBelow: min(below, wanted + 1)))
    }

    // MARK: - The administrator

    /// A change of the membership that has to be refused.
    func changeWrongly(_ leader: RaftShell, _ membership: Membership) throws(Violation) {
        var voters = membership.voters
        var members = membership.members
        switch mischiefRandom.uniform(0..<5) {
        case 0: voters.append(NodeID(99))
        case 1: voters += voters.prefix(1)
        case 2: voters = []
        case 3: members += members.prefix(1)
        default:
            guard let place = members.firstIndex(where: { voters.contains($0.node) }) else {
                return
            }
            members[place].replica = ReplicaID(members[place].replica.rawValue + 77)
        }
        note("operator: nonsense")
        let before = leader.core.membershipIndex
        try feed(
            leader,
            .changeMembership(
                voters: voters, learners: membership.learners, members: members,
                id: proposalID(leader)))
        guard leader.core.membershipIndex == before else {
            throw Violation(
                .safety, "nonsense is refused", "n\(leader.node.id) changes to voters \(voters)")
        }
    }
}
