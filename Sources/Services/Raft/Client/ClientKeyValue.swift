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
    /// - Throws: `invalidArgument` for a key or value beyond its limit, `unknownOutcome` when the
    ///   time was up with the write under way.
    @discardableResult
    public func set(
        _ key: some Collection<UInt8>, to value: some Collection<UInt8>, timeout: Duration? = nil
    ) async throws(AspenError) -> WriteResult {
        try checkKey(key)
        try checkValue(value)
        var request = WireRequest()
        request.writeKey.key = Data(key)
        request.writeKey.value = Data(value)
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

    /// One page of the keys that begin with `prefix`, in the order of their bytes.
    ///
    /// - Parameters:
    ///   - limit: 1 to `Limits.batchCountMax`; a page may hold fewer for its size.
    ///   - continuation: `ScanPage.continuation` of the page before; empty for the first.
    public func scanPage(
        prefix: some Collection<UInt8>, limit: Int = Limits.batchCountMax,
        continuation: [UInt8] = [], keysOnly: Bool = false,
        consistency: Consistency = .linearizable, timeout: Duration? = nil
    ) async throws(AspenError) -> ScanPage {
        try checkPrefix(prefix, limit: limit)
        var request = WireRequest()
        request.scanKeys.prefix = Data(prefix)
        request.scanKeys.limit = UInt32(limit)
        request.scanKeys.continuation = Data(continuation)
        request.scanKeys.keysOnly = keysOnly
        request.scanKeys.consistency = consistency.wire
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .scanKeys(let answer) = response else { return nil }
            return ScanPage(wire: answer)
        }
    }

    /// All keys that begin with `prefix`, page after page, as they stood when the first was read.
    public func scan(
        prefix: some Collection<UInt8>, pageLimit: Int = Limits.batchCountMax,
        keysOnly: Bool = false, consistency: Consistency = .linearizable
    ) -> ScanPages {
        ScanPages(
            client: self, prefix: Array(prefix), pageLimit: pageLimit, keysOnly: keysOnly,
            consistency: consistency)
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
        _ key: String, to value: String, timeout: Duration? = nil
    ) async throws(AspenError) -> WriteResult {
        try await set(Array(key.utf8), to: Array(value.utf8), timeout: timeout)
    }

    /// Deletes the key whose bytes are the text's UTF-8.
    @discardableResult
    public func delete(
        _ key: String, timeout: Duration? = nil
    ) async throws(AspenError) -> DeleteResult {
        try await delete(Array(key.utf8), timeout: timeout)
    }
}

/// The pages of a scan. Each iterator starts over at the first page.
public struct ScanPages: AsyncSequence, Sendable {
    let client: AspenClient
    let prefix: [UInt8]
    let pageLimit: Int
    let keysOnly: Bool
    let consistency: Consistency

    public struct AsyncIterator: AsyncIteratorProtocol {
        let scan: ScanPages
        var continuation: [UInt8]? = []

        public mutating func next() async throws(AspenError) -> ScanPage? {
            try await next(isolation: nil)
        }

        public mutating func next(
            isolation actor: isolated (any Actor)?
        ) async throws(AspenError) -> ScanPage? {
            guard let from = continuation else { return nil }
            let page = try await scan.client.scanPage(
                prefix: scan.prefix, limit: scan.pageLimit, continuation: from,
                keysOnly: scan.keysOnly, consistency: scan.consistency)
            continuation = page.continuation.isEmpty ? nil : page.continuation
            return page
        }
    }

    public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(scan: self) }
}
