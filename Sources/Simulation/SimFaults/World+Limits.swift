// SPDX-License-Identifier: GPL-2.0-or-later

import AspenMachine
import AspenTypes
import KVCore
import RaftCore

/// Requests that go exactly as far as is allowed, or one step further. What programs have as a constant
/// the scenario may have lowered: see `KVBounds`.
extension World {
    func goToLimit(_ client: SimClient) {
        switch limitRandom.uniform(0..<9) {
        case 0: transact([.put(key: longKey, value: drawValue())], client)
        case 1: transact([.delete(key: longKey), .get(key: neighbour)], client)
        case 2: transact([.put(key: neighbour, value: drawValue())], client)
        case 3: sendUnchecked([.put(key: longKey + [0], value: [])], client)
        case 4: transact([.deleteRange(from: longKey, to: longKey + [0])], client)
        case 5: removeRanges(client)
        case 6: transact((0..<6).map { .get(key: Self.key($0)) } + [.get(key: longKey)], client)
        case 7: gatherUnderLease(client)
        default:
            let extra = limitRandom.uniform(0..<2)
            let count = Limits.transactionOperationsMax + extra
            let removals = [Operation](repeating: .delete(key: neighbour), count: count)
            if extra == 0 { transact(removals, client) } else { sendUnchecked(removals, client) }
        }
    }

    private static func key(_ number: Int) -> [UInt8] { Array("txn-\(number)".utf8) }

    /// As long as a key may be.
    private var longKey: [UInt8] {
        let start = Self.key(4)
        return start + [UInt8](repeating: 0x2d, count: Limits.keyBytesMax - start.count)
    }

    /// No key lies between this one and the key that it begins with.
    private var neighbour: [UInt8] { Self.key(3) + [0] }

    private func transact(_ operations: [Operation], _ client: SimClient) {
        send(.transaction(Transaction(success: operations), nextRequest(client)), client)
    }

    /// What nobody can understand is refused, by all replicas alike.
    private func sendUnchecked(_ operations: [Operation], _ client: SimClient) {
        let command = Command.transaction(Transaction(success: operations), nil)
        begin(client, .init(purpose: .command(command), payload: CommandCodec.encode(command)))
    }

    /// Several ranges count together; what the transaction itself has put there counts, too.
    private func removeRanges(_ client: SimClient) {
        let cut = Self.key(limitRandom.uniform(1..<5))
        transact(
            [
                .put(key: neighbour, value: drawValue()),
                .deleteRange(from: Self.key(0), to: cut), .deleteRange(from: cut, to: nil),
                .put(key: Self.key(2), value: drawValue()),
            ], client)
    }

    private func gatherUnderLease(_ client: SimClient) {
        guard let lease = client.leases.last else {
            return send(
                .grantLease(id: .none, ttlMilliseconds: 1500, nextRequest(client)), client)
        }
        let count = limitRandom.uniform(1..<8)
        transact(
            (0..<count).map {
                .put(key: Array("lease-\($0)".utf8), value: [2], lease: lease)
            }, client)
    }
}
