// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import RaftCore

/// A write on its way through the log.
final class PendingWrite {
    let origin: RequestOrigin?
    let kind: WriteKind
    let payload: [UInt8]
    /// Proposing it again cannot apply it twice.
    let hasSession: Bool
    /// Needs space for good: see `SpaceWatch.refusal`.
    let grows: Bool
    /// Under which numbers it was proposed and may still be applied.
    var numbers: [UInt64] = []
    /// The term in which it was last given to the core; nil until then.
    var proposedTerm: Term?
    var proposedAt: MonotonicInstant
    /// The number under which it was last forwarded a second time: see `forwardAgain`.
    var numberOfCopy: UInt64?
    /// A snapshot has skipped entries that it may have been among.
    var isFateUnknown = false
    var isDone = false
    /// Called once, when nobody waits for it any more.
    var onDone: () -> Void = {}

    init(
        _ origin: RequestOrigin?, _ kind: WriteKind, _ payload: [UInt8], hasSession: Bool,
        grows: Bool = false
    ) {
        self.grows = grows
        self.origin = origin
        self.kind = kind
        self.payload = payload
        self.hasSession = hasSession
        proposedAt = RaftNode.now
    }
}

extension ClientService {
    /// A write under a session that has not been answered is proposed again after this time.
    static let repeatInterval = Duration.seconds(2)

    // MARK: - Requests

    func writeKey(_ body: Aspen_Client_V1_WriteKeyRequest, _ origin: RequestOrigin) {
        submit(
            Transaction(success: [
                .put(key: Array(body.key), value: Array(body.value), lease: LeaseID(body.lease))
            ]),
            SessionRequest(body.session, isPresent: body.hasSession), .writeKey, origin)
    }

    func deleteKey(_ body: Aspen_Client_V1_DeleteKeyRequest, _ origin: RequestOrigin) {
        submit(
            Transaction(success: [.delete(key: Array(body.key))]),
            SessionRequest(body.session, isPresent: body.hasSession), .deleteKey, origin)
    }

    func transaction(_ body: Aspen_Client_V1_TransactionRequest, _ origin: RequestOrigin) {
        do {
            submit(
                try Transaction(body),
                SessionRequest(body.session, isPresent: body.hasSession), .transaction, origin)
        } catch {
            origin.fail(error)
        }
    }

    private func submit(
        _ transaction: Transaction, _ session: SessionRequest?, _ kind: WriteKind,
        _ origin: RequestOrigin
    ) {
        if let refusal = Self.reserved(transaction) { return origin.fail(refusal) }
        if let refusal = transaction.validate() {
            return origin.fail(AspenError(refusal.code, refusal.message))
        }
        if let refusal = node.space.refusal(grows: transaction.grows) {
            return origin.fail(refusal)
        }
        submit(
            .transaction(transaction, session), kind, hasSession: session != nil,
            grows: transaction.grows, origin)
    }

    func openSession(_ origin: RequestOrigin) {
        submit(.openSession, .openSession, hasSession: false, origin)
    }

    func keepSessionAlive(_ session: SessionID, _ origin: RequestOrigin) {
        submit(.keepSessionAlive(session), .keepSessionAlive, hasSession: true, origin)
    }

    func closeSession(_ session: SessionID, _ origin: RequestOrigin) {
        submit(.closeSession(session), .closeSession, hasSession: true, origin)
    }

    // MARK: - Through the log

    /// - Parameter hasSession: applying the command twice is the same as once.
    func submit(
        _ command: Command, _ kind: WriteKind, hasSession: Bool, grows: Bool = false,
        _ origin: RequestOrigin?
    ) {
        guard node.membership != nil else {
            origin?.fail(outsideCluster)
            return
        }
        if let origin, let refusal = node.space.refusalOfFollowing {
            return origin.fail(refusal)
        }
        guard writeCount < Limits.proposalsInFlightMax else {
            origin?.fail(Self.tooManyWrites)
            return
        }
        guard command.version <= node.applied.facts.activeVersion else {
            origin?.fail(Self.versionNotActive)
            return
        }
        let payload = CommandCodec.encode(command)
        let write = PendingWrite(
            origin, kind, payload, hasSession: hasSession, grows: grows)
        writeCount += 1
        propose(write)
        armSweep()
    }

    static let versionNotActive = AspenError(
        .unsupportedVersion,
        "the cluster does not know leases yet: a member still runs an older program or cannot be "
            + "asked (`aspen-cli cluster status`); they are there a moment after the last one is "
            + "upgraded", retry: .safe)

    private func propose(_ write: PendingWrite) {
        let number = node.propose(write.payload)
        write.numbers.append(number)
        write.proposedTerm = nil
        write.proposedAt = RaftNode.now
        writes[number] = write
        unstamped.append(write)
    }

    func compact(to revision: Revision, ended: @escaping () -> Void) {
        proposeHousekeeping(.compact(revision)) { _ in ended() }
    }

    /// What the leader proposes of its own accord. It is little, and clients that have all their
    /// proposals in flight do not hold it up: leases end in time however busy the cluster is.
    func proposeHousekeeping(_ command: Command, ended: @escaping (ClientService) -> Void) {
        guard node.membership != nil, command.version <= node.applied.facts.activeVersion else {
            return ended(self)
        }
        let write = PendingWrite(
            nil, .housekeeping, CommandCodec.encode(command), hasSession: false)
        write.onDone = { [unowned self] in ended(self) }
        writeCount += 1
        propose(write)
        armSweep()
    }

    func spaceChanged() { updateStatus() }

    /// Puts an administrative write into the table; the caller gives it to the core.
    func register(_ write: PendingWrite, number: UInt64) {
        write.numbers.append(number)
        write.proposedTerm = node.core.term
        writes[number] = write
        writeCount += 1
        armSweep()
    }

    /// What was proposed in this turn goes to the core now, in this term.
    func willPropose(in term: Term) {
        for write in unstamped { write.proposedTerm = term }
        unstamped.removeAll(keepingCapacity: true)
    }

    func applied(_ answers: [AppliedAnswer], batch: AppliedBatch) {
        if let trust = batch.trust { setTrust(trust) }
        var isHousekeeping = false
        for answer in answers {
            guard let write = writes[answer.number] else { continue }
            finish(write)
            if case .housekeeping = write.kind { isHousekeeping = true }
            if write.origin != nil {
                node.metrics.committed(after: RaftNode.now - write.proposedAt)
            }
            write.origin?.reply(
                write.kind.response(
                    answer, node: options.raft.node, membership: node.membership))
        }
        if batch.term > lastAppliedTerm {
            lastAppliedTerm = batch.term
            proposeLost(before: batch.term)
        }
        keepHouse()
        if isHousekeeping { housekeepingApplied() }
        if batch.membershipIndex != nil, hasLeft { dismissClients() }
        watches.applied(batch)
        updateStatus()
    }

    /// Those that were given to a leader may be carried out yet; under a session they can be sent
    /// again, to another node.
    func dismissWrites() {
        for number in writes.keys.sorted() {
            guard let write = writes[number], !write.isDone else { continue }
            finish(write)
            write.origin?.fail(
                AspenError(
                    .unknownOutcome,
                    "this node left the cluster before it knew what became of the write",
                    retry: .withSession))
        }
        for write in waitingForLeader where !write.isDone {
            finish(write)
            write.origin?.fail(Self.hasLeftCluster)
        }
        waitingForLeader = []
    }

    /// An entry of `term` has been applied, so no entry of an earlier term will ever follow. What
    /// was proposed in one and is not among those applied was lost with its leader: a leader takes
    /// no forwarded proposals of an earlier term (see `RaftNode.received`).
    private func proposeLost(before term: Term) {
        for number in writes.keys.sorted() {
            guard let write = writes[number], !write.isDone, !write.isFateUnknown,
                write.numbers.last == number, let proposed = write.proposedTerm, proposed < term
            else { continue }
            switch write.kind {
            case .initCluster, .recoverQuorum: continue
            default: break
            }
            forgetNumbers(of: write)
            if case .housekeeping = write.kind { finish(write) } else { proposeAgain(write) }
        }
    }

    /// A snapshot has skipped entries, and with them perhaps answers.
    func skipped() {
        loadTrust()
        watches.skipped()
        for number in writes.keys.sorted() {
            guard let write = writes[number], !write.isDone else { continue }
            if write.hasSession {
                if write.numbers.last == number { proposeAgain(write) }
            } else {
                write.isFateUnknown = true
            }
        }
    }

    private func proposeAgain(_ write: PendingWrite) {
        guard write.kind.isAdministrative else { return propose(write) }
        // Made for the leader that was: whoever asked asks again.
        finish(write)
        write.origin?.fail(
            AspenError(.unavailable, "the leader has changed meanwhile", retry: .safe))
    }

    /// The link to the leader is whole again: what was on its way through the old one may be lost.
    /// Sent again under the same ids, and only to the leader of the same term, who takes each id once:
    /// unless it is another process by now, which knows nothing of what its log holds and refuses all
    /// of it. So what becomes of the copy says nothing of the write (see `proposalFailed`).
    func forwardAgain(in term: Term) {
        var proposals: [(number: UInt64, payload: [UInt8])] = []
        for number in writes.keys.sorted() {
            guard let write = writes[number], !write.isDone, write.numbers.last == number,
                write.proposedTerm == term
            else { continue }
            if write.kind.isAdministrative { continue }
            write.numberOfCopy = number
            proposals.append((number, write.payload))
        }
        node.forwardAgain(proposals)
    }

    func proposalFailed(_ number: UInt64, _ failure: ProposalFailure) {
        guard let write = writes[number] else { return }
        // The first one may be in a log. An entry of a later term tells, or time runs out.
        if write.numberOfCopy == number { return }
        writes[number] = nil
        write.numbers.removeAll { $0 == number }
        // Under an earlier number it may still be applied.
        guard write.numbers.isEmpty else { return }
        switch failure {
        case .noLeader:
            if case .housekeeping = write.kind { return finish(write) }
            guard write.kind.isAdministrative else { return waitingForLeader.append(write) }
            finish(write)
            write.origin?.fail(
                AspenError(.unavailable, "this node leads no more", retry: .safe))
        case .tooMany:
            finish(write)
            write.origin?.fail(Self.tooManyWrites)
        case .refused(let text):
            finish(write)
            var code = AspenErrorCode.preconditionFailed
            if case .initCluster = write.kind { code = .alreadyInitialized }
            write.origin?.fail(AspenError(code, text))
        }
    }

    static let tooManyWrites = AspenError(
        .resourceExhausted,
        "too many writes wait to be agreed upon (at most \(Limits.proposalsInFlightMax)): send "
            + "fewer at a time", retry: .safe)

    func proposeWaiting() {
        guard !waitingForLeader.isEmpty else { return }
        var waiting: [PendingWrite] = []
        swap(&waiting, &waitingForLeader)
        for write in waiting where !write.isDone {
            // Nothing of it is in any log.
            if write.origin != nil, let refusal = node.space.refusal(of: write) {
                finish(write)
                write.origin?.fail(refusal)
            } else {
                propose(write)
            }
        }
    }

    /// Takes the write out of every table; answering it is the caller's.
    private func finish(_ write: PendingWrite) {
        guard !write.isDone else { return }
        write.isDone = true
        writeCount -= 1
        forgetNumbers(of: write)
        write.onDone()
    }

    private func forgetNumbers(of write: PendingWrite) {
        for number in write.numbers { writes[number] = nil }
        write.numbers.removeAll(keepingCapacity: true)
    }

    func sweepWrites(_ now: MonotonicInstant) {
        var expired: [PendingWrite] = []
        var silent: [PendingWrite] = []
        for (number, write) in writes where write.numbers.last == number {
            if let origin = write.origin, origin.deadline <= now {
                expired.append(write)
            } else if write.hasSession, now - write.proposedAt >= Self.repeatInterval {
                silent.append(write)
            } else if write.origin == nil, now - write.proposedAt >= Self.defaultTimeout {
                expired.append(write)
            }
        }
        for write in expired {
            finish(write)
            write.origin?.fail(Self.unknownFate)
        }
        for write in silent where node.standing.leader != nil { propose(write) }
        var waiting: [PendingWrite] = []
        for write in waitingForLeader {
            if let origin = write.origin, origin.deadline <= now {
                finish(write)
                origin.fail(Self.noLeader)
            } else {
                waiting.append(write)
            }
        }
        waitingForLeader = waiting
        if node.standing.leader != nil { proposeWaiting() }
    }

    static let unknownFate = AspenError(
        .deadlineExceeded,
        "time ran out before the write was agreed upon; it may still be carried out: read before "
            + "you write again, or use a session", retry: .withSession)
}
