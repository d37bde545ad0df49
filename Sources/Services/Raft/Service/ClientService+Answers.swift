// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import RaftStorage

// More reads, and what is said to each.

extension ClientService {
    /// Most bytes of keys and values in the answer to one BatchRead.
    static let batchReadBytesMax = 8_388_608
    /// Changes of a key in one answer when nobody says how many.
    static let historyDefault = 100
    /// However small the bound, a node has this long to find out how old its state is.
    static let freshnessTimeMin = Duration.milliseconds(250)

    func batchRead(_ body: Aspen_Client_V1_BatchReadRequest, _ origin: RequestOrigin) {
        guard !body.keys.isEmpty, body.keys.count <= Limits.batchCountMax else {
            return origin.fail(
                AspenError(
                    .invalidArgument,
                    "a batch has 1 to \(Limits.batchCountMax) keys, not \(body.keys.count)"))
        }
        let keys = body.keys.map { Array($0) }
        for key in keys {
            if let refusal = Self.refusal(ofKey: key) { return origin.fail(refusal) }
        }
        let at = body.revision == 0 ? nil : Revision(body.revision)
        submit(
            PendingRead(
                origin: origin, query: .keys(keys, at: at), shape: .batch(count: keys.count)),
            body.consistency, stalenessMaxMs: body.stalenessMaxMs)
    }

    func keyHistory(_ body: Aspen_Client_V1_KeyHistoryRequest, _ origin: RequestOrigin) {
        let key = Array(body.key)
        if let refusal = Self.refusal(ofKey: key) { return origin.fail(refusal) }
        let limit = body.limit == 0 ? Self.historyDefault : Self.limit(body.limit)
        let before = body.beforeRevision == 0 ? nil : Revision(body.beforeRevision)
        submit(
            PendingRead(
                origin: origin, query: .history(key, before: before, limit: limit), shape: .history)
        )
    }

    // MARK: - Freshness

    /// Whoever takes an old answer does not wait long for a new one.
    static func hurried(_ origin: RequestOrigin, _ bound: Duration) -> RequestOrigin {
        let deadline = RaftNode.now + max(bound, freshnessTimeMin)
        return RequestOrigin(
            sink: origin.sink, id: origin.id, deadline: min(deadline, origin.deadline),
            isFromPeer: origin.isFromPeer, bytes: origin.bytes)
    }

    static let isTooOld = AspenError(
        .unavailable,
        "this node cannot promise that what it has is as new as was asked for: ask another, or "
            + "allow more", retry: .safe)

    // MARK: - Answers

    /// What is still to be read before there is an answer.
    static func rest(of read: PendingRead, after answer: StateAnswer) -> PendingRead? {
        guard case .count(let request, let sofar) = read.shape,
            case .count(.value(let page)) = answer, let next = page.next,
            read.origin.deadline > RaftNode.now
        else { return nil }
        var rest = read
        var further = request
        further.from = next
        further.at = page.revision
        rest.query = .count(further)
        rest.shape = .count(further, sofar: sofar + page.count)
        return rest
    }

    func respond(_ read: PendingRead, _ answer: StateAnswer) -> WireResponse {
        if let refusal = Self.refusal(read, answer) { return WireResponse(refusal) }
        switch (read.shape, answer) {
        case (.key, .value(let entry, let revision)):
            return Self.readKey(entry, revision)
        case (.keyAtRevision, .range(.page(let page))):
            return Self.readKey(page.entries.first, page.revision)
        case (.count(_, let sofar), .count(.value(let page))):
            guard page.next == nil else { return WireResponse(Self.countTooLong) }
            var body = Aspen_Client_V1_ScanKeysResponse()
            body.count = sofar + page.count
            body.revision = page.revision.rawValue
            return WireResponse(.scanKeys(body))
        case (.batch(let count), .keys(.value(let page))): return Self.batch(page, of: count)
        case (.history, .history(let page)): return Self.history(page)
        case (.lease(let id), .lease(let row, let keys, let time)):
            guard let row else {
                return WireResponse(
                    AspenError(.notFound, "lease \(id) has ended or never was; grant a new one"))
            }
            var body = Aspen_Client_V1_LeaseTimeToLiveResponse()
            body.lease = info(row, appliedTime: time)
            body.keys = keys.map { Data($0) }
            return WireResponse(.leaseTimeToLive(body))
        case (.tokenRoots, .value): return listedRoots
        case (.revokedTokens, .value): return listedRevocations
        case (.leases, .leases(let page, let time)):
            var body = Aspen_Client_V1_ListLeasesResponse()
            body.leases = page.leases.map { info($0, appliedTime: time) }
            body.more = page.more
            return WireResponse(.listLeases(body))
        default:
            return WireResponse(AspenError(.internal, "the state answered another question"))
        }
    }

    private static func readKey(_ entry: KeyValue?, _ revision: Revision) -> WireResponse {
        var body = Aspen_Client_V1_ReadKeyResponse()
        if let entry { body.entry = Aspen_Client_V1_KeyValue(entry) }
        body.revision = revision.rawValue
        return WireResponse(.readKey(body))
    }

    private static func batch(_ page: KeysPage, of count: Int) -> WireResponse {
        guard page.entries.count == count else {
            return WireResponse(
                AspenError(
                    .resourceExhausted,
                    "these keys have more than \(batchReadBytesMax) bytes together, which is what "
                        + "one answer may have: ask for fewer at a time"))
        }
        var body = Aspen_Client_V1_BatchReadResponse()
        body.results = page.entries.map { entry in
            var found = Aspen_Client_V1_BatchReadResponse.Found()
            if let entry { found.entry = Aspen_Client_V1_KeyValue(entry) }
            return found
        }
        body.revision = page.revision.rawValue
        return WireResponse(.batchRead(body))
    }

    private static func history(_ page: HistoryPage) -> WireResponse {
        var body = Aspen_Client_V1_KeyHistoryResponse()
        body.events = page.events.map { Aspen_Client_V1_Event($0) }
        body.more = page.more
        body.revision = page.revision.rawValue
        body.compactedRevision = page.compacted.rawValue
        return WireResponse(.keyHistory(body))
    }

    static let countTooLong = AspenError(
        .deadlineExceeded, "time ran out while the keys were counted: allow more", retry: .safe)

    /// Why the revision cannot be read.
    private static func refusal(_ read: PendingRead, _ answer: StateAnswer) -> AspenError? {
        switch answer {
        case .range(.compacted(let oldest)), .page(.compacted(let oldest)),
            .keys(.compacted(let oldest)), .count(.compacted(let oldest)):
            .compacted(
                "that revision is compacted away; the oldest that can be read is \(oldest)",
                oldest: oldest)
        case .range(.future(let current)), .page(.future(let current)),
            .keys(.future(let current)), .count(.future(let current)):
            read.isStale
                ? AspenError(
                    .unavailable,
                    "this node has not seen that revision yet (it is at \(current)): ask again, or "
                        + "another node", retry: .safe)
                : AspenError(
                    .invalidArgument,
                    "that revision is in the future: the store is at \(current)")
        default: nil
        }
    }
}
