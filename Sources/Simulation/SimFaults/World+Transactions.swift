// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore

/// Clients that change several keys at once on conditions, and read several of them at one revision.
extension World {
    func drawKey() -> [UInt8] { Array("txn-\(kvRandom.uniform(0..<6))".utf8) }

    // MARK: - Transactions

    func transact(_ client: SimClient) {
        if scenario.hasMischief, let command = drawMischief(client) { return send(command, client) }
        if scenario.reachesLimits, limitRandom.chance(1, in: 5) { return goToLimit(client) }
        if client.session != nil, kvRandom.chance(1, in: 30) { return endSession(client) }
        if kvRandom.chance(1, in: 60) { return sendGarbage(client) }
        let key = drawKey()
        let transaction: Transaction
        switch kvRandom.uniform(0..<6) {
        case 0, 1: transaction = swap(client, key)
        case 2: transaction = compareAndDelete(client, key)
        case 3: transaction = move(key)
        case 4: transaction = Transaction(success: [.deleteRange(from: key, to: key + [0xff])])
        default: transaction = several(client)
        }
        send(.transaction(transaction, nextRequest(client)), client)
    }

    /// A command that was cut short: refused, by all replicas alike.
    private func sendGarbage(_ client: SimClient) {
        let command = Command.transaction(Transaction(success: [.delete(key: drawKey())]), nil)
        let payload = CommandCodec.encode(command).dropLast(kvRandom.uniform(1..<4))
        begin(client, .init(purpose: .command(command), payload: Array(payload)))
    }

    func send(_ command: Command, _ client: SimClient) {
        begin(client, .init(purpose: .command(command), payload: payload(command)))
    }

    /// What it was doing under the old one may still be on its way somewhere.
    private func endSession(_ client: SimClient) {
        guard let session = client.session else { return }
        client.session = nil
        send(.closeSession(session), client)
    }

    func drawValue() -> [UInt8] {
        SimValue.encode(takeNumber(), bytesMax: scenario.valueBytesMax)
    }

    /// Compare and swap, by whatever can be compared.
    private func swap(_ client: SimClient, _ key: [UInt8]) -> Transaction {
        Transaction(
            compares: [compare(key, client.seen[key])],
            success: [.put(key: key, value: drawValue()), .get(key: key)],
            failure: [.get(key: key)])
    }

    private func compare(_ key: [UInt8], _ known: KeyValue?) -> Compare {
        guard let known else { return Compare(key: key, target: .exists(false)) }
        switch kvRandom.uniform(0..<7) {
        case 0: return Compare(key: key, target: .version(known.version))
        case 4:
            let relations = [Compare.Relation.notEqual, .less, .greater]
            return Compare(
                key: key, target: .value(known.value),
                relation: relations[kvRandom.uniform(0..<relations.count)])
        case 5:
            return Compare(
                key: key, target: .version(known.version),
                relation: kvRandom.chance(1, in: 2) ? .notEqual : .greater)
        case 1: return Compare(key: key, target: .modRevision(known.modRevision))
        case 2: return Compare(key: key, target: .createRevision(known.createRevision))
        case 3:
            return Compare(
                key: key, target: .modRevision(known.modRevision.next), relation: .less)
        default: return Compare(key: key, target: .value(known.value))
        }
    }

    private func compareAndDelete(_ client: SimClient, _ key: [UInt8]) -> Transaction {
        let known = client.seen.removeValue(forKey: key)
        let target = known.map { Compare.Target.value($0.value) } ?? .exists(true)
        return Transaction(
            compares: [Compare(key: key, target: target)], success: [.delete(key: key)],
            failure: [.get(key: key)])
    }

    /// Two keys, of which one at most is there at any revision.
    private func move(_ key: [UInt8]) -> Transaction {
        let other = key + Array("/moved".utf8)
        return Transaction(
            compares: [Compare(key: key, target: .exists(true))],
            success: [.delete(key: key), .put(key: other, value: drawValue())],
            failure: [.delete(key: other), .put(key: key, value: drawValue())])
    }

    private func several(_ client: SimClient) -> Transaction {
        let operations = (0..<kvRandom.uniform(2..<6)).map { _ -> Operation in
            let key = drawKey()
            switch kvRandom.uniform(0..<5) {
            case 0: return .delete(key: key)
            case 1: return .get(key: key)
            default: return .put(key: key, value: drawValue())
            }
        }
        let conditions = (0..<kvRandom.uniform(0..<3)).map { _ -> Compare in
            let key = drawKey()
            return compare(key, client.seen[key])
        }
        return Transaction(
            compares: conditions, success: operations, failure: [.get(key: drawKey())])
    }

    // MARK: - Reads

    func look(_ client: SimClient) {
        var read: SimRead
        if kvRandom.chance(1, in: 2) {
            var keys = (0..<kvRandom.uniform(2..<6)).map { _ in drawKey() }
            keys.append(SimValue.key(kvRandom.uniform(0..<scenario.keys)))
            read = SimRead(.keys(keys))
        } else {
            let prefix = kvRandom.chance(1, in: 4) ? "" : "txn-"
            let range = KeyRange(prefix: Array(prefix.utf8))
            read = SimRead(
                .range(from: range.from, to: range.to, limit: kvRandom.uniform(1..<8)))
        }
        if lookRandom.chance(1, in: 5) {
            let key = Array("txn-\(lookRandom.uniform(0..<6))".utf8)
            read = SimRead(.history(key, limit: lookRandom.uniform(1..<10)))
        }
        if lookRandom.chance(1, in: 3) {
            read.staleness = lookRandom.uniform(.milliseconds(1), scenario.electionTimeoutMax * 2)
        }
        begin(client, .init(purpose: .look, payload: [], read: read, isRead: true))
    }

    /// A range goes on page by page, at the revision of the first.
    func learn(_ client: SimClient, _ read: SimRead, _ answer: ClientAnswer) {
        guard case .read(let page) = answer else { return }
        for case let entry? in page.entries { client.seen[entry.key] = entry }
        client.next = read.rest(after: page)
    }

    /// The next page of what it reads, if there is one.
    func lookOn(_ client: SimClient) -> Bool {
        guard let read = client.next else { return false }
        client.next = nil
        begin(client, .init(purpose: .look, payload: [], read: read, isRead: true))
        return true
    }
}
