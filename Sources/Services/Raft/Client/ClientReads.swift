// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials

/// What a scan reads, and how.
public struct ScanOptions: Sendable, Equatable {
    /// From the last key to the first.
    public var isDescending = false
    /// Leave the values out.
    public var keysOnly = false
    /// The store as it was at this revision; nil: now.
    public var revision: Revision?
    public var consistency = Consistency.linearizable

    public init(
        isDescending: Bool = false, keysOnly: Bool = false, revision: Revision? = nil,
        consistency: Consistency = .linearizable
    ) {
        self.isDescending = isDescending
        self.keysOnly = keysOnly
        self.revision = revision
        self.consistency = consistency
    }
}

/// The answer to `count`.
public struct CountResult: Sendable, Equatable {
    public var count: UInt64
    public var revision: Revision
}

/// The answer to `batchGet`.
public struct BatchResult: Sendable, Equatable {
    /// One for each key asked for, in that order; nil where there is no such key.
    public var entries: [KeyValue?]
    public var revision: Revision
}

/// One change of one key.
public struct KeyEvent: Sendable, Equatable {
    public enum Kind: Sendable { case put, delete }
    public var kind: Kind
    /// As it was after the change; of a delete, only key and modRevision say something.
    public var entry: KeyValue
    /// Before the change: in a history, and in a watch that asked for it; nil if there was none or it
    /// is compacted away.
    public var previous: KeyValue?
}

/// The answer to `history`.
public struct HistoryPage: Sendable, Equatable {
    /// Newest first.
    public var events: [KeyEvent]
    /// There are older ones: ask again, before the last one's revision.
    public var more: Bool
    public var revision: Revision
    /// History below this revision is compacted away; zero: none is.
    public var compactedRevision: Revision
}

extension KeyEvent {
    init(wire: Aspen_Client_V1_Event) {
        self.init(
            kind: wire.kind == .delete ? .delete : .put, entry: KeyValue(wire: wire.entry),
            previous: wire.hasPrevious ? KeyValue(wire: wire.previous) : nil)
    }
}

extension AspenClient {
    /// One page of the keys of a range, in the order of their bytes.
    ///
    /// - Parameters:
    ///   - limit: 1 to `Limits.batchCountMax`; a page may hold fewer for its size.
    ///   - continuation: `ScanPage.continuation` of the page before; empty for the first. Range and
    ///     direction have to be the same.
    /// - Throws: `compacted` when the revision is history no longer kept.
    public func scanPage(
        _ range: KeyRange, _ options: ScanOptions = ScanOptions(),
        limit: Int = Limits.batchCountMax, continuation: [UInt8] = [], timeout: Duration? = nil
    ) async throws(AspenError) -> ScanPage {
        try checkPrefix([], limit: limit)
        var request = WireRequest()
        request.scanKeys.from = Data(range.from)
        request.scanKeys.to = Data(range.to ?? [])
        request.scanKeys.limit = UInt32(limit)
        request.scanKeys.continuation = Data(continuation)
        request.scanKeys.keysOnly = options.keysOnly
        request.scanKeys.descending = options.isDescending
        request.scanKeys.revision = options.revision?.rawValue ?? 0
        request.scanKeys.consistency = options.consistency.wire
        request.scanKeys.stalenessMaxMs = options.consistency.stalenessMaxMs
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .scanKeys(let answer) = response else { return nil }
            return ScanPage(wire: answer)
        }
    }

    /// All keys of a range, page after page, as they stood when the first was read.
    public func scan(
        _ range: KeyRange, _ options: ScanOptions = ScanOptions(),
        pageLimit: Int = Limits.batchCountMax
    ) -> ScanPages {
        ScanPages(client: self, range: range, options: options, pageLimit: pageLimit)
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
        return try await scanPage(
            KeyRange(prefix: prefix), ScanOptions(keysOnly: keysOnly, consistency: consistency),
            limit: limit, continuation: continuation, timeout: timeout)
    }

    /// All keys that begin with `prefix`, page after page, as they stood when the first was read.
    public func scan(
        prefix: some Collection<UInt8>, pageLimit: Int = Limits.batchCountMax,
        keysOnly: Bool = false, consistency: Consistency = .linearizable
    ) -> ScanPages {
        scan(
            KeyRange(prefix: prefix), ScanOptions(keysOnly: keysOnly, consistency: consistency),
            pageLimit: pageLimit)
    }

    /// How many keys there are in a range.
    public func count(
        _ range: KeyRange, at revision: Revision? = nil,
        consistency: Consistency = .linearizable, timeout: Duration? = nil
    ) async throws(AspenError) -> CountResult {
        var request = WireRequest()
        request.scanKeys.from = Data(range.from)
        request.scanKeys.to = Data(range.to ?? [])
        request.scanKeys.countOnly = true
        request.scanKeys.revision = revision?.rawValue ?? 0
        request.scanKeys.consistency = consistency.wire
        request.scanKeys.stalenessMaxMs = consistency.stalenessMaxMs
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .scanKeys(let answer) = response else { return nil }
            return CountResult(count: answer.count, revision: Revision(answer.revision))
        }
    }

    /// Several keys at one revision.
    ///
    /// - Throws: `resourceExhausted` when their values do not fit one answer (8 MiB).
    public func batchGet(
        _ keys: [[UInt8]], at revision: Revision? = nil,
        consistency: Consistency = .linearizable, timeout: Duration? = nil
    ) async throws(AspenError) -> BatchResult {
        guard (1...Limits.batchCountMax).contains(keys.count) else {
            throw AspenError(
                .invalidArgument,
                "a batch has 1 to \(Limits.batchCountMax) keys, not \(keys.count): split it")
        }
        for key in keys { try checkKey(key) }
        var request = WireRequest()
        request.batchRead.keys = keys.map { Data($0) }
        request.batchRead.revision = revision?.rawValue ?? 0
        request.batchRead.consistency = consistency.wire
        request.batchRead.stalenessMaxMs = consistency.stalenessMaxMs
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .batchRead(let answer) = response else { return nil }
            return BatchResult(
                entries: answer.results.map { $0.hasEntry ? KeyValue(wire: $0.entry) : nil },
                revision: Revision(answer.revision))
        }
    }

    /// What became of one key, newest first, as far back as history is kept.
    ///
    /// - Parameter before: only changes before this revision; nil: from the newest.
    public func history(
        of key: some Collection<UInt8>, before: Revision? = nil, limit: Int = 100,
        timeout: Duration? = nil
    ) async throws(AspenError) -> HistoryPage {
        try checkKey(key)
        try checkPrefix([], limit: limit)
        var request = WireRequest()
        request.keyHistory.key = Data(key)
        request.keyHistory.limit = UInt32(limit)
        request.keyHistory.beforeRevision = before?.rawValue ?? 0
        return try await perform(request, .read, timeout: timeout) { response in
            guard case .keyHistory(let answer) = response else { return nil }
            return HistoryPage(
                events: answer.events.map(KeyEvent.init(wire:)), more: answer.more,
                revision: Revision(answer.revision),
                compactedRevision: Revision(answer.compactedRevision))
        }
    }
}

/// The pages of a scan. Each iterator starts over at the first page.
public struct ScanPages: AsyncSequence, Sendable {
    let client: AspenClient
    let range: KeyRange
    let options: ScanOptions
    let pageLimit: Int

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
                scan.range, scan.options, limit: scan.pageLimit, continuation: from)
            continuation = page.continuation.isEmpty ? nil : page.continuation
            return page
        }
    }

    public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(scan: self) }
}
