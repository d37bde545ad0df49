// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import ProposalCore
import RaftCore
import SimKit

/// What clients do, and what they make of the answers.
extension World {
    // MARK: - Beginning

    /// The client is idle and does its next thing.
    func act(_ client: SimClient) {
        if client.isRetrying {
            client.isRetrying = false
            attempt(client)
            return
        }
        guard client.pending == nil, !client.isDone else { return }
        if client.hasSession, client.session == nil {
            begin(
                client,
                .init(
                    purpose: .openSession, payload: payload(.openSession)))
            return
        }
        if lookOn(client) { return }
        if part == .healing {
            guard let errand = client.errands.first else {
                client.isDone = true
                return
            }
            switch errand {
            case .put(let node):
                client.node = node
                let key = workRandom.uniform(0..<scenario.keys)
                begin(client, call: .put(takeValue()), key: key, isErrand: true)
            case .get(let node, let key):
                client.node = node
                begin(client, call: .get, key: key, isErrand: true)
            }
            return
        }
        if workRandom.chance(1, in: 4) { client.node = workRandom.uniform(0..<nodes.count) }
        if let command = drawLeaseCommand(client) {
            return begin(
                client,
                .init(
                    purpose: .command(command), payload: payload(command)))
        }
        if part == .trouble, kvRandom.uniform(0..<100) < scenario.transactionPercent {
            return kvRandom.chance(2, in: 5) ? look(client) : transact(client)
        }
        let (key, call) = drawCall(client)
        begin(client, call: call, key: key)
    }

    private func drawCall(_ client: SimClient) -> (Int, ClientOperation.Call) {
        let key = workRandom.uniform(0..<scenario.keys)
        var dice = workRandom.uniform(0..<100)
        if dice < scenario.readPercent { return (key, .get) }
        dice -= scenario.readPercent
        if dice < scenario.swapPercent {
            return (key, .swap(expected: client.lastSeen[key], new: takeValue()))
        }
        dice -= scenario.swapPercent
        return (key, dice < scenario.deletePercent ? .delete : .put(takeValue()))
    }

    private func takeValue() -> UInt64 { takeNumber() }

    func takeNumber() -> UInt64 {
        defer { nextValue += 1 }
        return nextValue
    }

    private func begin(
        _ client: SimClient, call: ClientOperation.Call, key: Int, isErrand: Bool = false
    ) {
        var request: SessionRequest?
        if let session = client.session, call != .get {
            client.requestNumber += 1
            request = SessionRequest(
                session: session, number: client.requestNumber,
                acknowledgedBelow: acknowledgement(client))
        }
        let bytes = SimValue.key(key)
        let operation = ClientOperation(client: client.index, key: key, call: call, begin: step)
        let payload: [UInt8]
        if call == .get {
            payload = []
        } else {
            payload = self.payload(.transaction(transaction(call, key: bytes), request))
        }
        begin(
            client,
            .init(
                purpose: .operation(operation), payload: payload, read: SimRead(.keys([bytes])),
                isRead: call == .get, isErrand: isErrand))
    }

    private func transaction(_ call: ClientOperation.Call, key: [UInt8]) -> Transaction {
        func bytes(_ value: UInt64) -> [UInt8] {
            SimValue.encode(value, bytesMax: scenario.valueBytesMax)
        }
        switch call {
        case .get: return Transaction(success: [.get(key: key)])
        case .put(let value): return Transaction(success: [.put(key: key, value: bytes(value))])
        case .swap(let expected, let new):
            let target = expected.map { Compare.Target.value(bytes($0)) } ?? .exists(false)
            return Transaction(
                compares: [Compare(key: key, target: target)],
                success: [.put(key: key, value: bytes(new))])
        case .delete: return Transaction(success: [.delete(key: key)])
        }
    }

    /// As bytes, which must say the same.
    func payload(_ command: Command) -> [UInt8] {
        let bytes = CommandCodec.encode(command)
        if (try? CommandCodec.decode(bytes)) != command {
            misunderstanding = Violation(
                .safety, "client protocol", "\(command) is understood as something else")
        }
        return bytes
    }

    func begin(_ client: SimClient, _ pending: SimClient.Pending) {
        client.pending = pending
        attempt(client)
    }

    private func attempt(_ client: SimClient) {
        guard var pending = client.pending else { return }
        pending.attempts += 1
        client.pending = pending
        client.attempt += 1
        let body: ClientRequest.Body =
            pending.isRead ? .read(pending.read) : .propose(pending.payload)
        let request = ClientRequest(
            client: client.index, attempt: client.attempt, node: client.node, body: body)
        schedule(
            .request(request), after: workRandom.uniform(.microseconds(20), .microseconds(300)))
        schedule(
            .requestTimeout(client: client.index, attempt: client.attempt),
            after: requestTimeout(client))
    }

    // MARK: - At the node

    func take(_ request: ClientRequest, _ shell: RaftShell) throws(Violation) {
        switch request.body {
        case .propose(let payload):
            if refusesAtDoor(payload, shell) {
                return answer(
                    request, .result(.failed(code: .unsupportedVersion, message: "not yet")))
            }
            try follow(payload, for: request, shell)
        case .read(let read):
            let number = shell.table.takeNumber()
            let clock = shell.clock.reading(at: now)
            if let bound = read.staleness, shell.freshness.holds(within: bound, now: clock) {
                return try answerAtOnce(request, read, shell)
            }
            if let bound = read.staleness, let since = shell.answeredSince, clock - since <= bound {
                throw Violation(
                    .liveness, "stale reads", "n\(shell.node.id) asks others although it need not")
            }
            shell.reads[number] = request
            shell.readsBegan[number] = clock
            shell.asking[number] = clock
            observer.readBegan(shell.index, number: number)
            try feed(shell, .read(ReadID(number)))
        }
    }

    /// No daemon there to take it.
    func refuse(_ request: ClientRequest) { answer(request, .unavailable) }

    func answer(_ request: ClientRequest, _ answer: ClientAnswer) {
        schedule(
            .answer(client: request.client, attempt: request.attempt, answer),
            after: workRandom.uniform(.microseconds(20), .microseconds(300)))
    }

    // MARK: - Back at the client

    func answered(_ client: SimClient, _ attempt: UInt64, _ answer: ClientAnswer) {
        guard attempt == client.attempt, let pending = client.pending else { return }
        switch answer {
        case .unavailable: tryAgain(client)
        case .lost:
            client.pending?.isUntouched = false
            loseTime(client)
            tryAgain(client)
        case .read, .compacted: finish(client, pending, answer)
        case .result(let result): finish(client, pending, .result(result))
        }
    }

    func timedOut(_ client: SimClient, _ attempt: UInt64) {
        guard attempt == client.attempt, client.pending != nil else { return }
        client.pending?.isUntouched = false
        loseTime(client)
        tryAgain(client)
    }

    /// Clients that never wait longer than a slow cluster takes are a load without an end.
    private func loseTime(_ client: SimClient) {
        if part == .healing { client.pending?.timeouts += 1 }
    }

    /// How long a client waits for what it asks now.
    func requestTimeout(_ client: SimClient) -> Duration {
        scenario.requestTimeout * (1 << min(client.pending?.timeouts ?? 0, 4))
    }

    private func tryAgain(_ client: SimClient) {
        guard let pending = client.pending else { return }
        // No answer counts any more for the attempt given up.
        client.attempt += 1
        let isRepeatable = pending.isRead || pending.isUntouched || client.session != nil
        let isPatient = part == .healing || workRandom.chance(9, in: 10)
        if case .operation(let operation) = pending.purpose, !isRepeatable || !isPatient {
            giveUp(client, operation, pending)
            return
        }
        client.node = nextNode(client)
        schedule(
            .act(client: client.index),
            after: workRandom.uniform(.milliseconds(5), scenario.heartbeatInterval))
        client.isRetrying = true
    }

    private func nextNode(_ client: SimClient) -> Int {
        // In the end each member has to serve, whoever leads.
        guard part == .healing, let members = finalMembers else {
            return workRandom.uniform(0..<nodes.count)
        }
        return members.contains(client.node)
            ? client.node : members[workRandom.uniform(0..<members.count)]
    }

    private func giveUp(
        _ client: SimClient, _ operation: ClientOperation, _ pending: SimClient.Pending
    ) {
        client.pending = nil
        if !pending.isUntouched, !pending.isRead {
            statistics.unknown += 1
            history.append(operation)
        }
        // In the end somebody has to get through: the errand stays.
        schedule(
            .act(client: client.index),
            after: workRandom.uniform(.milliseconds(1), scenario.thinkTimeMax))
    }

    private func finish(
        _ client: SimClient, _ pending: SimClient.Pending, _ answer: ClientAnswer
    ) {
        client.pending = nil
        client.attempt += 1
        statistics.finished += 1
        defer {
            schedule(
                .act(client: client.index),
                after: workRandom.uniform(.milliseconds(1), scenario.thinkTimeMax))
        }
        switch pending.purpose {
        case .openSession:
            if case .result(.sessionOpened(let session)) = answer {
                client.session = session
                client.requestNumber = 0
            }
        case .command(let command): learn(client, command, answer)
        case .look: learn(client, pending.read, answer)
        case .operation(var operation):
            switch Self.understand(operation.call, answer) {
            case .answer(let understood, let revision):
                operation.end = step
                operation.answer = understood
                operation.revision = revision
                statistics.answered += 1
                remember(client, operation)
                history.append(operation)
                if pending.isErrand { client.errands.removeFirst() }
            case .sessionExpired:
                client.session = nil
                if !pending.isUntouched { history.append(operation) }
            case .nonsense(let text):
                misunderstanding = Violation(
                    .safety, "client protocol", "\(operation.call) was answered \(text)")
            }
        }
    }

    private func remember(_ client: SimClient, _ operation: ClientOperation) {
        switch (operation.call, operation.answer) {
        case (_, .value(let value, _)): client.lastSeen[operation.key] = value
        case (.put(let value), _), (.swap(_, let value), .swapped(true)):
            client.lastSeen[operation.key] = value
        case (.delete, _): client.lastSeen[operation.key] = nil
        default: break
        }
    }

    private enum Understanding {
        case answer(ClientOperation.Answer, revision: UInt64?)
        case sessionExpired
        case nonsense(String)
    }

    private static func understand(
        _ call: ClientOperation.Call, _ answer: ClientAnswer
    ) -> Understanding {
        switch (call, answer) {
        case (.get, .read(let page)):
            let found = page.entries.first ?? nil
            let value = found.flatMap { SimValue.decode($0.value) }
            return .answer(.value(value, version: found?.version ?? 0), revision: nil)
        case (_, .result(.failed(code: .sessionExpired, message: _))): return .sessionExpired
        case (_, .result(.transaction(let succeeded, let revision, let results))):
            switch (call, results.first) {
            case (.put, .put(let previous)):
                return .answer(.stored(previousVersion: previous), revision: revision.rawValue)
            case (.swap, _):
                return .answer(.swapped(succeeded), revision: succeeded ? revision.rawValue : nil)
            case (.delete, .deleted(let count)):
                return .answer(.deleted(count > 0), revision: count > 0 ? revision.rawValue : nil)
            default: return .nonsense("\(answer)")
            }
        default: return .nonsense("\(answer)")
        }
    }
}
