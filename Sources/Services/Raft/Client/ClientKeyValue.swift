// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials

// Keys and values are bytes; a `String` stands for its UTF-8 (pass `"text".utf8`, or use the
// overloads that take a String).
extension AspenClient {
    /// Reads one key.
    ///
    /// - Parameters:
    ///   - key: 1 to `Limits.keyBytesMax` bytes.
    ///   - revision: a past revision of the store; nil means now.
    ///   - consistency: `stale` for whatever the node asked has applied.
    ///   - timeout: nil means `Options.timeout`.
    /// - Returns: a result whose `entry` is nil when there is no such key.
    /// - Throws: `compacted` when that revision is history no longer kept, `invalidArgument` for a
    ///   key that breaks a limit or a revision in the future.
    public func get(
        _ key: some Collection<UInt8>, at revision: Revision? = nil,
        consistency: Consistency = .linearizable, timeout: Duration? = nil
    ) async throws(AspenError) -> GetResult {
        try checkKey(key)
        var request = WireRequest()
        request.readKey.key = Data(key)
        request.readKey.consistency = consistency.wire
        request.readKey.stalenessMaxMs = consistency.stalenessMaxMs
        request.readKey.revision = revision?.rawValue ?? 0
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .readKey(let answer) = response else { return nil }
            return GetResult(
                entry: answer.hasEntry ? KeyValue(wire: answer.entry) : nil,
                revision: Revision(answer.revision))
        }
    }

    /// Writes one key. Returns when the write is committed: durable on a quorum.
    ///
    /// - Parameter lease: the key goes when this lease goes; `none`: it stays, also if it belonged to
    ///   one before.
    /// - Throws: `invalidArgument` for a key or value beyond its limit, `unknownOutcome` when the
    ///   time was up with the write under way.
    @discardableResult
    public func set(
        _ key: some Collection<UInt8>, to value: some Collection<UInt8>, lease: LeaseID = .none,
        timeout: Duration? = nil
    ) async throws(AspenError) -> WriteResult {
        try checkKey(key)
        try checkValue(value)
        var request = WireRequest()
        request.writeKey.key = Data(key)
        request.writeKey.value = Data(value)
        request.writeKey.lease = lease.rawValue
        return try await perform(request, .write, timeout: timeout) { response in
            guard case .writeKey(let answer) = response else { return nil }
            return WriteResult(
                revision: Revision(answer.revision), logID: LogID(wire: answer.logID),
                version: answer.version)
        }
    }

    /// Deletes one key; deleting what is not there is no error, see `DeleteResult.deleted`.
    @discardableResult
    public func delete(
        _ key: some Collection<UInt8>, timeout: Duration? = nil
    ) async throws(AspenError) -> DeleteResult {
        try checkKey(key)
        var request = WireRequest()
        request.deleteKey.key = Data(key)
        return try await perform(request, .write, timeout: timeout) { response in
            guard case .deleteKey(let answer) = response else { return nil }
            return DeleteResult(
                deleted: answer.deleted, revision: Revision(answer.revision),
                logID: LogID(wire: answer.logID))
        }
    }

    /// If all `compares` hold, carries out `success`, else `failure`: atomically, in one revision.
    ///
    /// - Throws: `invalidArgument` beyond `Limits.transactionOperationsMax` operations.
    public func transaction(
        if compares: [Compare], then success: [Operation], else failure: [Operation] = [],
        timeout: Duration? = nil
    ) async throws(AspenError) -> TransactionResult {
        try checkTransaction(compares, success, failure)
        var request = WireRequest()
        request.transaction.compares = compares.map(\.wire)
        request.transaction.success = success.map(\.wire)
        request.transaction.failure = failure.map(\.wire)
        return try await perform(request, .write, timeout: timeout) { response in
            guard case .transaction(let answer) = response else { return nil }
            return TransactionResult(wire: answer)
        }
    }

    // MARK: - Text

    /// Reads the key whose bytes are the text's UTF-8.
    public func get(
        _ key: String, at revision: Revision? = nil, consistency: Consistency = .linearizable,
        timeout: Duration? = nil
    ) async throws(AspenError) -> GetResult {
        try await get(
            Array(key.utf8), at: revision, consistency: consistency, timeout: timeout)
    }

    /// Writes a text under a text.
    @discardableResult
    public func set(
        _ key: String, to value: String, lease: LeaseID = .none, timeout: Duration? = nil
    ) async throws(AspenError) -> WriteResult {
        try await set(Array(key.utf8), to: Array(value.utf8), lease: lease, timeout: timeout)
    }

    /// Deletes the key whose bytes are the text's UTF-8.
    @discardableResult
    public func delete(
        _ key: String, timeout: Duration? = nil
    ) async throws(AspenError) -> DeleteResult {
        try await delete(Array(key.utf8), timeout: timeout)
    }
}
