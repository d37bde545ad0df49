// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

/// Why a command is refused before it touches anything.
package struct Refusal: Error, Equatable, Sendable {
    package var code: AspenErrorCode
    package var message: String

    package init(_ code: AspenErrorCode, _ message: String) {
        self.code = code
        self.message = message
    }
}

extension Transaction {
    /// The rules that need no state. A daemon checks them before it proposes, so that a hopeless
    /// request never becomes a log entry; the state machine checks them again, because entries
    /// outlive programs.
    package func validate() -> Refusal? {
        let max = Limits.transactionOperationsMax
        guard compares.count <= max, success.count <= max, failure.count <= max else {
            return Refusal(
                .invalidArgument, "a transaction has at most \(max) compares and operations")
        }
        for compare in compares {
            if let refusal = compare.validate() { return refusal }
        }
        for operation in success {
            if let refusal = operation.validate() { return refusal }
        }
        for operation in failure {
            if let refusal = operation.validate() { return refusal }
        }
        // Small transactions, the common case, are not measured.
        guard byteCountEstimate <= KVLimits.commandBytesMax else {
            return Refusal(
                .invalidArgument,
                "a transaction has at most \(KVLimits.commandBytesMax) bytes of keys and values")
        }
        return nil
    }

    /// Not less than the encoded size.
    private var byteCountEstimate: Int {
        var count = 64
        for compare in compares {
            count += 32 + compare.key.count
            if case .value(let value) = compare.target { count += value.count }
        }
        for operation in success { count += operation.byteCountEstimate }
        for operation in failure { count += operation.byteCountEstimate }
        return count
    }
}

extension Compare {
    fileprivate func validate() -> Refusal? {
        if let refusal = refuse(key: key) { return refusal }
        switch target {
        case .value(let value): return refuse(value: value)
        case .exists:
            guard relation == .equal || relation == .notEqual else {
                return Refusal(.invalidArgument, "existence is neither less nor greater")
            }
            return nil
        case .version, .createRevision, .modRevision: return nil
        }
    }
}

extension Operation {
    fileprivate func validate() -> Refusal? {
        switch self {
        case .put(let key, let value, _): refuse(key: key) ?? refuse(value: value)
        case .delete(let key), .get(let key): refuse(key: key)
        case .deleteRange(let from, let to): refuse(bound: from) ?? to.flatMap(refuse(bound:))
        }
    }

    fileprivate var byteCountEstimate: Int {
        switch self {
        case .put(let key, let value, let lease):
            (lease == .none ? 16 : 24) + key.count + value.count
        case .delete(let key), .get(let key): 16 + key.count
        case .deleteRange(let from, let to): 16 + from.count + (to?.count ?? 0)
        }
    }
}

private func refuse(key: [UInt8]) -> Refusal? {
    if key.isEmpty { return Refusal(.invalidArgument, "a key has at least one byte") }
    guard key.count <= Limits.keyBytesMax else {
        return Refusal(
            .invalidArgument,
            "the key has \(key.count) bytes; at most \(Limits.keyBytesMax) are allowed")
    }
    return nil
}

private func refuse(bound: [UInt8]) -> Refusal? {
    guard bound.count <= KVLimits.boundBytesMax else {
        return Refusal(
            .invalidArgument,
            "the range bound has \(bound.count) bytes; at most \(KVLimits.boundBytesMax) are allowed"
        )
    }
    return nil
}

private func refuse(value: [UInt8]) -> Refusal? {
    guard value.count <= Limits.valueBytesMax else {
        return Refusal(
            .invalidArgument,
            "the value has \(value.count) bytes; at most \(Limits.valueBytesMax) are allowed")
    }
    return nil
}
