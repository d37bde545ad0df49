// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials

/// A lease as the cluster sees it. Times are cluster time.
public struct LeaseInfo: Sendable, Equatable {
    public var lease: LeaseID
    public var grantedTTL: Duration
    public var remainingTTL: Duration
    public var attachedKeys: Int
}

/// The answer to `revokeLease`.
public struct RevokeResult: Sendable, Equatable {
    /// Keys that went with it.
    public var deletedCount: Int
    public var revision: Revision
    public var logID: LogID
}

/// The answer to `leases`.
public struct LeasePage: Sendable, Equatable {
    /// By number.
    public var leases: [LeaseInfo]
    /// There are more: ask again after the last one.
    public var more: Bool
}

// Keys attached to a lease go when it is revoked or its time has passed: all in one revision.
extension AspenClient {
    /// Makes a lease that ends after `ttl`, unless it is kept alive.
    ///
    /// - Parameters:
    ///   - ttl: 1 s to 24 h.
    ///   - lease: its number; `none` lets the cluster choose.
    /// - Throws: `preconditionFailed` when there is a lease with that number, `resourceExhausted`
    ///   when there are `Limits.leasesMax`.
    public func grantLease(
        ttl: Duration, lease: LeaseID = .none, timeout: Duration? = nil
    ) async throws(AspenError) -> LeaseInfo {
        var request = WireRequest()
        request.grantLease.ttlMs = ttl.wholeMilliseconds
        request.grantLease.lease = lease.rawValue
        return try await perform(request, .write, timeout: timeout) { response in
            guard case .grantLease(let answer) = response else { return nil }
            let ttl = Duration.milliseconds(Int64(clamping: answer.ttlMs))
            return LeaseInfo(
                lease: LeaseID(answer.lease), grantedTTL: ttl, remainingTTL: ttl, attachedKeys: 0)
        }
    }

    /// Ends a lease; the keys attached to it go.
    ///
    /// - Throws: `notFound` when it has ended already.
    @discardableResult
    public func revokeLease(
        _ lease: LeaseID, timeout: Duration? = nil
    ) async throws(AspenError) -> RevokeResult {
        var request = WireRequest()
        request.revokeLease.lease = lease.rawValue
        return try await perform(request, .write, timeout: timeout) { response in
            guard case .revokeLease(let answer) = response else { return nil }
            return RevokeResult(
                deletedCount: Int(clamping: answer.deleted), revision: Revision(answer.revision),
                logID: LogID(wire: answer.logID))
        }
    }

    /// Begins the lease's time anew.
    ///
    /// - Returns: how long it lives from now on.
    /// - Throws: `notFound` when it has ended.
    @discardableResult
    public func keepLeaseAlive(
        _ lease: LeaseID, timeout: Duration? = nil
    ) async throws(AspenError) -> Duration {
        var request = WireRequest()
        request.keepLeaseAlive.lease = lease.rawValue
        // May be repeated: twice is the same as once.
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .keepLeaseAlive(let answer) = response else { return nil }
            return .milliseconds(Int64(clamping: answer.ttlMs))
        }
    }

    /// Keeps a lease alive, three times within its life, until the task is cancelled.
    ///
    /// - Parameter each: called after each sign of life, with how long the lease lives from then on.
    /// - Throws: `notFound` when the lease has ended, whatever `keepLeaseAlive` throws that does not
    ///   pass within the lease's life.
    public func holdLease(
        _ lease: LeaseID, each: @Sendable (Duration) -> Void = { _ in }
    ) async throws(AspenError) {
        while !Task.isCancelled {
            let ttl = try await keepLeaseAlive(lease)
            each(ttl)
            do { try await Task.sleep(for: ttl / 3) } catch { return }
        }
    }

    /// How long a lease lives unless it is kept alive, and the keys attached to it if they are wanted.
    ///
    /// - Throws: `notFound` when it has ended.
    public func leaseTimeToLive(
        _ lease: LeaseID, withKeys: Bool = false, timeout: Duration? = nil
    ) async throws(AspenError) -> (lease: LeaseInfo, keys: [[UInt8]]) {
        var request = WireRequest()
        request.leaseTimeToLive.lease = lease.rawValue
        request.leaseTimeToLive.withKeys = withKeys
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .leaseTimeToLive(let answer) = response else { return nil }
            return (LeaseInfo(wire: answer.lease), answer.keys.map { Array($0) })
        }
    }

    /// Leases with a greater number than `after`, by number.
    public func leases(
        after: LeaseID = .none, limit: Int = Limits.batchCountMax, timeout: Duration? = nil
    ) async throws(AspenError) -> LeasePage {
        try checkPrefix([], limit: limit)
        var request = WireRequest()
        request.listLeases.after = after.rawValue
        request.listLeases.limit = UInt32(limit)
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .listLeases(let answer) = response else { return nil }
            return LeasePage(leases: answer.leases.map(LeaseInfo.init(wire:)), more: answer.more)
        }
    }
}

extension LeaseInfo {
    init(wire: Aspen_Client_V1_LeaseInfo) {
        self.init(
            lease: LeaseID(wire.lease),
            grantedTTL: .milliseconds(Int64(clamping: wire.grantedTtlMs)),
            remainingTTL: .milliseconds(Int64(clamping: wire.remainingTtlMs)),
            attachedKeys: Int(clamping: wire.attachedKeys))
    }
}

extension Duration {
    /// Rounded up; 0 of what is negative.
    var wholeMilliseconds: UInt64 {
        let (seconds, attoseconds) = components
        let part = (attoseconds + 999_999_999_999_999) / 1_000_000_000_000_000
        return UInt64(clamping: seconds.multipliedReportingOverflow(by: 1000).partialValue + part)
    }
}
