// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import AspenWire
import KVCore
import NIOCore
import ProposalCore
import RaftCore

/// What is kept of a write until it is answered; its way there is the business of `ProposalTable`.
struct PendingWrite {
    let origin: RequestOrigin?
    let kind: WriteKind
    /// Needs space for good: see `SpaceWatch.refusal`.
    var grows = false
    /// What its answer may have: see `AnswerBound`.
    var answerBytes = 0
    /// Of a transaction that was taken apart: see `VisibleTransaction`.
    var pieces: OperationPieces?
    /// Called once, when nobody waits for it any more.
    var onDone: (() -> Void)?

    init(
        _ origin: RequestOrigin?, _ kind: WriteKind, grows: Bool = false,
        onDone: (() -> Void)? = nil
    ) {
        self.origin = origin
        self.kind = kind
        self.grows = grows
        self.onDone = onDone
    }
}

extension Command {
    /// Says only that somebody is there: it must not wait for anything.
    fileprivate var isSignOfLife: Bool {
        switch self {
        case .keepSessionAlive, .keepLeaseAlive: true
        default: false
        }
    }
}

extension ClientService {
    static var proposalConfiguration: ProposalConfiguration {
        var configuration = ProposalConfiguration()
        configuration.patience = defaultTimeout
        configuration.retryInterval = .nanoseconds(sweepInterval.nanoseconds)
        return configuration
    }

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
        let visible: VisibleTransaction
        do { visible = try VisibleTransaction(transaction) } catch { return origin.fail(error) }
        if let refusal = node.space.refusal(grows: transaction.grows) {
            return origin.fail(refusal)
        }
        submit(
            .transaction(visible.transaction, session), kind, grows: transaction.grows, origin,
            pieces: visible.pieces)
    }

    func openSession(_ origin: RequestOrigin) {
        submit(.openSession, .openSession, origin)
    }

    func keepSessionAlive(_ session: SessionID, _ origin: RequestOrigin) {
        submit(.keepSessionAlive(session), .keepSessionAlive, origin)
    }

    func closeSession(_ session: SessionID, _ origin: RequestOrigin) {
        submit(.closeSession(session), .closeSession, origin)
    }

    // MARK: - Through the log

    func submit(
        _ command: Command, _ kind: WriteKind, grows: Bool = false, _ origin: RequestOrigin?,
        pieces: OperationPieces? = nil
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
        var write = PendingWrite(origin, kind, grows: grows)
        write.answerBytes = AnswerBound.bytes(of: command)
        write.pieces = pieces
        let repeats: WriteClass = command.isRepeatable ? .repeatable : .once
        let payload = CommandCodec.encode(command)
        guard command.isSignOfLife || admission.admits(write, unread: unreadBytes) else {
            admission.hold(.init(write: write, kind: repeats, payload: payload))
            return armSweep()
        }
        begin(write, repeats, payload)
    }

    var writeCount: Int { proposals.count + admission.heldCount }

    static let versionNotActive = AspenError(
        .unsupportedVersion,
        "the cluster does not know leases yet: a member still runs an older program or cannot be "
            + "asked (`aspen-cli cluster status`); they are there a moment after the last one is "
            + "upgraded", retry: .safe)

    func begin(_ write: PendingWrite, _ kind: WriteClass, _ payload: [UInt8]) {
        let id = proposals.begin(
            kind, payload, deadline: write.origin?.deadline, now: RaftNode.now,
            into: &proposalEffects)
        keep(write, as: id)
        admission.began(write)
        obeyProposals()
        armSweep()
    }

    private func keep(_ write: PendingWrite, as id: WriteID) {
        if id.place == writes.count { writes.append(write) } else { writes[id.place] = write }
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
        let write = PendingWrite(nil, .housekeeping) { [unowned self] in ended(self) }
        begin(write, .housekeeping, CommandCodec.encode(command))
    }

    func spaceChanged() { updateStatus() }

    /// Puts an administrative write into the table; the caller gives it to the core, under the id
    /// returned.
    func register(_ origin: RequestOrigin, _ kind: WriteKind) -> ProposalID {
        let isFounding =
            switch kind {
            case .initCluster, .recoverQuorum: true
            default: false
            }
        let (id, number) = proposals.begin(
            isFounding ? .founding : .administrative, givenIn: node.core.term,
            deadline: origin.deadline, now: RaftNode.now)
        keep(PendingWrite(origin, kind), as: id)
        armSweep()
        return node.proposalID(number)
    }

    func willPropose(in term: Term) { proposals.willPropose(in: term) }

    func applied(_ answers: [AppliedAnswer], batch: AppliedBatch) {
        if let system = batch.system { set(system) }
        var isHousekeeping = false
        for var answer in answers {
            guard let (id, proposedAt, isFateUnknown) = proposals.applied(answer.number)
            else { continue }
            let write = take(id)
            write.onDone?()
            if case .housekeeping = write.kind { isHousekeeping = true }
            guard let origin = write.origin else { continue }
            node.metrics.committed(after: RaftNode.now - proposedAt)
            if isFateUnknown, case .failed(.sessionExpired, _) = answer.result {
                origin.fail(Self.error(for: .skippedInDoubt, of: write.kind))
                continue
            }
            if let pieces = write.pieces { answer.result = pieces.joined(answer.result) }
            origin.reply(
                write.kind.response(
                    answer, node: options.raft.node, membership: node.membership))
        }
        proposals.applied(upTo: batch.term, now: RaftNode.now, into: &proposalEffects)
        obeyProposals()
        beginHeld()
        keepHouse()
        if isHousekeeping { housekeepingApplied() }
        // Not with an earlier membership: the answer to who asked for this one is still to come.
        if let index = batch.membershipIndex, index >= node.core.membershipIndex, hasLeft {
            dismissClients()
        }
        watches.applied(batch)
        updateStatus()
    }

    /// Those that were given to a leader may be carried out yet; under a session they can be sent
    /// again, to another node.
    func dismissWrites() {
        dismissHeld()
        proposals.dismiss(into: &proposalEffects)
        obeyProposals()
    }

    /// A snapshot has skipped entries, and with them perhaps answers.
    func skipped() {
        loadSystemTables()
        watches.skipped()
        proposals.skipped(now: RaftNode.now, into: &proposalEffects)
        obeyProposals()
    }

    /// The link to the leader is whole again.
    func forwardAgain(in term: Term) { node.forwardAgain(proposals.copies(in: term)) }

    func proposalFailed(_ number: UInt64, _ failure: ProposalFailure) {
        proposals.failed(number, failure, into: &proposalEffects)
        obeyProposals()
    }

    func proposeWaiting() {
        proposals.leaderKnown(now: RaftNode.now, into: &proposalEffects)
        obeyProposals()
    }

    func sweepWrites(_ now: MonotonicInstant) {
        proposals.sweep(
            now: now, hasLeader: node.standing.leader != nil, into: &proposalEffects)
        obeyProposals()
        sweepHeld(now)
    }

    // MARK: - What the table wants

    /// What arises meanwhile queues behind what is being carried out.
    private func obeyProposals() {
        if isObeyingProposals || proposalEffects.isEmpty { return }
        isObeyingProposals = true
        var next = 0
        while next < proposalEffects.count {
            let effect = proposalEffects[next]
            next += 1
            switch effect {
            case .propose(let id, let number, let payload, let isFirst):
                if isFirst, let refusal = refusal(of: id) {
                    proposals.end(id)
                    tell(take(id), refusal)
                } else {
                    node.propose(payload, number: number)
                }
            case .ended(let id, let outcome):
                let write = take(id)
                tell(write, Self.error(for: outcome, of: write.kind))
            }
        }
        proposalEffects.removeAll(keepingCapacity: true)
        isObeyingProposals = false
    }

    /// Nothing of it is in any log, and there may be no room for it by now.
    private func refusal(of id: WriteID) -> AspenError? {
        guard let write = writes[id.place], write.origin != nil else { return nil }
        return node.space.refusal(of: write)
    }

    private func take(_ id: WriteID) -> PendingWrite {
        guard let write = writes[id.place] else {
            preconditionFailure("what was begun is kept until it ends")
        }
        writes[id.place] = nil
        proposals.release(id)
        admission.ended(write)
        return write
    }

    private func tell(_ write: PendingWrite, _ error: AspenError) {
        write.onDone?()
        write.origin?.fail(error)
    }

    private static func error(for outcome: WriteOutcome, of kind: WriteKind) -> AspenError {
        switch outcome {
        case .noLeader: return noLeader
        case .leadsNoMore:
            return AspenError(.unavailable, "this node leads no more", retry: .safe)
        case .lost:
            return AspenError(.unavailable, "the leader has changed meanwhile", retry: .safe)
        case .tooMany: return tooManyWrites
        case .refused(let text):
            if case .initCluster = kind { return AspenError(.alreadyInitialized, text) }
            return AspenError(.preconditionFailed, text)
        case .left: return hasLeftCluster
        case .timedOut: return unknownFate
        case .leftInDoubt:
            return AspenError(
                .unknownOutcome,
                "this node left the cluster before it knew what became of the write",
                retry: .withSession)
        case .skippedInDoubt:
            return AspenError(
                .unknownOutcome,
                "this node was filled by a snapshot before it knew what became of the write; it may "
                    + "have been carried out: read before you write again", retry: .withSession)
        }
    }

    static let tooManyWrites = AspenError(
        .resourceExhausted,
        "too many writes wait to be agreed upon (at most \(Limits.proposalsInFlightMax)): send "
            + "fewer at a time", retry: .safe)

    static let unknownFate = AspenError(
        .deadlineExceeded,
        "time ran out before the write was agreed upon; it may still be carried out: read before "
            + "you write again, or use a session", retry: .withSession)
}
