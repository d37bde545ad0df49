// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import Testing

extension KVMachine where Tables == MemoryTables {
    static func withLeases() -> Self {
        var machine = Self()
        _ = machine.run(.activateVersion(2))
        return machine
    }

    mutating func grant(_ ttl: UInt64, id: LeaseID = .none, time: UInt64 = 0) -> LeaseID {
        guard
            case .leaseGranted(let id, _) = run(
                .grantLease(id: id, ttlMilliseconds: ttl, nil), time: time)
        else {
            Issue.record("no lease was granted")
            return .none
        }
        return id
    }

    mutating func put(_ key: [UInt8], under lease: LeaseID, time: UInt64 = 0) -> CommandResult {
        run(
            .transaction(Transaction(success: [.put(key: key, value: [1], lease: lease)]), nil),
            time: time)
    }
}

private func code(_ result: CommandResult) -> AspenErrorCode? {
    if case .failed(let code, _) = result { code } else { nil }
}

@Suite struct LeaseTests {
    @Test func keysGoWithTheirLeaseAndNeverBefore() {
        var machine = MemoryMachine.withLeases()
        let lease = machine.grant(5000, time: 10_000)
        let other = machine.grant(60_000, time: 10_000)
        for key in 0..<3 as Range<UInt8> { _ = machine.put([key], under: lease) }
        _ = machine.put([9], under: other)
        let before = machine.meta.revision
        #expect(machine.nextLeaseExpiry() == ClusterTime(milliseconds: 15_000))
        _ = machine.run(.expireLeases, time: 14_999)
        #expect(machine.meta.revision == before && machine.lease(lease) != nil)
        _ = machine.run(.expireLeases, time: 15_000)
        #expect(machine.meta.revision == before.next, "three keys, one revision")
        for key in 0..<3 as Range<UInt8> { #expect(machine.get([key], at: nil) == .value(nil)) }
        #expect(machine.lease(lease) == nil && machine.keys(of: other, limit: 9) == [[9]])
        #expect(machine.get([1], at: before) != .value(nil), "the past is as it was")
        #expect(code(machine.put([5], under: lease)) == .notFound)
        #expect(code(machine.run(.keepLeaseAlive(lease))) == .notFound)
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
    }

    @Test func keepingAliveBeginsTheTimeAnew() {
        var machine = MemoryMachine.withLeases()
        let lease = machine.grant(5000, time: 10_000)
        #expect(
            machine.run(.keepLeaseAlive(lease), time: 14_000)
                == .leaseKept(ttlMilliseconds: 5000))
        _ = machine.run(.expireLeases, time: 18_999)
        #expect(machine.lease(lease)?.deadline == ClusterTime(milliseconds: 19_000))
        #expect(machine.leaseExpiryHint == ClusterTime(milliseconds: 15_000), "a lower bound")
        #expect(machine.nextLeaseExpiry() == ClusterTime(milliseconds: 19_000))
        #expect(machine.leaseExpiryHint == ClusterTime(milliseconds: 19_000))
        // Due, but not ended: it may still be kept.
        _ = machine.run(.keepLeaseAlive(lease), time: 20_000)
        _ = machine.run(.expireLeases, time: 24_999)
        #expect(machine.lease(lease) != nil)
        _ = machine.run(.expireLeases, time: 25_000)
        #expect(machine.lease(lease) == nil && machine.nextLeaseExpiry() == nil)
        #expect(machine.meta.revision == .zero, "a lease without keys is no revision")
    }

    @Test func putsMoveKeysBetweenLeases() {
        var machine = MemoryMachine.withLeases()
        let one = machine.grant(5000)
        let two = machine.grant(5000)
        _ = machine.put([1], under: one)
        #expect(machine.lease(one)?.keyCount == 1)
        _ = machine.put([1], under: two)
        #expect(machine.lease(one)?.keyCount == 0 && machine.lease(two)?.keyCount == 1)
        _ = machine.put([1], under: .none)
        #expect(machine.lease(two)?.keyCount == 0)
        _ = machine.put([1], under: two)
        let moves = Transaction(success: [
            .delete(key: [1]), .put(key: [1], value: [], lease: one), .put(key: [2], value: []),
            .put(key: [2], value: [], lease: two), .deleteRange(from: [1], to: [2]),
        ])
        _ = machine.run(.transaction(moves, nil))
        #expect(machine.keys(of: one, limit: 9) == [] && machine.keys(of: two, limit: 9) == [[2]])
        let result = machine.run(.revokeLease(two, nil))
        #expect(result == .leaseRevoked(revision: machine.meta.revision, deleted: 1))
        #expect(machine.get([2], at: nil) == .value(nil))
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
        #expect(machine.meta.leaseCount == 1)
    }

    @Test func aMissingLeaseRefusesTheWholeTransaction() {
        var machine = MemoryMachine.withLeases()
        let transaction = Transaction(success: [
            .put(key: [1], value: []), .put(key: [2], value: [], lease: LeaseID(77)),
        ])
        guard case .failed(.notFound, let text) = machine.run(.transaction(transaction, nil)) else {
            Issue.record("a lease that does not exist was used")
            return
        }
        #expect(text.contains("77"))
        #expect(machine.meta.revision == .zero)
    }

    @Test func limitsAreNamed() {
        var machine = MemoryMachine.withLeases()
        func grant(_ ttl: UInt64, _ id: UInt64 = 0) -> CommandResult {
            machine.run(.grantLease(id: LeaseID(id), ttlMilliseconds: ttl, nil))
        }
        #expect(code(grant(999)) == .invalidArgument)
        #expect(code(grant(86_400_001)) == .invalidArgument)
        #expect(code(grant(1000, 1 << 62)) == .invalidArgument)
        #expect(code(grant(1000, 5)) == nil)
        #expect(code(grant(1000, 5)) == .preconditionFailed)
        let lease = machine.grant(1000)
        for start in stride(from: 0, to: KVLimits.leaseKeysMax, by: 100) {
            let puts = (start..<start + 100).map {
                Operation.put(key: [UInt8($0 / 250), UInt8($0 % 250)], value: [], lease: lease)
            }
            #expect(code(machine.run(.transaction(Transaction(success: puts), nil))) == nil)
        }
        #expect(code(machine.put([0xff], under: lease)) == .resourceExhausted)
        #expect(code(machine.put([0, 0], under: lease)) == nil, "it is attached already")
        let before = machine.meta.revision
        _ = machine.run(.revokeLease(lease, nil))
        #expect(machine.meta.revision == before.next && machine.meta.figures.liveCount == 0)
        for _ in Int(machine.meta.leaseCount)..<Limits.leasesMax { _ = grant(1000) }
        #expect(code(grant(1000)) == .resourceExhausted)
    }

    @Test func aNumberThatIsTakenIsNotChosen() {
        var machine = MemoryMachine.withLeases()
        let taken = LeaseID(machine.meta.appliedIndex.rawValue + 2)
        #expect(machine.grant(1000, id: taken) == taken)
        let chosen = machine.grant(1000)
        #expect(chosen.rawValue == KVLimits.leaseIDChosenFrom + taken.rawValue)
        #expect(machine.grant(1000).rawValue == machine.meta.appliedIndex.rawValue)
    }

    @Test func retriesUnderASessionApplyOnce() {
        var machine = MemoryMachine.withLeases()
        guard case .sessionOpened(let session) = machine.run(.openSession) else { return }
        func request(_ number: UInt64) -> SessionRequest {
            SessionRequest(session: session, number: number, acknowledgedBelow: 0)
        }
        let grant = Command.grantLease(id: .none, ttlMilliseconds: 1000, request(1))
        let first = machine.run(grant)
        #expect(machine.run(grant) == first && machine.meta.leaseCount == 1)
        guard case .leaseGranted(let lease, _) = first else { return }
        _ = machine.put([1], under: lease)
        let gone = machine.run(.revokeLease(lease, request(2)))
        #expect(machine.run(.revokeLease(lease, request(2))) == gone)
        #expect(code(machine.run(.revokeLease(lease, request(3)))) == .notFound)
    }

    /// One entry ends a bounded number of leases, and as many entries as are needed end all.
    @Test func expiryIsBoundedPerEntry() {
        var machine = MemoryMachine.withLeases()
        for number in 0..<450 {
            let lease = machine.grant(1000)
            for key in 0..<number % 8 {
                _ = machine.put(
                    [UInt8(number / 250), UInt8(number % 250), UInt8(key)], under: lease)
            }
        }
        var rounds = 0
        while machine.nextLeaseExpiry() != nil {
            let (leases, keys) = (machine.meta.leaseCount, machine.meta.figures.liveCount)
            _ = machine.run(.expireLeases, time: 5000)
            rounds += 1
            #expect(leases - machine.meta.leaseCount <= KVLimits.leasesExpiredPerEntry)
            #expect(keys - machine.meta.figures.liveCount <= KVLimits.leaseKeysExpiredPerEntry)
            guard rounds < 10 else { break }
        }
        #expect(rounds == 3 && machine.meta.figures.liveCount == 0)
        #expect(machine.recomputedRowHash() == machine.meta.rowHash)
    }

    /// Until every member knows leases, there are none: what older programs compute stays the same.
    @Test func nothingOfVersionTwoHappensBeforeItIsActive() {
        var machine = MemoryMachine()
        let commands: [Command] = [
            .grantLease(id: .none, ttlMilliseconds: 1000, nil), .keepLeaseAlive(LeaseID(1)),
            .revokeLease(LeaseID(1), nil), .expireLeases,
            .transaction(Transaction(success: [.put(key: [1], value: [], lease: LeaseID(1))]), nil),
        ]
        for command in commands {
            #expect(command.version == 2 && CommandCodec.encode(command)[0] == 2)
            #expect(code(machine.run(command)) == .unsupportedVersion)
        }
        #expect(machine.meta.rowHash == 0)
        #expect(CommandCodec.encode(.openSession)[0] == 1)
        #expect(machine.run(.activateVersion(2)) == .done)
        #expect(code(machine.run(commands[0])) == nil)
    }
}
