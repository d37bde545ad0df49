// SPDX-License-Identifier: GPL-2.0-or-later

import AspenTypes

// The limits that the server enforces too: checked here first, with the same code, so that a
// mistake costs no round trip.
extension AspenClient {
    func checkKey(_ key: some Collection<UInt8>) throws(AspenError) {
        guard !key.isEmpty else { throw AspenError(.invalidArgument, "a key may not be empty") }
        guard key.count <= Limits.keyBytesMax else {
            throw AspenError(
                .invalidArgument,
                "the key has \(key.count) bytes, more than the \(Limits.keyBytesMax) allowed: "
                    + "choose a shorter one")
        }
    }

    func checkValue(_ value: some Collection<UInt8>) throws(AspenError) {
        guard value.count <= Limits.valueBytesMax else {
            throw AspenError(
                .invalidArgument,
                "the value has \(value.count) bytes, more than the \(Limits.valueBytesMax) "
                    + "(1 MiB) allowed: split it over several keys")
        }
    }

    func checkPrefix(_ prefix: some Collection<UInt8>, limit: Int) throws(AspenError) {
        guard prefix.count <= Limits.keyBytesMax else {
            throw AspenError(
                .invalidArgument,
                "the prefix has \(prefix.count) bytes, more than any key (\(Limits.keyBytesMax))")
        }
        guard (1...Limits.batchCountMax).contains(limit) else {
            throw AspenError(
                .invalidArgument,
                "a page holds 1 to \(Limits.batchCountMax) keys, not \(limit): follow the pages")
        }
    }

    func checkTransaction(
        _ compares: [Compare], _ success: [Operation], _ failure: [Operation]
    ) throws(AspenError) {
        let most = max(compares.count, success.count, failure.count)
        guard most <= Limits.transactionOperationsMax else {
            throw AspenError(
                .invalidArgument,
                "a transaction may have \(Limits.transactionOperationsMax) compares and as many "
                    + "operations, this one has \(most): split it")
        }
        for compare in compares {
            try checkKey(compare.key)
            if case .value(let value) = compare.target { try checkValue(value) }
        }
        for operation in success + failure {
            if let key = operation.key { try checkKey(key) }
            if case .put(_, let value, _) = operation { try checkValue(value) }
        }
    }
}
