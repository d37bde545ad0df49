// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import AspenWire
import FoundationEssentials
import KVCore
import NIOCore
import RaftCore
import RaftStorage
import TokenCore

// Who may do what with which keys; and the roots and revocations that say so.

extension ClientService {
    /// How soon after its end a token's connection is closed.
    static let tokenSweepInterval = TimeAmount.seconds(1)
    /// Revocations of links that have expired by themselves, forgotten with each new one.
    private static let prunedAtOnceMax = 64
    /// Seconds for which a revocation outlives its link: clocks differ.
    private static let prunedAfter: UInt64 = 86_400

    // MARK: - Judging

    /// Why `request` is not carried out for whoever sends it; nil if it is.
    func refusal(
        of request: WireRequest.OneOf_Request, _ rule: RequestRule, _ permission: Permission,
        _ denial: AspenError, _ bearer: TokenBearer?
    ) -> AspenError? {
        if let bearer {
            switch rights(of: bearer) {
            case .failure(let error): return error
            case .success(let rights):
                if let needed = Self.missing(request, rights) {
                    return AspenError(
                        .permissionDenied,
                        "\(rule.name) needs the capability \(needed), which the token does not "
                            + "grant; `aspen-token inspect` shows what it does")
                }
            }
        } else if permission < rule.permission {
            guard permission > .none else { return denial }
            return AspenError(
                .permissionDenied,
                "\(rule.name) needs the right to \(rule.permission.name); "
                    + "you have that to \(permission.name)")
        }
        return nil
    }

    /// The first capability that `request` needs and `rights` lack.
    private static func missing(
        _ request: WireRequest.OneOf_Request, _ rights: CapabilitySet
    ) -> String? {
        switch request.need {
        case .cluster(let capability):
            return rights.includes(capability) ? nil : capability.description
        case .keys: return request.firstSpan { !$0.isAllowed(by: rights) }?.capability
        case .anyKey(let access):
            return rights.allowsAny(access)
                ? nil : (access == .read ? "kv:read" : "kv:write") + " for some key"
        case .allKeys(let access):
            let span = KeySpan(access: access, from: Data(), to: nil)
            return span.isAllowed(by: rights) ? nil : span.capability
        }
    }

    private func judge(_ bearer: TokenBearer) throws(TokenRefusal) -> CapabilitySet {
        try bearer.rights(
            under: trust ?? TokenTrust(), generation: trustGeneration, now: wallSeconds())
    }

    private func rights(of bearer: TokenBearer) -> Result<CapabilitySet, AspenError> {
        do {
            return .success(try judge(bearer))
        } catch {
            return .failure(
                AspenError(.unauthenticated, "\(error.message). \(Self.advice(error))"))
        }
    }

    private static func advice(_ refusal: TokenRefusal) -> String {
        switch refusal {
        case .untrustedRoot:
            "An administrator makes it trusted with `aspen-cli cluster trust-root KEY`"
        case .notYetValid: "If it should be by now, compare the clocks of both machines"
        default: "Ask whoever gave you the token for a new one"
        }
    }

    /// Seconds since 1970.
    private func wallSeconds() -> UInt64 { wallTime().milliseconds / 1000 }

    // MARK: - What is trusted

    /// Whether what this node knows is perhaps too old to judge by. After a start its state may be
    /// from before a root was added or a token revoked, until it has read once what is committed;
    /// and a root that it does not know may have been added a moment ago, through another node.
    func isTrustInDoubt(for bearer: TokenBearer) -> Bool {
        guard trust != nil, freshness.hasBeenCurrent else { return true }
        do {
            _ = try judge(bearer)
            return false
        } catch {
            if case .untrustedRoot = error { return true }
            return false
        }
    }

    /// Goes on when all that was committed when `origin` came is applied here, and with it known;
    /// fails `origin` if that cannot be had in its time.
    func whenTrustIsCurrent(
        _ origin: RequestOrigin, _ bearer: TokenBearer,
        _ body: @escaping (RequestOrigin) -> Void
    ) {
        bearer.requestsInDoubt += 1
        let barrier = OwnSink { failure in
            bearer.requestsInDoubt -= 1
            if let failure { return origin.fail(failure) }
            var judged = origin
            judged.isTrustCurrent = true
            body(judged)
        }
        submit(
            PendingRead(
                origin: RequestOrigin(
                    sink: barrier, id: 0, deadline: origin.deadline, isFromPeer: false),
                query: .get(TokenTrust.prefix), shape: .tokenRoots))
    }

    func setTrust(_ trust: TokenTrust) {
        guard trust != self.trust else { return }
        self.trust = trust
        trustGeneration += 1
        closeExpired()
    }

    /// Connections whose token no longer holds end, and are told why; what they wait for would never be
    /// theirs.
    func closeExpired() {
        guard trust != nil else { return }
        for (connection, bearer) in bearers where bearer.requestsInDoubt == 0 {
            if case .failure(let reason) = rights(of: bearer) { connection.end(reason) }
        }
    }

    func sweepTokens() {
        guard !isSweepingTokens, !bearers.isEmpty, !node.isStopped else { return }
        isSweepingTokens = true
        let box = NIOLoopBound(self, eventLoop: node.loop)
        node.loop.scheduleTask(in: Self.tokenSweepInterval) {
            box.value.isSweepingTokens = false
            box.value.closeExpired()
            box.value.sweepTokens()
        }
    }

    // MARK: - Requests

    /// The read itself only waits until everything before it is applied here.
    func listTokens(_ shape: PendingRead.Shape, _ origin: RequestOrigin) {
        submit(PendingRead(origin: origin, query: .get(TokenTrust.prefix), shape: shape))
    }

    func addTokenRoot(_ body: Aspen_Client_V1_AddTokenRootRequest, _ origin: RequestOrigin) {
        guard let root = EndpointID(bytes: body.root) else { return origin.fail(Self.noRoot) }
        guard let trust, trust.roots.count < TokenLimits.rootsMax || trust.roots[root] != nil else {
            return origin.fail(
                AspenError(
                    .resourceExhausted,
                    "a cluster trusts at most \(TokenLimits.rootsMax) roots: remove one first"))
        }
        let key = TokenTrust.key(ofRoot: root)
        let secret = secretBytes(TokenTrust.rootSecretBytes)
        change(
            Transaction(
                compares: [Compare(key: key, target: .exists(false))],
                success: [.put(key: key, value: secret)]), .addTokenRoot, origin)
    }

    func removeTokenRoot(
        _ body: Aspen_Client_V1_RemoveTokenRootRequest, _ origin: RequestOrigin
    ) {
        guard let root = EndpointID(bytes: body.root) else { return origin.fail(Self.noRoot) }
        change(
            Transaction(success: [.delete(key: TokenTrust.key(ofRoot: root))]), .removeTokenRoot,
            origin)
    }

    private static let noRoot = AspenError(
        .invalidArgument, "a root is an Ed25519 public key of 32 bytes")

    func revokeToken(_ body: Aspen_Client_V1_RevokeTokenRequest, _ origin: RequestOrigin) {
        guard let id = TokenID(bytes: body.id) else {
            return origin.fail(AspenError(.invalidArgument, "a token's id has 16 bytes"))
        }
        let revoked = trust?.revoked ?? [:]
        let now = wallSeconds()
        let old = revoked.filter { $0.value > 0 && $0.value + Self.prunedAfter < now }.keys.sorted()
            .prefix(Self.prunedAtOnceMax)
        guard revoked.count - old.count < TokenLimits.revocationsMax || revoked[id] != nil else {
            return origin.fail(
                AspenError(
                    .resourceExhausted,
                    "a cluster remembers at most \(TokenLimits.revocationsMax) revocations: remove "
                        + "the root (`aspen-cli cluster trust-root --remove`) and begin with a new one"
                ))
        }
        var operations: [Operation] = [
            .put(
                key: TokenTrust.key(ofRevoked: id),
                value: TokenTrust.value(expires: min(body.expires, .max / 2)))
        ]
        for pruned in old where pruned != id {
            operations.append(.delete(key: TokenTrust.key(ofRevoked: pruned)))
        }
        change(Transaction(success: operations), .revokeToken, origin)
    }

    /// Unlike clients' own transactions it may touch reserved keys.
    private func change(_ transaction: Transaction, _ kind: WriteKind, _ origin: RequestOrigin) {
        let grows = transaction.grows
        if let refusal = node.space.refusal(grows: grows) { return origin.fail(refusal) }
        submit(.transaction(transaction, nil), kind, grows: grows, origin)
    }

    var listedRoots: WireResponse {
        var body = Aspen_Client_V1_ListTokenRootsResponse()
        body.roots = (trust ?? TokenTrust()).roots.keys.sorted().map { Data($0.bytes) }
        return WireResponse(.listTokenRoots(body))
    }

    var listedRevocations: WireResponse {
        var body = Aspen_Client_V1_ListRevokedTokensResponse()
        body.tokens = (trust ?? TokenTrust()).revoked.sorted { $0.key < $1.key }.map {
            id, expires in
            var revoked = Aspen_Client_V1_ListRevokedTokensResponse.Revoked()
            revoked.id = Data(id.bytes)
            revoked.expires = expires
            return revoked
        }
        return WireResponse(.listRevokedTokens(body))
    }
}

extension WireRequest {
    /// The sessions it names, as this cluster knows them.
    mutating func unveil(_ veil: SessionVeil) {
        switch request {
        case .writeKey(var body) where body.hasSession:
            body.session.session = veil.unveil(body.session.session)
            request = .writeKey(body)
        case .deleteKey(var body) where body.hasSession:
            body.session.session = veil.unveil(body.session.session)
            request = .deleteKey(body)
        case .transaction(var body) where body.hasSession:
            body.session.session = veil.unveil(body.session.session)
            request = .transaction(body)
        case .grantLease(var body) where body.hasSession:
            body.session.session = veil.unveil(body.session.session)
            request = .grantLease(body)
        case .revokeLease(var body) where body.hasSession:
            body.session.session = veil.unveil(body.session.session)
            request = .revokeLease(body)
        case .keepSessionAlive(var body):
            body.session = veil.unveil(body.session)
            request = .keepSessionAlive(body)
        case .closeSession(var body):
            body.session = veil.unveil(body.session)
            request = .closeSession(body)
        default: break
        }
    }
}

extension WireResponse {
    mutating func veil(_ veil: SessionVeil) {
        guard case .openSession(var body)? = response else { return }
        body.session = veil.veil(body.session)
        response = .openSession(body)
    }
}
