// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import RaftCore
import RaftStorage

/// A read that waits for its round, or for the state.
struct PendingRead {
    enum Shape {
        case key
        case keyAtRevision
        case scan(prefix: [UInt8])
        /// What this node knows by then.
        case tokenRoots
        case revokedTokens
    }

    var origin: RequestOrigin
    var query: StateQuery
    var shape: Shape
    /// Of a stale read, the revision asked for may exist on another node.
    var isStale = false
}

extension ClientService {
    // MARK: - Requests

    func readKey(_ body: Aspen_Client_V1_ReadKeyRequest, _ origin: RequestOrigin) {
        let key = Array(body.key)
        guard !key.isEmpty, key.count <= Limits.keyBytesMax else {
            return origin.fail(
                AspenError(
                    .invalidArgument, "a key has 1 to \(Limits.keyBytesMax) bytes, not \(key.count)"
                ))
        }
        var read = PendingRead(origin: origin, query: .get(key), shape: .key)
        if body.revision != 0 {
            read.query = .range(
                RangeRequest(from: key, to: key + [0], limit: 1, at: Revision(body.revision)))
            read.shape = .keyAtRevision
        }
        submit(read, body.consistency)
    }

    func scanKeys(_ body: Aspen_Client_V1_ScanKeysRequest, _ origin: RequestOrigin) {
        let prefix = Array(body.prefix)
        guard prefix.count <= Limits.keyBytesMax else {
            return origin.fail(
                AspenError(
                    .invalidArgument, "a prefix has at most \(Limits.keyBytesMax) bytes"))
        }
        let limit =
            body.limit == 0 ? Limits.batchCountMax : min(Int(body.limit), Limits.batchCountMax)
        var request = RangeRequest(
            from: prefix, to: ScanToken.end(of: prefix), limit: limit, keysOnly: body.keysOnly)
        if !body.continuation.isEmpty {
            do {
                let token = try ScanToken(decoding: Array(body.continuation), prefix: prefix)
                request.from = token.lastKey + [0]
                request.at = token.revision
            } catch {
                return origin.fail(
                    AspenError(
                        .invalidArgument,
                        "the continuation is not one that a scan of this prefix gave (\(error))"))
            }
        }
        submit(
            PendingRead(origin: origin, query: .range(request), shape: .scan(prefix: prefix)),
            body.consistency)
    }

    /// The read itself only waits until everything before it is applied here.
    func listTokens(_ shape: PendingRead.Shape, _ origin: RequestOrigin) {
        submit(
            PendingRead(origin: origin, query: .get(TokenTrust.prefix), shape: shape), .linearizable
        )
    }

    private func submit(_ read: PendingRead, _ consistency: Aspen_Client_V1_Consistency) {
        guard node.membership != nil else { return read.origin.fail(outsideCluster) }
        guard readCount < Limits.readsInFlightMax else {
            return read.origin.fail(
                AspenError(
                    .resourceExhausted,
                    "too many reads wait (at most \(Limits.readsInFlightMax)): send fewer at a time",
                    retry: .safe))
        }
        readCount += 1
        var read = read
        switch consistency {
        case .stale:
            read.isStale = true
            let round = nextLocalRound
            nextLocalRound += 1
            execute(round, [read])
        case .linearizable, .UNRECOGNIZED:
            rounds[node.read(), default: []].append(read)
            armSweep()
        }
    }

    // MARK: - Rounds

    func readReady(_ round: UInt64) {
        guard let reads = rounds.removeValue(forKey: round) else { return }
        execute(round, reads)
    }

    private func execute(_ round: UInt64, _ reads: [PendingRead]) {
        var isCheap = true
        var queries: [StateQuery] = []
        queries.reserveCapacity(reads.count)
        for read in reads {
            queries.append(read.query)
            if case .range = read.query { isCheap = false }
        }
        executing[round] = reads
        node.state.read(round: round, queries, isCheap: isCheap)
    }

    func readFailed(_ round: UInt64) {
        guard let reads = rounds.removeValue(forKey: round) else { return }
        waitingReads += reads
    }

    func readWaiting() {
        guard !waitingReads.isEmpty else { return }
        var waiting: [PendingRead] = []
        swap(&waiting, &waitingReads)
        rounds[node.read(), default: []] += waiting
    }

    func finishReads(_ round: UInt64, _ answers: [StateAnswer]) {
        guard let reads = executing.removeValue(forKey: round) else { return }
        precondition(reads.count == answers.count, "one answer a query")
        readCount -= reads.count
        for (read, answer) in zip(reads, answers) { read.origin.reply(respond(read, answer)) }
    }

    func sweepReads(_ now: MonotonicInstant) {
        for (round, reads) in rounds where reads.contains(where: { $0.origin.deadline <= now }) {
            rounds[round] = expire(reads, now)
        }
        waitingReads = expire(waitingReads, now)
        if node.standing.leader != nil { readWaiting() }
    }

    private func expire(_ reads: [PendingRead], _ now: MonotonicInstant) -> [PendingRead] {
        var kept: [PendingRead] = []
        for read in reads {
            if read.origin.deadline > now {
                kept.append(read)
            } else {
                readCount -= 1
                read.origin.fail(Self.noLeader)
            }
        }
        return kept
    }

    // MARK: - Answers

    private func respond(_ read: PendingRead, _ answer: StateAnswer) -> WireResponse {
        switch (read.shape, answer) {
        case (.key, .value(let entry, let revision)):
            var body = Aspen_Client_V1_ReadKeyResponse()
            if let entry { body.entry = Aspen_Client_V1_KeyValue(entry) }
            body.revision = revision.rawValue
            return WireResponse(.readKey(body))
        case (.tokenRoots, .value): return listedRoots
        case (.revokedTokens, .value): return listedRevocations
        case (_, .range(.compacted(let oldest))):
            return WireResponse(
                AspenError(
                    .compacted,
                    "that revision is compacted away; the oldest that can be read is \(oldest)"))
        case (_, .range(.future(let current))) where !read.isStale:
            return WireResponse(
                AspenError(
                    .invalidArgument,
                    "that revision is in the future: the store is at \(current)"))
        case (_, .range(.future(let current))):
            return WireResponse(
                AspenError(
                    .unavailable,
                    "this node has not seen that revision yet (it is at \(current)): ask again, or "
                        + "another node", retry: .safe))
        case (.keyAtRevision, .range(.page(let page))):
            var body = Aspen_Client_V1_ReadKeyResponse()
            if let entry = page.entries.first { body.entry = Aspen_Client_V1_KeyValue(entry) }
            body.revision = page.revision.rawValue
            return WireResponse(.readKey(body))
        case (.scan(let prefix), .range(.page(let page))):
            var body = Aspen_Client_V1_ScanKeysResponse()
            body.entries = page.entries.filter { !KeySpan.isReserved($0.key) }
                .map { Aspen_Client_V1_KeyValue($0) }
            body.revision = page.revision.rawValue
            if page.more, let last = page.entries.last {
                body.continuation = Data(
                    ScanToken(revision: page.revision, lastKey: last.key).encoded(prefix: prefix))
            }
            return WireResponse(.scanKeys(body))
        default:
            return WireResponse(AspenError(.internal, "the state answered another question"))
        }
    }
}
