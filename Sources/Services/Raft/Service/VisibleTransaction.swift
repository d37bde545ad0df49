// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes
import KVCore

/// A client's transaction as it is proposed: ranges to be deleted are taken apart around the keys that
/// clients do not see, for the state machine makes no difference between keys.
struct VisibleTransaction {
    private(set) var transaction: Transaction
    /// What its result must be put together by; nil: nothing was taken apart.
    private(set) var pieces: OperationPieces?

    /// - Throws: `permissionDenied` if it names a reserved key, or a range of nothing else;
    ///   `invalidArgument`.
    init(_ asked: Transaction) throws(AspenError) {
        if let refusal = asked.validate() { throw AspenError(refusal.code, refusal.message) }
        transaction = asked
        guard asked.touchesReservedNamespace else { return }
        let (success, failure) = (
            try Self.takeApart(asked.success), try Self.takeApart(asked.failure)
        )
        transaction.success = success.operations
        transaction.failure = failure.operations
        guard !transaction.touchesReservedNamespace else { throw ClientService.isReserved }
        let countMax = Limits.transactionOperationsMax
        guard transaction.success.count <= countMax, transaction.failure.count <= countMax else {
            throw AspenError(
                .invalidArgument,
                "a transaction has at most \(countMax) operations, and a range to be deleted with "
                    + "keys before and behind _sys/ counts as two")
        }
        pieces = OperationPieces(success: success.pieces, failure: failure.pieces)
    }

    private static func takeApart(
        _ operations: [Operation]
    ) throws(AspenError) -> (operations: [Operation], pieces: [Int]) {
        var apart: [Operation] = []
        var pieces: [Int] = []
        for operation in operations {
            guard case .deleteRange(let from, let to) = operation,
                ReservedNamespace.overlaps(from: from, to: to)
            else {
                apart.append(operation)
                pieces.append(1)
                continue
            }
            let visible = KeyRange(from: from, to: to).excluding(prefix: ReservedNamespace.prefix)
            guard !visible.isEmpty else { throw ClientService.isReserved }
            apart += visible.map { .deleteRange(from: $0.from, to: $0.to) }
            pieces.append(visible.count)
        }
        return (apart, pieces)
    }
}

/// Into how many operations each one was taken apart.
struct OperationPieces {
    var success: [Int]
    var failure: [Int]

    /// One result an operation that was asked for. Of another number of results, as of an earlier
    /// request under the same number of a session, nothing is known: they stay as they are.
    func joined(_ result: CommandResult) -> CommandResult {
        guard case .transaction(let succeeded, let revision, let results) = result else {
            return result
        }
        let pieces = succeeded ? success : failure
        guard pieces.reduce(0, +) == results.count else { return result }
        var joined: [OperationResult] = []
        var next = 0
        for count in pieces {
            let parts = results[next..<next + count]
            next += count
            joined.append(count == 1 ? parts[parts.startIndex] : Self.sum(parts))
        }
        return .transaction(succeeded: succeeded, revision: revision, results: joined)
    }

    private static func sum(_ parts: ArraySlice<OperationResult>) -> OperationResult {
        let counts = parts.map { part in
            if case .deleted(let count) = part { count } else { 0 as UInt64 }
        }
        return .deleted(count: counts.reduce(0, +))
    }
}
