// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore
import RaftStorage
import SimKit

/// What a leader proposes by itself, and what clients do with leases.
extension World {
    /// Of every new replica; with the planted bug, if there is one for it.
    func emptyState() -> MemoryState {
        let state = KVBounds.$current.withValue(scenario.bounds) { MemoryState() }
        for bug in KVPlantedBug.allCases
        where scenario.planted.contains(where: { $0.rawValue == bug.rawValue }) {
            state.plantedBug = bug
        }
        state.sessionTimeout = scenario.sessionTimeout
        return state
    }

    /// After something was applied.
    func keepHouse(_ shell: RaftShell) throws(Violation) {
        guard shell.node.shell === shell, shell.standing.role == .leader else { return }
        let meta = shell.state.meta
        if meta.activeVersion < KVVersion.supported,
            shell.versionProposedAt.map({ $0 < meta.appliedIndex }) ?? true,
            let common = commonVersion(shell), common > meta.activeVersion
        {
            shell.versionProposedAt = meta.appliedIndex
            try propose(.activateVersion(UInt16(common)), shell)
        }
        if let revision = scenario.compaction.decision(meta),
            shell.compactionProposedAt.map({ $0.advanced(by: 4) < meta.appliedIndex }) ?? true
        {
            shell.compactionProposedAt = meta.appliedIndex
            if revision > meta.compacted { statistics.compactions += 1 }
            try propose(.compact(revision), shell)
        }
        arrangeLeaseLook(shell, atLeast: .zero)
        arrangeSessionLook(shell)
    }

    private func propose(_ command: Command, _ shell: RaftShell) throws(Violation) {
        try follow(payload(command), for: nil, shell)
    }

    private func arrangeLeaseLook(_ shell: RaftShell, atLeast: Duration) {
        guard !shell.isLeaseLookArranged, let due = shell.state.leaseExpiryHint else { return }
        shell.isLeaseLookArranged = true
        let time = shell.core.time(now: shell.clock.reading(at: now))
        let wait = due > time ? due.milliseconds - time.milliseconds : 0
        schedule(
            .keepHouse(node: shell.index, life: shell.life),
            after: max(atLeast, min(.milliseconds(Int64(wait)), .seconds(1))))
    }

    func lookForLeases(_ shell: RaftShell) throws(Violation) {
        shell.isLeaseLookArranged = false
        guard shell.standing.role == .leader, let due = shell.state.nextLeaseExpiry() else {
            return
        }
        let time = shell.core.time(now: shell.clock.reading(at: now))
        guard due <= time else { return arrangeLeaseLook(shell, atLeast: .zero) }
        try propose(.expireLeases, shell)
        arrangeLeaseLook(shell, atLeast: .milliseconds(250))
    }

    private func arrangeSessionLook(_ shell: RaftShell) {
        guard !shell.isSessionLookArranged, shell.state.nextSessionExpiry() != nil else { return }
        shell.isSessionLookArranged = true
        schedule(
            .lookForSessions(node: shell.index, life: shell.life),
            after: scenario.sessionTimeout / 4)
    }

    func lookForSessions(_ shell: RaftShell) throws(Violation) {
        shell.isSessionLookArranged = false
        guard shell.standing.role == .leader, let due = shell.state.nextSessionExpiry() else {
            return
        }
        if due <= shell.core.time(now: shell.clock.reading(at: now)) {
            try propose(.expireSessions, shell)
        }
        arrangeSessionLook(shell)
    }

    // MARK: - Clients

    /// The next number of its session; nil without one.
    func nextRequest(_ client: SimClient) -> SessionRequest? {
        client.session.map { session in
            client.requestNumber += 1
            return SessionRequest(
                session: session, number: client.requestNumber,
                acknowledgedBelow: acknowledgement(client))
        }
    }

    /// Nil if there is nothing to do with leases just now.
    func drawLeaseCommand(_ client: SimClient) -> Command? {
        guard part == .trouble, leaseRandom.uniform(0..<100) < scenario.leasePercent else {
            return nil
        }
        func request() -> SessionRequest? { nextRequest(client) }
        let dice = leaseRandom.uniform(0..<10)
        guard let lease = client.leases.randomElement(&leaseRandom), dice > 2 else {
            let ttl = leaseRandom.uniform(1000..<3000 as Range<UInt64>)
            return .grantLease(id: .none, ttlMilliseconds: ttl, request())
        }
        switch dice {
        case 3: return .revokeLease(lease, request())
        case 4, 5: return .keepLeaseAlive(lease)
        default:
            let count = leaseRandom.uniform(1..<4)
            let puts = (0..<count).map { _ in
                let key = Array("lease-\(leaseRandom.uniform(0..<12))".utf8)
                return Operation.put(key: key, value: [1], lease: lease)
            }
            return .transaction(Transaction(success: puts), request())
        }
    }

    /// What a client makes of the answer.
    func learn(_ client: SimClient, _ command: Command, _ answer: ClientAnswer) {
        guard case .result(let result) = answer else { return }
        switch (command, result) {
        case (_, .leaseGranted(let lease, _)):
            statistics.leases += 1
            client.leases.append(lease)
        case (.revokeLease(let lease, _), .leaseRevoked):
            client.leases.removeAll { $0 == lease }
        case (.keepLeaseAlive(let lease), .failed(.notFound, _)):
            client.leases.removeAll { $0 == lease }
        case (_, .failed(.sessionExpired, _)): client.session = nil
        default: break
        }
        if case .result(.transaction(_, _, let results)) = answer {
            for case .got(let entry?) in results { client.seen[entry.key] = entry }
        }
        // Whoever keeps all of them alive would see none end.
        if client.leases.count > 4 { client.leases.removeFirst() }
    }
}

extension Array {
    fileprivate func randomElement(_ random: inout RandomSource) -> Element? {
        isEmpty ? nil : self[random.uniform(0..<count)]
    }
}
