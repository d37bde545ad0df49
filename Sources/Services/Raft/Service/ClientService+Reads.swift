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
        case scan(scope: ScanToken.Scope)
        /// `sofar`: what earlier parts of the range counted.
        case count(CountRequest, sofar: UInt64)
        case batch(count: Int)
        case history
        case lease(LeaseID)
        case leases
        /// What this node knows by then.
        case tokenRoots
        case revokedTokens
    }

    var origin: RequestOrigin
    var query: StateQuery
    var shape: Shape
    /// Of a stale read, the revision asked for may exist on another node.
    var isStale = false
    /// Waits for a round only because nobody knows how old the state here is.
    var isBounded = false
}

extension ClientService {
    // MARK: - Requests

    func readKey(_ body: Aspen_Client_V1_ReadKeyRequest, _ origin: RequestOrigin) {
        let key = Array(body.key)
        if let refusal = Self.refusal(ofKey: key) { return origin.fail(refusal) }
        var read = PendingRead(origin: origin, query: .get(key), shape: .key)
        if body.revision != 0 {
            read.query = .range(
                RangeRequest(from: key, to: key + [0], limit: 1, at: Revision(body.revision)))
            read.shape = .keyAtRevision
        }
        submit(read, body.consistency, stalenessMaxMs: body.stalenessMaxMs)
    }

    func scanKeys(_ body: Aspen_Client_V1_ScanKeysRequest, _ origin: RequestOrigin) {
        do {
            let read = try scan(body, origin)
            submit(read, body.consistency, stalenessMaxMs: body.stalenessMaxMs)
        } catch {
            origin.fail(error)
        }
    }

    private func scan(
        _ body: Aspen_Client_V1_ScanKeysRequest, _ origin: RequestOrigin
    ) throws(AspenError) -> PendingRead {
        let range = try Self.range(of: body)
        let at = body.revision == 0 ? nil : Revision(body.revision)
        if body.countOnly {
            let request = CountRequest(
                from: range.from, to: range.to, at: at, excluding: ReservedNamespace.prefix)
            return PendingRead(
                origin: origin, query: .count(request), shape: .count(request, sofar: 0))
        }
        let scope = ScanToken.Scope(
            from: range.from, to: range.to, isDescending: body.descending)
        var request = RangeRequest(
            from: range.from, to: range.to, limit: Self.limit(body.limit), at: at,
            keysOnly: body.keysOnly, descending: body.descending,
            excluding: ReservedNamespace.prefix)
        if !body.continuation.isEmpty {
            let token: ScanToken
            do { token = try ScanToken(decoding: Array(body.continuation), scope: scope) } catch {
                throw AspenError(
                    .invalidArgument,
                    "the continuation is damaged, or of another scan: it goes on only with the same "
                        + "prefix or bounds and in the same direction")
            }
            guard at == nil || at == token.revision else {
                throw AspenError(
                    .invalidArgument,
                    "the continuation is of revision \(token.revision), not of \(body.revision)")
            }
            if body.descending {
                request.to = token.lastKey
            } else {
                request.from = token.lastKey + [0]
            }
            request.at = token.revision
        }
        return PendingRead(origin: origin, query: .page(request), shape: .scan(scope: scope))
    }

    private static func range(
        of body: Aspen_Client_V1_ScanKeysRequest
    ) throws(AspenError) -> VisibleRange {
        guard body.from.isEmpty && body.to.isEmpty else {
            guard body.prefix.isEmpty else {
                throw AspenError(
                    .invalidArgument, "a scan has a prefix or bounds (from, to), not both")
            }
            return try VisibleRange(
                from: Array(body.from), to: body.to.isEmpty ? nil : Array(body.to))
        }
        guard body.prefix.count <= Limits.keyBytesMax else {
            throw AspenError(
                .invalidArgument, "a prefix has at most \(Limits.keyBytesMax) bytes")
        }
        let range = KeyRange(prefix: Array(body.prefix))
        return try VisibleRange(from: range.from, to: range.to)
    }

    static func limit(_ wanted: UInt32) -> Int {
        wanted == 0 ? Limits.batchCountMax : min(Int(wanted), Limits.batchCountMax)
    }

    func submit(
        _ read: PendingRead, _ consistency: Aspen_Client_V1_Consistency = .linearizable,
        stalenessMaxMs: UInt32 = 0
    ) {
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
        let bound = Duration.milliseconds(Int64(stalenessMaxMs))
        switch consistency {
        case .stale where bound == .zero || freshness.holds(within: bound, now: RaftNode.now):
            read.isStale = true
            executeNow(read)
        case .stale:
            read.isBounded = true
            read.origin = Self.hurried(read.origin, bound)
            join(read)
        case .linearizable, .UNRECOGNIZED: join(read)
        }
    }

    private func join(_ read: PendingRead) {
        let round = node.read()
        rounds[round, default: []].append(read)
        if roundsBegan[round] == nil { roundsBegan[round] = RaftNode.now }
        armSweep()
    }

    func executeNow(_ read: PendingRead) { executeNow([read]) }

    // MARK: - Rounds

    func readReady(_ round: UInt64) {
        if let began = roundsBegan.removeValue(forKey: round) {
            freshness.confirm(since: began)
        }
        guard let reads = rounds.removeValue(forKey: round) else { return }
        execute(round, reads)
    }

    /// Answers are not made for those who do not take those that they have: their reads wait until
    /// they do (`taken`), and show what is so then.
    private func execute(_ round: UInt64, _ asked: [PendingRead]) {
        var isCheap = true
        var reads: [PendingRead] = []
        var queries: [StateQuery] = []
        reads.reserveCapacity(asked.count)
        queries.reserveCapacity(asked.count)
        for read in asked {
            let sink = read.origin.sink
            guard sink.isOpen else {
                drop(read)
                continue
            }
            guard sink.isWritable else {
                held[ObjectIdentifier(sink), default: []].append(read)
                continue
            }
            reads.append(read)
            queries.append(read.query)
            if case .get = read.query {} else { isCheap = false }
        }
        guard !reads.isEmpty else { return }
        executing[round] = reads
        node.state.read(round: round, queries, isCheap: isCheap)
    }

    private func executeNow(_ reads: [PendingRead]) {
        let round = nextLocalRound
        nextLocalRound += 1
        execute(round, reads)
    }

    /// Nobody waits for it any more.
    private func drop(_ read: PendingRead) {
        readCount -= 1
        read.origin.fail(Self.isGone)
    }

    static let isGone = AspenError(
        .unavailable, "the connection has ended", retry: .safe)

    /// A client has read its answers, or has gone.
    func taken(by sink: any ReplySink) {
        let id = ObjectIdentifier(sink)
        if let reads = held.removeValue(forKey: id) { executeNow(reads) }
        beginHeld(of: id)
    }

    func readFailed(_ round: UInt64) {
        roundsBegan[round] = nil
        guard let reads = rounds.removeValue(forKey: round) else { return }
        for read in reads {
            guard read.isBounded else {
                waitingReads.append(read)
                continue
            }
            readCount -= 1
            read.origin.fail(Self.isTooOld)
        }
    }

    func readWaiting() {
        guard !waitingReads.isEmpty else { return }
        var waiting: [PendingRead] = []
        swap(&waiting, &waitingReads)
        for read in waiting { join(read) }
    }

    func finishReads(_ round: UInt64, _ answers: [StateAnswer]) {
        guard let reads = executing.removeValue(forKey: round) else { return }
        precondition(
            answers.count <= reads.count && !answers.isEmpty, "answers to the first queries")
        defer {
            if answers.count < reads.count { executeNow(Array(reads[answers.count...])) }
        }
        readCount -= answers.count
        for (read, answer) in zip(reads, answers) {
            if let rest = Self.rest(of: read, after: answer) {
                readCount += 1
                executeNow(rest)
            } else if case (.scan(let scope), .page(.value(let page))) = (read.shape, answer) {
                read.origin.reply(page, scope)
            } else {
                read.origin.reply(respond(read, answer))
            }
        }
    }

    func sweepReads(_ now: MonotonicInstant) {
        for (round, reads) in rounds where reads.contains(where: { $0.origin.deadline <= now }) {
            rounds[round] = expire(reads, now)
        }
        waitingReads = expire(waitingReads, now)
        for (sink, reads) in held where reads.contains(where: { $0.origin.deadline <= now }) {
            let rest = expire(reads, now, Self.isNotRead)
            held[sink] = rest.isEmpty ? nil : rest
        }
        if node.standing.leader != nil { readWaiting() }
    }

    func dismissReads() {
        let waiting =
            rounds.keys.sorted().flatMap { rounds[$0] ?? [] } + waitingReads
            + held.values.flatMap { $0 }
        rounds = [:]
        waitingReads = []
        held = [:]
        readCount -= waiting.count
        for read in waiting { read.origin.fail(Self.hasLeftCluster) }
    }

    static let isNotRead = AspenError(
        .resourceExhausted,
        "the answers before it were not read in time: read them, or ask for fewer at a time",
        retry: .safe)

    private func expire(
        _ reads: [PendingRead], _ now: MonotonicInstant, _ reason: AspenError = noLeader
    ) -> [PendingRead] {
        var kept: [PendingRead] = []
        for read in reads {
            if read.origin.deadline > now {
                kept.append(read)
            } else {
                readCount -= 1
                read.origin.fail(read.isBounded ? Self.isTooOld : reason)
            }
        }
        return kept
    }
}
